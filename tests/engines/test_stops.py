"""Commands that are stopped by a signal: one line, status 128 + its number, and nothing that looks done."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_fedbabu.ground import stops
from lit_fedbabu.ground.errors import InputError, one_line_errors
from lit_fedbabu.ground.system import program
from lit_fedbabu.learning.client_trainer import ClientTrainer
from lit_fedbabu.records.run_folder import CONFIG, is_finished
from tests.engines.test_run import ROOT, left_in, temp  # noqa: F401
from tests.support import of_folder, wait_for, write_study

MOMENTS = int(os.environ.get("MOMENTS", "10"))
SEED = int(os.environ.get("SEED", "0"))


@pytest.fixture(autouse=True)
def caught():
    """The signals as a terminal has them: the process that runs the tests may ignore some, as under nohup."""
    defaults = dict.fromkeys(stops.SIGNALS, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers():
    return [signal.getsignal(each) for each in stops.SIGNALS]


@pytest.mark.parametrize("number", stops.SIGNALS)
def test_a_signal_is_one_line_with_its_status_and_the_users_handlers_come_back(number, capsys):
    before = handlers()

    @one_line_errors
    def main(argv=None):
        try:
            signal.raise_signal(number)
        finally:
            for each in stops.SIGNALS:  # more signals do not disturb the cleaning up
                signal.raise_signal(each)
            print("cleaned")

    assert main([]) == 128 + number
    assert capsys.readouterr() == ("cleaned\n", "stopped\n")
    assert handlers() == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_stop_that_others_catch_or_rename_ends_the_command(capsys):
    class Lost:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    @one_line_errors
    def goes_on(argv=None):
        with contextlib.suppress(BaseException):  # as a library may
            signal.raise_signal(signal.SIGTERM)
        time.sleep(60)

    @one_line_errors
    def cannot_raise(argv=None):
        Lost()
        time.sleep(60)

    @one_line_errors
    def renames(argv=None):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise InputError("key", "value", "is wrong") from error

    @one_line_errors
    def exits(argv=None):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            sys.exit(1)

    for main in (goes_on, cannot_raise, renames, exits):
        assert main([]) == 143
        assert capsys.readouterr().err == "stopped\n"


def test_a_command_that_is_as_good_as_done_is_not_stopped():
    @one_line_errors
    def main(argv=None):
        stops.settle()
        signal.raise_signal(signal.SIGTERM)
        return 0

    assert main([]) == 0


def test_what_is_ignored_stays_ignored(capsys):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup

    @one_line_errors
    def main(argv=None):
        signal.raise_signal(signal.SIGHUP)
        return 0

    try:
        assert main([]) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_trainer_leaves_signals_to_its_process(number):
    """Lightning would exit with status 1 at Ctrl-C, and go on after SIGTERM until the batch is over."""
    from tests.own_tasks import L, torch

    class Model(L.LightningModule):
        def training_step(self, batch):
            signal.raise_signal(number)
            pytest.fail("it went on")

        def configure_optimizers(self):
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)

    def fit():
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        trainer = ClientTrainer(max_epochs=1, enable_model_summary=False, **quiet)
        trainer.fit(Model(), torch.utils.data.DataLoader(torch.zeros(4, 1)))

    before = handlers()
    with pytest.raises(stops.Stopped), stops.raised():
        fit()
    assert handlers() == before
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):  # a user's own script
            fit()
        assert handlers() == before
        return
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        fit()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def is_caught(process):
    """Whether the process has a handler for SIGTERM (Linux): before, Python itself starts."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("SigCgt"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return True


@pytest.mark.parametrize("door", [["-m", "lit_fedbabu"], ["-m", "lit_fedbabu.run"], [program("lit-fedbabu")]])
def test_a_stop_while_a_command_is_imported_is_one_line(door):
    words = [] if "lit_fedbabu.run" in door else ["run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, *door, *words, "--help"], cwd=ROOT, **pipes)
    while not is_caught(process):
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == ("", "stopped\n")
    assert process.returncode == 143


DIGITS = [
    "dataset=digits",
    "image-size=16",
    "num-clients=4",
    "num-local-epochs=1",
    "fraction-train=0.5",
    "num-finetune-epochs=1",
]


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    words = [*DIGITS, "num-server-rounds=1", f"output-dir={folder}", "run-name=run"]
    subprocess.run([sys.executable, "-m", "lit_fedbabu.run", *words], cwd=ROOT, check=True, timeout=900)
    words = [str(folder / "run"), "--data", "digits", "--epochs", "1", "--save", str(folder / "me")]
    subprocess.run([sys.executable, "-m", "lit_fedbabu.finetune", *words], cwd=ROOT, check=True, timeout=900)
    return folder


COMMANDS = {
    "run": lambda here, of: (
        ["run", "--resume", here / "run"]
        if (here / "run" / CONFIG).exists()
        else ["run", *DIGITS, "num-server-rounds=30", f"output-dir={here}", "run-name=run"]
    ),
    "flower": lambda here, of: (
        ["run", "--resume", here / "run"]
        if (here / "run" / CONFIG).exists()
        else ["run", *DIGITS, "num-server-rounds=20", f"output-dir={here}", "run-name=run", "engine=flower"]
    ),
    "finetune": lambda here, of: ["finetune", of / "run", "--data", "digits", "--epochs", 60, "--save", here / "a/me"],
    "sweep": lambda here, of: ["finetune", here / "run", "--lr", "1e-3,1e-2", "--epochs", 20, "--save"],
    "predict": lambda here, of: ["predict", of / "me", "--export", "torch", "--out", here / "model.pt2"],
    "body": lambda here, of: ["body", of / "run", here / "out"],
    "report": lambda here, of: ["report", of / "run", "--out", here / "out"],
    "study": lambda here, of: ["study", here / "study.toml"],
    "data": lambda here, of: ["data", *DIGITS, "--out", here / "out"],
    "doctor": lambda here, of: ["doctor"],
    "credentials": lambda here, of: ["credentials", here / "out", "--sites", 200],
    "configs": lambda here, of: ["configs"],
}
DONE = {
    "run": lambda here: is_finished(here / "run"),
    "flower": lambda here: is_finished(here / "run"),
    "finetune": lambda here: (here / "a").exists(),
    "sweep": lambda here: len(list(here.glob("run/finetune/*/results.json"))) == 2,
    "predict": lambda here: (here / "model.pt2").exists(),
    "study": lambda here: (here / "out" / "study" / "report").exists(),
}
"""Whether what a command writes looks done; of others, whether there is the folder ``out``."""
NEXT = {
    "run": "goes on with", "flower": "goes on with", "finetune": "begins again", "sweep": "goes on from here",
    "study": "goes on from here",
}  # fmt: skip
SAME = "*.ckpt", "*.safetensors", "results.json", "*.csv", "*.svg", "*.md"
"""Files that a stopped command leaves, after all, as one that was not stopped."""
OWN = "cost", "runs", "common"
"""Of a study's report what has seconds in it, dates, and the folder."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_stopped_at_ten_moments(name, tmp_path, temp, federation):  # noqa: F811
    """By a signal to the process alone, to its group as of a terminal, or to all its processes as of Slurm."""
    environment = {**os.environ, "TMPDIR": str(temp), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    draw = random.Random(f"{name} {SEED}")

    def prepared(place):
        here = tmp_path / place
        here.mkdir()
        if name == "sweep":
            shutil.copytree(federation / "run", here / "run")
        if name == "study":
            write_study(here, num_server_rounds=10, evaluate_every=10)
        return here

    def start(here):
        words = [str(word) for word in COMMANDS[name](here, federation)]
        door = draw.choice([[sys.executable, "-m", f"lit_fedbabu.{words[0]}"], [program("lit-fedbabu"), words[0]]])
        with (tmp_path / "told").open("w") as told, (tmp_path / "error").open("w") as error:
            pipes = {"stdout": told, "stderr": error, "start_new_session": True}
            return subprocess.Popen([*door, *words[1:]], cwd=ROOT, env=environment, **pipes)

    def finished(here):
        status, error = start(here).wait(900), (tmp_path / "error").read_text()
        assert status == 0 or "the run is finished" in error, error
        found = {path for pattern in SAME for path in here.rglob(pattern) if name != "credentials"}
        files = {path for path in found if path.parent.name != "report" or path.stem not in OWN}
        return {path.relative_to(here): path.read_bytes().replace(bytes(here), b"") for path in files}

    def stop(process, number, to):
        if to == "process":
            process.send_signal(number)
        elif to == "group":
            os.killpg(process.pid, number)
        else:
            for each in {process.pid, *(other.pid for other in of_folder(temp))}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, number)

    begun = time.monotonic()
    expected = finished(prepared("undisturbed"))
    seconds = time.monotonic() - begun
    here = prepared("stopped")
    for moment in range(MOMENTS):
        if draw.random() < 0.5:
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        number, to = draw.choice(stops.SIGNALS), draw.choice(["process", "group", "all"])
        process = start(here)
        while not is_caught(process):
            time.sleep(0.001)
        wait = draw.uniform(0, 0.3) if moment < 2 else draw.uniform(0, 1.1 * seconds)
        time.sleep(wait)
        stop(process, number, to)
        stopped = time.monotonic()
        if draw.random() < 0.3:  # somebody impatient
            time.sleep(draw.uniform(0, 0.5))
            stop(process, number, to)
        status, error = process.wait(60), (tmp_path / "error").read_text()
        took = time.monotonic() - stopped
        what = f"{name}: {signal.Signals(number).name} to {to} after {wait:.2f} of {seconds:.2f} s: {status}, {error!r}"
        print(f"{what} in {took:.1f} s", flush=True)
        assert wait_for(lambda: not left_in(temp), 10), (what, left_in(temp))
        hidden = [path for path in here.rglob(".*") if path.name != ".lock"] + list(here.rglob("*.claim"))
        assert name == "flower" or not hidden, (what, hidden)
        if status == 0:
            assert not error, what
            here = prepared(f"stopped{moment}")
            continue
        assert status == 128 + number, what
        assert error == "stopped\n" or (error.count("\n") == 1 and error.startswith("stopped; ")), what
        assert error == "stopped\n" or NEXT[name] in error, what
        is_done = DONE.get(name, lambda here: (here / "out").exists())(here)
        assert not is_done, what
    assert finished(here) == expected
