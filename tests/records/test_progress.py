"""What a person sees while a run lasts."""

import io
import os
import pty
import subprocess
import sys
from datetime import timedelta

import pytest
from rich.console import Console

from lit_fedbabu.records import progress
from lit_fedbabu.records.progress import Lines, Live

SCRIPT = """
from datetime import timedelta
from lit_fedbabu.records.progress import shown
with shown({plain}) as progress:
    progress.begin("round 3/8  loss 0.5", 10, timedelta(minutes=4))
    progress.advance(4)
    progress.say("round 3/8 [/bold] is over")
print(type(progress).__name__)
"""


def on_terminal(plain):
    """What the script writes to a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", SCRIPT.format(plain=plain)], stdout=theirs, env=environment, check=True)
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    return text


def test_a_terminal_has_a_live_line_and_all_lines_said():
    seen = on_terminal(plain=False)
    assert "round 3/8 [/bold] is over" in seen, "also what looks like markup"
    assert "round 3/8  loss 0.5" in seen and "0:04:00 left" in seen
    assert " 4/10" in seen and "clients" in seen
    assert seen.endswith("Live\r\n")


def test_plain_lines_and_a_pipe_have_no_live_line():
    said = "round 3/8 [/bold] is over"
    assert on_terminal(plain=True) == f"{said}\r\nLines\r\n"
    piped = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(plain=False)], capture_output=True, text=True, check=True
    )
    assert piped.stdout == f"{said}\nLines\n"


def test_long_work_is_spoken_of_now_and_then(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = Lines()
    lines.begin("fine-tuning", 100)
    for _ in range(10):
        now[0] += 10.0
        lines.advance(10)
    told = "fine-tuning: 40 of 100 clients, 0:01:00 left\nfine-tuning: 80 of 100 clients, 0:00:20 left\n"
    assert capsys.readouterr().out == told


def test_lines_can_be_marked(capsys):
    Lines("[mark]").say("here")
    assert capsys.readouterr().out == "[mark] here\n"


WHAT = "evaluation after round 12/300  loss 0.4732  initial accuracy 71.25 %"


def live_line(width):
    """What the live line is on a terminal of so many columns."""
    console = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO())
    live = Live(console)
    live.begin(WHAT, 100, timedelta(minutes=4))
    live.advance(40)
    live.close()
    console.file.truncate(0)
    console.print(live.bar.get_renderable())
    (line,) = console.file.getvalue().strip("\0\n").splitlines()
    return line.rstrip()


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (120, f"{WHAT} ━━━━━━━━             40/100 clients  0:04:00 left"),
        (105, f"{WHAT}  40/100 clients  0:04:00 left"),
        (80, "evaluation after round 12/300  loss 0.4732  accuracy 71.25 %  40/100  0:04:00"),
        (60, "round 12/300  loss 0.4732  accuracy 71.25 %  40/100  0:04:00"),
        (44, "12/300  0.4732  71.25 %  40/100  0:04:00"),
        (20, "40/100  0:04:00"),
        (10, "40/100"),
        (3, "40/"),
    ],
)  # fmt: skip
def test_words_and_the_bar_leave_a_narrow_live_line_before_numbers(width, line):
    assert live_line(width) == line
