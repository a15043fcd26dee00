import json
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard

from lit_fedbabu import Classifier, load_model
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.learning import checkpoint, pretrained, reach
from lit_fedbabu.training.experiment import Experiment
from tests.support import tiny_config


@pytest.fixture(scope="module")
def saved(machine, tmp_path_factory):
    """A model with running statistics as a folder, and as a checkpoint."""
    place = tmp_path_factory.mktemp("saved")
    experiment = Experiment(tiny_config(norm="batch-running"))
    module = experiment.new_module()
    module.provenance = experiment.provenance("newcomer", round=3, data="my/photos", running_statistics=True)
    checkpoint.save(module, place / "me.ckpt")
    pretrained.write(place / "me", module.provenance, module.hparams, module.model.state_dict())
    return place


def logits(model):
    images = torch.linspace(0, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    with torch.no_grad():
        return model(images)


def test_a_folder_and_a_checkpoint_are_the_same_model_ready_to_predict(saved):
    folder, file = load_model(saved / "me"), load_model(saved / "me.ckpt")
    assert not folder.training and not any(module.training for module in folder.modules())
    assert torch.equal(logits(folder), logits(file)) and folder.class_names == file.class_names == tuple("abcdefghij")
    assert load_model(saved / "me").provenance == json.loads(json.dumps(file.provenance))


def test_a_model_is_saved_and_loaded_as_hubs_do_it(saved, tmp_path):
    load_model(saved / "me.ckpt").save_pretrained(tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (saved / "me" / name).read_bytes(), "one format"
    again = Classifier.from_pretrained(tmp_path / "copy")
    assert not again.training and torch.equal(logits(again), logits(load_model(saved / "me")))
    card = ModelCard.load(tmp_path / "copy" / "README.md")
    assert card.data.datasets == ["my/photos"] and 'load_model("copy")' in card.text
    (tmp_path / "copy" / "README.md").write_text("my own words")
    Classifier.from_pretrained(tmp_path / "copy").save_pretrained(tmp_path / "third")
    assert (tmp_path / "third" / "README.md").read_text() == "my own words", "a card that is there is kept"


def test_a_model_is_pushed_to_a_hub_and_loaded_from_it(saved, tmp_path, monkeypatch):
    class Hub:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **_):
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, folder_path, **_):
            shutil.copytree(folder_path, tmp_path / "hub")

    monkeypatch.setattr(reach, "answers", lambda: True)
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    load_model(saved / "me").push_to_hub("me/photos")
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **_: tmp_path / "hub" / "config.json")
    monkeypatch.setattr("lit_fedbabu.records.classifier.snapshot_download", lambda *_, **__: tmp_path / "hub")
    assert torch.equal(logits(Classifier.from_pretrained("me/photos")), logits(load_model(saved / "me")))
    with pytest.raises(TypeError, match="no argument trust"):
        Classifier.from_pretrained("me/photos", trust="all")


@pytest.mark.parametrize(
    ("name", "reached", "told"),
    [
        (
            "owner/name",
            False,
            "is no folder; the Hugging Face hub cannot be reached, and the model is not in its cache",
        ),
        ("owner/name", True, "the Hugging Face hub has no such model: 404 not found; give the folder of a saved"),
        ("no/such/folder", False, "is no folder, and no name on the Hugging Face hub, as owner/name"),
        ("", False, "is no folder, and no name on the Hugging Face hub, as owner/name"),
    ],
)
def test_a_model_that_is_nowhere_is_told_in_one_line(name, reached, told, tmp_path, monkeypatch):
    def missing(*_, **__):
        raise OSError("404\nnot found")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reach, "answers", lambda: reached)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    if reached:
        monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", missing)
    with pytest.raises(InputError) as raised:
        Classifier.from_pretrained(name)
    assert str(raised.value).startswith(f'model = "{name}": {told}') and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("model.safetensors", b"", "model.safetensors is damaged, or of another model than config.json"),
        ("config.json", b"{", "is not one that lit_fedbabu wrote"),
        ("config.json", b"{}", "is not one that lit_fedbabu wrote"),
        ("model.safetensors", None, "it has no model.safetensors"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(file, content, told, saved, tmp_path):
    folder = shutil.copytree(saved / "me", tmp_path / "me")
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=told) as refused:
        load_model(folder)
    assert "\n" not in str(refused.value)


def test_weights_that_are_not_finite_are_not_written(saved, tmp_path):
    model = load_model(saved / "me")
    with torch.no_grad():
        model.model.head.weight[0, 0] = float("nan")
    with pytest.raises(RunError, match=r"not finite, the first is head.weight"):
        model.save_pretrained(tmp_path / "bad")
