"""The model that a run evaluates is the one that everything after the run evaluates, to the bit."""

import dataclasses
import json

import lightning as L
import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lit_fedbabu import finetune, load_model, load_module, predict
from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.records.results import read_results
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT
from lit_fedbabu.server.federate import federate as federate_on
from lit_fedbabu.training.experiment import Experiment
from tests import own_shapes
from tests.own_tasks import SENSORS, Sensors
from tests.support import NARROW, FakeGrid, least_rounds, partition, tiny_config

TASK = "tests.own_shapes:task"
COUNT = 2
SHAPES = {
    "backbone": ("none", "drawn", "file"), "head": (True, True, False), "norm": (False, True),
    "buffers": ("none", "state", "scratch"), "tied": (False, True), "teacher": (False, True), "late": (False, True),
}  # fmt: skip
OF_TASKS = [name for name, row in ALGORITHMS.items() if not (row.pooled or row.of_features)]


@pytest.fixture(scope="module")
def alone():
    """Work in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_fedbabu.personal.sweep.available_cores", lambda: 1)
        yield


def external():
    """Someone who had no part."""
    return Sensors(client=77, num_clients=COUNT, seed=42)


own_shapes.external = external


def write_backbone(path, seed):
    torch.manual_seed(seed)
    torch.save({"0.weight": torch.randn(SENSORS, SENSORS), "0.bias": torch.randn(SENSORS)}, path)


def rows_of(outcome, stage):
    return [{key: row[f"{stage}_{key}"] for key in ("accuracy", "loss")} for row in outcome["clients"]]


def measured(module, data):
    """What a plain Trainer of Lightning measures."""
    trainer = L.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    (found,) = trainer.test(module, data, verbose=False)
    return {key: found[f"test_{key}"] for key in ("accuracy", "loss")}


def check_task(shape, algorithm, folder, monkeypatch):
    """Run a task, change the file that its weights came from, and evaluate the models in every way."""
    monkeypatch.setattr(own_shapes, "task", own_shapes.shaped(**shape))
    monkeypatch.setenv("FILE", str(folder / "pretrained.pt"))
    write_backbone(folder / "pretrained.pt", seed=1)
    options = {"num_server_rounds": 2, "num_local_epochs": 1, "num_finetune_epochs": 1, "precision": "32-true"}
    place = {"output_dir": str(folder), "run_name": "run"}
    config = Config(task=TASK, algorithm=algorithm, num_clients=COUNT, fraction_train=1.0, **options, **place)
    experiment = Experiment(config)
    experiment.check()
    run = federate_on(FakeGrid(config), experiment)
    begun = read_results(run)

    write_backbone(folder / "pretrained.pt", seed=2)
    reads = "file" in shape.values() or shape.get("buffers") == "scratch"
    more = dataclasses.replace(config, resume=str(run), num_server_rounds=3)
    if "file" in shape.values():
        with pytest.raises(InputError, match='base = "the seed 42": is the base of the checkpoint'):
            finetune(run, task=TASK, epochs=0)
        write_backbone(folder / "pretrained.pt", seed=1)
    federation = read_federation(run / LAST_CHECKPOINT, TASK)
    write_backbone(folder / "pretrained.pt", seed=2)
    if reads:
        with pytest.raises(InputError, match="begins otherwise than when the run was begun"):
            federation.refuse_other_start(Experiment(more))
    else:
        federation.refuse_other_start(Experiment(more))

    if "file" in shape.values():
        write_backbone(folder / "pretrained.pt", seed=1)
    (again,) = finetune(run, task=TASK, epochs=0)
    assert rows_of(again, "initial") == rows_of(begun, "initial")
    (tuned,) = finetune(run, task=TASK, save=True)
    assert tuned["clients"] == begun["clients"]
    for client, expected in enumerate(rows_of(begun, "personalized")):
        (saved,) = run.glob(f"finetune/*/personal/client_{client:04d}.ckpt")
        if shape.get("buffers") != "scratch":  # which Lightning leaves out of checkpoints
            module = load_module(saved, TASK)
            data = Sensors(client, COUNT, config.seed)
            assert measured(module, data) == pytest.approx(expected, rel=1e-6)
        (own,) = finetune(saved, task=TASK, epochs=0, data="tests.own_shapes:external")
        assert own["clients"][0]["num_test"]

    if algorithm != "local":
        what = {"task": TASK, "data": "tests.own_shapes:external"}
        (first,) = finetune(run, **what, save_to=folder / "me")
        (second,) = finetune(folder / "me" / "personal.ckpt", **what, epochs=0)
        assert rows_of(second, "initial") == rows_of(first, "personalized")
        (third,) = finetune(folder / "me" / "personal.ckpt", **what, save_to=folder / "me2")
        assert rows_of(third, "initial") == rows_of(first, "personalized") != rows_of(third, "personalized")


FULL = {"backbone": "file", "norm": True, "buffers": "scratch", "tied": True, "teacher": True, "late": True}


@pytest.mark.parametrize(
    ("algorithm", "shape"),
    [
        ("fedbabu", FULL),
        pytest.param("fedavg", {"backbone": "file", "buffers": "state", "head": False}, marks=pytest.mark.slow),
        *(pytest.param(name, {**FULL, "tied": False}, marks=pytest.mark.slow) for name in OF_TASKS),
    ],
)
def test_a_task_is_the_same_after_its_run(algorithm, shape, alone, tmp_path, monkeypatch):
    check_task(shape, algorithm, tmp_path, monkeypatch)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    shape=st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in SHAPES.items()}),
    algorithm=st.sampled_from(["fedbabu", "fedavg", "ditto"]),
)
def test_tasks_of_any_shape_are_the_same_after_their_runs(shape, algorithm, alone, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        check_task(shape, algorithm, tmp_path_factory.mktemp("drawn"), patch)


REFUSED = {
    "enumerated": "its hyper-parameter given, a Kind, would be lost: .*ignore=\\['given'\\]",
    "placed": "its hyper-parameter given, a PosixPath, would be lost",
    "called": "its hyper-parameter given, a builtin_function_or_method, would be lost",
    "saves_numpy": "its on_save_checkpoint puts mine.best into checkpoints, a numpy.float64",
    "saves_object": "its on_save_checkpoint puts mine.best into checkpoints, a tests.own_shapes.Kind",
    "unseeded": "its net.backbone.0.bias is another one each time that its module is made",
    "sets": "its setup or configure_model gives net.first.0.bias other values",
    "remembers": "loss is another one after a checkpoint was written and read: training changes something of it",
    "masked": "its body.net.second.mask is not finite before training; .*persistent=False",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_checkpoint_cannot_bring_back_is_refused_before_a_run(name):
    with pytest.raises(InputError, match=REFUSED[name]):
        Experiment(Config(task=f"tests.own_shapes:{name}", num_clients=COUNT)).check()


def test_a_part_may_be_empty_where_the_algorithm_does_without_it():
    Experiment(Config(task="tests.own_shapes:adapters", num_clients=COUNT, algorithm="fedavg")).check()
    for options, told in (
        ({"algorithm": "fedper"}, "with fedper a client keeps its head alone, which the task says to be empty"),
        ({"algorithm": "lg-fedavg"}, "lg-fedavg shares its head alone"),
        ({"finetune_part": "head"}, "trains .*its head alone"),
    ):
        with pytest.raises(InputError, match=told):
            Experiment(Config(task="tests.own_shapes:adapters", num_clients=COUNT, **options)).check()


TAKEN = {"numbered": "", "weighed": "", "drops": "", "unsaved": "TypeError"}


@pytest.mark.parametrize("name", TAKEN)
def test_what_a_checkpoint_can_bring_back_is_taken(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FILE", str(tmp_path / "pretrained.pt"))
    write_backbone(tmp_path / "pretrained.pt", seed=1)
    experiment = Experiment(Config(task=f"tests.own_shapes:{name}", num_clients=COUNT))
    experiment.check()
    notes = " ".join(experiment.task.notes)
    assert ("load_from_checkpoint(PATH) does not make the task's module" in notes) == bool(TAKEN[name])
    assert TAKEN[name] in notes


@pytest.mark.parametrize(
    "algorithm",
    [name if name == "fedbabu" else pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS],
)
def test_a_classifier_of_images_is_the_same_after_its_run(algorithm, alone, federate, tmp_path, capsys):
    trusted = {"model_name": NARROW}
    config = tiny_config(
        algorithm=algorithm, num_clients=3, num_server_rounds=least_rounds(algorithm), fraction_train=0.4, **trusted
    )
    run, _ = federate(config)
    begun = read_results(run)
    (again,) = finetune(run, epochs=0, **trusted)
    for key in ("accuracy", "loss", "f1"):
        assert [row[f"initial_{key}"] for row in again["clients"]] == [
            row[f"initial_{key}"] for row in begun["clients"]
        ]
    (tuned,) = finetune(run, save=True, clients="1", **trusted)
    row = tuned["clients"][0]
    statistics = row.pop("running_statistics_accuracy"), row.pop("one_by_one_accuracy")
    assert row == begun["clients"][1]

    (saved,) = run.glob("finetune/*/personal/client_0001.ckpt")
    source, own = Experiment(config).task.source, partition(config).test[1]
    images, names = source.test.images[own], [source.class_names[label] for label in source.test.labels[own]]
    model = load_model(saved, NARROW)
    assert not model.normalizes_by_batch
    assert (
        np.mean([model.predict([image])[0] == name for image, name in zip(images, names, strict=True)]) == statistics[0]
    )
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number:02d}.png")
    rows = []
    for path in sorted(tmp_path.glob("*.png")):
        capsys.readouterr()
        assert predict.main([str(saved), str(path), "--json", "--model-name", NARROW]) == 0
        rows.append(json.loads(capsys.readouterr().out))
    assert np.mean([row["class"] == name for row, name in zip(rows, names, strict=True)]) == statistics[0]
    assert (
        predict.main([str(saved), "--model-name", NARROW, "--export", "onnx", "--out", str(tmp_path / "model.onnx")])
        == 0
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for image, row in zip(images, rows, strict=True):
        (logits,) = session.run(None, {"images": image.transpose(2, 0, 1)[None].astype("float32") / 255})
        probabilities = torch.tensor(logits).softmax(1)[0]
        torch.testing.assert_close(probabilities, torch.tensor(list(row["probabilities"].values())), rtol=0, atol=1e-4)
