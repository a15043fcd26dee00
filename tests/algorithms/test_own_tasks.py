"""Federations of tasks of users, against loops written by hand in plain PyTorch."""

import copy
import dataclasses
import itertools

import pytest
import torch

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.seeding import seeded
from lit_fedbabu.learning.state import state_of
from lit_fedbabu.server.sampling import participants, substitutes
from lit_fedbabu.training.client_update import client_update, own_module, personal_model
from lit_fedbabu.training.experiment import Experiment
from tests.own_tasks import Regression, Sensors, Windows
from tests.support import failures_of


def experiment_of(task="windows", **options):
    given: dict[str, object] = {"num-clients": 4}
    given |= {"num-server-rounds": 2, "num-local-epochs": 2, "num-finetune-epochs": 1}
    given |= {"task": f"tests.own_tasks:{task}", "precision": "32-true", "fraction-train": 1.0}
    return Experiment(Config.from_run_config({**given, **{key.replace("_", "-"): options[key] for key in options}}))


def by_hand(experiment, client, server_round, state, trained, make=Windows):
    """What a client's training makes of a state: a loop in plain PyTorch. Returns state, loss and module."""
    config = experiment.config
    with seeded(config.derived_seed("model")):
        module = make()
    module.load_state_dict(state)
    data = Sensors(client, config.num_clients, config.seed)
    data.setup("fit")
    for name, weight in module.named_parameters():
        weight.requires_grad_(name.split(".")[0] in trained)
    configured = module.configure_optimizers()
    optimizer, schedule = configured, None
    if isinstance(configured, dict):
        optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rate = 0.01 if server_round == 1 else 0.1 * 0.01  # both milestones of two rounds lie after the first
    if make is Windows:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = rate
        schedule.base_lrs = [rate]
        schedule._last_lr = [rate]
    module.log = lambda *_: None
    steps = config.num_local_steps or config.num_local_epochs * len(data.train_dataloader())
    with seeded(config.derived_seed("draws", server_round, client)):
        while steps > 0:
            for batch in itertools.islice(data.train_dataloader(), steps):
                steps -= 1
                for part in ("body", "head"):
                    getattr(module, part, module).train(part in trained)
                loss = module.training_step(batch, 0)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if schedule:
                    schedule.step()
    return module.state_dict()


@pytest.mark.parametrize(
    ("algorithm", "trained", "steps"),
    [("fedbabu", ["body"], 0), ("fedavg", ["body", "head"], 0), ("fedbabu", ["body"], 1), ("fedbabu", ["body"], 5)],
)
def test_a_round_of_a_client_is_a_plain_loop_with_the_modules_own_optimizer(algorithm, trained, steps):
    experiment = experiment_of(algorithm=algorithm, num_local_steps=steps)
    assert len(experiment.client_data(1, 0).module.train_dataloader()) == 3
    received = experiment.initial_shared()
    initial = state_of(experiment.new_module().model)
    with torch.random.fork_rng(), seeded(experiment.model_seed):
        assert all(torch.equal(value, initial[name]) for name, value in Windows().state_dict().items())
    for server_round in (1, 2):
        found = client_update(experiment, 1, server_round, received, experiment.rate_in(server_round))
        before = {**initial, **received}
        expected = by_hand(experiment, 1, server_round, before, trained)
        for name, value in found.state.items():
            assert torch.equal(value, expected[name]), name
            moved = not name.endswith("num_batches_tracked")
            assert not moved or not torch.equal(value, before[name]), name
        received = found.state
    assert {name.partition(".")[0] for name in found.state} == set(trained)
    assert found.num_train == 24
    assert 0 < found.train_loss < 3


def test_pfedme_takes_its_inner_steps_by_the_modules_own_loss_and_optimizer():
    options = {"num_inner_steps": 3, "proximal_mu": 0.5, "inner_learning_rate": 0.1, "num_local_steps": 2}
    experiment = experiment_of("regression", algorithm="pfedme", **options)
    module = experiment.new_module().lightning
    data = Sensors(1, 4, experiment.config.seed)
    data.setup("fit")
    optimizer, weights = module.configure_optimizers(), list(module.parameters())
    with seeded(experiment.config.derived_seed("draws", 1, 1)):
        for batch in itertools.islice(data.train_dataloader(), 2):
            start = [weight.detach().clone() for weight in weights]
            for _ in range(3):
                gradients = torch.autograd.grad(module.training_step(batch, 0), weights)
                with torch.no_grad():
                    for weight, before, gradient in zip(weights, start, gradients, strict=True):
                        weight.sub_(gradient + 0.5 * (weight - before), alpha=0.1)
            for weight, before in zip(weights, start, strict=True):
                weight.grad = 0.5 * (before - weight.detach())
                weight.data.copy_(before)
            optimizer.step()
    found = client_update(experiment, 1, 1, experiment.initial_shared(), 0.0).state
    expected = [value for _, value in sorted(module.state_dict().items())]
    for value, ours in zip(expected, [found[name] for name in sorted(found, key=of_user)], strict=True):
        torch.testing.assert_close(ours, value, rtol=1e-5, atol=1e-6)


def of_user(name):
    """The name of a weight of Regression without the part that it is seen in."""
    return name.partition(".")[2]


def test_pfedme_trains_a_module_that_logs_in_its_training_step():
    experiment = experiment_of(algorithm="pfedme")
    received = experiment.initial_shared()
    found = client_update(experiment, 1, 1, received, experiment.rate_in(1))
    assert any(not torch.equal(value, received[name]) for name, value in found.state.items()) and found.train_loss > 0


def test_a_client_of_fedper_keeps_its_head(tmp_path):
    experiment = experiment_of(algorithm="fedper")
    received = experiment.initial_shared()
    initial = state_of(experiment.new_module().model)
    found = client_update(experiment, 0, 1, received, experiment.rate_in(1), tmp_path)
    expected = by_hand(experiment, 0, 1, initial, ["body", "head"])
    own = state_of(own_module(experiment, 0, 1, found.state, tmp_path).model)
    assert all(torch.equal(value, own[name]) for name, value in expected.items())
    assert set(found.state) == {name for name in expected if name.startswith("body")}


@pytest.mark.parametrize("task", ["windows", "unfreezes", "moves"])
@pytest.mark.parametrize("part", ["body", "head"])
def test_frozen_parts_stay_bitwise_whatever_the_module_does(task, part):
    experiment = experiment_of(task, finetune_part=part, num_finetune_epochs=3)
    before = state_of(experiment.new_module().model)
    module, outcome = personal_model(experiment, 0, 2, experiment.initial_shared())
    for name, value in state_of(module.model).items():
        if not name.startswith(part):
            assert torch.equal(value, before[name]), name
        elif "num_batches" not in name and "running" not in name:
            assert not torch.equal(value, before[name]), name
    assert len(outcome.curve) == 4
    assert outcome.personalized.measures.keys() == {"loss", "f1"}


@pytest.mark.parametrize("task", ["windows", "unfreezes"])
@pytest.mark.parametrize("part", ["body", "head"])
def test_one_part_trains_as_in_a_plain_loop_while_the_other_stands_still(task, part):
    experiment = experiment_of(task)
    module, initial = experiment.new_module(), state_of(experiment.new_module().model)
    with seeded(experiment.config.derived_seed("draws", 1, 0)):
        experiment.task.fit(
            [module], [experiment.client_data(0, 0)], mode=part, epochs=2, learning_rate=experiment.rate_in(1)
        )
    expected = by_hand(experiment, 0, 1, initial, [part])
    assert all(torch.equal(value, expected[name]) for name, value in state_of(module.model).items())


def test_a_split_that_is_drawn_is_the_same_in_every_use():
    experiment = experiment_of("drawn")
    splits = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        data = experiment.client_data(1, seed)
        torch.rand(seed + 1)
        splits.append([list(data.module.train.indices), list(data.module.test.indices)])
    assert splits[0] == splits[1]
    other = experiment.client_data(2, 0).module.train.indices
    assert list(other) != splits[0][0]


def test_parts_with_names_of_their_own_and_a_rate_that_stands(tmp_path):
    experiment = experiment_of("regression", algorithm="fedper")
    module = experiment.new_module()
    assert sorted(state_of(module.model)) == [
        "body.net.encoder.bias", "body.net.encoder.weight", "head.net.readout.bias", "head.net.readout.weight",
        "head.scale",
    ]  # fmt: skip
    assert experiment.rate_in(1) == 0
    assert not experiment.task.score.higher_is_better
    received = experiment.initial_shared()
    found = client_update(experiment, 3, 1, received, experiment.rate_in(1), tmp_path)
    users = by_hand(experiment, 3, 1, copy.deepcopy(module.lightning.state_dict()), ["net", "scale"], Regression)
    expected = module.seen(users)
    own = state_of(own_module(experiment, 3, 1, found.state, tmp_path).model)
    assert all(torch.equal(value, own[name]) for name, value in expected.items())
    _, outcome = personal_model(experiment, 3, 1, found.state, tmp_path)
    assert outcome.as_row().keys() == {
        "num_test", "initial_error", "personalized_error", "error_epoch_0", "error_epoch_1",
    }  # fmt: skip


def test_the_given_learning_rate_reaches_the_module():
    experiment = experiment_of(learning_rate=0.5, finetune_learning_rate=0.25)
    assert (experiment.rate_in(1), experiment.rate_in(2), experiment.finetuning_rate) == (
        0.5,
        0.05,
        0.25,
    )
    module = experiment.new_module()
    data = experiment.client_data(0, 0)
    experiment.task.fit([module], [data], mode="full", epochs=1, learning_rate=0.5)
    assert module.lightning.hparams.lr == 0.5
    own = experiment_of()
    assert (own.rate_in(1), own.rate_in(2), own.finetuning_rate) == (0.01, 0.001, 0.001)


def test_trainer_arguments_reach_the_trainer():
    clipped = experiment_of(trainer_options='{"gradient_clip_val": 1e-9, "limit_train_batches": 1}')
    module, free = clipped.new_module(), experiment_of().new_module()
    data = clipped.client_data(0, 0)
    before = state_of(module.copy().model)
    with seeded(0):
        clipped.task.fit([module], [data], mode="head", epochs=1, learning_rate=0.0)
    with seeded(0):
        clipped.task.fit([free], [experiment_of().client_data(0, 0)], mode="head", epochs=1, learning_rate=0.0)
    assert int(module.lightning.trainer.global_step) == 1
    assert int(free.lightning.trainer.global_step) == 3
    assert not torch.equal(state_of(module.model)["head.weight"], before["head.weight"])


@pytest.mark.parametrize(("tasks"), [("by_hand", "plain"), ("sparse", "dense")])
@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox"])
def test_steps_by_hand_and_sparse_gradients_train_as_others_do(algorithm, tasks):
    options = {"algorithm": algorithm, "proximal_mu": 0.5}
    found, expected = (
        client_update((experiment := experiment_of(task, **options)), 1, 1, experiment.initial_shared(), 0.01).state
        for task in tasks
    )
    torch.testing.assert_close(found, expected)


TAKEN = ["toggles", "writes", "keeps", "checkpoints", "late", "teaches", "streamed", "one_part"]


@pytest.mark.parametrize("task", TAKEN)
def test_what_a_module_does_in_training_is_as_in_lightning(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = experiment_of(task, num_local_steps=2)
    experiment.check()
    received = experiment.initial_shared()
    found = client_update(experiment, 1, 1, received, experiment.rate_in(1))
    still = [name for name, value in found.state.items() if torch.equal(value, received[name]) and "bias" not in name]
    assert still == (["body.0.weight"] if task == "late" else [])
    assert found.num_train == 24
    assert not list(tmp_path.iterdir())
    assert [note for note in experiment.task.notes if "are left out" in note] == {
        "keeps": [f"callbacks of the task (ModelCheckpoint, TQDMProgressBar) {LEFT}"],
        "checkpoints": [f"callbacks of the task (ModelCheckpoint) {LEFT}"],
    }.get(task, [])


LEFT = "are left out: the run saves checkpoints and shows progress itself"


def test_toggled_optimizers_train_a_part_as_one_optimizer_does():
    found, expected = (
        client_update((experiment := experiment_of(task)), 1, 1, experiment.initial_shared(), 0.01).state
        for task in ("toggles", "plain")
    )
    weights = [name for name in expected if name.endswith(("weight", "bias"))]
    assert all(torch.equal(found[name], expected[name]) for name in weights)


def test_averages_of_weights_end_after_the_epochs_asked_for():
    experiment = experiment_of("swa", num_finetune_epochs=3)
    _, outcome = personal_model(experiment, 0, 2, experiment.initial_shared())
    assert len(outcome.curve) == 4


def test_a_part_that_trains_second_is_in_training_mode(tmp_path):
    experiment = experiment_of(algorithm="fedrep", num_head_epochs=1)
    received = experiment.initial_shared()
    found = client_update(experiment, 0, 1, received, experiment.rate_in(1), tmp_path)
    assert found.state["body.1.num_batches_tracked"] == 6


def test_layers_made_in_configure_model_start_as_those_made_before():
    configured, initial = experiment_of("configured"), experiment_of("configured").initial_shared()
    with seeded(configured.model_seed):
        Windows()
        expected = Windows().body.state_dict()
    assert all(torch.equal(value, initial[f"body.{name}"]) for name, value in expected.items())
    configured.check()


def test_weights_that_are_computed_from_others_are_trained():
    experiment = experiment_of("normed")
    received = experiment.initial_shared()
    found = client_update(experiment, 1, 1, received, experiment.rate_in(1)).state
    assert not torch.equal(found["body.0.weight_g"], received["body.0.weight_g"])


def test_the_last_of_a_curve_is_that_of_the_trained_module():
    experiment = experiment_of("averages", num_finetune_epochs=2)
    module, outcome = personal_model(experiment, 0, 2, experiment.initial_shared())
    assert experiment.task.evaluate([module], [experiment.client_data(0, 0)]) == [outcome.personalized]
    assert len(outcome.curve) == 3


def test_an_epoch_of_several_loaders_has_the_batches_of_the_longest():
    data = experiment_of("several").client_data(0, 0)
    assert (data.num_train, data.batches) == (48, 6)


def test_a_rate_that_is_a_whole_number_reaches_attributes_too():
    module = experiment_of().new_module()
    module.lightning.hparams.lr = module.lightning.lr = 1
    assert module.own_rate == 1
    module.set_rate(0.5)
    assert module.lightning.lr == module.lightning.hparams.lr == 0.5


def test_of_many_clients_those_drawn_first_are_looked_at(monkeypatch):
    """The loader of client 2 of this task is empty."""
    monkeypatch.setattr("lit_fedbabu.config.derived.EVERYONE", 5)
    with pytest.raises(InputError, match="the test loader of client 2 is empty"):
        experiment_of("empty", num_clients=5).check()
    many = experiment_of("empty", num_clients=200, fraction_train=0.02)
    many.check()
    first = participants(many.config, 1)
    assert list(many.task.sizes) == first and 2 not in first
    assert f"of 200 clients the data of {len(first)}, drawn first, were looked at" in many.task.notes[0]
    assert f"200 clients, {len(first)} of them with " in many.task.summary()
    assert many.client_data(7, 0).num_train > 0
    with pytest.raises(InputError, match="the test loader of client 2 is empty"):
        many.client_data(2, 0)
    speeds = dataclasses.replace(many.config, client_speeds="lognormal:1.0")
    assert speeds.looked_at == list(range(200))


def test_a_client_drawn_later_whose_loader_is_empty_fails_and_another_trains(monkeypatch, federate):
    """Its test loader is empty: it does not train either, nor does it end the run."""
    monkeypatch.setattr("lit_fedbabu.config.derived.EVERYONE", 5)
    options = {"num_clients": 20, "fraction_train": 0.1, "evaluate_clients": 2}
    configs = (experiment_of("empty", **options, seed=seed).config for seed in range(1000))
    config = next(each for each in configs if 2 in each.drawn(2) and 2 not in (*each.drawn(1), *each.evaluated))
    folder, grid = federate(config)
    (failure,) = failures_of(folder)
    assert (failure["round"], failure["client"]) == (2, 2)
    task = f'task = "{config.task}"'
    assert failure["reason"] == f"InputError: {task}: the test loader of client 2 is empty"
    asked = [each.content["config"]["clients"] for each in grid.messages if each.metadata.message_type == "train"]
    assert asked == [config.drawn(1), config.drawn(2), substitutes(config, 2, 1, config.drawn(2), 1)]
