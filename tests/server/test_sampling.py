from lit_fedbabu.server.sampling import participants
from tests.support import (
    tiny_config,
)


def test_sampling_is_without_replacement_and_by_seed_and_round():
    config = tiny_config(num_clients=100, fraction_train=0.1)
    draws = [participants(config, server_round) for server_round in range(1, 81)]
    assert all(len(set(draw)) == 10 for draw in draws)
    assert draws[0] != draws[1] and draws[0] == participants(config, 1)
    assert set().union(*draws) == set(range(100))
    for fraction, count in ((0.001, 1), (0.29, 29), (1.0, 100)):
        config = tiny_config(num_clients=100, fraction_train=fraction)
        assert len(participants(config, 1)) == count
