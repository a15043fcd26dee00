import dataclasses
import json
import logging

import pytest
import torch

from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.client import handlers
from lit_fedbabu.client.numpy_client import FedBABUClient
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.learning import trainer
from lit_fedbabu.learning.cohort import LitCohort
from lit_fedbabu.learning.models import MODELS, NORMS
from lit_fedbabu.records import results, run_folder
from lit_fedbabu.tasks.images import learner
from lit_fedbabu.training import client_update
from lit_fedbabu.training.experiment import Experiment
from tests.support import NARROW, tiny, tiny_config

TOGETHER = [name for name, row in ALGORITHMS.items() if row.in_cohorts and not row.pooled]


def ragged(**changes):
    """Five clients of different sizes: other numbers of batches, and other last batches, odd and even."""
    options = {"partitioner": "linear", "num_clients": 5, "num_local_epochs": 2, "num_head_epochs": 1}
    options |= {"model_name": NARROW, "precision": "64-true", "cohort_size": 5}
    experiment = Experiment(tiny_config(**{**options, **changes}))
    config = experiment.config
    sizes = [len(part) for part in experiment.task.partition.train]
    assert len({-(-size // config.batch_size) for size in sizes}) > 3
    assert len({size % config.batch_size for size in sizes}) > 1
    return experiment


def assert_same(found, expected, within=1e-9):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0, atol=within), name


QUICK = {"fedbabu", "fedrep", "ditto", "scaffold", "pfedfda"}


@pytest.mark.parametrize(
    "algorithm",
    [
        *(name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TOGETHER),
        "fedper, pulled",
    ],
)
def test_a_cohort_trains_as_its_clients_do_one_after_another(algorithm, tmp_path, monkeypatch):
    pulled = dataclasses.replace(ALGORITHMS["fedper"], step="proximal")  # towards a head that is each client's own
    monkeypatch.setitem(ALGORITHMS, "fedper, pulled", pulled)
    experiment = ragged(algorithm=algorithm)
    received = experiment.initial_shared()
    for server_round, rate in ((1, 0.05), (2, 0.01)):  # the second one starts from what clients keep
        together = client_update.cohort_update(
            experiment, range(5), server_round, received, rate, tmp_path / "together"
        )
        alone = [
            client_update.client_update(experiment, client, server_round, received, rate, tmp_path / "alone")
            for client in range(5)
        ]
        for (state, count, loss, *_), (expected, count_alone, loss_alone, *_) in zip(together, alone, strict=True):
            assert_same(state, expected)
            assert (count, loss) == (count_alone, pytest.approx(loss_alone, abs=1e-9))
        received = alone[1][0]
    for client in range(5):
        own, expected = (
            client_update.own_module(experiment, client, 2, received, tmp_path / place).model.state_dict()
            for place in ("together", "alone")
        )
        assert_same(own, expected)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "model_name", ["FourConvNet", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name[0] != "F")]
)
def test_every_model_trains_in_a_cohort(model_name, norm):
    experiment = tiny(model_name=model_name, norm=norm, algorithm="fedavg", precision="64-true", batch_size=24)
    received = experiment.initial_shared()
    together = client_update.cohort_update(experiment, [0, 1], 1, received, 0.01)
    for client, (state, *_) in enumerate(together):
        assert_same(state, client_update.client_update(experiment, client, 1, received, 0.01)[0])


@pytest.mark.parametrize("algorithm", ["fedavg", "fedrep"])
def test_a_layer_in_two_places_trains_in_a_cohort_as_alone(algorithm, tmp_path):
    options = {"precision": "64-true", "batch_size": 24, "algorithm": algorithm}
    experiment = tiny(model_name="tests.own_models:tied", **options)
    received = experiment.initial_shared()
    together = client_update.cohort_update(experiment, [0, 1], 1, received, 0.05, tmp_path / "together")
    for client, (state, *_) in enumerate(together):
        alone = client_update.client_update(experiment, client, 1, received, 0.05, tmp_path / "alone")[0]
        assert_same(state, alone)
        assert not torch.equal(state["body.3.weight"], received["body.3.weight"])


@pytest.mark.parametrize("part", ["head", "body", "full"])
def test_a_cohort_becomes_personal_as_its_clients_do(part):
    experiment = ragged(num_finetune_epochs=2, finetune_part=part, norm="batch-running")
    received = experiment.initial_shared()
    together = client_update.personal_models(experiment, range(5), 1, received)
    for client, (module, outcome) in enumerate(together):
        expected_module, expected = client_update.personal_model(experiment, client, 1, received)
        assert_same(module.model.state_dict(), expected_module.model.state_dict())
        found, row = outcome.as_row(), expected.as_row()
        assert found.keys() == row.keys()
        for name, value in row.items():
            assert found[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name
    assert client_update.initial_evaluations(experiment, range(5), 1, received) == [
        outcome.initial for _, outcome in together
    ]


def test_what_a_mode_leaves_alone_is_bitwise_the_same_in_every_client():
    experiment = ragged()
    modules = [experiment.new_module() for _ in range(5)]
    before = {name: value.clone() for name, value in modules[0].model.state_dict().items()}
    data = [experiment.client_data(client, client) for client in range(5)]
    learner.fit(modules, data, mode="body", epochs=1, learning_rate=0.1)
    for module in modules:
        for name, value in module.model.state_dict().items():
            assert torch.equal(value, before[name]) == name.startswith("head."), name


def test_a_federation_with_cohorts_is_the_federation_without(federate, monkeypatch, one_core):
    sizes, losses = [], []
    whole = LitCohort.__init__

    def counted(self, members):
        sizes.append(len(members))
        whole(self, members)

    monkeypatch.setattr(LitCohort, "__init__", counted)
    for cohort_size in (1, 4):
        folder, _ = federate(tiny_config(model_name=NARROW, precision="64-true", cohort_size=cohort_size))
        assert max(sizes, default=1) == cohort_size
        sizes.clear()
        assert finetune([str(folder), "--model-name", NARROW, "--epochs", "2"]) == 0
        assert sizes[:1] == [4][: cohort_size - 1]
        (again,) = (folder / "finetune").iterdir()
        losses += [
            [row["personalized_loss"] for row in results.read_results(place)["clients"]] for place in (folder, again)
        ]
    alone, alone_again, together, together_again = losses
    assert together == pytest.approx(alone, abs=1e-9) and together_again == pytest.approx(alone_again, abs=1e-9)
    assert alone != alone_again


def test_a_cohort_that_raises_is_trained_one_by_one(federate, monkeypatch, caplog):
    config = tiny_config(cohort_size=3, min_clients_per_round=2, num_server_rounds=1)
    fit = FedBABUClient.fit
    bad = 0

    def broken(participants, received, order):
        nonlocal bad
        bad = participants[1].client
        raise RuntimeError("boom")

    def alone(self, received, order):
        if self.client == bad:
            raise RuntimeError("it was me")
        return fit(self, received, order)

    monkeypatch.setattr(handlers, "fit_together", broken)
    monkeypatch.setattr(FedBABUClient, "fit", alone)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        folder, _ = federate(config)
    (failure,) = [json.loads(line) for line in (folder / run_folder.FAILURES).read_text().splitlines()]
    assert failure["client"] == bad and "it was me" in failure["reason"]
    assert "a cohort of 3 clients is asked one by one after RuntimeError('boom')" in caplog.text


def test_clients_are_trained_one_after_another_unless_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert trainer.cohorts(tiny_config(), [0, 2, 4]) == [[0], [2], [4]]
    assert trainer.cohorts(tiny_config(cohort_size=2), [0, 2, 4]) == [[0, 2], [4]]
