"""Models that diverge while they become personal: told by client, left out, counted, and not saved."""

import json
import math
import shutil

import pytest
import torch

from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.records.results import read_results, table
from lit_fedbabu.tasks.images import learner
from lit_fedbabu.training import client_update
from tests.support import NARROW, tiny, tiny_config

pytestmark = pytest.mark.usefixtures("one_core")


@pytest.fixture
def diverging(monkeypatch):
    """Let the fine-tuning of client 3 end in weights that are not numbers."""
    personalize = learner.fit

    def fit(modules, data, **options):
        losses = personalize(modules, data, **options)
        for module, own in zip(modules, data, strict=True):
            if options.get("curves") and own.client == 3:
                with torch.no_grad():
                    module.model.head.weight[0, 0] = math.nan
        return losses

    monkeypatch.setattr(learner, "fit", fit)


def test_a_run_leaves_out_a_client_whose_model_diverged(diverging, federate, capsys):
    folder, _ = federate(tiny_config(model_name=NARROW, num_server_rounds=1))
    outcome = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    row = outcome["clients"][3]
    assert row["personalized_accuracy"] is row["personalized_loss"] is row["gain"] is row["accuracy_epoch_1"] is None
    assert row["initial_accuracy"] == row["accuracy_epoch_0"] is not None
    values = [each["personalized_accuracy"] for each in outcome["clients"] if each["client"] != 3]
    over = outcome["summary"]["personalized_accuracy"]
    assert over["mean"] == pytest.approx(sum(values) / 5) and over["clients"] == 5
    assert "clients" not in outcome["summary"]["initial_accuracy"]
    told = capsys.readouterr().out
    assert "personalized accuracy of clients [3] is not finite and is left out" in told
    assert "over 5 of 6 clients" in told and "over 5: the others' accuracy is not finite" in told


@pytest.mark.slow
def test_fine_tuning_saves_no_model_that_diverged_and_says_so(diverging, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert finetune([str(folder), "--save", "--epochs", "1"]) == 0
    told = capsys.readouterr().out
    assert "note: personalized accuracy of clients [3] is not finite and is left out; models whose weights" in told
    assert "personalized not finite" in told
    (place,) = folder.glob("finetune/*")
    assert {path.stem for path in (place / "personal").iterdir()} == {f"client_{n:04d}" for n in (0, 1, 2, 4, 5)}
    assert "over 5" in table(read_results(place))


@pytest.mark.parametrize("words", [["--clients", "0,1"], pytest.param(["--data", "digits"], marks=pytest.mark.slow)])
def test_where_every_model_diverges_the_command_fails_in_one_line_and_saves_nothing(words, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    save = ["--save", str(tmp_path / "me")] if "--data" in words else ["--save"]
    assert finetune([str(folder), *words, *save, "--lr", "1e30", "--epochs", "2"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the personalized accuracy of all ") and error.count("\n") == 1, error
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".ckpt" and path.parent.name != "checkpoints"]


def test_weights_that_are_not_finite_are_never_written(tiny_module, tmp_path):
    with torch.no_grad():
        tiny_module.model.head.bias[0] = math.inf
    with pytest.raises(RunError, match=r"last.ckpt is not written: its weights are not finite, the first is head.bias"):
        checkpoint.save(tiny_module, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def tiny_module():
    experiment = tiny(model_name=NARROW)
    module = experiment.new_module()
    module.provenance = experiment.provenance("federation", round=1, rounds=[])
    return module


def test_a_personal_memory_that_diverges_fails_its_client_by_name(federate):
    """Ditto's own models, pulled too hard."""
    config = tiny_config(model_name=NARROW, algorithm="ditto", proximal_mu=1e30, min_clients_per_round=1)
    with pytest.raises(RunError, match="what it keeps is not finite"):
        federate(config)


def test_initial_evaluations_of_diverged_models_are_no_accuracies(monkeypatch, federate, capsys):
    evaluate = client_update.own_module

    def broken(experiment, client, *received):
        module = evaluate(experiment, client, *received)
        if client == 2:
            with torch.no_grad():
                module.model.head.bias[:] = math.nan
        return module

    monkeypatch.setattr(client_update, "own_module", broken)
    folder, _ = federate(tiny_config(model_name=NARROW))
    assert "initial_accuracy" not in read_results(folder)["rounds"][0]
    assert "round 1  initial accuracy of clients [2] is not finite and is left out" in capsys.readouterr().out
