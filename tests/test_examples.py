"""The Python of the pages runs from top to bottom, and docs/python.md shows every public name."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lit_fedbabu
from lit_fedbabu.__main__ import main

ROOT = Path(__file__).parent.parent
PAGE = "docs/python.md"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_page_shows_every_public_name():
    text = (ROOT / PAGE).read_text()
    missing = [name for name in lit_fedbabu.__all__ if name != "__version__" and name not in text]
    assert not missing


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
