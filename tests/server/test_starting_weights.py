"""Federations that start from a file of weights: which file is part of what the run is."""

import dataclasses
import hashlib
import json
import shutil

import pytest
import torch

from lit_fedbabu.config import Config
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT, RESULTS, read_config
from lit_fedbabu.run import main as run
from lit_fedbabu.studies.plan import read_study
from tests.server.test_federated_tasks import Breaks, config_of
from tests.support import NARROW, FakeGrid, files_that_decide, tiny, tiny_config


@pytest.fixture
def weights(tmp_path):
    """A state dict of the narrow model with the head's bias at 1, and its path."""
    state = tiny(model_name=NARROW, seed=7).new_module().model.state_dict()
    state["head.bias"] = torch.ones(10)
    torch.save(state, tmp_path / "weights.pt")
    return state, str(tmp_path / "weights.pt")


def with_weights(path, **changes):
    return tiny_config(model_name=NARROW, initial_weights=path, **changes)


def test_server_and_clients_start_from_the_file(weights, federate, capsys, monkeypatch, tmp_path, one_core):
    state, path = weights
    monkeypatch.chdir(tmp_path)
    folder, grid = federate(with_weights("weights.pt"))
    assert f"note: 6 of 6 initial weights are from {path}" in capsys.readouterr().out
    first = next(each.content for each in grid.messages if each.content.array_records)
    sent = first.array_records["arrays"].to_torch_state_dict()
    assert set(sent) == {name for name in state if name.startswith("body.")}
    assert all(torch.equal(sent[name], state[name]) for name in sent)
    head = checkpoint.read(folder / LAST_CHECKPOINT, NARROW).state["head.bias"]
    assert torch.equal(head, torch.ones(10)), "which nobody trains"
    digest = hashlib.sha256((tmp_path / "weights.pt").read_bytes()).hexdigest()
    assert read_config(folder).initial_weights == path and read_config(folder).initial_weights_digest == digest
    card = (folder / "README.md").read_text()
    assert f"It began with what fits of the weights in `weights.pt` (SHA-256 {digest})." in card
    assert "Its head is as it began and untrained" in card
    # The checkpoint has what fine-tuning needs: the file is not asked for again.
    (tmp_path / "weights.pt").unlink()
    assert finetune([str(folder), "--model-name", NARROW]) == 0
    (tuned,) = folder.glob("finetune/*")
    rows = json.loads((folder / RESULTS).read_text())["clients"]
    assert json.loads((tuned / RESULTS).read_text())["clients"] == rows
    assert finetune([str(folder), "--model-name", NARROW, "--data", tiny_config.dataset]) == 0


def test_a_checkpoint_of_another_algorithm_is_a_beginning(federate, capsys):
    folder, _ = federate(tiny_config(model_name=NARROW, algorithm="fedavg", num_server_rounds=1))
    path = str(folder / LAST_CHECKPOINT)
    whole = checkpoint.read(folder / LAST_CHECKPOINT, NARROW).state
    capsys.readouterr()
    module = tiny(model_name=NARROW, initial_weights=path).new_module()
    assert all(torch.equal(value, whole[name]) for name, value in module.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fedbabu", "fedper", "local"])
def test_a_run_goes_on_with_the_same_file_alone(algorithm, weights, federate, tmp_path):
    _, path = weights
    config = with_weights(path, algorithm=algorithm)
    whole, _ = federate(config)
    with pytest.raises(KeyboardInterrupt):
        federate(config, Breaks(config, 3))
    stopped = whole.with_name("run2")
    shutil.copy(path, tmp_path / "kept.pt")
    torch.save({"head.bias": torch.zeros(10)}, path)
    options = read_config(stopped).to_run_config()
    with pytest.raises(InputError, match="weights.pt.*has the SHA-256 .*, and that of the run began with .*put that"):
        federate(Config.from_run_config({**options, "resume": str(stopped)}))
    shutil.copy(tmp_path / "kept.pt", path)
    resumed, _ = federate(Config.from_run_config({**options, "resume": str(stopped)}))
    assert files_that_decide(resumed) == files_that_decide(whole)


def test_a_node_with_another_file_cannot_take_part(weights, federate, tmp_path):
    _, path = weights
    other = str(tmp_path / "other.pt")
    torch.save({"head.weight": torch.zeros(10, 512)}, other)
    config = with_weights(path)
    grid = FakeGrid(config, 2)
    context = list(grid.contexts.values())[1]
    context.run_config = {**context.run_config, "initial-weights": other}
    with pytest.raises(RunError, match=f"initial-weights = {path} is another file on nodes 1; copy the server's"):
        federate(config, grid)


def test_a_task_starts_from_a_file_by_the_names_of_its_module(federate, tmp_path, capsys):
    from lit_fedbabu.training.experiment import Experiment

    config = config_of("regression")
    state = {name: value + 1 for name, value in Experiment(config).new_module().lightning.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "mine.ckpt")
    config = dataclasses.replace(config, initial_weights=str(tmp_path / "mine.ckpt"), num_server_rounds=1)
    module = Experiment(config).new_module()
    assert all(torch.equal(value, state[name]) for name, value in module.lightning.state_dict().items())
    folder, _ = federate(config)
    federation = read_federation(folder / LAST_CHECKPOINT, config.task)
    assert federation.initial is not None
    again = Experiment(federation.config, initial=federation.initial).new_module()
    heads = {name: value for name, value in again.model.state_dict().items() if name.startswith("head.")}
    assert heads and all(torch.equal(value, module.model.state_dict()[name]) for name, value in heads.items())


def test_bad_files_are_refused_before_any_work(tmp_path, capsys):
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pt")
    place = [
        f"output-dir={tmp_path / 'out'}",
        f"dataset={tiny_config.dataset}",
        "num-clients=6",
        f"model-name={NARROW}",
    ]
    for given, words in (
        ("nowhere.pt", 'initial-weights = "nowhere.pt": cannot be read (No such file or directory)'),
        (tmp_path, "cannot be read (Is a directory)"),
        (tmp_path / "other.pt", "has no matrix or kernel of the model"),
    ):
        assert run([*place, f"initial-weights={given}"]) == 2
        assert words in capsys.readouterr().err
    assert run([*place, "initial-weights-digest=abc"]) == 2
    assert 'initial-weights-digest = "abc": is of initial-weights' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_study_compares_beginnings(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = f'dataset = "{tiny_config.dataset}"\nmodel-name = "{NARROW}"\ninitial-weights = ["", "weights.pt"]\n'
    (tmp_path / "begin.toml").write_text(text)
    random, begun = read_study(tmp_path / "begin.toml").runs
    assert [run.name for run in (random, begun)] == ["initial-weights_", "initial-weights_weights.pt"]
    assert begun.config.initial_weights == weights[1] and begun.config.initial_weights_digest
