import json

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from lit_fedbabu import predict
from lit_fedbabu.algorithms import client_update as update
from lit_fedbabu.config import Config
from lit_fedbabu.errors import InputError
from lit_fedbabu.experiment import Experiment
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.learning import checkpoint, trainer
from lit_fedbabu.learning.classifier import load_model
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.records import results, run_folder
from lit_fedbabu.records.federation import resumable
from lit_fedbabu.tasks.images.transforms import normalize
from tests.support import client_data, partition, tiny_config

CLIENT = 1


def saved(folder, running=False, **options):
    """A client's personal model in a file of its own, and the configuration."""
    config = tiny_config(num_finetune_epochs=3, finetune_learning_rate=0.02, **options)
    experiment = Experiment(config)
    module, _ = update.personal_model(experiment, CLIENT, 1, experiment.initial_shared())
    if running:
        module, _ = update.with_running_statistics(experiment, CLIENT, module)
    module.provenance = experiment.provenance("personal", round=1, client=CLIENT)
    checkpoint.save(module, folder / "personal.ckpt")
    return folder / "personal.ckpt", config


@pytest.fixture(scope="module")
def personal(machine, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("personal"))[0]


def write_test_images(config, folder):
    """The client's test images as files, in their order."""
    source, own = Experiment(config).task.source, partition(config).test[CLIENT]
    paths = [folder / f"{i:02d}.png" for i in range(len(own))]
    for path, pixels in zip(paths, source.test.images[own], strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def predicted(capsys, *arguments):
    assert predict.main([*map(str, arguments), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_files_get_the_classes_and_probabilities_of_the_evaluation(tmp_path, capsys):
    saved_model, config = saved(tmp_path)
    paths = write_test_images(config, tmp_path)
    module = LitFedBABU.load_from_checkpoint(saved_model)
    evaluation = trainer.evaluate([module], [client_data(config, CLIENT, 0)])[0]
    rows = predicted(capsys, saved_model, *paths)
    names = Experiment(config).task.source.class_names
    labels = [names[label] for label in Experiment(config).task.source.test.labels[partition(config).test[CLIENT]]]
    assert [row["image"] for row in rows] == list(map(str, paths))
    assert np.mean([row["class"] == label for row, label in zip(rows, labels, strict=True)]) == evaluation.accuracy
    losses = [-np.log(row["probabilities"][label]) for row, label in zip(rows, labels, strict=True)]
    assert np.mean(losses) == pytest.approx(evaluation.loss, rel=1e-5)
    for row in rows:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["probability"] == row["probabilities"][row["class"]] == max(row["probabilities"].values())
    assert predict.main([str(saved_model), str(paths[0])]) == 0
    told = capsys.readouterr()
    assert told.out.split()[0] == str(paths[0]) and told.out.split()[1] in names
    assert "note: this model normalizes by the batch" in told.err


def test_batch_statistics_depend_on_the_other_images_and_running_ones_do_not(tmp_path, capsys):
    for running in (False, True):
        folder = tmp_path / str(running)
        folder.mkdir()
        saved_model, config = saved(folder, running)
        paths = write_test_images(config, folder)
        together = predicted(capsys, saved_model, *paths)
        alone = [row for path in paths for row in predicted(capsys, saved_model, path)]
        gap = max(abs(one["probability"] - each["probability"]) for one, each in zip(together, alone, strict=True))
        assert (gap < 1e-5) == running, gap
        assert predict.main([str(saved_model), str(paths[0])]) == 0
        assert ("normalizes by the batch" in capsys.readouterr().err) != running


def test_running_statistics_are_those_of_the_training_images(tmp_path):
    config = tiny_config(num_finetune_epochs=1)
    experiment = Experiment(config)
    module, _ = update.personal_model(experiment, CLIENT, 1, experiment.initial_shared())
    fixed, measured = update.with_running_statistics(experiment, CLIENT, module)
    data = client_data(config, CLIENT, 0)
    (images, _), *_ = (data_loader for data_loader in data.predict_dataloader()[0])
    with torch.no_grad():
        first = module.model.body[0][0](normalize(images, *data.constants))
    layer = fixed.model.body[0][1]
    torch.testing.assert_close(layer.running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.running_var, first.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert measured["running_statistics_accuracy"] == trainer.evaluate([fixed], [data])[0].accuracy
    with torch.no_grad():
        images, labels = data.test_set.tensors
        alone = [module(normalize(image[None], *data.constants)).argmax().item() for image in images]
    assert measured["one_by_one_accuracy"] == np.mean(np.array(alone) == labels.numpy())
    for name, value in module.model.state_dict().items():
        assert torch.equal(fixed.model.state_dict()[name], value), name


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_an_exported_model_gives_the_logits(form, running, tmp_path, capsys):
    saved_model, config = saved(tmp_path, running)
    path = tmp_path / f"model.{form}"
    assert predict.main([str(saved_model), "--export", form, "--out", str(path)]) == 0
    assert str(path) in capsys.readouterr().out
    module = LitFedBABU.load_from_checkpoint(saved_model).eval()
    raw = client_data(config, CLIENT, 0).test_set.tensors[0]
    with torch.no_grad():
        expected = module(normalize(raw, module.provenance["mean"], module.provenance["std"]))
    images = raw.permute(0, 3, 1, 2).float() / 255
    if form == "torch":
        logits = torch.export.load(path).module()(images)
    else:
        (logits,) = onnxruntime.InferenceSession(path).run(None, {"images": images.numpy()})
        logits = torch.from_numpy(logits)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    before = path.read_bytes()
    assert predict.main([str(saved_model), "--export", form, "--out", str(path)]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err and path.read_bytes() == before


def test_a_clients_model_saved_by_finetune_predicts_alone_with_running_statistics(federate, capsys):
    folder, _ = federate(tiny_config(num_server_rounds=1))
    assert finetune([str(folder), "--clients", str(CLIENT), "--save", "--running-statistics"]) == 0
    place = folder / "finetune" / "full-1epochs-lr0.001"
    saved_model = place / "personal" / f"client_{CLIENT:04d}.ckpt"
    (row,) = results.read_results(place)["clients"]
    module = LitFedBABU.load_from_checkpoint(saved_model)
    assert module.hparams.norm == "batch-running" and module.provenance["client"] == CLIENT
    evaluation = trainer.evaluate([module], [client_data(tiny_config(), CLIENT, 0)])[0]
    assert evaluation.accuracy == row["running_statistics_accuracy"]
    assert "running statistics accuracy" in (place / "README.md").read_text()
    capsys.readouterr()
    paths = write_test_images(tiny_config(), folder)
    assert predict.main([str(folder / run_folder.LAST_CHECKPOINT), str(paths[0])]) == 0
    assert "a head that nobody trained; fine-tune it first" in capsys.readouterr().err
    assert len(predicted(capsys, saved_model, *paths)) == len(paths)


PRECISIONS = [
    "32-true",
    "bf16-mixed",
    pytest.param("16-mixed", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_whole_path_runs_in_every_precision_and_exports_float32(precision, federate, tmp_path, capsys):
    """Train, evaluate, fine-tune, save, predict and export, as the demo does."""
    folder, _ = federate(tiny_config(model_name="FourConvNet", precision=precision, num_server_rounds=1))
    assert finetune([str(folder), "--clients", str(CLIENT), "--save", "--running-statistics"]) == 0
    (saved_model,) = folder.glob("finetune/*/personal/*.ckpt")
    config = tiny_config(model_name="FourConvNet", precision=precision)
    paths = write_test_images(config, tmp_path)
    capsys.readouterr()
    rows = predicted(capsys, saved_model, *paths)
    assert predict.main([str(saved_model), "--export", "torch", "--out", str(tmp_path / "model.pt2")]) == 0
    raw = client_data(config, CLIENT, 0).test_set.tensors[0][: len(paths)]
    logits = torch.export.load(tmp_path / "model.pt2").module()(raw.permute(0, 3, 1, 2).float() / 255)
    assert logits.dtype == torch.float32
    probabilities = torch.tensor([list(row["probabilities"].values()) for row in rows])
    torch.testing.assert_close(logits.softmax(1), probabilities, rtol=0, atol=1e-5)
    assert "note: this model normalizes" not in capsys.readouterr().err


def test_an_export_alone_warns_of_a_model_that_depends_on_its_batch(tmp_path, capsys):
    saved_model, _ = saved(tmp_path, False)
    assert predict.main([str(saved_model), "--export", "torch", "--out", str(tmp_path / "model.pt2")]) == 0
    assert "note: this model normalizes by the batch" in capsys.readouterr().err


def test_the_whole_path_follows_the_size_of_the_images(federate, tmp_path, capsys, monkeypatch, one_core):
    """Decode, train, evaluate, fine-tune, save, predict, export, and a newcomer."""
    config = tiny_config(model_name="FourConvNet", num_server_rounds=2, image_size=16)
    folder, _ = federate(config)
    assert "resizes images to 16 x 16," in (folder / "README.md").read_text()
    assert "| `image-size` | 16 |" in (folder / "README.md").read_text()
    assert finetune([str(folder), "--clients", str(CLIENT), "--save", "--running-statistics"]) == 0
    (saved_model,) = folder.glob("finetune/*/personal/*.ckpt")
    source, own = Experiment(config).task.source, partition(config).test[CLIENT]
    assert source.test.images.shape[1:] == (16, 16, 3)
    original = Experiment(tiny_config()).task.source.test.images[own]
    model = load_model(saved_model)
    probabilities = model.probabilities_of_pixels(source.test.images[own])
    torch.testing.assert_close(model.probabilities(list(original)), probabilities)
    Image.fromarray(original[0]).save(tmp_path / "image.png")
    capsys.readouterr()
    (row,) = predicted(capsys, saved_model, tmp_path / "image.png")
    assert row["probability"] == pytest.approx(probabilities[0].max().item(), abs=1e-5)
    assert predict.main([str(saved_model), "--export", "torch", "--out", str(tmp_path / "model.pt2")]) == 0
    assert "float32 images (N, 3, 16, 16) in 0..1" in capsys.readouterr().out
    assert torch.export.load(tmp_path / "model.pt2").module()(torch.rand(3, 3, 16, 16)).shape == (3, 10)
    assert finetune([str(folder), "--data", config.dataset, "--save", str(tmp_path / "mine")]) == 0
    assert "resized to 16 x 16" in capsys.readouterr().out
    assert load_model(tmp_path / "mine" / "personal.ckpt").image_size == 16
    other = {**config.to_run_config(), "image-size": 32, "resume": str(folder)}
    with pytest.raises(InputError, match="image-size = 32: the run in .* was begun with 16; give it the same"):
        resumable(Config.from_run_config(other))
