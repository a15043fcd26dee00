"""Projects and copies of examples, as a person without a clone makes them."""

import importlib
import sys
import tomllib

import pytest

from lit_fedbabu import examples, new
from lit_fedbabu.__main__ import main
from lit_fedbabu.config import Config


@pytest.mark.slow
def test_a_project_runs_where_it_was_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "wines"]) == 0
    told = capsys.readouterr().out
    assert "wines has README.md, pyproject.toml, study.toml, task.py" in told
    project = tomllib.loads((tmp_path / "wines" / "pyproject.toml").read_text())
    assert project["project"]["name"] == "wines"
    monkeypatch.chdir(tmp_path / "wines")
    monkeypatch.syspath_prepend(tmp_path / "wines")
    monkeypatch.delitem(sys.modules, "task", raising=False)
    options = project["tool"]["flwr"]["app"]["config"]
    config = Config.from_run_config(options)
    assert config.task == "task:task" and importlib.import_module("task").task.score == "test_accuracy"
    command = told.strip().splitlines()[-1].partition("lit-fedbabu ")[2].split()
    assert main([*command, "num-server-rounds=1", "num-local-epochs=1"]) == 0
    assert (tmp_path / "wines" / "tb_logs" / "first" / "results.json").is_file()
    assert main(["study", "study.toml", "--dry-run"]) == 0
    assert "0 of 9 runs" in capsys.readouterr().out
    sys.modules.pop("task")


@pytest.mark.parametrize(("name", "told"), [("1st", "must be a letter"), ("a b", "must be a letter")])
def test_a_name_that_is_none_is_refused(name, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert new.main([name]) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (new, examples):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / "file").write_text("kept")
        assert command.main(["mine"]) == 2
        assert "mine" in capsys.readouterr().err and [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_examples_are_copied_with_their_configurations(tmp_path, capsys):
    assert examples.main([str(tmp_path / "copy")]) == 0
    for place in ("examples/regression/study.toml", "examples/text/sentiment.py", "configs/demo.toml", "compose.yaml"):
        assert (tmp_path / "copy" / place).is_file(), place
    assert not list((tmp_path / "copy").rglob("*.tar.gz")) and not list((tmp_path / "copy").rglob("__pycache__"))
