"""Runs whose clients train with noise in every step: what they spend, what ends them, and what is refused."""

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lit_fedbabu.algorithms.algorithm import Algorithm
from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.client.numpy_client import FedBABUClient
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.private_steps import PoissonBatches
from lit_fedbabu.learning.state import state_of
from lit_fedbabu.protocol.wire import TrainReply
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.results import read_results
from lit_fedbabu.server.spent import Ledger
from lit_fedbabu.tasks.images import datamodule
from lit_fedbabu.training import memory, own_ledger
from lit_fedbabu.training.client_update import client_update, personal_model
from lit_fedbabu.training.privacy import TRUST, Course, course_of, protect, steps_epsilon
from tests.algorithms.test_accountant import numeric
from tests.server.test_central_privacy import asked
from tests.server.test_federate import StoppedGrid
from tests.support import NARROW, narrow_model, state_digest, tiny, tiny_config


def sample_config(**changes):
    options = {"privacy": "sample", "clipping_norm": 1.0, "noise_multiplier": 2.0, "learning_rate_decay": 1.0}
    return tiny_config(**{**options, "model_name": NARROW, "norm": "group", "num_server_rounds": 3, **changes})


def course(config, client):
    """The steps of a client in a round, counted by hand."""
    size = tiny(**{key: getattr(config, key) for key in ("partitioner", "min_client_images")}).task.sizes[client][0]
    return Course(min(1.0, 10 / size), config.noise_multiplier, config.num_local_epochs * -(-size // 10))


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.1, 80), (2.0, 0.5, 10), (0.7, 0.05, 30), (1.5, 1.0, 4)])
def test_epsilon_of_steps_is_that_of_other_accountants(noise, rate, steps):
    found = steps_epsilon([Course(rate, noise, steps - 3), Course(rate, noise, 3)], 1e-5)
    expected = numeric(steps, noise, [(1 - rate, (0, 0)), (rate, (1, 0))], [(1, (0, 0))])
    assert found == pytest.approx(expected, rel=5e-3)
    bound = RdpAccountant().compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps).get_epsilon(1e-5)
    assert 0.75 * bound < found < bound


def test_steps_of_other_rates_and_noise_add_up():
    one, other = Course(0.1, 1.0, 80), Course(0.2, 2.0, 20)
    both = steps_epsilon([one, other], 1e-5)
    assert max(steps_epsilon([each], 1e-5) for each in (one, other)) < both
    assert both < sum(steps_epsilon([each], 1e-5) for each in (one, other))
    assert steps_epsilon([], 1e-5) == 0.0 and steps_epsilon([one], 1e-6) > steps_epsilon([one], 1e-5)


def test_all_phases_and_lengths_of_training_are_counted():
    def counted(algorithm="fedbabu", **options):
        config = sample_config(algorithm=algorithm, **options)
        return course_of(config, ALGORITHMS[algorithm], 25)

    assert counted() == Course(0.4, 2.0, 3) and counted(num_local_epochs=4).steps == 12
    assert counted("fedrep", num_head_epochs=2).steps == 9 and counted("ditto").steps == 3
    assert counted(num_local_steps=7).steps == 7 and counted(num_local_epochs=0.5).steps == 2
    assert counted(batch_size=30) == Course(1.0, 2.0, 1)


def test_a_run_says_counts_and_shows_what_it_spends(federate, capsys):
    config = sample_config(partitioner="dirichlet", min_client_images=5, delta=1e-4)
    folder, grid = federate(config)
    said, outcome = capsys.readouterr().out, read_results(folder)
    assert (
        f"privacy {TRUST['sample']}\n" in said and "does not repeat" in run_folder.read_environment(folder)["privacy"]
    )
    assert (outcome["privacy"]["kind"], outcome["privacy"]["trust"]) == ("sample", TRUST["sample"])
    times = [client for _, clients in asked(folder) for client in clients]
    courses = [course(config, client) for client in range(6)]
    assert len({each.rate for each in courses}) > 2, "clients of other sizes"
    expected = {client: steps_epsilon([courses[client]] * times.count(client), 1e-4) for client in range(6)}
    assert {row["client"]: row["epsilon"] for row in outcome.clients} == expected
    spent = [each["epsilon"] for each in outcome.rounds]
    assert spent == sorted(spent) and spent[-1] == outcome["privacy"]["epsilon"] == max(expected.values())
    first = {client: steps_epsilon([courses[client]], 1e-4) for client in asked(folder)[0][1]}
    assert spent[0] == max(first.values())
    events = EventAccumulator(str(folder)).Reload()
    assert [event.value for event in events.Scalars("privacy/epsilon")] == pytest.approx(spent)
    assert f"Epsilon is {spent[-1]:.4g} for delta 0.0001." in (folder / "README.md").read_text()
    for client in range(6):
        file = folder / run_folder.MEMORY / f"client_{client:04d}" / own_ledger.STEPS
        assert own_ledger.courses(file) == [courses[client]] * times.count(client), "counted by the client itself"


def test_runs_do_not_repeat_and_nothing_else_draws_otherwise(federate):
    one, two = (federate(sample_config())[0] for _ in range(2))
    assert asked(one) == asked(two)
    assert read_results(one).rounds[0]["train_loss"] != read_results(two).rounds[0]["train_loss"]


@pytest.mark.parametrize("secure", [False, True])
def test_a_client_whose_batches_are_all_empty_takes_steps_of_noise_and_has_no_loss(
    secure, federate, monkeypatch, capsys
):
    """Abadi et al. 2016, Algorithm 1: noise is added whatever lot was drawn."""
    fits = []

    class Emptied(PoissonBatches):
        """In the first round all batches of all clients are empty, in the second those of one."""

        def __iter__(self):
            fits.append(self)
            return iter([[]] * len(self)) if len(fits) <= 4 else super().__iter__()

    monkeypatch.setattr(datamodule, "PoissonBatches", Emptied)
    options = {"secure_aggregation": True} if secure else {}
    config = sample_config(num_server_rounds=2, num_finetune_epochs=0, evaluate_every=9, **options)
    folder, grid = federate(config)
    assert not (folder / run_folder.FAILURES).exists() or not (folder / run_folder.FAILURES).read_text()
    first, second = (
        TrainReply.from_record(copy.deepcopy(reply.content)).updates[place]
        for reply, place in zip([each for each in grid.replies if "metrics" in each.content][:2], (0, 0), strict=True)
    )
    assert math.isnan(first.train_loss) and math.isnan(second.train_loss)
    rounds = read_results(folder).rounds
    assert rounds[0]["train_loss"] is None and math.isfinite(rounds[1]["train_loss"])
    assert "round 1/2  no sample was drawn" in capsys.readouterr().out


def budget(config, rounds):
    """A budget for so many rounds of every client, where all are alike."""
    return steps_epsilon([course(config, 0)] * rounds, config.delta) * 1.0001


def test_a_budget_ends_the_run_before_the_round_that_would_pass_it(federate):
    config = sample_config(num_server_rounds=12, evaluate_every=12, num_clients=3, fraction_train=0.34, seed=1)
    whole = dataclasses.replace(config, max_epsilon=steps_epsilon([course_of_three(config)] * 3, 1e-5) * 1.0001)
    folder, _ = federate(whole)
    outcome, counts = read_results(folder), []
    for last in range(1, 13):
        drawn = [Ledger(config, folder, 0, {}).drawn(each)[0] for each in range(1, last + 1)]
        counts.append(max(map(drawn.count, drawn)))
    expected = next(last for last, most in enumerate(counts, 1) if most > 3) - 1
    assert 3 < expected < 12 and (outcome.round, outcome["privacy"]["stopped_before"]) == (expected, expected + 1)
    assert outcome["privacy"]["epsilon"] == steps_epsilon([course_of_three(config)] * 3, 1e-5) <= whole.max_epsilon
    with pytest.raises(InputError, match=f"is spent after round {expected}"):
        federate(dataclasses.replace(whole, resume=str(folder), num_server_rounds=20))


def course_of_three(config):
    sizes = {each[0] for each in tiny(num_clients=3).task.sizes.values()}
    assert len(sizes) == 1
    return course_of(config, ALGORITHMS["fedbabu"], sizes.pop())


def test_a_round_that_is_repeated_after_a_stop_is_paid_twice_by_client_and_server(federate, tmp_path):
    config = sample_config(num_server_rounds=2, fraction_train=1.0)
    with pytest.raises(KeyboardInterrupt):
        federate(config, StoppedGrid(config, "train", 2))
    folder, _ = federate(dataclasses.replace(config, resume=str(tmp_path / "run1")))
    assert [each for each, _ in asked(folder)] == [1, 2, 2]
    assert read_results(folder)["privacy"]["epsilon"] == steps_epsilon([course(config, 0)] * 3, 1e-5)
    ledgers = [own_ledger.courses(file) for file in (folder / run_folder.MEMORY).glob("*/steps.jsonl")]
    assert len(ledgers) == 6 and {len(each) for each in ledgers} <= {2, 3}, "a client may not have begun"


def test_a_client_trusts_no_server_with_its_budget(tmp_path):
    config = sample_config(max_epsilon=1.0)
    config = dataclasses.replace(config, max_epsilon=budget(config, 2))
    experiment = tiny(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
    client = FedBABUClient(experiment, 1, tmp_path)
    received = [value.numpy() for value in experiment.initial_shared().values()]
    for server_round in (1, 1):
        client.fit(received, {"server-round": server_round, "learning-rate": 0.1})
    file = tmp_path / "client_0001" / own_ledger.STEPS
    with file.open("a") as lines:
        lines.write('{"round": 3, "ra')
    with pytest.raises(ValueError, match=r"nothing is trained: max-epsilon = .* epsilon of this client would be"):
        client.fit(received, {"server-round": 2, "learning-rate": 0.1})
    assert len(own_ledger.courses(file)) == 2
    with pytest.raises(ValueError, match="was given no folder"):
        client_update(experiment, 1, 1, experiment.initial_shared(), 0.1)


def trained(algorithm, folder, **options):
    """What client 1 shares and keeps after its first round, and the model that fine-tuning makes of it, twice."""
    config = sample_config(algorithm=algorithm, **options)
    experiment = tiny(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
    received = experiment.initial_shared()
    update = client_update(experiment, 1, 1, received, 0.1, folder)
    tuned = [personal_model(experiment, 1, 1, received, folder)[0] for _ in range(2)]
    return update.state, memory.recall(folder, 1, 1), [state_digest(state_of(each.model)) for each in tuned]


@pytest.mark.parametrize("algorithm", ["fedbabu", "fedper", "fedrep", "fedbn", "lg-fedavg", "per-fedavg", "ditto"])
def test_every_weight_of_a_round_has_noise_but_a_personal_model_that_the_next_does_not_begin_with(algorithm, tmp_path):
    noise = {
        "clipping_norm": 1e-6,
        "noise_multiplier": 1e6,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "augmentation": "none",
    }
    shared, kept, tuned = trained(algorithm, tmp_path / "one", **noise)
    experiment = tiny(**dataclasses.asdict(sample_config(algorithm=algorithm)))
    first = experiment.model
    moved = {**shared, **({} if algorithm == "ditto" else kept)}
    assert moved
    for name, value in moved.items():
        differences = (value - first[name]).abs()
        assert differences.min() > 0 and differences.max() < 3, name
    assert tuned[0] == tuned[1], "fine-tuning has no noise"
    if algorithm == "ditto":
        _, again, _ = trained(algorithm, tmp_path / "other", **noise)
        assert kept.keys() == first.keys() and all(torch.equal(value, again[name]) for name, value in kept.items())


def test_what_was_trained_with_noise_leaves_as_it_is():
    received, trained = [np.zeros(5, np.float32)], [np.full(5, 9, np.float32)]
    (sent,) = protect(trained, received, sample_config(clipping_norm=0.1))
    assert np.array_equal(sent, trained[0])
    with pytest.raises(ValueError, match="nothing is sent: its weights are not finite"):
        protect([np.full(5, np.nan, np.float32)], received, sample_config())


class Looks(Algorithm):
    def start(self, client):
        client.training_loss(client.received)
        return super().start(client)


class SaysSo(Looks):
    @property
    def by_steps(self):
        return True


BODY = (("body", "num_local_epochs"),)
LOOKS, SAYS_SO = (kind("Own", "body", BODY) for kind in (Looks, SaysSo))
HERE, MODELS = "tests.server.test_sample_privacy", "tests.own_models"


class Chooses(nn.Module):
    def forward(self, features):
        return features if features.sum() > 0 else -features


def choosing(num_classes, norm, channels):
    model = narrow_model(num_classes, norm, channels)
    model.body.append(Chooses())
    return model


REFUSED: dict[str, tuple[dict[str, Any], str, Any]] = {
    "no noise": ({"noise_multiplier": 0.0}, "privacy", "sample"),
    "no bound": ({"clipping_norm": 0.0}, "noise-multiplier", 2.0),
    "next to no noise": ({"noise_multiplier": 0.001}, "noise-multiplier", 0.001),
    "a bound that adapts": ({"adaptive_clipping": True}, "adaptive-clipping", True),
    "trained together": ({"cohort_size": 2}, "cohort-size", 2),
    "batch norm": ({"norm": "batch"}, "norm", "batch"),
    "running statistics": ({"norm": "batch-running"}, "norm", "batch-running"),
    "batch norm of one's own": ({"model_name": f"{MODELS}:counting"}, "model-name", f"{MODELS}:counting"),
    "a model that chooses": ({"model_name": f"{HERE}:choosing"}, "model-name", f"{HERE}:choosing"),
    "an augmentation of one's own": ({"augmentation": "tests.tasks.test_transforms:mixup"}, "augmentation", None),
    "scaled gradients": ({"precision": "16-mixed"}, "precision", "16-mixed"),
    "added up": ({"trainer_options": '{"accumulate_grad_batches": 2}'}, "trainer.accumulate_grad_batches", 2),
    "nothing is shared": ({"algorithm": "local"}, "privacy", "sample"),
    "inner steps": ({"algorithm": "pfedme", "momentum": 0.0}, "privacy", "sample"),
    "a user's look at data": ({"algorithm": f"{HERE}:LOOKS"}, "privacy", "sample"),
    **{
        name: ({"algorithm": name}, "privacy", "sample")
        for name in ("moon", "fedrod", "fednova", "scaffold", "ifca", "feddbe", "pfedfda", "fedetf", "apfl", "fedala",
                     "fedas", "fedpac")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_noise_does_not_cover_is_refused_before_a_run(name):
    changes, key, value = REFUSED[name]
    with pytest.raises(InputError) as error:
        tiny(**{**dataclasses.asdict(sample_config()), **changes}).check()
    assert (error.value.key, error.value.value) == (key, changes["augmentation"] if value is None else value)


TAKEN = ["fedbabu", "fedavg", "fedper", "fedrep", "lg-fedavg", "fedbn", "fedprox", "fedprox-babu", "ditto",
         "per-fedavg", "centralized", f"{HERE}:SAYS_SO"]  # fmt: skip


@pytest.mark.parametrize("algorithm", TAKEN)
def test_methods_of_gradients_alone_are_taken(algorithm):
    tiny(**{**dataclasses.asdict(sample_config()), "algorithm": algorithm, "aggregator": "mean"}).check()


def test_every_method_is_refused_or_taken_on_purpose():
    refused = {changes["algorithm"] for changes, *_ in REFUSED.values() if "algorithm" in changes}
    assert {*ALGORITHMS} <= refused | {*TAKEN} | {"feddyn", "feddyn-babu", "moon-babu", "fednova-babu", "scaffold-babu"}


def test_an_accountant_that_is_not_installed_is_refused_by_what_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="lit-fedbabu\\[privacy\\]") as error:
        tiny(**dataclasses.asdict(sample_config())).check()
    assert (error.value.key, error.value.value) == ("privacy", "sample")


def test_pooled_images_are_those_of_one_participant(federate):
    config = sample_config(algorithm="centralized", num_server_rounds=1)
    folder, _ = federate(config)
    size = sum(train for train, _ in tiny().task.sizes.values())
    expected = steps_epsilon([Course(10 / size, 2.0, -(-size // 10))], 1e-5)
    assert read_results(folder)["privacy"]["epsilon"] == expected and not (folder / "failures.jsonl").exists()
