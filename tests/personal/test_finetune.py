import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.personal.sweep import Personalizer
from lit_fedbabu.records import results, run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.tasks.images.learner import evaluate
from tests.support import MEASURES, NARROW, client_data, finetuned, least_rounds, partition, tiny, tiny_config

pytestmark = pytest.mark.usefixtures("one_core")


def test_fine_tuning_the_checkpoint_gives_the_runs_own_numbers(federate, capsys):
    folder, _ = federate(tiny_config(num_finetune_epochs=2))
    assert finetune([str(folder)]) == 0
    again = folder / "finetune" / "full-2epochs-lr0.001" / "results.json"
    assert again.read_text() == (folder / "results.json").read_text()
    assert "personalized" in capsys.readouterr().out


def test_chosen_clients_are_saved_as_checkpoints_that_give_their_numbers(federate, capsys):
    folder, _ = federate(tiny_config())
    command = [str(folder), "--part", "head", "--epochs", "3", "--lr", "0.05", "--clients", "4,1", "--save"]
    command.append("--no-running-statistics")
    assert finetune(command) == 0
    place = folder / "finetune" / "head-3epochs-lr0.05"
    outcome = json.loads((place / "results.json").read_text())
    assert [row["client"] for row in outcome["clients"]] == [1, 4]
    assert "over 2 clients" in capsys.readouterr().out
    shared = LitFedBABU.load_from_checkpoint(folder / run_folder.LAST_CHECKPOINT).model.state_dict()
    for row in outcome["clients"]:
        module = LitFedBABU.load_from_checkpoint(place / "personal" / f"client_{row['client']:04d}.ckpt")
        assert module.provenance["client"] == row["client"]
        assert torch.equal(module.model.state_dict()["body.0.0.weight"], shared["body.0.0.weight"])
        assert not torch.equal(module.model.head.weight, shared["head.weight"])
        (evaluation,) = evaluate([module], [client_data(tiny_config(), row["client"], 0)])
        assert evaluation.accuracy == row["personalized_accuracy"]


def test_the_checkpoint_alone_is_enough_and_nothing_is_overwritten(federate, tmp_path):
    folder, _ = federate(tiny_config())
    alone = tmp_path / "elsewhere" / "body.ckpt"
    alone.parent.mkdir()
    shutil.copy(folder / run_folder.LAST_CHECKPOINT, alone)
    for clients in ("0", "0,1"):
        assert finetune([str(alone), "--clients", clients]) == 0
    assert {path.name for path in (alone.parent / "finetune").iterdir()} == {
        "body-full-1epochs-lr0.001",
        "body-full-1epochs-lr0.001-2",
    }


@pytest.mark.parametrize("hook", ["show", "describe"])
def test_a_fine_tuning_that_is_stopped_while_it_writes_is_not_done_and_writes_it_all_then(hook, federate, monkeypatch):
    folder, _ = federate(tiny_config(model_name=NARROW, num_server_rounds=1))
    command = [str(folder), "--model-name", NARROW, "--clients", "0,1", "--save", "--no-running-statistics"]

    def stopped(self, place, outcome):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Personalizer, hook, stopped)
        assert finetune(command) == 130
    (place,) = (folder / "finetune").iterdir()
    assert not (place / "results.json").exists()
    assert finetune(command) == 0
    names = {path.name.partition(".")[0] for path in place.iterdir()}
    assert names >= {"results", "README", "events", "personal"} and "clients" not in names


def test_a_dataset_that_was_changed_since_the_run_is_refused(federate, tmp_path, capsys):
    data = shutil.copytree(tiny_config().dataset, tmp_path / "data")
    folder, _ = federate(tiny_config(dataset=str(data), model_name=NARROW, num_server_rounds=1))
    shutil.copy(next(data.glob("test-*")), data / "train-00001-of-00001.parquet")
    assert finetune([str(folder), "--model-name", NARROW]) == 2
    assert f"is dealt otherwise than {folder / 'partition.csv'} says" in capsys.readouterr().err


@pytest.mark.pictures
@pytest.mark.slow
def test_a_sweep_is_one_folder_and_one_curve_for_each_setting(federate, capsys):
    folder, _ = federate(tiny_config(num_server_rounds=1))
    assert finetune([str(folder), "--part", "body", "--lr", "0.001,0.1", "--epochs", "3"]) == 0
    told, source = capsys.readouterr().out, tiny().task.source
    found = {path.name for path in (folder / "finetune").iterdir()}
    assert found == {"body-3epochs-lr0.001", "body-3epochs-lr0.1"}
    for name in found:
        outcome = results.read_results(folder / "finetune" / name)
        means = [outcome["summary"][f"accuracy_epoch_{epoch}"]["mean"] for epoch in range(4)]
        assert ", ".join(f"{100 * mean:.2f}" for mean in means) in told
        events = EventAccumulator(str(folder / "finetune" / name), size_guidance={"histograms": 0}).Reload()
        shown = [(event.step, event.value) for event in events.Scalars("finetuning/accuracy_mean")]
        assert shown == [(epoch, pytest.approx(mean)) for epoch, mean in enumerate(means)]
        assert set(events.Tags()["images"]) == {
            "confusion/worst_client", "confusion/best_client", "calibration/reliability",
        }  # fmt: skip
        assert len(events.Histograms("finetuning/accuracy_of_clients")) == 4
        table = folder / "finetune" / name / "00000" / "body_features" / "metadata.tsv"
        labels = [label for client in partition(tiny_config()).test for label in source.test.labels[client]]
        assert [row.split("\t")[0] for row in table.read_text().splitlines()[1:]] == [
            source.class_names[label] for label in labels
        ]
    config = tiny_config(num_server_rounds=1, num_finetune_epochs=3, finetune_part="body", finetune_learning_rate=0.1)
    federated = dataclasses.replace(read_federation(folder / run_folder.LAST_CHECKPOINT), config=config)
    begun = {"privacy": results.read_results(folder)["privacy"]}
    tuned = results.read_results(folder / "finetune" / "body-3epochs-lr0.1")
    assert finetuned(federated, list(range(6))) | begun == tuned


IN_STEPS = ("fedbabu", "fedrep", "fedprox", "ditto", "per-fedavg", "pfedme")
"""A row for each way to step."""


@pytest.mark.parametrize(
    ("algorithm", "cohort_size"),
    [
        *((name, 1) for name in IN_STEPS[:3]),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ALGORITHMS if name not in IN_STEPS[:3]),
        ("ditto", 6),
        pytest.param("fedbabu", 6, marks=pytest.mark.slow),
    ],
)
def test_a_run_and_its_fine_tuning_work_in_mixed_precision(algorithm, cohort_size, federate):
    mixed = {"precision": "bf16-mixed", "cohort_size": cohort_size}
    folder, _ = federate(
        tiny_config(algorithm=algorithm, model_name=NARROW, num_server_rounds=least_rounds(algorithm), **mixed)
    )
    assert finetune([str(folder), "--model-name", NARROW]) == 0
    outcome = results.read_results(folder)
    assert results.read_results(folder / "finetune" / "full-1epochs-lr0.001") == outcome
    measured = [[row[key] for row in outcome["clients"]] for key in MEASURES]
    assert np.isfinite(np.array(measured)).all()


def test_an_interrupted_fine_tuning_goes_on_where_it_stopped(federate, capsys, monkeypatch):
    folder, _ = federate(tiny_config(num_server_rounds=1))
    command = [str(folder), "--part", "head", "--save"]
    place = folder / "finetune" / "head-1epochs-lr0.001"
    personalize, seen = Personalizer.personalize, list[int]()

    def stopped(self, place, clients):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.extend(clients)
        return personalize(self, place, clients)

    monkeypatch.setattr(Personalizer, "personalize", stopped)
    assert finetune(command) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert not (place / "results.json").exists()
    lines = (place / "clients.jsonl").read_text()
    (place / "clients.jsonl").write_text(lines + '{"client": 3, "num_te')  # a line that was not finished
    (place / "personal" / "client_0001.ckpt").unlink()
    seen.clear()

    def counted(self, place, clients):
        seen.extend(clients)
        return personalize(self, place, clients)

    monkeypatch.setattr(Personalizer, "personalize", counted)
    assert finetune(command) == 0
    assert seen == [1, 3, 4, 5], "the clients that were not done, or whose model is gone"
    assert not (place / "clients.jsonl").exists()
    assert len(list((place / "personal").iterdir())) == 6
    whole = (place / "results.json").read_bytes()
    shutil.rmtree(place)
    assert finetune(command) == 0 and (place / "results.json").read_bytes() == whole
    seen.clear()
    assert finetune(command) == 0 and not seen, "all is done already"
    assert (place / "results.json").read_bytes() == whole
