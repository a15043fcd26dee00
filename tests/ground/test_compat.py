"""What is taken from the inside of libraries is still there: each test fails where they change it."""

import importlib
import importlib.metadata
import subprocess
import sys

import lightning as L
import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from lit_fedbabu.ground import compat


def test_flower_asks_for_a_run_and_a_process_of_ours_has_one(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, None)
    with pytest.raises(RuntimeError, match=r"TaskIdentity\.\w+ is not set"):
        Message(RecordDict(), 1, "train")
    compat.identify_process()
    assert Message(RecordDict(), 1, "train").metadata.run_id == 1
    TaskIdentity.run_id = 7
    compat.identify_process()
    assert TaskIdentity.run_id == 7, "what Flower has set stays"


def test_a_trainer_reads_the_metadata_of_packages_and_ours_only_once(monkeypatch):
    registry = importlib.import_module("lightning.fabric.utilities.registry")
    reads = []

    def read(**options):
        reads.append(options)
        return importlib.metadata.entry_points(**options)

    monkeypatch.setattr(registry, "entry_points", read)
    options = {"logger": False, "accelerator": "cpu", "enable_checkpointing": False}
    L.Trainer(**options)
    before = len(reads)
    L.Trainer(**options)
    assert len(reads) == 2 * before > 0, "Lightning reads them for each Trainer"
    compat.cache_entry_points()
    L.Trainer(**options)
    before = len(reads)
    L.Trainer(**options)
    assert len(reads) == before


SCRIPT = """
import sys
sys.argv = ["-c"]
try:
    exec("raise KeyboardInterrupt")
except KeyboardInterrupt:
    pass
if {forgets}:
    from lit_fedbabu.ground import compat
    compat.forget_interrupt_in_text()
sys.exit(130)
"""


@pytest.mark.parametrize("forgets", [False, True])
def test_python_remembers_an_interrupt_in_text_and_forgets_it_with_another(forgets, tmp_path):
    (tmp_path / "interrupted.py").write_text(SCRIPT.format(forgets=forgets))
    done = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, timeout=100)
    assert done.returncode == (130 if forgets else -2)
