import json
import shutil
from pathlib import Path

import pytest
import torch

from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning import checkpoint, pretrained, trainer
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.records.classifier import load_model
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.records.results import read_results
from tests.support import state_digest, tiny_config

OLD = Path(__file__).parent.parent / "data" / "v0.1"
MODEL = "tests.helpers:narrow_model"
"""As checkpoints of version 0.1 name it."""


def test_checkpoint_round_trip_needs_no_argument(tmp_path):
    module = LitFedBABU(num_classes=7, mode="head", model_seed=9)
    module.provenance = {"kind": "personal", "round": 3, "config": {"seed": 1}}
    path = tmp_path / "deep" / "model.ckpt"
    checkpoint.save(module, path)
    loaded = LitFedBABU.load_from_checkpoint(path, weights_only=True)
    assert loaded.provenance == module.provenance
    assert loaded.hparams == module.hparams
    assert state_digest(loaded.state_dict()) == state_digest(module.state_dict())
    assert [file.name for file in path.parent.iterdir()] == ["model.ckpt"]


def test_a_kind_that_there_is_not_is_not_written(tmp_path):
    module = LitFedBABU()
    module.provenance = {"kind": "stranger"}
    with pytest.raises(ValueError, match="kind 'stranger' is none of federation, personal, newcomer"):
        checkpoint.save(module, tmp_path / "model.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["file", "folder"])
def test_code_is_refused_wherever_a_checkpoint_names_it(form, tmp_path):
    """Its configuration builds the model that is fine-tuned, and its hyper-parameters the one that is read."""
    module = LitFedBABU()
    config = tiny_config(model_name="strangers:model").experiment()
    module.provenance = {"config": config, "round": 1, "class_names": [str(each) for each in range(10)],
                         "mean": [0.0] * 3, "std": [1.0] * 3, "rounds": [], "kind": "federation"}  # fmt: skip
    if form == "file":
        checkpoint.save(module, tmp_path / "saved.ckpt")
        path = tmp_path / "saved.ckpt"
    else:
        path = tmp_path / "saved"
        pretrained.write(path, module.provenance, dict(module.hparams), module.model.state_dict())
    with pytest.raises(InputError, match='model-name = "strangers:model": is code that the checkpoint names'):
        checkpoint.read(path)
    assert checkpoint.read(path, "strangers:model").hyper_parameters["model_name"] == "FourConvNet"


@pytest.mark.parametrize("kind", checkpoint.KINDS)
def test_checkpoints_of_version_0_1_still_open(kind):
    path = OLD / f"{kind}.ckpt"
    found = checkpoint.read(path, MODEL)
    assert "kind" not in torch.load(path, weights_only=True)["lit_fedbabu"], "0.1 did not say it"
    assert found.kind == kind
    state = {name.removeprefix("model."): value for name, value in found.state.items()}
    module, model = checkpoint.load_module(path, MODEL), load_model(path, MODEL)
    assert state_digest(module.model.state_dict()) == state_digest(model.model.state_dict()) == state_digest(state)
    assert not module.training and not model.training
    with pytest.raises(InputError, match="is code that the checkpoint names"):
        checkpoint.read(path)


def test_a_federation_of_version_0_1_is_fine_tuned_and_nothing_else_is_one(tmp_path, one_core):
    federation = read_federation(OLD / "federation.ckpt", MODEL)
    assert federation.server_round == 1 and set(federation.shared) == {"body.0.weight", "body.0.bias"} | {
        name for name in federation.shared if name.startswith("body.1.")
    }
    for kind in ("personal", "newcomer"):
        with pytest.raises(InputError, match=f"is a {kind} model; give the checkpoint of a federation"):
            read_federation(OLD / f"{kind}.ckpt", MODEL)
    shutil.copy(OLD / "federation.ckpt", tmp_path / "federation.ckpt")
    assert finetune([str(tmp_path / "federation.ckpt"), "--model-name", MODEL, "--clients", "1"]) == 0
    (folder,) = (tmp_path / "finetune").iterdir()
    assert [row["client"] for row in read_results(folder)["clients"]] == [1]


@pytest.mark.parametrize("content", [{"kind": "stranger"}, {"kind": 7}])
def test_a_checkpoint_of_a_kind_to_come_is_refused_by_its_kind(content, tmp_path):
    saved = torch.load(OLD / "personal.ckpt", weights_only=True)
    saved["lit_fedbabu"].update(content)
    torch.save(saved, tmp_path / "new.ckpt")
    with pytest.raises(InputError, match=f"its kind is {content['kind']}, not one of federation, personal"):
        checkpoint.read(tmp_path / "new.ckpt", MODEL)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    saved = torch.load(OLD / "personal.ckpt", weights_only=True)
    saved["state_dict"]["model.head.bias"][0] = float("nan")
    torch.save(saved, tmp_path / "nan.ckpt")
    with pytest.raises(InputError, match="has weights that are not finite, the first is head.bias"):
        checkpoint.read(tmp_path / "nan.ckpt", MODEL)


def test_a_checkpoint_that_could_not_be_written_leaves_nothing(tmp_path, monkeypatch):
    module = LitFedBABU()
    module.provenance = {"kind": "personal"}

    def full(trainer, path, weights_only):
        Path(path).touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer.ClientTrainer, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(module, tmp_path / "model.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_knows_the_size_of_its_images(tmp_path):
    module = LitFedBABU(image_size=16)
    facts = {"round": 1, "class_names": list("abcdefghij"), "mean": [0.5] * 3, "std": [0.2] * 3}
    module.provenance = {"kind": "personal", "config": {"image-size": 16}, **facts}
    checkpoint.save(module, tmp_path / "model.ckpt")
    assert load_model(tmp_path / "model.ckpt").image_size == 16
    assert load_model(OLD / "personal.ckpt", MODEL).image_size == 32, "0.1 did not say it"
    module.provenance["config"]["image-size"] = 48
    checkpoint.save(module, tmp_path / "other.ckpt")
    with pytest.raises(
        InputError, match="is of a model for images of 16 pixels, and its configuration has image-size=48"
    ):
        checkpoint.read(tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    ("place", "key"),
    [*(("hyper_parameters", key) for key in ("model_name", "num_classes", "norm", "channels", "dtype", "image_size")),
     *(("lit_fedbabu", key) for key in ("class_names", "mean", "std"))],
)  # fmt: skip
def test_a_value_that_no_model_has_is_refused_by_its_key(place, key, tmp_path):
    module = LitFedBABU()
    provenance = {"config": tiny_config().experiment(), "round": 1, "class_names": [str(each) for each in range(10)],
                  "mean": [0.0] * 3, "std": [1.0] * 3, "rounds": [], "kind": "federation"}  # fmt: skip
    pretrained.write(tmp_path / "saved", provenance, dict(module.hparams), module.model.state_dict())
    file = tmp_path / "saved" / pretrained.CONFIG
    whole = json.loads(file.read_text())
    checkpoint.read(tmp_path / "saved")
    values: list[object] = [None, True, -1, 0, 2.5, 10**30, "", "nonsense", [], [1], {}, ["a", None], float("nan")]
    for value in values:
        file.write_text(json.dumps({**whole, place: {**whole[place], key: value}}))
        with pytest.raises(InputError, match=f"{key}|model-name|image-size|pixels"):
            checkpoint.read(tmp_path / "saved")
