import pytest
import torch

from lit_fedbabu.training import memory


def test_a_memory_is_whole_and_the_round_before_stays_until_it_is_not_needed(tmp_path):
    for server_round in (1, 4, 6):
        memory.keep(tmp_path, 0, server_round, {"head.bias": torch.full((2,), float(server_round))})
    assert memory.recall(tmp_path, 0, 6)["head.bias"].tolist() == [6, 6]
    assert memory.recall(tmp_path, 0, 5)["head.bias"].tolist() == [4, 4]
    with pytest.raises(LookupError, match="client 0 no longer has what it kept in round 3"):
        memory.recall(tmp_path, 0, 3)
    memory.keep(tmp_path, 0, 6, {"head.bias": torch.zeros(2)})
    assert memory.recall(tmp_path, 0, 6)["head.bias"].tolist() == [0, 0]
    assert not list(tmp_path.rglob(".*.safetensors"))
