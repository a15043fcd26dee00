"""Networks of timm as bodies."""

import importlib.util
import json

import pytest
import timm
import torch
from torch import nn

from lit_fedbabu import load_model
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.models import build_model
from lit_fedbabu.records.run_folder import RESULTS
from lit_fedbabu.tasks.images import learner
from lit_fedbabu.training import client_update
from lit_fedbabu.training.experiment import Experiment
from tests.support import client_data, state_digest, tiny, tiny_config

TINY = {"timm:test_resnet": 96, "timm:test_vit": 64, "timm:test_convnext": 64, "timm:test_efficientnet": 256}
"""Networks of timm that are made for tests, and their features."""


@pytest.mark.parametrize("norm", ["batch", "batch-running"])
@pytest.mark.parametrize("name", TINY)
def test_a_network_of_timm_is_a_body_under_a_linear_head(name, norm):
    models = [build_model(name, 5, 3, norm, channels=1, image_size=48) for _ in range(2)]
    assert state_digest(models[0].state_dict()) == state_digest(models[1].state_dict()), "which follows from the seed"
    assert state_digest(models[0].state_dict()) != state_digest(build_model(name, 5, 4, norm, 1, 48).state_dict())
    model = models[0]
    assert isinstance(model.head, nn.Linear) and tuple(model.head.weight.shape) == (5, TINY[name])
    images = torch.randn(4, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    assert model.body.training and model(images).shape == (4, 5)
    has_batch_norm = name in ("timm:test_resnet", "timm:test_efficientnet")
    assert bool(list(model.buffers())) == (norm == "batch-running" and has_batch_norm)
    model.eval()
    alone, together = model(images[:1]), model(images)[:1]
    same = torch.allclose(alone, together, atol=1e-5)
    assert same == (norm == "batch-running" or not has_batch_norm), "batch norm of the batch's own statistics"


def test_a_network_of_one_size_is_built_for_that_of_the_images():
    assert build_model("timm:vit_tiny_patch16_224", 5, 3, image_size=48)(torch.zeros(2, 3, 48, 48)).shape == (2, 5)


def test_the_body_is_timms_own_network():
    body = build_model("timm:test_resnet", 5, 3, "batch-running").body
    original = timm.create_model("test_resnet", num_classes=0)
    original.load_state_dict(body.state_dict())
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(body.eval()(images), original.eval()(images))


@pytest.mark.parametrize("norm", ["batch", "batch-running"])
def test_what_does_not_train_stays_bitwise_with_its_statistics(norm):
    config = tiny_config(model_name="timm:test_efficientnet", norm=norm)
    for mode in ("head", "body"):
        module, data = Experiment(config).new_module(), client_data(config, 2, 0)
        before = {name: value.clone() for name, value in module.model.state_dict().items()}
        learner.fit([module], [data], mode=mode, epochs=1, learning_rate=0.1)
        for name, value in module.model.state_dict().items():
            if not torch.equal(value, before[name]):
                assert name.startswith(mode), name
        assert any(not torch.equal(value, before[name]) for name, value in module.model.state_dict().items())


@pytest.mark.parametrize("norm", ["batch", "batch-running"])
def test_it_trains_in_a_cohort(norm):
    options = {"algorithm": "fedavg", "precision": "64-true", "batch_size": 24}
    experiment = tiny(model_name="timm:test_resnet", norm=norm, **options)
    received = experiment.initial_shared()
    together = client_update.cohort_update(experiment, [0, 1], 1, received, 0.01)
    for client, (state, *_) in enumerate(together):
        alone = client_update.client_update(experiment, client, 1, received, 0.01)[0]
        for name, value in state.items():
            torch.testing.assert_close(value, alone[name], atol=1e-9, rtol=1e-7)


@pytest.mark.slow
def test_a_federation_with_a_backbone_ends_in_personal_models(federate, tmp_path, one_core):
    options = {"augmentation": "resized-crop-flip", "image_size": 48, "num_server_rounds": 1}
    config = tiny_config(model_name="timm:test_resnet", **options)
    Experiment(config).check()
    folder, _ = federate(config)
    assert finetune([str(folder), "--clients", "0", "--save"]) == 0
    assert finetune([str(folder), "--data", tiny_config.dataset, "--save", str(tmp_path / "mine")]) == 0
    model = load_model(tmp_path / "mine")
    assert model.image_size == 48 and len(model.predict([torch.zeros(9, 9, 3, dtype=torch.uint8).numpy()])) == 1
    rows = json.loads((folder / RESULTS).read_text())["clients"]
    assert all(row["personalized_accuracy"] is not None for row in rows)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:resnet19", "timm has no such model; as resnet10t, .*; timm.list_models.. has all"),
        ("timm:", "timm has no such model; timm.list_models"),
        ("timm:hf_hub:someone/theirs", "timm has no such model"),
        ("timm:test_vit", "cannot be built for 3 channels of 40 x 40 pixels: .*Error: "),
    ],
)
def test_what_is_no_network_of_timm_is_refused_in_a_line(name, words):
    with pytest.raises(InputError, match=f'model-name = "{name}": {words}') as refused:
        build_model(name, 5, 0, image_size=40)
    assert "\n" not in str(refused.value)


def test_without_timm_the_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs timm: pip install 'lit-fedbabu\[timm\]'"):
        build_model("timm:resnet18", 5, 0)
