import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lit_fedbabu.__main__ import COMMANDS
from lit_fedbabu.config import Config
from lit_fedbabu.ground.system import configs_folder, program

BASH = """
source ./registered
COMP_WORDS=({line}) COMP_LINE='{line}' COMP_POINT={point} COMP_CWORD={place} COMP_TYPE=9
COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
_python_argcomplete lit-fedbabu {word}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def offered(line, here):
    """What bash shows for a line after TAB. It begins the last word anew after "="."""
    words = [word for word in line.split(" ") if word]
    if not (here / "registered").exists():
        command = [program("register-python-argcomplete"), "lit-fedbabu"]
        (here / "registered").write_bytes(subprocess.run(command, capture_output=True, timeout=60).stdout)
    script = BASH.format(
        line=line, point=len(line), word=words[-1] if line else "",
        place=len(words) - (line[-1:] != " "),
    )  # fmt: skip
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=here, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done
    return {word.strip() for word in done.stdout.splitlines()} - {""}


@pytest.mark.skipif(shutil.which("bash") is None, reason="has no bash")
def test_bash_completes_commands_flags_options_and_names(tmp_path):
    (tmp_path / "mine.toml").touch()
    (tmp_path / "mine.txt").touch()
    shipped = {path.stem for path in configs_folder().glob("*.toml")}
    keys = {f"{key}=" for key in Config().to_run_config()}
    assert offered("lit-fedbabu ", tmp_path) == {*COMMANDS, "--version", "--help", "-h"}
    assert offered("lit-fedbabu run demo ", tmp_path) >= keys | shipped | {"mine.toml"}
    assert "mine.txt" not in offered("lit-fedbabu run mi", tmp_path)
    assert offered("lit-fedbabu data num-cl", tmp_path) == {"num-clients=", "num-clusters=", "num-classes-per-client="}
    assert offered("lit-fedbabu doctor algorithm=fedpr", tmp_path) == {"fedprox", "fedprox-babu"}
    assert offered("lit-fedbabu run demo engine=", tmp_path) == {"local", "ray", "flower"}
    assert offered("lit-fedbabu finetune cifar10 --part ", tmp_path) == {"head", "body", "full", "knn"}
    assert offered("lit-fedbabu finetune cif", tmp_path) == {"cifar10", "cifar10-fedavg"}
    assert offered("lit-fedbabu study dig", tmp_path) == {"digits"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_completes_and_does_nothing_else(command, tmp_path):
    line = f"lit-fedbabu {command} --hel"
    environment = {
        **os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "told"),
    }  # fmt: skip
    script = "import sys; from lit_fedbabu.__main__ import main; main([])"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", script], env=environment, cwd=tmp_path,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "told").read_text().strip() == "--help"
    assert "torch" not in {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert [path.name for path in tmp_path.iterdir()] == ["told"]
