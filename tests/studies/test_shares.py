"""How runs share a machine: all of its workers have work, and all of them fit into memory."""

import pytest

from lit_fedbabu.studies import conduct, shares, work
from lit_fedbabu.studies.plan import read_study
from lit_fedbabu.workers.pool import Pool
from lit_fedbabu.workers.worker import Warm, threads
from tests.support import NARROW, files_that_decide, tiny, tiny_config, write_study

WORKERS = [{"CUDA_VISIBLE_DEVICES": str(number)} for number in range(8)]


@pytest.mark.parametrize(
    ("runs", "machines", "sizes"),
    [(20, 1, [1] * 8), (8, 1, [1] * 8), (3, 1, [3, 3, 2]), (1, 1, [8]), (0, 1, [8]), (8, 4, [4, 4]), (2, 4, [8])],
)
def test_every_worker_is_dealt_once_to_as_many_runs_as_there_are(runs, machines, sizes):
    dealt = shares.shares(WORKERS, runs, machines)
    assert [len(each) for each in dealt] == sizes
    assert sorted(each["CUDA_VISIBLE_DEVICES"] for share in dealt for each in share) == list("01234567")
    assert [share[0] for share in dealt] == WORKERS[: len(dealt)], "whatever the runs, a place has the same first"


def test_no_more_workers_than_fit_into_memory(tmp_path, monkeypatch, capsys):
    study = read_study(write_study(tmp_path)[0])
    monkeypatch.setattr(shares, "worker_environments", lambda config: WORKERS)
    monkeypatch.setattr(shares, "available_memory", lambda: 1000)
    assert [len(shares.workers_of(study, need)) for need in (0, 100, 300, 400, 9999)] == [8, 8, 3, 2, 1]
    sizes = []

    class NoPool:
        """Notes how many workers it is to have; all runs are done elsewhere."""

        def __init__(self, warm, size, *arguments):
            sizes.append(size)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def answers(self, function, requests):
            sizes.append([len(share) for share in requests[0][1]])
            return ((place, work.ELSEWHERE) for place in range(len(requests)))

    monkeypatch.setattr(conduct, "Pool", NoPool)
    with Warm("never:started") as warm:
        conduct._work(study, warm, plain=True, need=300, is_worker=True)
        assert "memory is free for 3 workers of about 0.0 GiB each" in capsys.readouterr().out
        conduct._work(study, warm, plain=True, need=10, is_worker=True, machines=2)
    assert sizes == [3, [1, 1, 1], 2, [4, 4]]
    assert "memory" not in capsys.readouterr().out


def test_the_need_of_a_run_is_of_its_largest_batch():
    layer = 4 * (3 * 32 * 32 + 8 * 8 * 8)  # bytes that go into the convolution for an image, and that come out
    experiment = tiny(model_name=NARROW, test_batch_size=1000, batch_size=2)
    weights = sum(value.numel() * value.element_size() for value in experiment.new_module().model.state_dict().values())
    least = shares.OWN_MB * 2**20 + weights * (shares.COPIES + experiment.config.clients_per_round)
    _, (largest, smallest) = experiment.task.batches(False)[:2]
    assert largest > smallest and shares.need_of(experiment) == least + largest * layer
    together = tiny(model_name=NARROW, test_batch_size=1, batch_size=2, cohort_size=1000)
    assert shares.need_of(together) > least + 2 * 2 * 1000 * layer, "and all that is in memory at once for gradients"


@pytest.mark.slow
def test_a_run_with_several_workers_has_the_same_bytes(tmp_path, federate, monkeypatch):
    config = tiny_config(model_name=NARROW, algorithm="fedper", output_dir=str(tmp_path), run_name="ours").pinned()
    asked = []

    class Watched(Pool):
        def answers(self, function, requests, *arguments):
            asked.append(len(self._workers))
            return super().answers(function, requests, *arguments)

    monkeypatch.setattr(work, "Pool", Watched)
    monkeypatch.setenv(work.PLACE, "1")
    with Warm(work.PREPARE, environment=threads(1)) as warm:
        warm.start()
        assert work.work(config, [[{}], [{}, {}]]) == work.DONE
    assert set(asked) == {2}
    whole, _ = federate(tiny_config(model_name=NARROW, algorithm="fedper"))
    assert files_that_decide(tmp_path / "ours") == files_that_decide(whole)
    assert not list(tmp_path.glob("*.claim")) and not list(tmp_path.glob("*.log"))


def test_every_worker_has_a_share_also_of_the_runs_that_other_machines_have_left(tmp_path, monkeypatch):
    """As where they are gone: its two workers then do two runs, which would have been one of this machine."""
    looks: list[int] = []

    class Asked:
        def __init__(self, warm, size, environments, *_):
            self.environments = environments

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def answers(self, function, requests):
            looks.append(len(requests))
            for place, (environment, (_, dealt)) in enumerate(zip(self.environments, requests, strict=False)):
                assert dealt[int(environment[work.PLACE])], "each does a run at once"
                yield place, work.DONE if len(looks) == 3 else work.ELSEWHERE
            for place in range(len(self.environments), len(requests)):
                yield place, work.DONE

    monkeypatch.setattr("lit_fedbabu.studies.show.Shown.ended", lambda self, run, how: None)
    monkeypatch.setattr(conduct, "Pool", Asked)
    monkeypatch.setattr(conduct, "LOOK_S", 0.0)
    monkeypatch.setattr(shares, "workers_of", lambda study, need=0: WORKERS[:2])
    study = read_study(write_study(tmp_path)[0])
    assert conduct._work(study, None, True, 0, machines=2) == ({}, []) and looks == [4, 2, 2]
