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
    assert "round 3/8  loss 0.5" in seen and "0:04:00 of training left" in seen
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
    monkeypatch.setattr(progress.Memory, "own", lambda self: 612_400_000)
    lines = Lines()
    lines.moved(4_519_000)
    lines.begin("fine-tuning", 100)
    for _ in range(10):
        now[0] += 10.0
        lines.advance(10)
    told = "fine-tuning: 40 of 100 clients, 0:01:00 left, memory 612MB, 4.5MB sent\n"
    told += "fine-tuning: 80 of 100 clients, 0:00:20 left, memory 612MB, 4.5MB sent\n"
    assert capsys.readouterr().out == told
    lines.begin("round 2/2", 50)
    for _ in range(4):
        now[0] += 10.0
        lines.advance(0)
    assert capsys.readouterr().out == "round 2/2: 0 of 50 clients, memory 612MB, 4.5MB sent\n"


def test_lines_can_be_marked(capsys):
    Lines("[mark]").say("here")
    assert capsys.readouterr().out == "[mark] here\n"


WHAT = "evaluation after round 12/300  loss 0.4732  initial accuracy 71.25 %"


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    monkeypatch.setattr(progress.Memory, "own", lambda self: 612_400_000)


def live_line(width, what=WHAT, clients=100, left=timedelta(minutes=4)):
    """What the live line is on a terminal of so many columns, when two fifths of the clients are done."""
    console = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO())
    live = Live(console)
    live.moved(4_519_000)
    live.begin(what, clients, left)
    live.advance(2 * clients // 5)
    live.close()
    console.file.truncate(0)
    console.print(live.bar.get_renderable())
    (line,) = console.file.getvalue().strip("\0\n").splitlines()
    return line.rstrip()


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (160, f"{WHAT} ━━━━━━━━             40/100 clients  0:04:00 of training left  memory 612MB  4.5MB sent"),
        (140, f"{WHAT}  40/100 clients  0:04:00 of training left  memory 612MB  4.5MB sent"),
        (120, f"{WHAT.replace(' initial', '')}  40/100 clients  0:04:00 training left  612MB  4.5MB sent"),
        (100, "evaluation after round 12/300  loss 0.4732  accuracy 71.25 %  40/100  0:04:00 training  612MB  4.5MB"),
        (80, "round 12/300  loss 0.4732  accuracy 71.25 %  40/100  0:04:00  612MB  4.5MB"),
        (60, "12/300  0.4732  71.25 %  40/100  0:04:00  612MB  4.5MB"),
        (44, "12/300  0.4732  71.25 %  40/100  0:04:00"),
        (20, "40/100  0:04:00"),
        (10, "40/100"),
        (3, "40/"),
    ],
)  # fmt: skip
def test_words_and_the_bar_leave_a_narrow_live_line_before_numbers(width, line):
    assert live_line(width) == line


WORKS = [
    ("round 7/8", 3, None),
    ("round 1000/1000  loss 12.0732  initial accuracy 100.00 %", 100_000, timedelta(days=2, hours=11)),
    ("evaluation after round 12/300  loss 0.4732  initial rmse 1.2345e+04", 100, timedelta(minutes=4)),
    ("fine-tuning  loss nan  initial accuracy 71.25 %", 2400, None),
]


@pytest.mark.parametrize("work", WORKS, ids=[what.split()[0] for what, *_ in WORKS])
@pytest.mark.parametrize("width", [60, 66, 72, 80, 90, 100, 110, 120, 132, 160])
def test_every_number_stays_on_terminals_of_sixty_columns_and_more(width, work):
    what, clients, left = work
    line = live_line(width, what, clients, left)
    numbers = [word for word in what.split() if any(letter.isdigit() for letter in word) or word == "nan"]
    assert len(line) <= width and {*numbers, f"{2 * clients // 5}/{clients}"} <= set(line.split())
    clock = line.split(f"/{clients}")[1].removeprefix(" clients")
    assert str(left) in clock if left else "0:00:0" in clock
    assert width < 80 or {"612MB", "4.5MB"} <= set(line.split())


def test_two_clocks_have_two_names():
    assert "0:03:00 of training left  " in live_line(140, "round 2/9", 10, timedelta(minutes=3))
    assert "of this round left  " in live_line(140, "round 1/9", 10, None)
    assert "of this fine-tuning left  " in live_line(140, "fine-tuning  loss 0.5", 10, None)


def test_the_work_of_another_process_is_shown_as_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "TOLD_EVERY_S", 0.0)
    console = Console(width=160, force_terminal=True, color_system=None, file=io.StringIO())
    there, live, alone = Lines(file=tmp_path / "state"), Live(console), Live(console)
    live.follow(tmp_path / "state")
    for each in (there, alone):
        each.moved(4_519_000)
        each.begin("round 3/8  loss 0.5", 10, timedelta(minutes=4))
        each.advance(4)
    shown = []
    for each in (live, alone):
        each.bar.get_renderable()
        with console.capture() as captured:
            console.print(each.bar.get_renderable())
        shown.append(captured.get())
    assert shown[0] == shown[1] and "4/10 clients  0:04:00 of training left  memory 612MB  4.5MB sent" in shown[0]
    there.wait("writing results")
    assert "writing results" in str(next(iter(live.bar.get_renderables())))
    for each in (there, live, alone):
        each.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_keeps_first_columns_whole_on_narrow_terminals(width):
    names = ("run", "round", "newest score", "clients", "left", "memory", "sent")
    row = ["a-long-name-of-a-run-seed_12", "12 of 40", "51.20 ± 20.10", "4/10", "0:04:00", "612MB", "4.5MB"]
    console = Console(width=width, file=io.StringIO())
    console.print(progress.headings([row, row], names, width))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 3 and max(map(len, lines)) <= width
    shown = {40: 3, 60: 5, 80: 7, 120: 7}[width]
    assert lines[1].split()[1:] == " ".join(row[1:shown]).split() and lines[1].startswith("a-")


def test_bytes_are_words_of_three_digits():
    sizes = {0: "0.0kB", 999_499: "999kB", 999_500: "1.0MB", 9_940_000: "9.9MB", 9_960_000: "10MB", 3e12: "3.0TB"}
    assert {size: progress.short(size) for size in sizes} == sizes


def test_what_has_no_end_in_sight_moves_too():
    console = Console(width=80, force_terminal=True, color_system=None, file=io.StringIO())
    live = Live(console)
    live.wait("writing results")
    shown = [str(each) for each in live.bar.get_renderables()]
    live.begin("round 1/2", 4)
    after = [str(each) for each in live.bar.get_renderables()]
    live.close()
    assert shown == ["| 0 s  writing results"] and "writing" not in str(after)


def on_pty(script):
    """What a script writes to a terminal, and to a pipe in its place."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "40"}
    environment.pop("TTY_INTERACTIVE", None)
    subprocess.run([sys.executable, "-c", script], stdout=theirs, stderr=theirs, env=environment, check=True)
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    piped = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    return text, piped.stdout + piped.stderr


def test_a_terminal_sees_what_is_waited_for_until_it_is_there():
    wait = """
import time
from lit_fedbabu.ground.printing import say, waiting
with waiting("loading what takes long, longer than the line of a terminal is"):
    time.sleep(0.5)
    say("above")
    with waiting("the inner"):
        time.sleep(0.5)
    with waiting(""):
        time.sleep(0.5)
        say("alone")
        time.sleep(0.5)
say("over")
"""
    terminal, pipe = on_pty(wait)
    assert pipe == "above\nalone\nover\n"
    lines = terminal.split("\x1b[K")
    assert any("0 s  loading what takes long" in line for line in lines) and "the inner" in terminal
    assert max(len(line.rstrip("\r\n")) for line in lines) <= 40
    assert "loading" not in terminal[terminal.index("alone") :], "nothing is drawn where something else is shown"
    assert terminal.endswith("\x1b[Kover\r\n") and "\x1b[Kabove\r\n" in terminal
    quiet, _ = on_pty(f"import os; os.environ['TTY_INTERACTIVE'] = '0'{wait}")
    assert quiet == "above\r\nalone\r\nover\r\n"
