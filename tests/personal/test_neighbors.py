"""kNN-Per against its equations, in NumPy."""

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from lit_fedbabu import finetune, load_model, predict
from lit_fedbabu.config import Config
from lit_fedbabu.finetune import main
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.learning.neighbors import best_share
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.records.results import read_results
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT
from lit_fedbabu.report import main as report
from lit_fedbabu.training.experiment import Experiment
from tests.algorithms.test_moon import sharpened
from tests.algorithms.test_users_methods import config_of, of_task
from tests.support import NARROW, model_by_hand, tiny_config

pytestmark = pytest.mark.usefixtures("one_core")
TRUSTED = {"model_name": NARROW}


def softmax(values):
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def mixed_by_hand(queries, logits, stored, labels, weight, k=10):
    """Probabilities of 10 classes, image by image."""
    found = []
    for query, own in zip(queries, logits, strict=True):
        votes = np.zeros(10)
        distances = np.sqrt(((stored - query) ** 2).sum(1))
        for place in sorted(range(len(stored)), key=lambda place: distances[place])[:k]:
            votes[labels[place]] += np.exp(-distances[place])
        found.append(weight * votes / votes.sum() + (1 - weight) * softmax(own))
    return np.array(found)


def weight_by_hand(features, logits, labels, seed):
    order = np.random.default_rng(seed).permutation(len(labels))
    held, rest = order[: round(len(labels) / 5)], order[round(len(labels) / 5) :]
    best = None
    for weight in np.arange(11) / 10:
        found = mixed_by_hand(features[held], logits[held], features[rest], labels[rest], weight)
        right = (found.argmax(1) == labels[held]).sum()
        chance = np.log(np.maximum(found[np.arange(len(held)), labels[held]], 1e-300)).mean()
        if best is None or (right, chance) > best[0]:
            best = (right, chance), weight
    return best[1]


def predicted(model, data, loader):
    (batch,) = loader
    with torch.no_grad():
        features = model.body(data.prepare(batch[0], None))
        return features.numpy(), model.head(features).numpy(), batch[1].numpy()


@pytest.mark.parametrize("weight", [-1.0, 0.7])
def test_a_runs_personal_models_are_those_of_the_equations(weight, federate):
    config = config_of("fedavg", num_server_rounds=1, finetune_part="knn", knn_weight=weight, dirichlet_alpha=0.4)
    folder, _ = federate(config)
    experiment = Experiment(config)
    model = model_by_hand(experiment).double()
    model.load_state_dict(read_federation(folder / LAST_CHECKPOINT, NARROW).shared)
    weights = []
    for row in read_results(folder)["clients"]:
        data = experiment.client_data(row["client"], 0)
        features, logits, labels = predicted(model, data, data.predict_dataloader()[0])
        seed = config.derived_seed("neighbors", row["client"])
        weights.append(weight_by_hand(features, logits, labels, seed) if weight < 0 else weight)
        queries, logits, truth = predicted(model, data, data.test_dataloader())
        found = mixed_by_hand(queries, logits, features, labels, weights[-1])
        assert row["personalized_accuracy"] == row["accuracy_epoch_1"] == (found.argmax(1) == truth).mean()
        losses = -np.log(np.maximum(found[np.arange(len(truth)), truth], np.finfo(float).tiny))
        assert row["personalized_loss"] == pytest.approx(losses.mean(), abs=1e-9)
        assert "accuracy_epoch_2" not in row and row["initial_loss"] != row["personalized_loss"]
    assert max(weights) > 0


def test_without_votes_it_is_a_fine_tuning_of_no_epochs(federate):
    folder, _ = federate(tiny_config(num_server_rounds=1, **TRUSTED))
    plain, found = finetune(folder, part="full,knn", epochs=0, knn_weight=0.0, **TRUSTED)
    for one, other in zip(plain["clients"], found["clients"], strict=True):
        for key in (each for each in one if each.startswith(("initial", "personalized"))):
            assert other[key] == pytest.approx(one[key], abs=1e-6, nan_ok=True), key
    assert (plain.folder.name, found.folder.name) == ("full-0epochs-lr0.001", "knn-10neighbors-weight0")


def test_saved_models_have_the_features_of_their_own_body(federate):
    run, _ = federate(tiny_config(num_clients=3, num_server_rounds=1, **TRUSTED))
    (tuned,) = finetune(run, part="knn", lr=None, knn_neighbors=3, save=True, clients="1", **TRUSTED)
    card = (tuned.folder / "README.md").read_text()
    assert "the nearest of a client's training images vote beside it: the model holds features and labels" in card
    assert "| `knn-neighbors` | 3 |" in card and "num-finetune-epochs" not in card
    saved = tuned.folder / "personal" / "client_0001.ckpt"
    module = LitFedBABU.load_from_checkpoint(saved).eval()
    data = Experiment(tiny_config(num_clients=3, **TRUSTED)).client_data(1, 0)
    assert module.hparams["neighbors"] == [3, data.num_train, 512]
    images, labels = data.train_set.tensors
    with torch.no_grad():
        alone = torch.cat([module.model.body(data.prepare(image[None], None)) for image in images])
    torch.testing.assert_close(module.model.head.stored, alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(module.model.head.labels, labels)
    model, (images, labels) = load_model(saved, NARROW), data.test_set.tensors
    names = [model.class_names[label] for label in labels]
    right = np.mean([one == other for one, other in zip(model.predict(list(images.numpy())), names, strict=True)])
    assert right == tuned["clients"][0]["running_statistics_accuracy"]


@pytest.mark.slow
def test_several_settings_are_reported_and_models_exported(federate, tmp_path, capsys):
    run, _ = federate(tiny_config(num_clients=3, num_server_rounds=1, **TRUSTED))
    tuned = finetune(run, part="full,knn", lr="0.01,0.1", knn_neighbors=3, save=True, **TRUSTED)
    assert [each.folder.name for each in tuned] == ["full-1epochs-lr0.01", "full-1epochs-lr0.1", "knn-3neighbors"]
    assert report([str(run), "--out", str(tmp_path / "report")]) == 0
    assert "| knn of 3 |  | FedBABU |" in (tmp_path / "report" / "finetuning.md").read_text()
    saved, out = tuned[-1].folder / "personal" / "client_0001.ckpt", tmp_path / "model.onnx"
    images = Experiment(tiny_config(num_clients=3, **TRUSTED)).client_data(1, 0).test_set.tensors[0].numpy()
    probabilities = load_model(saved, NARROW).probabilities(list(images))
    Image.fromarray(images[0]).save(tmp_path / "0.png")
    capsys.readouterr()
    assert predict.main([str(saved), str(tmp_path / "0.png"), "--json", "--model-name", NARROW]) == 0
    told = list(json.loads(capsys.readouterr().out)["probabilities"].values())
    torch.testing.assert_close(probabilities[0], torch.tensor(told), rtol=0, atol=1e-6)
    assert predict.main([str(saved), "--model-name", NARROW, "--export", "onnx", "--out", str(out)]) == 0
    pixels = images.transpose(0, 3, 1, 2).astype("float32") / 255
    (logits,) = onnxruntime.InferenceSession(out).run(None, {"images": pixels})
    torch.testing.assert_close(torch.tensor(logits).softmax(1), probabilities, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_votes_of_someone_who_had_no_part_make_a_model_that_trains_no_further(federate, tmp_path, capsys):
    run, _ = federate(tiny_config(num_server_rounds=1, **TRUSTED))
    (mine,) = finetune(run, data="digits", part="knn", save_to=tmp_path / "me", **TRUSTED)
    (row,) = mine["clients"]
    assert row["personalized_accuracy"] > 0.5 > row["initial_accuracy"], "the head is random, and the votes are not"
    assert "initial" in capsys.readouterr().out
    model = load_model(tmp_path / "me", NARROW)
    model.save_pretrained(tmp_path / "copy")
    shutil.rmtree(tmp_path / "me")
    config = tmp_path / "copy" / "config.json"
    saved = json.loads(config.read_text())
    for sizes, what in (
        ([10, 10**9, 10**9], "another model"),
        ([10, 0, 512], "which no model has"),
        ("abc", "no model"),
    ):
        changed = {**saved, "hyper_parameters": {**saved["hyper_parameters"], "neighbors": sizes}}
        config.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=what):
            load_model(tmp_path / "copy", NARROW)
    config.write_text(json.dumps(saved))
    images = [np.full((32, 32), shade, dtype=np.uint8) for shade in (0, 255)]
    assert torch.equal(load_model(tmp_path / "copy", NARROW).probabilities(images), model.probabilities(images))
    with pytest.raises(InputError, match='checkpoint = "finetune-part=knn": has stored features of images'):
        finetune(tmp_path / "copy", data="digits", part="head", **TRUSTED)


def test_a_client_with_one_image_has_nothing_to_choose_by():
    one = torch.rand(1, 4), torch.rand(1, 3), torch.tensor([2])
    assert best_share(*one, 10, 0) == 0.0
    features, logits, labels = (each.repeat_interleave(2, 0) for each in one)
    assert best_share(features, logits, labels, 10, 0) == 1.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"part": "knn", "lr": "0.1"}, '--lr = "0.1": is for the parts head, body and full'),
        ({"part": "knn", "epochs": 0}, "--epochs = 0: is for the parts head, body and full"),
        ({"part": "full", "knn_neighbors": 3}, "--knn-neighbors = 3: is for the parts knn"),
        ({"knn_weight": 0.5}, "--knn-weight = 0.5: is for the parts knn"),
        ({"part": "knn", "knn_weight": -0.5}, "--knn-weight = -0.5: must be from 0 to 1, or -1"),
        ({"part": "knn", "knn_neighbors": 0}, "--knn-neighbors = 0: must be at least 1"),
    ],
)
def test_what_finetune_would_not_read_is_refused(options, told, finished):
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with pytest.raises(InputError, match=told):
        finetune(finished, **options)
    assert main([str(finished), *words]) == 2


def test_what_has_no_features_of_classes_is_refused():
    with pytest.raises(InputError, match='finetune-part = "knn": is of features of images by their classes'):
        Config.from_run_config({**of_task("fedavg").to_run_config(), "finetune-part": "knn"})
    with pytest.raises(InputError, match=r"does more than head\(body\(images\)\)"):
        Experiment(config_of("fedavg", model_name=f"{sharpened.__module__}:sharpened", finetune_part="knn")).check()
