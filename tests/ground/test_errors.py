"""What a command prints when something goes wrong."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lit_fedbabu.__main__ import COMMANDS
from lit_fedbabu.ground.errors import InputError, RunError, one_line_errors
from lit_fedbabu.records.progress import Lines


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
    module = "import sys; from lit_fedbabu.ground.errors import one_line_errors\n"
    module += "@one_line_errors\ndef main(argv=None):\n"
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
    error = OSError(28, "No space left on device", "/tmp/scratch", None, "/runs/x/last.ckpt")
    assert raising(error)() == 1
    line = "error: /runs/x/last.ckpt: No space left on device; free some space, and repeat the command\n"
    assert capsys.readouterr().err == line
    assert raising(PermissionError(13, "Permission denied", "/runs"))() == 1
    assert capsys.readouterr().err == "error: /runs: Permission denied\n"


def test_a_full_disk_under_what_is_printed_is_told_as_that():
    script = """
from lit_fedbabu.ground.errors import one_line_errors
one_line_errors(lambda argv=None: print("client 0", flush=True))()
"""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=100)
    assert done.stderr == "error: standard output: No space left on device; repeat the command\n"


def in_shell(words, tmp_path):
    """What a shell makes of a command of ours, with what it printed on both streams."""
    line = f"{shlex.quote(sys.executable)} -m lit_fedbabu {words}"
    return subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_stop_no_command(streams, tmp_path):
    done = in_shell(f"configs {streams}", tmp_path)
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.startswith("apfl ") == (streams == "2>&-")


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ("configs > /dev/full", 1, "standard output: No space left on device"),
        ("configs | true; exit ${PIPESTATUS[0]}", 1, "standard output: Broken pipe"),
        ("configs --help | true", 0, ""),
        ("configs x 2> /dev/full", 2, ""),
    ],
)
def test_output_that_cannot_be_written_is_one_line_at_most(words, status, told, tmp_path):
    done = in_shell(words, tmp_path)
    assert told in done.stderr and done.stderr.count("\n") == bool(told)
    assert done.returncode == status


def test_a_command_in_a_removed_folder_names_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setenv("PWD", str(tmp_path / "gone"))
    (tmp_path / "gone").rmdir()
    for name in COMMANDS:
        assert importlib.import_module(f"lit_fedbabu.{name}").main([]) == 2, name
        told = capsys.readouterr().err
        assert told == f'error: current folder = "{tmp_path}/gone": was removed; change to one that is there\n'


def test_text_of_others_does_not_steer_a_terminal(capsys):
    hostile = "\x1b[2J\x1b]0;owned\x07cat\r\x9b31m\u202etac"

    @one_line_errors
    def main(argv=None):
        Lines().say(f"class {hostile}\tkatze 猫")
        raise RunError(f"client 3: {hostile}")

    assert main([]) == 1
    told = capsys.readouterr()
    assert told.out == "class \\x1b[2J\\x1b]0;owned\\x07cat\\r\\x9b31m\\u202etac\tkatze 猫\n"
    assert told.err == "error: client 3: \\x1b[2J\\x1b]0;owned\\x07cat\\r\\x9b31m\\u202etac\n"
