"""Updates that wait in a file for the end of a round."""

from tempfile import TemporaryFile
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import psutil
import pytest

from lit_fedbabu.aggregation import aggregator
from lit_fedbabu.protocol.wire import ClientUpdate, TrainReply
from lit_fedbabu.server import parked
from lit_fedbabu.training import privacy
from tests.support import files_that_decide, tiny_config


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"algorithm": "scaffold"}, marks=pytest.mark.slow),
        pytest.param({"aggregator": "median"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_is_the_same_if_updates_wait_in_a_file_and_sums_are_made_in_pieces(options, federate, monkeypatch):
    config = tiny_config(num_clients=4, fraction_train=1.0, **options)
    folder, _ = federate(config)
    files = []
    monkeypatch.setattr(parked, "IN_MEMORY", 0)
    monkeypatch.setattr(parked, "LEAST", 1)
    monkeypatch.setattr(aggregator, "AT_ONCE", 7)
    monkeypatch.setattr(privacy, "AT_ONCE", 2**9)
    place = SimpleNamespace(TemporaryFile=lambda **options: files.append(TemporaryFile(**options)) or files[-1])  # noqa: SIM115
    monkeypatch.setattr(parked, "tempfile", place)
    other, _ = federate(config)
    assert len(files) == config.num_server_rounds and files_that_decide(folder) == files_that_decide(other)


def test_updates_in_a_file_are_as_they_came_and_take_no_memory(tmp_path):
    park, numbers = parked.Park(tmp_path), np.random.default_rng(0)
    before = psutil.Process().memory_full_info().uss
    sums, kept = [], []
    for client in range(12):
        arrays = {
            "large": numbers.random((1024, 4096), np.float32),
            "columns": np.asfortranarray(numbers.random((300, 200))),
            "count": np.array(client),
            "none": np.empty((0, 3)),
        }
        sums.append([crc32(array.tobytes()) for array in arrays.values()])
        (update,) = park(TrainReply([ClientUpdate(client, 1, 0.0, arrays)])).updates
        assert update.arrays["large"].shape == (1024, 4096) and update.arrays["columns"].dtype == np.float64
        kept.append(update)
    del arrays
    assert [list(update.arrays) for update in kept] == [["large", "columns", "count", "none"]] * 12
    assert [[crc32(array.tobytes()) for array in update.arrays.values()] for update in kept] == sums
    assert psutil.Process().memory_full_info().uss - before < 6 * 2**24  # of twelve, three stay in memory
    kept[-1].arrays["large"][:] = 0
    assert crc32(kept[-1].arrays["large"].tobytes()) == sums[-1][0]  # a change is nobody else's
    assert not [*tmp_path.iterdir()]
