"""What is taken from the inside of libraries is still there: each test fails where they change it."""

import importlib
import importlib.metadata
import subprocess
import sys
import threading
from types import SimpleNamespace

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


@pytest.mark.parametrize("keeps", [False, True])
def test_a_file_takes_the_place_of_a_function_of_its_name_in_the_package(keeps, tmp_path, monkeypatch):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("def door(): pass\n")
    (tmp_path / "pack" / "door.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module("pack")
    if keeps:
        compat.keep_from_files("pack", {"door"})
    importlib.import_module("pack.door")
    assert callable(package.door) is keeps
    for name in ("pack.door", "pack"):
        del sys.modules[name]


def test_the_first_word_is_m_while_python_looks_for_the_file_that_m_names(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("import sys; print(sys.argv[0])")
    (tmp_path / "pack" / "door.py").write_text("import sys; print(sys.argv[0])")
    command = [sys.executable, "-m", "pack.door"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines() == ["-m", str(tmp_path / "pack" / "door.py")]


@pytest.mark.parametrize(
    ("words", "is_ours"),
    [
        (["-m", "lit_fedbabu.run", "digits"], True),
        (["-X", "dev", "-mlit_fedbabu.run"], True),
        (["-m", "lit_fedbabu.workers.warm"], False),
        (["-m", "pytest", "lit_fedbabu.run"], False),
        (["script.py", "-m"], False),
    ],
)
def test_a_command_is_told_by_what_m_names(words, is_ours, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", *words])
    monkeypatch.setattr(sys, "argv", ["-m"])
    assert compat.is_run_by_name() is is_ours
    monkeypatch.setattr(sys, "argv", ["door.py", *words])
    assert not compat.is_run_by_name()


@pytest.mark.slow
def test_libraries_cannot_be_imported_where_warnings_are_errors():
    command = [sys.executable, "-W", "error", "-c", "import flwr.app"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode and "DeprecationWarning" in done.stderr


def test_a_trainer_begins_at_a_file_of_slurms_in_the_current_folder_and_ours_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    assert trainer._checkpoint_connector._hpc_resume_path == str(tmp_path / "hpc_ckpt_1.ckpt")
    compat.begin_where_told(trainer)
    assert trainer._checkpoint_connector._hpc_resume_path is None


def test_parts_of_a_message_that_are_not_there_yet_are_looked_for_soon(monkeypatch):
    parts = importlib.import_module("flwr.supercore.inflatable.inflatable_utils")
    waits, tries = [], iter([None, None, b"content"])

    class NoWait(threading.Event):
        def wait(self, seconds=None):
            waits.append(seconds)
            return super().wait(0 if seconds else None)

    def pull(_):
        if (found := next(tries)) is None:
            raise parts.ObjectUnavailableError("one")
        return found

    monkeypatch.setattr(parts, "threading", SimpleNamespace(Event=NoWait, Lock=threading.Lock))
    for function in (parts.pull_objects, parts.pull_and_inflate_object_from_tree):
        monkeypatch.setattr(function, "__kwdefaults__", dict(function.__kwdefaults__))
    compat.look_soon_for_objects()
    assert parts.pull_objects(["one"], pull) == {"one": b"content"}
    assert [0.05 < each < 0.3 for each in waits] == [True, True], waits
