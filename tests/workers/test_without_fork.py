"""A federation where no process can be forked, as on macOS."""

import pytest

from lit_fedbabu import run
from lit_fedbabu.workers import worker
from tests.support import files_that_decide, tiny_config


@pytest.mark.skipif(not worker.FORKS, reason="forks")
def test_a_run_without_fork_has_the_bytes_of_one_with(tmp_path, monkeypatch):
    few = {"num_server_rounds": 1, "num_clients": 2, "fraction_train": 1.0, "num_threads": 2}
    for name, forks in (("forked", True), ("started", False)):
        monkeypatch.setattr(worker, "FORKS", forks)
        run(tiny_config(**few, output_dir=str(tmp_path), run_name=name))
    forked, started = (files_that_decide(tmp_path / name) for name in ("forked", "started"))
    assert forked == started and len(forked) >= 3
