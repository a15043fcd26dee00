"""What a command prints when something goes wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lit_fedbabu.errors import InputError, RunError, one_line_errors


def raising(error):
    @one_line_errors
    def main(argv=None):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status"),
    [(InputError("seed", -1, "must be at least 0"), 2), (RunError("too few clients"), 1), (OSError(28, "full"), 1)],
)
def test_expected_errors_are_one_line_with_a_status(error, status, capsys):
    assert raising(error)() == status
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_stop_while_python_makes_a_class_from_text_has_the_status_of_any_stop(tmp_path):
    module = "import sys; from lit_fedbabu.errors import one_line_errors\n@one_line_errors\ndef main(argv=None):\n"
    (tmp_path / "stopped.py").write_text(module + "    exec('raise KeyboardInterrupt')\nsys.exit(main())")
    done = subprocess.run([sys.executable, "-m", "stopped"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "stopped\n")


def test_an_error_that_nobody_thought_of_is_one_line_and_its_traceback_is_kept(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert raising(ZeroDivisionError("by zero,\nof all things: \udce9"))() == 1
    told = capsys.readouterr().err
    found = re.fullmatch(r"error: ZeroDivisionError: by zero, of all things: .*; .* its traceback is in (\S+)\n", told)
    assert found
    text = Path(found[1]).read_text()
    assert "in main" in text and "ZeroDivisionError: by zero," in text


def test_where_the_traceback_cannot_be_kept_it_is_said(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert raising(KeyError("x"))() == 1
    assert "its traceback cannot be kept: No such file or directory" in capsys.readouterr().err


def test_a_name_that_the_terminal_cannot_show_is_printed_with_escapes(capfd):
    @one_line_errors
    def main(argv=None):
        print("caf\udce9.png")
        return 0

    assert main() == 0
    sys.stdout.flush()
    assert capfd.readouterr().out == "caf\\udce9.png\n"


@pytest.mark.parametrize(
    ("next_step", "told"), [((), "stopped\n"), (("go on with --resume X",), "stopped; go on with --resume X\n")]
)
def test_ctrl_c_is_one_line_with_status_130(next_step, told, capsys):
    assert raising(KeyboardInterrupt(*next_step))() == 130
    assert capsys.readouterr().err == told


def test_a_full_disk_names_the_file_as_its_user_knows_it(capsys):
    error = OSError(28, "No space left on device", "/tmp/scratch", None, "/runs/x/.last.ckpt")
    assert raising(error)() == 1
    line = "error: /runs/x/last.ckpt: No space left on device; free some space, and repeat the command\n"
    assert capsys.readouterr().err == line
    assert raising(PermissionError(13, "Permission denied", "/runs"))() == 1
    assert capsys.readouterr().err == "error: /runs: Permission denied\n"
