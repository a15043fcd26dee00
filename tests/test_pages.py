"""What pages say of messages and commands is so: messages are those of the source, and tutorials run."""

import glob
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lit_fedbabu.__main__ import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SOURCE = "".join(path.read_text() for path in sorted((ROOT / "lit_fedbabu").rglob("*.py")))
SHORT = ["num-server-rounds=1", "num-local-epochs=1", "num-clients=6", "num-finetune-epochs=1"]


def module(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_page_of_messages_has_every_error_that_the_source_raises():
    found = list(module("messages").messages())
    raised = re.findall(r"(?<!class )(?<!\w)(InputError|RunError)\((?!Value|Runtime)", SOURCE)
    assert len(found) >= 0.97 * len(raised), "some have their text from elsewhere"
    unknown = [each for each in found if not each[2].strip("… ")]
    assert len(unknown) < 0.1 * len(found)
    page = module("messages").page()
    assert "| `run-name` | … exists and is not overwritten; take another name |" in page
    assert "which are the clients?" in page and "| round …: a worker process died; go on with resume = … |" in page
    assert not re.search(r"^\|.*(?<!\\)<", page, re.MULTILINE)


def test_messages_on_the_page_of_troubles_are_those_of_the_source():
    text = (DOCS / "troubleshooting.md").read_text()
    joined = re.sub(r'"\s*\n?\s*f?"', "", SOURCE)
    lines = "".join(text.split("\n## ")[1:4]).splitlines()
    rows = [line.split("|")[1] for line in lines if line.startswith("| `")]
    quoted = [words for row in rows for words in re.findall(r"`([^`]*)`", row)]
    assert len(rows) > 20
    assert [words for words in quoted if words not in joined] == []


def test_copied_commands_have_no_prompt():
    hooks = (DOCS / "hooks.py").read_text()
    space = {"re": re}
    exec(hooks[hooks.index("def without_prompts") :], space)
    block = "$ one \\\n    more\n$ two\nprinted\nfirst$ three\n"
    assert space["without_prompts"](block) == (
        "```bash\none \\\n    more\ntwo\n```\n\n```text\nprinted\n```\n\n```bash\nthree\n```"
    )


def commands(page):
    """The commands of a page after its installation."""
    blocks = re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    for title, text in blocks:
        for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if title != "Install":
                yield from (line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ "))


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "page",
    [
        pytest.param("tutorial-student.md", marks=pytest.mark.slow),
        pytest.param("tutorial-engineer.md", marks=pytest.mark.slow),
        "tutorial-hospital.md",
    ],
)
def test_a_tutorial_runs_from_its_first_command_to_its_last(page, whole, tmp_path, monkeypatch, capfd):
    """The short way has one round of six clients, and starts no workers or servers to look at."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "task", raising=False)
    done = []
    for line in commands(page):
        if not whole and "trial" in line:
            continue
        words = [word for each in shlex.split(line) for word in sorted(glob.glob(each)) or [each]]  # as a shell
        if words[0] == "cd":
            monkeypatch.chdir(words[1])
            monkeypatch.syspath_prepend(Path.cwd())
        elif words[0] == "lit-fedbabu":
            short = SHORT if words[1] == "run" and not whole else []
            if words[1] == "doctor" and not whole:
                continue
            assert main([*words[1:], *short]) == 0, (line, capfd.readouterr())
        else:
            words[0] = sys.executable if words[0] == "python" else words[0]
            subprocess.run(words, check=True, env={"PYTHONPATH": str(ROOT)})
        done.append(line)
    assert len(done) >= 3
    sys.modules.pop("task", None)
