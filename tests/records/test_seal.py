"""What resuming stands on: files that were changed or are missing are refused by name."""

import dataclasses
import json
import shutil

import pytest

from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.records import run_folder, seal
from lit_fedbabu.records.federation import resumable
from lit_fedbabu.server.federate import federate as federate_on
from lit_fedbabu.training.experiment import Experiment
from tests.support import NARROW, FakeGrid, files_that_decide, tiny_config


class Stops(FakeGrid):
    """A grid that is interrupted in its third round of training."""

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        asked = [each.content["config"] for each in messages if each.metadata.message_type == "train"]
        if asked and asked[0]["server-round"] == 3:
            raise KeyboardInterrupt
        return super().send_and_receive(messages, timeout=timeout)


@pytest.fixture(scope="module")
def begun(machine, tmp_path_factory):
    """A run of FedPer that was stopped in its third round of four, and its configuration."""
    place = {"output_dir": str(tmp_path_factory.mktemp("begun")), "run_name": "run"}
    config = tiny_config(model_name=NARROW, algorithm="fedper", num_server_rounds=4, **place)
    with pytest.raises(KeyboardInterrupt):
        federate_on(Stops(config), Experiment(config))
    return config


@pytest.fixture
def stopped(begun, tmp_path):
    """A copy of that run, and the configuration that resumes it."""
    folder = shutil.copytree(f"{begun.output_dir}/run", tmp_path / "run")
    return folder, dataclasses.replace(begun, resume=str(folder))


def memories(folder, server_round):
    return sorted(folder.glob(f"memory/*/round_{server_round:04d}.safetensors"))


def newest_memory(folder):
    return memories(folder, 2)[0]


def change_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES = {
    "last.ckpt is missing": (
        lambda folder: (folder / run_folder.LAST_CHECKPOINT).unlink(),
        "checkpoints/last.ckpt is missing, which the run goes on from",
    ),
    "last.ckpt is another": (
        lambda folder: (
            shutil.copy(folder / run_folder.BEST_CHECKPOINT, folder / run_folder.LAST_CHECKPOINT)
            and change_byte(folder / run_folder.LAST_CHECKPOINT)
        ),
        "checkpoints/last.ckpt was changed",
    ),
    "best.ckpt is missing": (
        lambda folder: (folder / run_folder.BEST_CHECKPOINT).unlink(),
        "checkpoints/best.ckpt is missing",
    ),
    "a memory is missing": (lambda folder: newest_memory(folder).unlink(), "round_0002.safetensors is missing"),
    "a client's memories are missing": (
        lambda folder: shutil.rmtree(newest_memory(folder).parent),
        "round_0002.safetensors is missing",
    ),
    "a memory was changed": (lambda folder: change_byte(newest_memory(folder)), "round_0002.safetensors was changed"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_or_is_missing_is_refused_by_name(what, stopped):
    folder, config = stopped
    assert resumable(config) is not None
    change, told = CHANGES[what]
    change(folder)
    with pytest.raises(InputError, match=told):
        resumable(config)


def test_a_configuration_that_was_edited_is_refused_by_its_key(stopped):
    folder, config = stopped
    path = folder / run_folder.CONFIG
    path.write_text(path.read_text().replace("seed = 42", "seed = 43"))
    with pytest.raises(InputError, match=r"seed = 43: .*config.toml was changed: the run was begun with 42; put that"):
        resumable(dataclasses.replace(config, seed=43))


@pytest.mark.parametrize("how", ["missing", "another"])
def test_another_split_is_refused(how, stopped):
    folder, config = stopped
    path = folder / run_folder.PARTITION
    if how == "missing":
        path.unlink()
    else:
        path.write_text(path.read_text().replace("0,train", "1,train"))
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match="partition.csv"):
        federate_on(FakeGrid(config), Experiment(config))
    assert sorted(folder.rglob("*")) == before, "nothing was written"


@pytest.mark.parametrize("torn", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_stopped_run_is_resumed_to_the_same_bytes_also_with_a_torn_line(torn, stopped, federate):
    folder, config = stopped
    if torn:
        with (folder / seal.SEAL).open("a") as file:
            file.write('{"round": 3, "file": "checkpo')
    whole, _ = federate(dataclasses.replace(config, resume=""))
    federate_on(FakeGrid(config), Experiment(config))
    assert files_that_decide(folder) == files_that_decide(whole)


def test_a_checkpoint_that_was_sealed_and_not_put_in_place_is_no_change(stopped):
    """A run that is killed just there, twice, with another content each time."""
    folder, config = stopped
    for digest in ("a", "b"):
        line = {"round": 3, "file": run_folder.LAST_CHECKPOINT.as_posix(), "sha256": digest * 64}
        with (folder / seal.SEAL).open("a") as file:
            file.write(json.dumps(line) + "\n")
    assert resumable(config) is not None


@pytest.mark.slow
def test_a_run_without_a_seal_is_resumed_and_told(stopped, capsys):
    folder, config = stopped
    (folder / seal.SEAL).unlink()
    federate_on(FakeGrid(config), Experiment(config))
    assert "note: this run has no seal.jsonl" in capsys.readouterr().out


@pytest.mark.usefixtures("one_core")
def test_fine_tuning_without_a_memory_is_refused(stopped, capsys):
    folder, config = stopped
    federate_on(FakeGrid(config), Experiment(config))
    victim = max(folder.glob("memory/*/round_*.safetensors"))
    victim.unlink()
    assert finetune([str(folder), "--model-name", NARROW]) == 2
    assert f"{victim.name} is missing" in capsys.readouterr().err
