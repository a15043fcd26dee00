"""Fractions of an epoch and numbers of steps, in every algorithm's phases."""

import pytest
import torch

from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.config import Config
from lit_fedbabu.config.length import steps_of
from lit_fedbabu.config.words import parse_words
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.training import client_update as update
from lit_fedbabu.training import memory
from tests.algorithms.test_client_update import sgd_by_hand
from tests.support import NARROW, batches, model_by_hand, tiny

BATCHES = 4
"""Of client 0: 24 images in batches of 7."""


def trained(folder, **options):
    """The shared and kept weights of client 0 after round 2, for the first of FedDBE moves nothing."""
    experiment = tiny(model_name=NARROW, batch_size=7, num_head_epochs=1, augmentation="crop-flip", **options)
    assert len(experiment.client_data(0, 0).train_dataloader()) == BATCHES, "which the numbers below are made for"
    state, _, loss, *_ = update.client_update(experiment, 0, 2, experiment.initial_shared(), 0.1, folder)
    return {**state, **{f"kept {name}": value for name, value in memory.recall(folder, 0, 2).items()}}, loss


@pytest.mark.parametrize("algorithm", [name for name, row in ALGORITHMS.items() if not row.pooled])
@pytest.mark.parametrize(("steps", "epochs"), [(3, 0.7), (6, 1.5)])
def test_steps_and_epochs_are_the_same_for_equal_steps(algorithm, steps, epochs, tmp_path):
    by_steps, loss = trained(tmp_path / "steps", algorithm=algorithm, num_local_steps=steps)
    by_epochs, same_loss = trained(tmp_path / "epochs", algorithm=algorithm, num_local_epochs=epochs)
    assert loss == same_loss and by_steps.keys() == by_epochs.keys()
    for name, value in by_steps.items():
        assert torch.equal(value, by_epochs[name]), name
    more, _ = trained(tmp_path / "more", algorithm=algorithm, num_local_steps=steps + 2)
    assert any(not torch.equal(value, more[name]) for name, value in by_steps.items())


def test_steps_are_sgd_by_hand_on_the_first_batches():
    experiment = tiny(num_local_steps=BATCHES + 1, batch_size=7, augmentation="crop-flip")
    stream = batches(experiment, 0, 1)(2)
    model = model_by_hand(experiment)
    seen = [next(stream) for _ in range(BATCHES + 1)]
    sgd_by_hand(experiment.config, model, dict(model.body.named_parameters(prefix="body")), seen, 0.1)
    state, count, *_ = update.client_update(experiment, 0, 1, experiment.initial_shared(), 0.1)
    assert count == 24, "the weight in the average is that of all images"
    for name, value in state.items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_phase_after_a_fraction_goes_on_with_the_next_order(tmp_path):
    experiment = tiny(algorithm="fedrep", num_head_epochs=0.5, num_local_epochs=0.5, batch_size=7, augmentation="crop")
    more = batches(experiment, 0, 1)
    model = model_by_hand(experiment)
    for part in ("head", "body"):
        stream = more(1)
        seen = [next(stream), next(stream)]
        weights = {name: value for name, value in model.named_parameters() if name.startswith(part)}
        sgd_by_hand(experiment.config, model, weights, seen, 0.1)
    state, *_ = update.client_update(experiment, 0, 1, experiment.initial_shared(), 0.1, tmp_path)
    for name, value in {**state, **memory.recall(tmp_path, 0, 1)}.items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("length", [{"num_local_steps": 5}, {"num_local_epochs": 0.6}, {"num_local_epochs": 1.3}])
def test_clients_of_a_cohort_end_each_at_its_own_step(length, tmp_path):
    """Clients of unequal sizes: some are in their third epoch when others are in their first."""
    options = {"partitioner": "linear", "num_clients": 5, "model_name": NARROW, "precision": "64-true"}
    experiment = tiny(algorithm="fedrep", num_head_epochs=1.5, **options, **length)
    received = experiment.initial_shared()
    together = update.cohort_update(experiment, range(5), 1, received, 0.05, tmp_path / "together")
    for client, (state, _, loss, *_) in enumerate(together):
        alone = update.client_update(experiment, client, 1, received, 0.05, tmp_path / "alone")
        assert loss == pytest.approx(alone.train_loss, abs=1e-9)
        for name, value in state.items():
            assert torch.allclose(value, alone.state[name], rtol=0, atol=1e-9), (client, name)


def test_a_fraction_is_rounded_up_to_whole_batches():
    assert [steps_of(10, epochs) for epochs in (0.01, 0.1, 0.15, 0.3, 0.7, 1, 2.05)] == [1, 1, 2, 3, 7, 10, 21]
    assert steps_of(10, 4, steps=7) == 7


def test_whole_numbers_stay_whole_and_others_are_refused():
    assert str(Config.from_run_config(parse_words(["num-local-epochs=2.0"])).num_local_epochs) == "2"
    assert Config(num_local_epochs=0.5).local_length == "0.5 local epochs"
    assert Config(num_local_steps=20).local_length == "20 local steps"
    for options, words in (
        ({"num_local_epochs": 0}, "num-local-epochs = 0: must be greater than 0"),
        ({"num_local_epochs": "half"}, 'num-local-epochs = "half": must be a number'),
        ({"num_local_epochs": float("inf")}, "num-local-epochs"),
        ({"num_local_epochs": True}, "num-local-epochs = true: must be a number"),
        ({"num_local_steps": 1.5}, "num-local-steps = 1.5: must be a whole number"),
        (
            {"num_local_steps": 3, "trainer_options": '{"accumulate_grad_batches": 2}'},
            "trainer.accumulate_grad_batches",
        ),
        ({"num_local_epochs": 0.5, "trainer_options": '{"limit_train_batches": 2}'}, "trainer.limit_train_batches = 2"),
    ):
        with pytest.raises(InputError, match=words):
            Config(**options)
