"""A model that starts from a file: what is found in which form of file, what is told, what is refused."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning import initial_weights
from lit_fedbabu.learning.models import BodyAndHead, build_model


def small(outputs=3):
    return BodyAndHead(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.Linear(4, outputs))


@pytest.fixture
def given():
    """A state with other weights than a new model has."""
    return {name: value + 1 for name, value in small().state_dict().items()}


FORMS = {
    "a whole model": lambda state: state,
    "a LightningModule": lambda state: {"state_dict": {f"model.{name}": state[name] for name in state}, "epoch": 3},
    "a wrapped model": lambda state: {f"module.{name}": state[name] for name in state},
    "a compiled model in a wrapper": lambda state: {f"module._orig_mod.{name}": state[name] for name in state},
    "a training's state": lambda state: {"epoch": 3, "model": state, "optimizer": {"state": {}, "param_groups": []}},
    "sparse weights": lambda state: {name: value.to_sparse() for name, value in state.items()},
    "half precision": lambda state: {name: v.half() if v.is_floating_point() else v for name, v in state.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_files_are_read_alike(form, given, tmp_path):
    torch.save(FORMS[form](given), tmp_path / "weights.pt")
    model = small()
    note = initial_weights.load(model, str(tmp_path / "weights.pt"))
    assert note == f"9 of 9 initial weights are from {tmp_path / 'weights.pt'}"
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, given[name], atol=1e-2 if form == "half precision" else 0, rtol=0)
        assert value.dtype == given[name].dtype


def test_a_body_alone_is_found_and_what_is_not_is_told(given, tmp_path):
    body = {name.removeprefix("body."): value for name, value in given.items() if name.startswith("body.")}
    body["0.bias"] = torch.zeros(5)
    body["1.num_batches_tracked"] = torch.tensor(0.5)
    save_file({**body, "fc.weight": torch.zeros(7, 4)}, tmp_path / "body.safetensors")
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    note = initial_weights.load(model, str(tmp_path / "body.safetensors"))
    assert note == (
        f"5 of 9 initial weights are from {tmp_path / 'body.safetensors'}; not there: head.weight, head.bias;"
        " of another shape or type there: body.0.bias, body.1.num_batches_tracked; not used: body.fc.weight"
    )
    for name, value in model.state_dict().items():
        left = name.startswith("head.") or name in ("body.0.bias", "body.1.num_batches_tracked")
        assert torch.equal(value, before[name] if left else given[name])


def test_torchvision_weights_fit_the_body_of_resnet18(tmp_path):
    from torchvision.models import resnet18

    original = resnet18(num_classes=7)
    torch.save(original.state_dict(), tmp_path / "resnet18.pt")
    for norm in ("batch", "batch-running"):
        model = build_model("ResNet18", 5, 0, norm)
        note = initial_weights.load(model, str(tmp_path / "resnet18.pt"))
        of_body = dict(model.body.named_parameters())
        same = [name for name, value in original.named_parameters() if name in of_body and value.equal(of_body[name])]
        assert len(same) == len(of_body) - 1, "all but the first convolution, which is smaller"
        assert "not there: head.weight, head.bias; of another shape or type there: body.conv1.weight;" in note
    assert "not used: body.fc.weight, body.fc.bias" in note


def test_tied_weights_are_loaded_under_one_name(given, tmp_path):
    def tied():
        body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        body[1].weight = body[0].weight
        return BodyAndHead(body, nn.Linear(4, 3))

    torch.save({name: value + 1 for name, value in tied().state_dict().items()}, tmp_path / "tied.pt")
    model = tied()
    assert "5 of 5 initial" in initial_weights.load(model, str(tmp_path / "tied.pt"))
    assert model.body[0].weight is model.body[1].weight


class Code:
    """What reading a file must not make."""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            Code(),
            "is no state dict, .* .it has none, or code that is not run.; write one with torch.save",
        ),
        ([1, 2], "is no state dict, .safetensors or checkpoint"),
        (
            {},
            r"has no matrix or kernel of the model: it has no tensors, and .* body.0.weight \[2, 1, 3, 3\] and",
        ),
        (
            {"other": torch.zeros(2)},
            r"has no matrix or kernel of the model: it has other \[2\], and the model has",
        ),
        ({"body.1.num_batches_tracked": torch.tensor(3)}, "has no matrix or kernel of the model"),
        ({"head.bias": torch.zeros(3), "body.1.weight": torch.zeros(2)}, "has no matrix or kernel of the model"),
        ({"head.weight": torch.full((3, 4), torch.nan)}, "has weights that are not finite, the first is head.weight"),
        ({"head.weight": torch.full((3, 4), 1e300, dtype=torch.float64)}, "has weights that are not finite"),
        (
            {"a": {"head.weight": torch.ones(3, 4)}, "b": {"x": torch.ones(3)}},
            "is no state dict, .* it has several, a, b",
        ),
        ({"head.weight": torch.ones(3, 4, device="meta")}, "is no state dict, .* its head.weight has a shape and no"),
    ],
)
def test_files_without_weights_of_the_model_are_refused_in_a_line(content, words, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=f'initial-weights = "{tmp_path / "weights.pt"}": {words}') as refused:
        initial_weights.load(small(), str(tmp_path / "weights.pt"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_damaged_files_are_refused(name, given, tmp_path):
    path = tmp_path / name
    (torch.save if name.endswith(".pt") else save_file)(given, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="is no state dict"):
        initial_weights.load(small(), str(path))
    if name.endswith(".pt"):
        place = content.index(given["body.0.weight"].numpy().tobytes())
        path.write_bytes(content[:place] + b"\0\0\0\0" + content[place + 4 :])
        with pytest.raises(InputError, match="is damaged"):
            initial_weights.load(small(), str(path))
