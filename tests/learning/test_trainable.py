"""What of a body trains: blocks, normalization layers, or adapters; the rest is a base."""

import copy
import importlib.util

import pytest
import torch
from torch import nn

from lit_fedbabu import finetune, load_model, load_module
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.cohort import LitCohort
from lit_fedbabu.learning.models import build_model
from lit_fedbabu.learning.trainable import blocks_of, restrict
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT
from lit_fedbabu.training.experiment import Experiment
from tests.support import tiny, tiny_config

VIT = "timm:test_vit"
KINDS = ["last:1", "norm", "lora:2"]


def trained(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(
    ("name", "count", "last"),
    [
        ("FourConvNet", 4, ["body.3"]),
        ("ResNet18", 8, ["body.layer4.1"]),
        (VIT, 6, ["body.blocks.5", "body.norm"]),
        ("timm:test_efficientnet", 5, ["body.blocks.4.0", "body.conv_head", "body.bn2"]),
    ],
)
def test_blocks_are_the_items_of_lists_and_what_follows(name, count, last):
    blocks = blocks_of(build_model(name, 3, 0), "body")
    assert (len(blocks), blocks[-1]) == (count, last)


def test_a_body_without_lists_has_its_layers_for_blocks():
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))})
    assert blocks_of(model, "body") == [["body.0"], ["body.2"]]
    assert blocks_of(model, "body.0") == [["body.0"]]


def test_what_wraps_a_network_is_no_block():
    model = build_model(VIT, 3, 0)
    model.body = nn.Sequential(nn.Identity(), nn.Sequential(model.body))
    assert [len(blocks_of(model, name)) for name in ("body", "body.1")] == [6, 6]


def test_what_is_asked_for_trains_and_no_more():
    model = build_model(VIT, 3, 0)
    head = {"head.weight", "head.bias"}
    for trainable, inside in (
        ("last:2", lambda name: name.startswith(("body.blocks.4.", "body.blocks.5.", "body.norm."))),
        ("norm", lambda name: ".norm" in name),
    ):
        own = copy.deepcopy(model)
        restrict(own, ["body"], trainable, 0)
        expected = {name for name, _ in model.named_parameters() if name.startswith("body.") and inside(name)}
        assert expected and trained(own) == expected | head
        assert all(torch.equal(value, own.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_its_maker_froze_stays_frozen():
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "head": nn.Linear(3, 2)})
    model["body"][1].bias.requires_grad_(False)
    model["head"].bias.requires_grad_(False)
    restrict(model, ["body"], "last:1", 0)
    assert trained(model) == {"body.1.weight", "head.weight"}


def test_adapters_are_drawn_from_the_seed_and_change_nothing_at_first():
    model, images = build_model(VIT, 3, 0, image_size=160).eval(), torch.rand(2, 3, 160, 160)
    with_adapters = [copy.deepcopy(model) for _ in range(3)]
    for each, seed in zip(with_adapters, (1, 1, 2), strict=True):
        restrict(each, ["body"], "lora:3", seed)
        assert torch.equal(each.eval()(images), model(images))
    states = [each.state_dict() for each in with_adapters]
    name = "body.blocks.0.attn.qkv.lora_A.default.weight"
    assert torch.equal(states[0][name], states[1][name]) and not torch.equal(states[0][name], states[2][name])
    assert states[0][name].shape == (3, 64)
    linear = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear) and path != "head"]
    expected = {f"{path}.lora_{letter}.default.weight" for path in linear for letter in "AB"}
    assert trained(with_adapters[0]) == expected | {"head.weight", "head.bias"}


def test_an_adapter_is_two_matrices_beside_its_layer():
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(5, 4)), "head": nn.Linear(4, 2)})
    weight, bias = (value.detach().clone() for value in model["body"][0].parameters())
    restrict(model, ["body"], "lora:2", 0)
    layer = model["body"][0]
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    x = torch.rand(3, 5)
    low = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer(x), x @ (weight + low).T + bias)


def test_convolutions_get_adapters_where_nothing_is_linear():
    model = build_model("FourConvNet", 3, 0)
    restrict(model, ["body"], "lora:2", 0)
    assert {f"body.{number}.0.lora_A.default.weight" for number in range(4)} < trained(model)


@pytest.mark.parametrize(
    ("model", "trainable", "told"),
    [
        ("FourConvNet", "last:5", "the body has 4 blocks"),
        ("tests.own_models:plain", "norm", "no normalization layers"),
        ("FourConvNet", "lora", "must be all, norm, last:N or lora:R"),
        ("FourConvNet", "last:0", "must be all, norm, last:N or lora:R"),
    ],
)
def test_what_cannot_be_is_refused(model, trainable, told):
    with pytest.raises(InputError, match=told) as caught:
        tiny(model_name=model, trainable=trainable).check()
    assert (caught.value.key, caught.value.value) == ("trainable", trainable)


def test_a_missing_peft_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    with pytest.raises(InputError, match="lit-fedbabu\\[lora\\]"):
        tiny(trainable="lora:8").check()


@pytest.mark.parametrize("trainable", KINDS)
def test_a_run_sends_what_trains_and_its_models_come_back(trainable, federate, tmp_path):
    config = tiny_config(trainable=trainable, num_clients=3, fraction_train=0.4, norm="batch-running")
    folder, _ = federate(config)
    experiment = Experiment(config)
    begun = experiment.new_module()
    sent = {f"body.{name}" for name in trained(begun.model.body)}
    statistics = {name for name in experiment.shared_names if name.rpartition(".")[2] in STATISTICS}
    assert set(experiment.shared_names) - statistics == sent
    assert bool(statistics) == (trainable != "lora:2"), "frozen normalization keeps its own"
    module = load_module(folder / LAST_CHECKPOINT)
    for name, value in begun.model.state_dict().items():
        same = torch.equal(value, module.model.state_dict()[name])
        assert same == (name not in experiment.shared_names), name
    finetune(folder, save=True, clients="1", part="full")
    (saved,) = folder.glob("finetune/*/personal/client_0001.ckpt")
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(load_model(saved).model(images), load_module(saved).model(images))
    load_model(saved).save_pretrained(tmp_path / "whole")
    assert torch.equal(load_model(tmp_path / "whole").model(images), load_module(saved).model(images))


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("trainable", KINDS)
def test_a_cohort_is_its_clients_one_by_one(trainable):
    experiment = tiny(trainable=trainable, precision="64-true")
    modules = [experiment.new_module() for _ in range(2)]
    images = torch.rand(2, 4, 3, 32, 32, dtype=torch.float64)
    own = torch.stack([module(batch) for module, batch in zip(modules, images, strict=True)])
    torch.testing.assert_close(LitCohort(modules)._each([0, 1], images), own, rtol=0, atol=1e-12)


def test_initial_weights_are_found_under_adapters(tmp_path):
    torch.manual_seed(7)
    pretrained = build_model("FourConvNet", 10, 5).state_dict()
    torch.save(pretrained, tmp_path / "weights.pt")
    experiment = tiny(trainable="lora:2", initial_weights=str(tmp_path / "weights.pt"))
    state = experiment.new_module().model.state_dict()
    for name, value in pretrained.items():
        layer, _, last = name.rpartition(".")
        assert torch.equal(state.get(name, state.get(f"{layer}.base_layer.{last}")), value), name
    assert experiment.starting_note == f"18 of 18 initial weights are from {tmp_path / 'weights.pt'}"


@pytest.mark.slow
def test_a_task_gets_adapters_too(federate):
    config = Config(
        task="tests.own_tasks:plain", trainable="lora:2", num_clients=3, num_server_rounds=1, fraction_train=1.0
    )
    folder, _ = federate(config)
    experiment = Experiment(config)
    assert set(experiment.shared_names) == {f"body.0.lora_{letter}.default.weight" for letter in "AB"}
    module, begun = load_module(folder / LAST_CHECKPOINT, config.task), experiment.new_module()
    weight = "lora_B.default.weight"
    assert not torch.equal(module.body[0].state_dict()[weight], begun.lightning.body[0].state_dict()[weight])
    assert torch.equal(module.body[0].base_layer.weight, begun.lightning.body[0].base_layer.weight)
    (again,) = finetune(folder, task=config.task, epochs=0)
    assert len(again["clients"]) == 3
