import json

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.ground.system import program
from lit_fedbabu.learning import checkpoint, pretrained
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.personal import external
from lit_fedbabu.records import run_folder
from lit_fedbabu.report import main as report
from lit_fedbabu.tasks.images import sources
from lit_fedbabu.tasks.images.task import ImageClassification
from tests.support import NARROW, tiny_config

pytestmark = pytest.mark.usefixtures("one_core")


def paint(folder, size=(24, 40), count=10, mode="RGB", classes=("blue", "red", "green")):
    """Images of another size in a folder for each class, which a colour tells apart."""
    rng = np.random.default_rng(0)
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 120, (*size, 3), dtype=np.uint8)
            pixels[..., place % 3] += 110
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.png")
    return folder


def test_a_body_becomes_the_model_of_someone_who_had_no_part_in_it(finished, tmp_path, capsys):
    images, out = paint(tmp_path / "colours"), tmp_path / "mine"
    capsys.readouterr()
    command = [
        str(finished),
        "--data",
        str(images),
        "--save",
        str(out),
        "--part",
        "head",
        "--lr",
        "0.05",
        "--epochs",
        "3",
    ]
    assert finetune(command) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{images}: 24 training and 6 test images of 3 classes, resized to 32 x 32"
    assert [line.split()[:2] for line in told[1:5]] == [["epoch", str(epoch)] for epoch in range(4)]
    assert told[1].endswith("initial") and told[4].endswith("personalized")
    module = checkpoint.load_module(out)
    assert tuple(module.provenance["class_names"]) == ("blue", "green", "red")
    federation = LitFedBABU.load_from_checkpoint(finished / run_folder.LAST_CHECKPOINT)
    assert (module.provenance["mean"], module.provenance["std"]) == (
        federation.provenance["mean"],
        federation.provenance["std"],
    )
    for name, value in federation.model.body.state_dict().items():
        assert torch.equal(module.model.body.state_dict()[name], value), "--part head leaves the body alone"
    assert module.model.head.weight.shape == (3, 256)
    outcome = json.loads((out / "results.json").read_text())
    (row,) = outcome["clients"]
    assert (outcome["round"], outcome["rounds"], outcome["best_round_on_test_data"]) == (1, [], None), "its own alone"
    assert f"accuracy {100 * row['personalized_accuracy']:6.2f} %" in told[4]
    card = (out / "README.md").read_text()
    assert (
        card.startswith("---\nlibrary_name: lit_fedbabu\nlicense: apache-2.0\n")
        and f"{100 * row['personalized_accuracy']:.2f} %" in card
    )
    assert (out / "config.toml").exists()
    assert report([str(out), "--out", str(tmp_path / "report")]) == 0, "a report of one model has a row for it"
    before = {path: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    assert finetune(command) == 2 and "is not empty" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    again = tmp_path / "again"
    assert finetune([*command[:4], str(again), *command[5:]]) == 0
    for name in (pretrained.WEIGHTS, pretrained.CONFIG):
        assert (again / name).read_bytes() == before[out / name], "the same bytes every time"


def test_a_saved_model_is_tuned_further_on_some_of_its_classes(finished, tmp_path, capsys):
    first, second = paint(tmp_path / "colours"), paint(tmp_path / "more", classes=("green", "blue"))
    me, again = tmp_path / "me", tmp_path / "again"
    options = ["--epochs", "2", "--lr", "0.05"]
    assert finetune([str(finished), "--data", str(first), "--save", str(me), *options]) == 0
    assert finetune([str(me), "--data", str(second), "--save", str(again), *options, "--part", "head"]) == 0
    before, after = checkpoint.load_module(me), checkpoint.load_module(again)
    assert tuple(after.provenance["class_names"]) == ("blue", "green", "red")
    for name, value in before.model.body.state_dict().items():
        assert torch.equal(after.model.body.state_dict()[name], value), "it begins where it was, with its statistics"
    assert not torch.equal(after.model.head.weight, before.model.head.weight)
    capsys.readouterr()
    assert finetune([str(me), "--data", str(second), "--epochs", "0", "--save", str(tmp_path / "same")]) == 0
    for name, value in checkpoint.load_module(tmp_path / "same").model.state_dict().items():
        assert torch.equal(value, before.model.state_dict()[name]), "head and body are the saved ones"
    assert f"It was then fine-tuned on `{first}`, `{second}`." in (again / "README.md").read_text()
    assert finetune([str(me), "--data", str(paint(tmp_path / "other", classes=("green", "pink")))]) == 2
    assert "has the classes pink, and the model knows blue, green, red" in capsys.readouterr().err
    assert finetune([str(me)]) == 2
    assert "or tune it further with --data" in capsys.readouterr().err


def test_the_card_has_licence_and_scores_in_the_form_of_hubs(finished, tmp_path):
    assert finetune([str(finished), "--data", str(paint(tmp_path / "colours")), "--save", str(tmp_path / "me")]) == 0
    (row,) = json.loads((tmp_path / "me" / "results.json").read_text())["clients"]
    for folder, name in ((tmp_path / "me", "colours"), (finished, tiny_config().dataset.rpartition("/")[2])):
        data = ModelCard.load(folder / "README.md").data
        assert (data.license, data.library_name, data.pipeline_tag) == (
            "apache-2.0",
            "lit_fedbabu",
            "image-classification",
        )
        assert [result.dataset_name for result in data.eval_results] == [name, name]
    found = [result.metric_value for result in ModelCard.load(tmp_path / "me" / "README.md").data.eval_results]
    assert found == pytest.approx([row["initial_accuracy"], row["personalized_accuracy"]], abs=1e-6)


def test_epochs_are_told_as_they_end_and_a_stop_tells_the_command(finished, tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(external, "results", stopped)
    command = [str(finished), "--data", str(paint(tmp_path / "my photos"))]
    capsys.readouterr()
    assert finetune(command) == 130
    told = capsys.readouterr()
    assert [line.split()[:2] for line in told.out.splitlines()[1:]] == [["epoch", str(each)] for each in range(3)]
    words = f"{finished} --data '{tmp_path / 'my photos'}'"
    assert told.err == f"stopped; the same command begins again: {program('lit-fedbabu')} finetune {words}\n"


def test_grey_images_fit_a_body_of_coloured_ones(finished, tmp_path, capsys):
    assert finetune([str(finished), "--data", str(paint(tmp_path / "grey", mode="L"))]) == 0
    assert "epoch 2" in capsys.readouterr().out
    assert sources.load(str(tmp_path / "grey")).channels == 1


def test_grey_images_fit_a_model_of_ones_own_of_coloured_ones(federate, tmp_path):
    folder, _ = federate(tiny_config(model_name=NARROW, num_server_rounds=1, num_clients=2))
    grey = paint(tmp_path / "grey", mode="L", count=4)
    assert finetune([str(folder), "--data", str(grey), "--model-name", NARROW]) == 0


def test_a_model_is_tuned_further_whatever_its_classes_are_called(finished, tmp_path):
    classes = ("bus ", "cat, old", "owl")
    command = ["--data", str(paint(tmp_path / "all", classes=classes, count=4)), "--save", str(tmp_path / "me")]
    assert finetune([str(finished), "--epochs", "0", *command]) == 0
    some = paint(tmp_path / "some", classes=classes[:2], count=4)
    command = ["--data", str(some), "--save", str(tmp_path / "again"), "--epochs", "0"]
    assert finetune([str(tmp_path / "me"), *command]) == 0
    assert tuple(checkpoint.load_module(tmp_path / "again").provenance["class_names"]) == classes


def test_an_algorithm_without_a_shared_body_has_nothing_to_offer(federate, tmp_path, capsys):
    run, _ = federate(tiny_config(algorithm="lg-fedavg", num_server_rounds=1, num_clients=2))
    capsys.readouterr()
    assert finetune([str(run), "--data", str(paint(tmp_path / "good"))]) == 2
    assert "shares no body" in capsys.readouterr().err


def test_a_federation_that_needs_several_clients_a_round_has_a_model_for_one():
    config = tiny_config(fraction_train=0.5, min_clients_per_round=2)
    saved = {"mean": [0.5], "std": [0.2], "class_names": ["cat", "dog"]}
    task = ImageClassification.of_external(config, "digits", "", saved, False)
    assert (task.config.num_clients, task.config.clients_per_round, task.config.min_clients_per_round) == (1, 1, 0)
