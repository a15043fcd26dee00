"""A network of timm, fine-tuned on photographs without a federation. The hub is not asked: files are made here."""

import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from lit_fedbabu.config import Config
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.learning import checkpoint, reach
from lit_fedbabu.learning.timm_weights import body_of, maker_of
from lit_fedbabu.predict import main as predict
from lit_fedbabu.reporting.runs import read_run
from tests.learning.test_timm_weights import hub
from tests.personal.test_newcomer import paint

pytestmark = pytest.mark.usefixtures("one_core")
__all__ = ["hub"]
NAME = "test_resnet"


def write(path, name=NAME, **options):
    """A file as of timm's hub: weights and running statistics that no layer begins with."""
    network = timm.create_model(name, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                value.add_(0.4 * torch.rand(value.shape, generator=generator) - 0.2)
                assert not key.endswith("running_var") or (value > 0).all()
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of a few pixels more and less than the network's, for training and for tests."""
    folder = tmp_path_factory.mktemp("photos")
    paint(folder / "train", size=(150, 170), count=4)
    paint(folder / "test", size=(170, 150), count=2)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write(tmp_path_factory.mktemp("weights") / "model.safetensors")


def as_timm_does(network, paths):
    """Images (N, 3, 160, 160) by timm's own preprocessing, of the whole image as a square."""
    options = timm.data.resolve_data_config(model=network)
    options |= {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
    transform = timm.data.create_transform(**options)
    return torch.stack([transform(Image.open(path)) for path in paths]).double()


def trained_plainly(photos, weights, head, epochs, rate):
    """Features of timm's network, and a head on them, trained by a loop of a few lines; test logits and their loss."""
    network = timm.create_model(NAME, num_classes=0).eval().double()
    network.load_state_dict({key: value for key, value in load_file(weights).items() if not key.startswith("fc.")})
    names = sorted(each.name for each in (photos / "train").iterdir())
    paths = {split: sorted((photos / split).glob("*/*.png")) for split in ("train", "test")}
    labels = {split: torch.tensor([names.index(each.parent.name) for each in paths[split]]) for split in paths}
    with torch.no_grad():
        features = {split: network(as_timm_does(network, paths[split])) for split in paths}
    weight, bias = (each.clone().requires_grad_() for each in head)
    optimizer = torch.optim.SGD([weight, bias], lr=rate, momentum=0.9)
    for _ in range(epochs):
        optimizer.zero_grad()
        functional.cross_entropy(functional.linear(features["train"], weight, bias), labels["train"]).backward()
        optimizer.step()
    logits = functional.linear(features["test"], weight, bias).detach()
    return (weight.detach(), bias.detach()), paths["test"], logits, functional.cross_entropy(logits, labels["test"])


def test_the_head_alone_trains_on_what_timm_itself_makes_of_the_images(photos, weights, tmp_path, capsys):
    command = [f"timm:{NAME}", "--data", str(photos), "--weights", str(weights), "--precision", "32-true"]
    command += ["--augmentation", "none", "--lr", "0.05"]
    for name, epochs in (("before", "0"), ("me", "3")):
        assert finetune([*command, "--epochs", epochs, "--save", str(tmp_path / name)]) == 0
    out = capsys.readouterr().out
    assert f"timm:{NAME}: weights of {weights}\n" in out
    assert f"{photos}: 12 training and 6 test images of 3 classes, resized to 160 x 160\n" in out
    before, after = (checkpoint.load_module(tmp_path / name).model for name in ("before", "me"))
    for key, value in load_file(weights).items():
        assert key.startswith("fc.") or torch.equal(after.body.state_dict()[key], value)
    begun, ended = (list(model.head.double().state_dict().values()) for model in (before, after))
    head, paths, logits, loss = trained_plainly(photos, weights, begun, 3, 0.05)
    assert not torch.allclose(begun[0], head[0], atol=1e-3)
    assert logits.softmax(1).max() < 0.99, "so that probabilities say something"
    torch.testing.assert_close(ended, list(head), atol=1e-5, rtol=1e-4)
    (row,) = json.loads((tmp_path / "me" / "results.json").read_text())["clients"]
    assert row["personalized_loss"] == pytest.approx(loss.item(), rel=1e-4)
    for path, of_timm in zip(paths, logits.softmax(1), strict=True):
        capsys.readouterr()
        assert predict([str(tmp_path / "me"), str(path), "--json"]) == 0  # one image alone
        found = json.loads(capsys.readouterr().out)["probabilities"]
        assert [found[name] for name in ("blue", "green", "red")] == pytest.approx(of_timm.tolist(), abs=1e-4)
    card = (tmp_path / "me" / "README.md").read_text()
    assert "\nNo federation trained it. It began with what fits of the weights in `model.safetensors` (SHA-256 " in card
    assert "num-server-rounds" not in card and "- federated-learning" not in card and "Privacy none" not in card
    assert read_run(tmp_path / "me").outcome["round"] == 0, "a report takes it"


def test_the_last_blocks_train_and_the_saved_model_needs_no_file(photos, tmp_path, capsys):
    file = write(tmp_path / "model.safetensors")
    begun = load_file(file)
    command = ["--data", str(photos), "--epochs", "1", "--lr", "0.05", "--precision", "32-true", "--save"]
    network = [f"timm:{NAME}", "--weights", str(file), "--trainable", "last:2"]
    assert finetune([*network, *command, str(tmp_path / "me")]) == 0
    file.unlink()
    body = checkpoint.load_module(tmp_path / "me").model.body.state_dict()
    moved = {key.rpartition(".")[0] for key in body if not torch.equal(body[key], begun[key])}
    assert moved and all(key.startswith(("layer3.", "layer4.")) for key in moved), "with their running statistics"
    assert {"layer3.0.bn1", "layer4.0.conv1"} <= moved
    assert predict([str(tmp_path / "me"), str(photos / "test" / "red" / "0.png")]) == 0
    assert finetune([str(tmp_path / "me"), *command, str(tmp_path / "again")]) == 0, "with the same blocks"
    assert "frozen and not in this file" not in (tmp_path / "again" / "README.md").read_text()
    again = checkpoint.load_module(tmp_path / "again").model.body.state_dict()
    assert {key.rpartition(".")[0] for key in body if not torch.equal(body[key], again[key])} == moved


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_a_file_is_of_the_whole_network_or_of_its_body(name, tmp_path):
    for options in ({}, {"num_classes": 0}):
        path = write(tmp_path / "model.safetensors", name, **options)
        size = maker_of(f"timm:{name}").image_size
        body = body_of(Config(model_name=f"timm:{name}", initial_weights=str(path), image_size=size))
        names = timm.create_model(name, num_classes=0).state_dict()
        assert body.keys() == {f"body.{key}" for key in names}
        assert all(torch.equal(body[f"body.{key}"], load_file(path)[key]) for key in names)


def test_weights_come_from_the_hub_where_it_is_in_reach(hub, photos, tmp_path):
    command = [f"timm:{NAME}", "--data", str(photos), "--epochs", "0", "--save"]
    for name in ("one", "other"):
        assert finetune([*command, str(tmp_path / name)]) == 0
        body = checkpoint.load_module(tmp_path / name).model.body
        assert all((weight == 1 / 8).all() for weight in body.parameters())
    assert hub == [NAME], "asked once on a machine"


def test_an_untrained_body_is_never_taken(photos, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(reach, "answers", lambda: False)
    lacking = load_file(weights)
    del lacking["layer3.0.conv1.weight"]
    save_file(lacking, tmp_path / "lacking.safetensors")
    torch.save(load_file(weights), tmp_path / "model.pth")
    data, file = ["--data", str(photos)], ["--weights", str(weights)]
    for words, told in (
        (data, f'CHECKPOINT = "timm:{NAME}": weights of {NAME} cannot be had: the hub cannot be reached and has'),
        (data, "; where there is a network: hf download timm/test_resnet.r160_in1k model.safetensors; then give the"),
        ([*data, "--weights", str(tmp_path / "lacking.safetensors")], f'safetensors": has not the weights of {NAME}: '),
        ([*data, "--weights", str(tmp_path / "model.pth")], 'model.pth": is no .safetensors ('),
        ([*data, "--weights", str(tmp_path / "none")], 'none": cannot be read (No such file'),
        ([*data, *file, "--trainable", "last:9"], '--trainable = "last:9": the body has '),
        ([*data, *file, "--trainable", "lora:8"], '--trainable = "lora:8": must be last:N or norm'),
        ([*data, *file, "--trainable", "norm", "--part", "head"], "and --part head trains none of it"),
        ([*data, *file, "--running-statistics"], "the model has them already"),
        ([*data, "--algorithm", "a:b"], '--algorithm = "a:b": is for a federation'),
        ([], "is a network without clients: give images of your own with --data"),
    ):  # fmt: skip
        assert finetune([f"timm:{NAME}", *words, "--save", str(tmp_path / "me")] if words else [f"timm:{NAME}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
    assert finetune(["cifar10", *data, *file]) == 2
    assert f'--weights = "{weights}": is for timm:NAME' in capsys.readouterr().err
    assert finetune(["timm:none", *data, *file]) == 2 and "timm has no such model" in capsys.readouterr().err
    assert not (tmp_path / "me").exists()
