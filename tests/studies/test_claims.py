"""Claims to runs: one process at a time, free when it is dead, and never taken twice."""

import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.studies import claims
from lit_fedbabu.studies.claims import claimed, release

HOLDS = """
import sys, time
from pathlib import Path
from lit_fedbabu.studies.claims import claimed
with claimed(Path(sys.argv[1])) as claim:
    print("ours" if claim else "not ours", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def process(claim, seconds):
    words = [sys.executable, "-c", HOLDS, str(claim), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def is_free(claim):
    with claimed(claim) as ours:
        return ours is not None


def written(claim, **changes):
    """A claim of this process, with changes of its lines."""
    with claimed(claim):
        text = claim.read_text()
    for key, value in changes.items():
        text, found = re.subn(f"{key}=.*", f"{key}={value}", text)
        assert found == 1
    claim.write_text(text)
    return text


def test_a_claim_is_one_processs_and_is_gone_afterwards(tmp_path):
    claim = tmp_path / "run.claim"
    with claimed(claim) as ours:
        assert ours
        ours.refuse_lost()
        assert not is_free(claim)
    assert not list(tmp_path.iterdir())


def test_the_claim_of_a_dead_process_is_free_at_once(tmp_path):
    claim = tmp_path / "run.claim"
    holder = process(claim, 60)
    assert holder.stdout.readline() == "ours\n"
    assert not is_free(claim)
    holder.send_signal(signal.SIGSTOP)
    assert not is_free(claim), "it stands still, and is not dead"
    holder.kill()
    holder.wait()
    assert is_free(claim)


def test_a_process_that_got_the_number_of_a_dead_one_has_no_claim(tmp_path):
    claim = tmp_path / "run.claim"
    written(claim)
    assert not is_free(claim)
    written(claim, start=17)
    assert is_free(claim)


def test_the_claim_of_another_machine_is_free_when_it_shows_no_life(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "EXPIRES_S", 1.0)
    monkeypatch.setattr(claims, "BEAT_S", 0.2)
    claim = tmp_path / "run.claim"
    text = written(claim, host=f"not-{socket.gethostname()}")
    begun = time.monotonic()
    assert not is_free(claim), "also where the clock of the disk says that it is old"
    while time.monotonic() < begun + 1.5:
        claim.write_text(text)  # a sign of life
        time.sleep(0.1)
        assert not is_free(claim)
    silent = time.monotonic()
    while not is_free(claim):
        assert time.monotonic() < silent + 30
        time.sleep(0.05)
    assert time.monotonic() > silent + 0.9


def test_a_claim_shows_life_and_outlives_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "EXPIRES_S", 0.5)
    monkeypatch.setattr(claims, "BEAT_S", 0.1)
    claim = tmp_path / "run.claim"
    with claimed(claim) as ours:
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            assert not is_free(claim)
            time.sleep(0.05)
        monkeypatch.undo()
        ours.refuse_lost()


def test_who_lost_a_claim_stops_and_leaves_the_others_alone(tmp_path):
    claim = tmp_path / "run.claim"
    with claimed(claim) as ours:
        others = re.sub("host=.*", "host=another", claim.read_text())
        claim.unlink()
        claim.write_text(others)
        with pytest.raises(RunError, match="run was taken over by another process"):
            ours.refuse_lost()
    assert claim.read_text() == others


def test_claims_of_the_dead_are_removed_and_no_others(tmp_path):
    dead, lives = tmp_path / "dead.claim", tmp_path / "lives.claim"
    written(dead, start=17)
    with claimed(lives):
        release([dead, lives])
        assert not dead.exists() and lives.exists()


RACES = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from lit_fedbabu.studies.claims import claimed
folder = Path(sys.argv[1])
print("ready", flush=True)
while not (folder / "go").exists():
    pass
with ExitStack() as held:
    claims = sorted(folder.glob("[0-9]*.claim"))  # without hidden ones, which others are writing
    print(sum(held.enter_context(claimed(claim)) is not None for claim in claims), flush=True)
    sys.stdin.read()
"""


def test_of_several_that_find_dead_claims_one_gets_each(tmp_path):
    for number in range(100):
        written(tmp_path / f"{number}.claim", start=17)
    words = [sys.executable, "-c", RACES, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    several = [subprocess.Popen(words, **pipes) for _ in range(4)]
    assert [each.stdout.readline() for each in several] == ["ready\n"] * 4
    (tmp_path / "go").touch()
    assert sum(int(each.stdout.readline()) for each in several) == 100
    for each in several:
        each.communicate()
