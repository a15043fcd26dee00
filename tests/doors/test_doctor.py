import os
import shutil
import subprocess
from types import SimpleNamespace

import psutil
import pytest
import torch

from lit_fedbabu import doctor
from lit_fedbabu.ground import system
from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.ground.system import program
from lit_fedbabu.learning import reach


@pytest.fixture
def light(monkeypatch, tmp_path):
    """A hub that answers, no GPU, and workers that do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reach, "answers", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(doctor.CHECKS, "worker", lambda config: "2 nodes answered")


def lines(capsys):
    out, error = capsys.readouterr()
    return dict(line.split(maxsplit=1) for line in out.splitlines()), error


def test_what_a_run_needs_is_told_in_a_line_each_and_nothing_is_made(light, tmp_path, capsys):
    assert doctor.main(["precision=32-true", "output-dir=a/b"]) == 0
    told, error = lines(capsys)
    assert list(told) == [*doctor.CHECKS, "next:"] and not error
    assert told["next:"].endswith("lit-fedbabu run precision=32-true output-dir=a/b")
    assert (
        told["versions"].startswith("python 3.") and f"torch {torch.__version__.partition('+')[0]}" in told["versions"]
    )
    assert told["precision"].startswith("32-true: cpu ") and "in 32-true with torch" in told["precision"]
    assert told["output-dir"].startswith(f"{tmp_path}/a/b, ") and told["output-dir"].endswith(" GB free")
    assert told["gpu"].startswith("none; runs use the CPU") and told["hub"].endswith(" answers")
    assert not list(tmp_path.iterdir())


def test_without_the_hub_runs_do(light, monkeypatch, capsys):
    monkeypatch.setattr(reach, "answers", lambda: False)
    assert doctor.main([]) == 0
    assert "does not answer" in lines(capsys)[0]["hub"]


def full(place):
    return SimpleNamespace(free=5e6)


def refuse(*_):
    raise RunError("only 0 of 2 nodes came within 120 s; start the others first")


def broken(*_, **__):
    raise RuntimeError("CUDA error: no kernel image is available\nfor execution")


@pytest.mark.parametrize(
    ("words", "place", "name", "value", "failed", "told"),
    [
        (["precision=16-mixed"], None, "", None, "precision", "needs a GPU, and this machine has none; take auto"),
        (["output-dir=file/x"], None, "", None, "output-dir", "is no folder that can be written to; take another one"),
        ([], shutil, "disk_usage", full, "output-dir, cache", "has 5 MB free; free some space, or name another"),
        ([], doctor, "WORKER", refuse, "worker", "only 0 of 2 nodes came"),
        ([], torch, "ones", broken, "gpu", "GPU 0 does not compute: CUDA error: no kernel image is available; free it"),
    ],
)
def test_what_a_run_cannot_do_without_fails_with_a_remedy(
    words, place, name, value, failed, told, light, monkeypatch, tmp_path, capsys
):
    (tmp_path / "file").touch()
    if name == "WORKER":
        monkeypatch.setitem(doctor.CHECKS, "worker", value)
    elif place:
        monkeypatch.setattr(place, name, value)
    if failed == "gpu":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setitem(doctor.CHECKS, "precision", lambda config: "auto")
    assert doctor.main(words) == 1
    found, error = lines(capsys)
    assert error == f"error: {failed}: a run cannot do without; the lines above say what to do\n"
    assert all(found[each].startswith("FAILS: ") for each in failed.split(", "))
    assert told in found[failed.partition(",")[0]]


def test_what_the_container_allows_is_told(light, monkeypatch, capsys):
    monkeypatch.setattr(system, "left_in_groups", lambda groups, root: [500_000_000])
    assert doctor.main([]) == 0
    assert "of which this process may have 0.5; note: little for a run" in lines(capsys)[0]["memory"]


@pytest.mark.slow
def test_a_worker_answers_in_a_process_of_its_own(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [program("lit-fedbabu"), "doctor"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done
    assert "worker     2 nodes answered a message of Flower's" in done.stdout
    assert not list(tmp_path.iterdir())
    assert not [each for each in psutil.Process().children(recursive=True) if "warm" in " ".join(each.cmdline())]
