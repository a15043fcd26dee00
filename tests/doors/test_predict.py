import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from lit_fedbabu import predict
from lit_fedbabu.config import Config
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.records import results, run_folder
from lit_fedbabu.records.classifier import load_model
from lit_fedbabu.records.federation import resumable
from lit_fedbabu.tasks.images import learner
from lit_fedbabu.tasks.images.transforms import normalize
from lit_fedbabu.training import client_update as update
from lit_fedbabu.training.experiment import Experiment
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
    return saved(tmp_path_factory.mktemp("personal"), running=True)[0]


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
    evaluation = learner.evaluate([module], [client_data(config, CLIENT, 0)])[0]
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
    assert predict.main([str(saved_model), *map(str, paths[:2])]) == 0
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
        halves = [*predicted(capsys, saved_model, *paths[:5]), *predicted(capsys, saved_model, *paths[5:])]
        gap = max(abs(one["probability"] - each["probability"]) for one, each in zip(together, halves, strict=True))
        assert (gap < 1e-5) == running, gap
        assert predict.main([str(saved_model), str(paths[0])]) == (0 if running else 2)
        assert ("images = 1: one image alone, and this model normalizes" in capsys.readouterr().err) != running


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
    assert measured["running_statistics_accuracy"] == learner.evaluate([fixed], [data])[0].accuracy
    with torch.no_grad():
        images, labels = data.test_set.tensors
        alone = [module(normalize(image[None], *data.constants)).argmax().item() for image in images]
    assert measured["one_by_one_accuracy"] == np.mean(np.array(alone) == labels.numpy())
    for name, value in module.model.state_dict().items():
        assert torch.equal(fixed.model.state_dict()[name], value), name


@pytest.mark.parametrize("running", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_an_exported_model_gives_the_logits(form, running, tmp_path, capsys, recwarn):
    saved_model, config = saved(tmp_path, running)
    path = tmp_path / f"model.{form}"
    assert predict.main([str(saved_model), "--export", form, "--out", str(path)]) == 0
    assert str(path) in capsys.readouterr().out
    assert not [each for each in recwarn if "complete tensor" in str(each.message)]
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


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_an_exported_raw_model_resizes_images_of_any_size_and_says_its_classes(form, tmp_path, capsys):
    saved_model, _ = saved(tmp_path, running=True)
    path = tmp_path / f"raw.{form}"
    assert predict.main([str(saved_model), "--export", form, "--raw", "--out", str(path)]) == 0
    assert f"wrote {path}: uint8 images (N, height, width, 3) of any size" in capsys.readouterr().out
    model = load_model(saved_model)
    about = {"lit_fedbabu.json": ""}
    if form == "torch":
        program = torch.export.load(path, extra_files=about).module()
        about = json.loads(about["lit_fedbabu.json"])
    else:
        session = onnxruntime.InferenceSession(path)
        about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == list("abcdefghij") and about["resizing"] == "inside"
    ramp = (np.indices((70, 50, 3)).sum(0) * 9).astype(np.uint8)
    for size in ((32, 32), (45, 70), (20, 17)):
        images = np.stack([np.resize(each, (*size, 3)) for each in (ramp, 255 - ramp)])
        logits = program(torch.from_numpy(images)) if form == "torch" else session.run(None, {"images": images})[0]
        expected = model.probabilities(list(images))
        torch.testing.assert_close(torch.as_tensor(logits).softmax(1), expected, rtol=0, atol=4e-3)
    assert predict.main([str(saved_model), "image.png", "--raw"]) == 2
    assert "--raw = true: is for --export" in capsys.readouterr().err


def test_a_clients_model_saved_by_finetune_predicts_alone_with_running_statistics(federate, capsys):
    folder, _ = federate(tiny_config(num_server_rounds=1))
    assert finetune([str(folder), "--clients", str(CLIENT), "--save"]) == 0
    assert "mean accuracy as saved, with running statistics: " in capsys.readouterr().out
    place = folder / "finetune" / "full-1epochs-lr0.001"
    saved_model = place / "personal" / f"client_{CLIENT:04d}.ckpt"
    (row,) = results.read_results(place)["clients"]
    module = LitFedBABU.load_from_checkpoint(saved_model)
    assert module.hparams.norm == "batch-running" and module.provenance["client"] == CLIENT
    evaluation = learner.evaluate([module], [client_data(tiny_config(), CLIENT, 0)])[0]
    assert evaluation.accuracy == row["running_statistics_accuracy"]
    assert "running statistics accuracy" in (place / "README.md").read_text()
    capsys.readouterr()
    paths = write_test_images(tiny_config(), folder)
    assert predict.main([str(folder / run_folder.LAST_CHECKPOINT), *map(str, paths[:2])]) == 0
    assert "a head that nobody trained; fine-tune it first" in capsys.readouterr().err
    assert len(predicted(capsys, saved_model, *paths)) == len(paths)


PRECISIONS = [
    "32-true",
    pytest.param("bf16-mixed", marks=pytest.mark.slow),
    pytest.param("16-mixed", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_whole_path_runs_in_every_precision_and_exports_float32(precision, federate, tmp_path, capsys):
    """Train, evaluate, fine-tune, save, predict and export, as the demo does."""
    folder, _ = federate(tiny_config(model_name="FourConvNet", precision=precision, num_server_rounds=1))
    assert finetune([str(folder), "--clients", str(CLIENT), "--save"]) == 0
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


@pytest.fixture
def photos(tmp_path):
    """A folder with two images in it, one below it, and a file that is none."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name in ("a.png", "b.png", "more/c.png"):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def names_of(rows):
    return [row["image"] for row in rows]


def test_folders_patterns_and_standard_input_name_images(personal, photos, capsys, monkeypatch):
    paths = [str(photos / name) for name in ("a.png", "b.png", "more/c.png")]
    rows = predicted(capsys, personal, *paths)
    assert predict.main([str(personal), str(photos), "--json"]) == 0
    told = capsys.readouterr()
    assert [json.loads(line) for line in told.out.splitlines()] == rows and names_of(rows) == paths
    assert f"note: left out, for they are no images: {photos / 'notes.txt'}" in told.err
    assert names_of(predicted(capsys, personal, photos / "*.png")) == paths[:2]
    for pattern in ("*[!t]", "**/*.png", "**/", "m*"):  # as after a shell has put what it matches in its place
        assert names_of(predicted(capsys, personal, f"{photos}/{pattern}")) == paths[2 if pattern == "m*" else 0 :]
    content = SimpleNamespace(buffer=io.BytesIO((photos / "a.png").read_bytes()))
    monkeypatch.setattr("sys.stdin", content)
    (row,) = predicted(capsys, personal, "-")
    (alone,) = predicted(capsys, personal, paths[0])
    assert row == {**alone, "image": "-"}


def test_a_bad_file_is_told_and_does_not_stop_the_others(personal, photos, capsys):
    (photos / "broken.png").write_bytes(b"no image")
    command = [str(personal), "nowhere.png", "", "a" * 300, str(photos), str(photos / "*.gif"), "--json"]
    assert predict.main(command) == 2
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 3
    errors = [line for line in told.err.splitlines() if line.startswith("error: ")]
    assert [error.split(": ", 2)[1] for error in errors] == [
        'IMAGE = "nowhere.png"', 'IMAGE = ""', f'IMAGE = "{"a" * 300}"',
        f'IMAGE = "{photos / "broken.png"}"', f'IMAGE = "{photos / "*.gif"}"',
    ]  # fmt: skip


def test_many_images_are_predicted_in_batches_as_large_as_in_training(tmp_path, capsys):
    (tmp_path / "small").mkdir()
    saved_model, config = saved(tmp_path / "small", test_batch_size=2)
    paths = write_test_images(config, tmp_path)[:4]
    together = predicted(capsys, saved_model, *paths)
    by_two = [*predicted(capsys, saved_model, *paths[:2]), *predicted(capsys, saved_model, *paths[2:])]
    assert together == by_two


def test_a_runs_folder_predicts_by_the_model_of_a_client_and_says_which(finished, tmp_path, photos, capsys):
    run = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("finetune"))
    image = str(photos / "a.png")
    assert predict.main([str(run), image]) == 2
    assert f"make some: lit-fedbabu finetune {run} --clients 0 --save" in capsys.readouterr().err
    assert finetune([str(run), "--clients", "1,4", "--save", "--epochs", "1"]) == 0
    place = run / "finetune" / "full-1epochs-lr0.001"
    capsys.readouterr()
    assert predict.main([str(run), image]) == 0
    told = capsys.readouterr()
    saved_model = place / "personal" / "client_0001.ckpt"
    note = f"note: the model is that of client 1, the first of 2; --client CLIENT takes another: {saved_model}"
    assert note in told.err
    assert predict.main([str(saved_model), image]) == 0 and capsys.readouterr().out == told.out
    assert predict.main([str(run), image, "--client", "4"]) == 0
    assert "the model is that of client" not in capsys.readouterr().err
    assert predict.main([str(run), image, "--client", "2"]) == 2
    assert "those of 1, 4 are there" in capsys.readouterr().err
    assert finetune([str(run), "--clients", "1", "--save", "--epochs", "0"]) == 0
    assert predict.main([str(run), image]) == 2
    assert "has models of several fine-tunings; name one: " in capsys.readouterr().err
    assert predict.main([str(place), image]) == 0


def test_a_run_that_shares_its_head_predicts_without_fine_tuning(federate, photos, capsys):
    run, _ = federate(tiny_config(algorithm="fedavg", num_server_rounds=1, num_clients=2))
    capsys.readouterr()
    assert predict.main([str(run), str(photos)]) == 0
    assert "note: the model is the federation's, which no client has fine-tuned" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["photos", "--client", "1"], "is for a run's folder"),
        (["photos", "--out", "x.csv"], '--out = "x.csv": is for --export'),
        (["--export", "torch", "--json"], "--json = true: is for images"),
    ],
)
def test_an_option_that_would_not_be_read_is_refused(words, told, personal, photos, capsys, monkeypatch):
    monkeypatch.chdir(photos.parent)
    assert predict.main([str(personal), *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_path_follows_the_size_of_the_images(federate, tmp_path, capsys, monkeypatch, one_core):
    """Decode, train, evaluate, fine-tune, save, predict, export, and a newcomer."""
    config = tiny_config(model_name="FourConvNet", num_server_rounds=2, image_size=16)
    folder, _ = federate(config)
    assert "resizes images to 16 x 16," in (folder / "README.md").read_text()
    assert "| `image-size` | 16 |" in (folder / "README.md").read_text()
    assert finetune([str(folder), "--clients", str(CLIENT), "--save"]) == 0
    (saved_model,) = folder.glob("finetune/*/personal/*.ckpt")
    source, own = Experiment(config).task.source, partition(config).test[CLIENT]
    assert source.test.images.shape[1:] == (16, 16, 3)
    original = Experiment(tiny_config()).task.source.test.images[own]
    model = load_model(saved_model)
    probabilities = model.probabilities_of(list(source.test.images[own]))
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
    assert load_model(tmp_path / "mine").image_size == 16
    other = {**config.to_run_config(), "image-size": 32, "resume": str(folder)}
    with pytest.raises(InputError, match="image-size = 32: the run in .* was begun with 16; give it the same"):
        resumable(Config.from_run_config(other))
