"""Users' own models: what cannot work is refused before a run, in one line, and what can is not."""

import pytest
import torch

from lit_fedbabu import load_module
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.cohort import LitCohort
from lit_fedbabu.learning.models import build_model
from lit_fedbabu.training.experiment import Experiment
from tests.support import FakeGrid, files_that_decide, state_digest, tiny, tiny_config

REFUSED = {
    "lazy": r"its body.1.weight has no shape before the first batch",
    "thirteen": r"gives \[10, 13\] outputs for a batch of 10 images of 3 x 32 x 32 in training, and must give",
    "for_224_pixels": r"fails on a batch of 10 images of 3 x 32 x 32 in training: RuntimeError: .*mat1 and mat2",
    "across": r"its body.3.weight and head.0.weight are one weight, and body and head cannot share it",
    "views": r"its body.3.weight and body.4.weight share memory without being one weight",
    "half": r"its body.1.weight is of torch.bfloat16, which cannot be averaged",
    "complex_weights": r"its body.phase is of torch.complex64, which cannot be averaged",
    "pair": r"fails on .*: TypeError: the body must return a tensor, and returns a tuple",
    "frozen_head": r"its head has no weights to train",
    "lightning": r"is a LightningModule, whose loss and optimizer would not be used",
}
FINE = ["plain", "scalar", "tied", "counting", "dropout", "noisy", "frozen_layer", "with_weight_norm"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_work_is_refused_by_what_is_wrong_with_it(name):
    with pytest.raises(InputError, match=f'model-name = "tests.own_models:{name}": {REFUSED[name]}') as refused:
        tiny(model_name=f"tests.own_models:{name}").check()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", FINE)
def test_a_model_that_works_is_left_as_it_is_and_so_are_the_generators(name):
    before = torch.random.get_rng_state()
    experiment = tiny(model_name=f"tests.own_models:{name}")
    initial = state_digest(experiment.new_module().model.state_dict())
    experiment.check()
    assert state_digest(experiment.new_module().model.state_dict()) == initial
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("batch_size", "works"), [(23, False), (24, True), (10, True)])
def test_a_last_batch_of_one_image_is_tried_where_it_will_occur(batch_size, works):
    """Clients of the tiny dataset with one class each have 24 training images."""
    options = {"num_clients": 10, "num_classes_per_client": 1, "batch_size": batch_size}
    experiment = tiny(model_name="tests.own_models:norm_of_features", **options)
    assert {len(images) for images in experiment.task.partition.train} == {24}
    if works:
        experiment.check()
    else:
        with pytest.raises(InputError, match="fails on a batch of 1 images of 3 x 32 x 32 in training: ValueError"):
            experiment.check()


def test_the_batches_that_are_tried_are_the_largest_and_the_smallest():
    task = tiny(num_clients=10, num_classes_per_client=1, batch_size=10, test_batch_size=100).task
    assert task.batches(False)[:2] == ([10, 4], [24, 10])
    assert task.batches(pooled=True)[:2] == ([10], [24, 10])


def test_a_layer_that_its_maker_has_frozen_never_trains(federate):
    config = tiny_config(model_name="tests.own_models:frozen_layer", algorithm="fedavg")
    folder, _ = federate(config)
    after = load_module(folder / "checkpoints" / "last.ckpt", config.model_name).state_dict()
    before = Experiment(config).new_module().state_dict()
    moved = {
        name for name, value in before.items() if name.startswith("model.") and not torch.equal(value, after[name])
    }
    assert moved == {f"model.{name}" for name in ("body.3.weight", "body.3.bias", "head.weight", "head.bias")}


def test_a_frozen_layer_stays_so_in_a_cohort():
    experiment = tiny(model_name="tests.own_models:frozen_layer", algorithm="fedavg")
    cohort = LitCohort([experiment.new_module(), experiment.new_module()])
    cohort.set_mode("full")
    frozen = {name for name, weight in cohort.model.named_parameters() if not weight.requires_grad}
    assert frozen == {"body.1.weight", "body.1.bias"}


@pytest.mark.parametrize("cohort_size", [1, 3])
@pytest.mark.parametrize("algorithm", ["local", "fedper", "ditto"])
def test_tied_weights_within_a_part_work(algorithm, cohort_size, federate):
    config = tiny_config(model_name="tests.own_models:tied", algorithm=algorithm, cohort_size=cohort_size)
    folder, _ = federate(config)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for one, other in (("body.3.weight", "body.5.weight"), ("body.3.bias", "body.7.bias")):
        assert torch.equal(state[f"model.{one}"], state[f"model.{other}"])
    if algorithm == "fedper":
        initial = build_model(config.model_name, 10, config.derived_seed("model")).state_dict()["body.3.bias"]
        assert not torch.equal(state["model.body.3.bias"], initial), "it has trained"


@pytest.mark.slow
@pytest.mark.parametrize("cohort_size", [1, 3])
@pytest.mark.parametrize("name", ["dropout", "noisy"])
def test_a_model_that_draws_random_numbers_repeats_to_the_bit(name, cohort_size, federate):
    """Whatever the process has drawn before, and on any number of nodes."""
    config = tiny_config(model_name=f"tests.own_models:{name}", cohort_size=cohort_size)
    torch.manual_seed(1)
    first, _ = federate(config)
    torch.manual_seed(2)
    second, _ = federate(config, FakeGrid(config, 1 if cohort_size > 1 else 3, shuffle=True))
    assert files_that_decide(first) == files_that_decide(second)
