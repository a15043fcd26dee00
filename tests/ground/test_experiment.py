"""Experiment: what follows from a configuration, built once."""

import itertools

import torch

from lit_fedbabu.learning import assembly
from lit_fedbabu.tasks.images import task
from lit_fedbabu.training.experiment import Experiment
from tests.support import NARROW, tiny_config


def counted(monkeypatch, place, name):
    """Calls of a function, as a list that grows."""
    calls, function = [], getattr(place, name)
    monkeypatch.setattr(place, name, lambda *given, **named: calls.append(given) or function(*given, **named))
    return calls


def test_the_initial_model_is_built_once_and_copied(monkeypatch):
    built = counted(monkeypatch, assembly, "build_model")
    experiment = Experiment(tiny_config(model_name=NARROW))
    first, second = experiment.new_module(), experiment.new_module()
    with torch.no_grad():
        for weight in first.model.parameters():
            weight.zero_()
    for name, value in experiment.new_module().model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
    assert len(built) == 1


def test_what_is_laid_over_the_initial_model_comes_last():
    experiment = Experiment(tiny_config(model_name=NARROW))
    ones, twos = ({"head.bias": torch.full((10,), value)} for value in (1.0, 2.0))
    assert experiment.new_module(ones, twos).model.head.bias.tolist() == [2.0] * 10
    assert experiment.new_module(twos, ones).model.head.bias.tolist() == [1.0] * 10


def test_six_settings_of_fine_tuning_share_one_split_and_one_model(monkeypatch):
    dealt, built = counted(monkeypatch, task, "dealt"), counted(monkeypatch, assembly, "build_model")
    base = Experiment(tiny_config(model_name=NARROW))
    settings = [
        base.with_finetuning(tiny_config(finetune_part=part, finetune_learning_rate=rate))
        for part, rate in itertools.product(("head", "full"), (1, 2, 3))
    ]
    for each in settings:
        each.client_data(0, 1)
        each.new_module()
    base.client_data(1, 1)
    assert len(dealt) == 1
    assert len({(each.config.finetune_part, each.config.finetune_learning_rate) for each in settings}) == 6
    assert len(built) == 1
