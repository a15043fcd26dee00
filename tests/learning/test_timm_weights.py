"""Pretrained weights of timm. The hub is not asked: a stand-in for timm's loading makes the weights."""

import dataclasses

import huggingface_hub.constants
import pytest
import timm
import torch

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning import reach
from lit_fedbabu.records.run_folder import read_config
from lit_fedbabu.training.experiment import Experiment
from tests.support import tiny, tiny_config

OPTIONS = {"model_name": "timm:test_resnet", "pretrained": True}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """timm as it is where the hub answers, and how often it was asked."""
    original, asked = timm.create_model, []

    def create(name, pretrained=False, **options):
        if "pretrained_cfg_overlay" in options:  # which says where they are
            return original(name, pretrained, **options)
        network = original(name, pretrained=False, **options)
        if pretrained:
            asked.append(name)
            with torch.no_grad():
                for weight in network.parameters():
                    weight.fill_(len(asked) / 8)
        return network

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(reach, "answers", lambda: True)
    return asked


def test_a_run_starts_from_the_weights_of_the_hub(hub, federate, capsys):
    folder, grid = federate(tiny_config(num_server_rounds=1, **OPTIONS))
    out = capsys.readouterr().out
    note = next(line for line in out.splitlines() if "initial weights" in line)
    assert note.startswith("note: 45 of 47 initial weights are from ")
    assert "not there: head.weight, head.bias; not used: body.bn1.num_batches_tracked, " in note
    first = next(each.content for each in grid.messages if each.content.array_records)
    sent = first.array_records["arrays"].to_torch_state_dict()
    assert sent and all((value == 1 / 8).all() for value in sent.values())
    assert hub == ["test_resnet"], "asked once on a machine"
    config = read_config(folder)
    assert config.pretrained and config.initial_weights.endswith(f"test_resnet-32px-timm{timm.__version__}.safetensors")
    again = Experiment(config)
    assert again.config.initial_weights_digest == config.initial_weights_digest and hub == ["test_resnet"]


def test_grey_images_leave_the_first_convolution_random(hub):
    experiment = tiny(**OPTIONS, dataset="digits", min_client_images=1)
    weights = experiment.new_module().model.state_dict()
    assert len(weights["body.conv1.0.weight"].unique()) > 10 and (weights["body.conv1.3.weight"] == 1 / 8).all()
    assert "of another shape or type there: body.conv1.0.weight" in experiment.starting_note


def test_without_the_hub_the_line_has_the_ways_out(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(reach, "answers", lambda: False)
    original, offline = timm.create_model, []

    def create(*names, **options):
        offline.append(huggingface_hub.constants.HF_HUB_OFFLINE)
        return original(*names, **options)

    monkeypatch.setattr(timm, "create_model", create)
    words = "weights of test_resnet cannot be had: the hub cannot be reached and has nothing cached; three ways out"
    with pytest.raises(InputError, match=f"pretrained = true: {words}") as refused:
        tiny(**OPTIONS)
    assert "\n" not in str(refused.value) and not (tmp_path / "cache").exists()
    assert offline == [True], "it does not try for a minute"


def test_what_cannot_be_pretrained_is_refused():
    for options, words in (
        ({"pretrained": True}, "pretrained = true: is for networks of timm"),
        ({**OPTIONS, "initial_weights": "mine.pt"}, 'initial-weights = "mine.pt": is in place of pretrained=true'),
        ({"pretrained": "yes"}, 'pretrained = "yes": must be true or false, as in pretrained=false'),
    ):
        with pytest.raises(InputError, match=words):
            Config(**options)
    config = dataclasses.replace(tiny_config(**OPTIONS), model_name="timm:botnet50ts_256")
    with pytest.raises(InputError, match="pretrained = true: timm has no weights of botnet50ts_256"):
        Experiment(config)
