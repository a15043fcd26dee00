"""docs/python.md runs from top to bottom and shows every public name."""

import re
from pathlib import Path

import pytest

import lit_fedbabu
from lit_fedbabu.experiment import Experiment
from lit_fedbabu.records.results import read_results
from lit_fedbabu.server.federate import federate
from tests.support import FakeGrid

PAGE = (Path(__file__).parent.parent / "docs" / "python.md").read_text()


def in_this_process(config):
    """What ``run`` returns, without Flower's processes."""
    return read_results(federate(FakeGrid(config), Experiment(config)))


def test_the_page_shows_every_public_name():
    missing = [name for name in lit_fedbabu.__all__ if name != "__version__" and f"{name}" not in PAGE]
    assert not missing


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("how", ["in this process", pytest.param("by Flower", marks=pytest.mark.slow)])
def test_the_page_runs_from_top_to_bottom(how, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if how == "in this process":
        monkeypatch.setitem(vars(lit_fedbabu), "run", in_this_process)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 8
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert "num-clients = 0: must be at least 1, as in num-clients=100" in capsys.readouterr().out
    assert names["num_images"] > 0
