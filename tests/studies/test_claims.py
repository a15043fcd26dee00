"""Claims to runs: one process at a time, free when it is dead, and never taken twice."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.studies import claims
from lit_fedbabu.studies.claims import claimed

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
    """A claim of this process, with changes."""
    claim.write_text(json.dumps({**claims._identity(), "token": "x", **changes}))


def test_a_claim_is_one_processs_and_is_gone_afterwards(tmp_path):
    claim = tmp_path / "run.claim"
    with claimed(claim) as ours:
        assert ours
        ours.refuse_lost()
        assert not is_free(claim)
    assert {path.name for path in tmp_path.iterdir()} == {claims.LOCK}


def test_the_claim_of_a_dead_process_is_free_at_once(tmp_path):
    claim = tmp_path / "run.claim"
    holder = process(claim, 60)
    assert holder.stdout.readline() == "ours\n"
    assert not is_free(claim)
    holder.send_signal(signal.SIGSTOP)
    assert not is_free(claim), "it stands still, and is not dead"
    holder.kill()
    while psutil.Process(holder.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert is_free(claim), "nobody has waited for it: a zombie"
    holder.wait()


def test_a_process_that_got_the_number_of_a_dead_one_has_no_claim(tmp_path):
    claim = tmp_path / "run.claim"
    written(claim)
    assert not is_free(claim)
    written(claim, started="another boot 17")
    assert is_free(claim)


def test_the_claim_of_another_machine_is_free_when_it_shows_no_life(tmp_path):
    claim = tmp_path / "run.claim"
    written(claim, where="another machine", pid=1)
    assert not is_free(claim)
    old = time.time() - claims.EXPIRES_S - 1
    os.utime(claim, (old, old))
    assert is_free(claim)


def test_a_claim_shows_life(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT_S", 0.05)
    claim = tmp_path / "run.claim"
    with claimed(claim):
        os.utime(claim, (0, 0))
        deadline = time.monotonic() + 10
        while claim.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert claim.stat().st_mtime > 0


def test_who_lost_a_claim_stops_and_leaves_the_others_alone(tmp_path):
    claim = tmp_path / "run.claim"
    with claimed(claim) as ours:
        written(claim, token="another")
        with pytest.raises(RunError, match="run was taken over by another process"):
            ours.refuse_lost()
    assert json.loads(claim.read_text())["token"] == "another"


def test_a_clock_that_is_set_does_not_free_the_claim_of_a_process_that_lives(tmp_path, monkeypatch):
    claim, told = tmp_path / "run.claim", psutil.Process.create_time
    with claimed(claim) as ours:
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: told(self) + 5)
        assert ours and not is_free(claim)


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
        written(tmp_path / f"{number}.claim", started="0")
    words = [sys.executable, "-c", RACES, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    several = [subprocess.Popen(words, **pipes) for _ in range(4)]
    assert [each.stdout.readline() for each in several] == ["ready\n"] * 4
    (tmp_path / "go").touch()
    assert sum(int(each.stdout.readline()) for each in several) == 100
    for each in several:
        each.communicate()
