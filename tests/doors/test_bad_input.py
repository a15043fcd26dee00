"""Every way to give something wrong: one line that names it and the remedy, exit status 2, and no file touched."""

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import zipfile

import datasets
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lit_fedbabu.config import Config
from lit_fedbabu.config.words import parse_words
from lit_fedbabu.engines import superlink
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning import reach
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.federation import read_federation

pytestmark = pytest.mark.usefixtures("one_core")

COMMANDS = {
    name: importlib.import_module(f"lit_fedbabu.{name}").main
    for name in ("run", "finetune", "predict", "report", "data", "credentials", "doctor")
}
DIGITS = "dataset=digits num-clients=8 min-client-images=1"

CASES = [
    # configuration: keys, types, limits, contradictions
    ("run learning-rat=0.1", "learning-rat = 0.1: no such key; did you mean learning-rate?"),
    ("doctor learning-rat=0.1", "learning-rat = 0.1: no such key; did you mean learning-rate?"),
    ("run num_client=3", "num_client = 3: no such key; did you mean num-clients?"),
    ("run sauce=ketchup", 'sauce = "ketchup": no such key; lit-fedbabu run --help lists them'),
    ("run lr=0.1", "lr = 0.1: no such key; did you mean learning-rate?"),
    ("data mu=1", "mu = 1: no such key; did you mean proximal-mu?"),
    ("doctor runname=exp.toml", 'runname = "exp.toml": no such key; did you mean run-name?'),
    ("run learning-rate=0,1", 'learning-rate = "0,1": must be a number, as in learning-rate=0.1'),
    ("run class-names=[cat,dog]", 'class-names = "[cat,dog]": must be names, as in cat,dog or ["cat","dog"]'),
    ('run class-names=["cat,dog","cow"]', "has a comma in cat,dog; names have commas between them, and none inside"),
    (f"run run-name={'n' * 201}", "has 201 bytes, and a folder's name may have 200; shorten it"),
    ("run digits", "sites; did you mean dataset=digits?"),
    (f"run {'n' * 300}", "write a file NAME.toml, key=value, or the name of a shipped configuration"),
    (f"run {'n' * 300}.toml", "cannot be read: [Errno 36] File name too long"),
    ("run officia", "; did you mean official?"),
    ("run {here}/dated.toml", 'run-name = "2026-11-28": must be a text; put it in quotes'),
    ("run num-server-rounds=two", 'num-server-rounds = "two": must be a whole number'),
    ("run num-server-rounds=2.0", "num-server-rounds = 2.0: must be a whole number"),
    ("run num-server-rounds=true", "num-server-rounds = true: must be a whole number"),
    ("run num-server-rounds=0", "num-server-rounds = 0: must be at least 1"),
    ("run num-server-rounds=[3]", "num-server-rounds = [3]: must be a whole number"),
    ("run num-clients=many", 'num-clients = "many": must be a whole number'),
    ("run num-clients=0", "num-clients = 0: must be at least 1"),
    ("run learning-rate=nan", 'learning-rate = "nan": must be finite'),
    ("run learning-rate=inf", 'learning-rate = "inf": must be finite'),
    ("run learning-rate=-1", "learning-rate = -1.0: must be greater than 0"),
    ("run learning-rate=fast", 'learning-rate = "fast": must be a number'),
    ("run fraction-train=0", "fraction-train = 0.0: must be greater than 0"),
    ("run fraction-train=1.5", "fraction-train = 1.5: must be at most 1"),
    ("run momentum=-0.1", "momentum = -0.1: must be at least 0"),
    ("run batch-size=0", "batch-size = 0: must be at least 1"),
    ("run dirichlet-alpha=0", "dirichlet-alpha = 0.0: must be greater than 0"),
    ("run seed=-1", "seed = -1: must be at least 0"),
    ("run seed=9223372036854775808", "seed = 9223372036854775808: must be at most 9223372036854775807"),
    ("run finetune-part=legs", 'finetune-part = "legs": must be one of head, body, full'),
    ("run finetune-part=Head", "must be one of head, body, full, knn; did you mean head?"),
    ("run finetune-part=knn knn-weight=-0.5", "knn-weight = -0.5: must be from 0 to 1, or -1, which chooses it"),
    ("run augmentation=mixup", 'augmentation = "mixup": must be one of crop-flip, crop, resized-crop-flip, none'),
    ("run norm=layer", 'norm = "layer": must be one of batch, batch-running, group'),
    ("run precision=8-bit", 'precision = "8-bit": must be one of auto'),
    ("run cohort-size=-1", "cohort-size = -1: must be at least 0"),
    (f"run {DIGITS} algorithm=fedbaboon", "of your own; did you mean fedbabu?"),
    (f"run {DIGITS} partitioner=dirichelet", "; did you mean dirichlet?"),
    (f"run {DIGITS} model-name=FiveConvNet", 'model-name = "FiveConvNet": must be one of FourConvNet'),
    (f"run {DIGITS} model-name=no_such:build", "no_such:build"),
    (f"run {DIGITS} model-name=json:dumps", "json:dumps"),
    (f"run {DIGITS} partitioner=alphabet", 'partitioner = "alphabet": must be one of classes, shards'),
    (f"run {DIGITS} num-classes-per-client=11", "num-classes-per-client = 11: the dataset has 10 classes"),
    (f"run {DIGITS} normalization=imagenet", "is of colour images; the dataset's are grey: take data"),
    (f"run {DIGITS} min-clients-per-round=2 fraction-train=0.1", "min-clients-per-round = 2: a round draws 1 of 8"),
    (f"run {DIGITS} partitioner=natural-id", "natural-id needs the dataset's column"),
    ("run noise-multiplier=1.0", "noise-multiplier = 1.0: needs a clipping-norm"),
    ("run clipping-norm=1.0 norm=batch-running", "clipping-norm = 1.0: would spoil running statistics"),
    (
        "run nonsense",
        'argument = "nonsense": write a file NAME.toml, key=value, or the name of a shipped configuration',
    ),
    ("run =3", 'argument = "=3"'),
    ("run {here}/absent.toml", "absent.toml"),
    ("run {here}/broken.toml", "broken.toml"),
    ("run {here}/binary.toml", "binary.toml"),
    # datasets
    ("run dataset=nowhere", 'dataset = "nowhere": is no folder here'),
    ("run dataset={here}/goood", "is no folder here; did you mean {here}/good?"),
    ("run dataset={here}/good:train", "has no subset 'train'; the folder has one dataset"),
    ("run dataset={here}/alone num-clients=2", "has images of one class alone, a; there must be two or more"),
    ("run dataset={here}/alone label-column=img", "its column img holds Image from row 0 of split train on"),
    ("finetune {run} --data {here}/alone", "has images of one class alone, a"),
    ("data {digits} --out {here}/out num-clients=500", "would have fewer test images than 1"),
    (
        "data dataset=digits partitioner=shards num-clients=800 num-classes-per-client=3 min-client-images=1",
        "num-clients = 800: with 3 shards each needs 2400 images; there are 1433",
    ),
    ("run dataset=../nowhere/at/all", 'dataset = "../nowhere/at/all": is no folder here'),
    ("run dataset=no-such-owner/no-such-dataset", "the hub cannot be reached and nothing is cached; three ways out"),
    ("run dataset={here}/empty", "has neither folders of images, one for each class, nor tables"),
    ("run dataset={here}/broken", "cannot be read: "),
    ("run dataset={here}/words", "needs one Image column; it has"),
    ("run dataset={here}/one num-clients=2", "one class"),
    ("run dataset={here}/good num-clients=50", "num-clients = 50: the dataset has 24 training images"),
    ("run dataset={here}/good num-clients=3", "would have fewer training images than 10; take fewer clients"),
    ("data dataset=digits label-column=colour", 'label-column = "colour": is of datasets with columns, and digits has'),
    ("data dataset=digits natural-id-column=me", 'natural-id-column = "me": is of datasets with columns, and digits'),
    ("data dataset=digits num-clients=2 validation-fraction=0.99", "-client-images, or a lower validation-fraction"),
    (
        "data dataset={here}/good num-clients=2 class-names=blue,green,red,violet num-classes-per-client=4",
        "there is no training image of the classes violet",
    ),
    ("run dataset={here}/good label-column=colour", 'label-column = "colour": is no column of the dataset'),
    ("data dataset=digits num-clients=500 --out {here}/out", "would have fewer training images than 10"),
    ("finetune {run} --dataset nowhere", 'dataset = "nowhere"'),
    ("finetune {run} --dataset {here}/good", "has the classes blue, green, red"),
    ("finetune {run} --data nowhere", "is no folder here"),
    ("finetune {run} --data {here}/empty", "it has no file"),
    ("finetune {run} --data {here}/one", "has images of one class alone"),
    ("finetune {run} --data {here}/broken", "cannot be read: "),
    ("finetune {run} --data {here}/good --label-column colour", "is no column of the dataset"),
    # options of fine-tuning that do not go together
    ("finetune {run} --part legs", "--part = "),
    ("finetune {run} --epochs -1", "--epochs = -1: must be at least 0"),
    ("finetune {run} --lr 0", "--lr = 0.0: must be greater than 0"),
    ("finetune {run} --lr fast", "must be numbers"),
    ("finetune {run} --clients 0,6", "the run's clients are 0 to 5"),
    ("finetune {run} --clients two", "must be all, or numbers"),
    ("finetune {run} --save {here}/good", "is for --data"),
    ("finetune {run} --data {here}/good --save", "needs a folder"),
    ("finetune {run} --data {here}/good --lr 0.1,0.2", "takes one --part and one --lr"),
    ("finetune {run} --data {here}/good --clients 3", "are those of the federation"),
    ("finetune {run} --data {here}/good --dataset {here}/good", "--dataset = "),
    ("finetune {run} --label-column colour", '--label-column = "colour": is for --data'),
    # checkpoints and runs
    ("finetune nowhere", 'RUN_OR_CHECKPOINT = "nowhere": has no checkpoint; give a run\'s folder'),
    ("finetune {here}/empty", "has no checkpoint"),
    ("finetune {here}/truncated.ckpt", "is not one that lit_fedbabu wrote"),
    ("finetune {here}/flipped.ckpt", "is damaged"),
    ("finetune {here}/text.ckpt", "is not one that lit_fedbabu wrote"),
    ("finetune {here}/void.ckpt", "is not one that lit_fedbabu wrote"),
    ("finetune {here}/foreign.ckpt", "is not one that lit_fedbabu wrote"),
    ("finetune {here}/code.ckpt", "is not one that lit_fedbabu wrote"),
    ("finetune {here}/other.ckpt", "another model than FourConvNet: body.0.0.weight is (8, 3, 3, 3)"),
    ("finetune {here}/classes.ckpt", "another model than FourConvNet: head.weight is (7, 256)"),
    ("finetune {here}/headless.ckpt", "another model than FourConvNet: head.bias is None"),
    ("finetune {here}/named.ckpt", "is code that the checkpoint names; give --model-name to trust it"),
    ("finetune {here}/old.ckpt", "another version of lit_fedbabu: it does not say class_names, mean"),
    ("finetune {here}/newer.ckpt", "another version of lit_fedbabu: warp-factor = 9: no such key"),
    (
        "finetune {here}/personal.ckpt",
        "is a personal model; give the checkpoint of a federation, or tune it",
    ),
    ("predict {here}/truncated.ckpt {here}/image.png", "is not one that lit_fedbabu wrote"),
    ("predict {here}/code.ckpt {here}/image.png", "is not one that lit_fedbabu wrote"),
    ("predict {here}/headless.ckpt {here}/image.png", "has weights of another model"),
    ("predict {here}/named.ckpt {here}/image.png", "is code that the checkpoint names"),
    ("predict {here}/old.ckpt {here}/image.png", "it does not say class_names, mean"),
    ("predict nowhere {here}/image.png", "is not one that lit_fedbabu wrote"),
    ("predict {here}/personal.ckpt", "give one image or more, or --export"),
    ("predict {here}/personal.ckpt nowhere.png", "is no file"),
    ("predict {here}/personal.ckpt {here}/text.ckpt", "cannot be read as an image"),
    ("run --resume nowhere", "is no run's folder: it has no config.toml"),
    ("run --resume {run}", "the run is finished"),
    ("run --resume {here}/begun seed=7", "seed = 7: the run in"),
    ("run --resume {here}/begun run-name=other", "run-name"),
    ("run --resume {here}/torn", "is not one that lit_fedbabu wrote"),
    ("report nowhere", "is no run's folder: it has no config.toml"),
    ("report {here}/begun --out {here}/out", "has no results.json: give a run that is finished"),
    ("report {run} {here}/copy --out {here}/out", "leave one out"),
    # places
    ("run run-name=a/b", 'run-name = "a/b": must be a plain folder name'),
    (r'run run-name="a\u0000b"', r'run-name = "a\u0000b": has characters that cannot be printed'),
    (r'run run-name="a\nb"', r'run-name = "a\nb": has characters that cannot be printed'),
    (r'run output-dir="a\u0000b"', r'output-dir = "a\u0000b": has a NUL in it'),
    (r'run dataset="a\u0000b"', r'dataset = "a\u0000b": has a NUL in it'),
    ("run run-name=..", 'run-name = "..": must be a plain folder name'),
    ("run run-name=copy output-dir={here}", "copy exists and is not overwritten; take another name"),
    ("run {digits} output-dir={here}/text.ckpt/below", "output-dir"),
    ("data {digits} --out {here}/text.ckpt", "is no folder that can be written to"),
    ("report {run} --out {here}/text.ckpt", "cannot be made"),
    ("finetune {run} --data {here}/good --save {here}/copy", "is not empty, and nothing is overwritten"),
    ("finetune {run} --data {here}/good --save {here}/text.ckpt", "cannot be written to"),
    ("predict {here}/personal.ckpt --export onnx --out {here}/image.png", "exists and is not overwritten"),
    ("predict {here}/personal.ckpt --export onnx --out nowhere/model.onnx", "there is no folder"),
    # devices
    ("run {digits} precision=16-mixed", 'precision = "16-mixed": needs a GPU, and this machine has none'),
    ("finetune {here}/half.ckpt", 'precision = "16-mixed": needs a GPU, and this machine has none'),
]


class Code:
    """What a malicious checkpoint would run."""

    def __reduce__(self):
        return (pytest.fail, ("code in a checkpoint was run",))


def paint(folder, classes=("blue", "red", "green")):
    """Eight training and four test images in a folder for each class."""
    pixels = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                image = pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def here(finished, tmp_path_factory):
    """A folder with everything that is wrong."""
    here = tmp_path_factory.mktemp("here")
    (here / "broken.toml").write_text("seed = ")
    (here / "dated.toml").write_text("run-name = 2026-11-28")
    (here / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (here / "empty").mkdir()
    paint(here / "good")
    paint(here / "one", ("blue",))
    (paint(here / "broken") / "train" / "red" / "3.png").write_bytes(b"no image")
    (here / "words").mkdir()
    (here / "alone").mkdir()
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    rows = {"img": [Image.new("RGB", (32, 32))] * 40, "label": [0] * 40}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(here / "alone" / "train.parquet")
    for split in ("train", "test"):
        (here / "words" / f"{split}.jsonl").write_text(json.dumps({"age": 3, "name": "x"}) + "\n")
    Image.new("RGB", (32, 32)).save(here / "image.png")
    shutil.copytree(finished, here / "copy", ignore=shutil.ignore_patterns("finetune"))
    for name in ("begun", "torn"):
        (here / name / "checkpoints").mkdir(parents=True)
        shutil.copy(finished / run_folder.CONFIG, here / name)
    whole = (finished / run_folder.LAST_CHECKPOINT).read_bytes()
    (here / "torn" / run_folder.LAST_CHECKPOINT).write_bytes(whole[:-1000])
    (here / "truncated.ckpt").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    with zipfile.ZipFile(finished / run_folder.LAST_CHECKPOINT) as archive:
        flipped[max(archive.infolist(), key=lambda part: part.file_size).header_offset + 4096] ^= 1
    (here / "flipped.ckpt").write_bytes(flipped)
    (here / "text.ckpt").write_text("no checkpoint, and no image")
    (here / "void.ckpt").touch()
    torch.save({"state_dict": {}}, here / "foreign.ckpt")
    torch.save(Code(), here / "code.ckpt")

    def changed(name, change):
        content = torch.load(finished / run_folder.LAST_CHECKPOINT, weights_only=True)
        change(content["state_dict"], content["lit_fedbabu"], content["hyper_parameters"])
        torch.save(content, here / f"{name}.ckpt")

    changed("other", lambda state, about, options: state.update({"model.body.0.0.weight": torch.zeros(8, 3, 3, 3)}))
    changed("classes", lambda state, about, options: state.update({"model.head.weight": torch.zeros(7, 256)}))
    changed("headless", lambda state, about, options: state.pop("model.head.bias"))
    changed("named", lambda state, about, options: options.update(model_name="os:system"))
    changed("old", lambda state, about, options: [about.pop("class_names"), about.pop("mean")])
    changed("newer", lambda state, about, options: about["config"].update({"warp-factor": 9}))
    changed("personal", lambda state, about, options: about.update(kind="personal"))
    changed("half", lambda state, about, options: about["config"].update({"precision": "16-mixed"}))
    return here


def contents(*folders):
    """Digests of all files below the folders, and the folders."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for folder in folders
        for path in sorted(folder.rglob("*"))
    }


def test_there_are_cases_enough():
    assert len({command for command, _ in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize(("command", "told"), CASES, ids=[command for command, _ in CASES])
def test_bad_input_is_told_in_one_line_and_touches_nothing(
    command, told, here, finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(reach, "answers", lambda: False)
    monkeypatch.setattr(superlink, "started", lambda root: pytest.fail("a SuperLink was started"))
    name, *words = command.format(here=here, run=finished, digits=DIGITS).split()
    before = contents(here, finished, tmp_path)
    capsys.readouterr()
    assert COMMANDS[name](words) == 2
    out, error = capsys.readouterr()
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert told.replace("{here}", str(here)) in error
    assert out in ("", "checking the dataset and the split\n")
    assert contents(here, finished, tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told(finished, here, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    command = [str(finished), "--data", str(here / "good"), "--save", str(tmp_path / "locked" / "mine")]
    assert COMMANDS["finetune"](command) == 2
    assert "cannot be written to: Permission denied" in capsys.readouterr().err


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("report {run} --out {disk}", marks=pytest.mark.slow),
        f"data {DIGITS} --out {{disk}}",
        "finetune {run} --clients 0",
    ],
)
def test_a_full_disk_is_told_in_one_line_and_what_is_there_stays(command, tiny_disk, finished, tmp_path, capsys):
    shutil.copytree(
        finished, tiny_disk / "copy", ignore=shutil.ignore_patterns("finetune", "events*", "best*", "round*")
    )
    for name in ("methods.md", "partition.png", "rounds.png"):
        (tiny_disk / name).write_text("what was there")
    (tmp_path / "room").mkdir()
    name, *words = command.split()
    roomy = shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("finetune"))
    assert COMMANDS[name]([word.format(run=roomy, disk=tmp_path / "room") for word in words]) == 0
    whole = {path.name: digest for path, digest in contents(tmp_path / "room").items()}
    (tiny_disk / "ballast").write_bytes(bytes(max(0, shutil.disk_usage(tiny_disk).free - 8192)))
    before = contents(tiny_disk)
    capsys.readouterr()
    assert COMMANDS[name]([word.format(run=tiny_disk / "copy", disk=tiny_disk) for word in words]) in (1, 2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "No space left on device" in error
    after = contents(tiny_disk)
    for path, digest in before.items():
        assert after.get(path) in (digest, whole.get(path.name)), f"{path} is lost"


TOML = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(Config().to_run_config())) | st.text(max_size=20), TOML, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_configuration_is_taken_or_refused_in_one_line(options):
    try:
        config = Config.from_run_config(options)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert Config.from_run_config(config.to_run_config()) == config
        taken = {key: ",".join(value) if isinstance(value, list) else value for key, value in options.items()}
        assert all(config.to_run_config()[key] == value for key, value in taken.items())


@given(st.lists(st.text(max_size=30), max_size=3))
@settings(max_examples=200, deadline=None)
def test_any_words_are_read_or_refused_in_one_line(words):
    try:
        parse_words(words)
    except InputError as error:
        assert "\n" not in str(error)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_checkpoint_is_read_as_it_was_or_refused_in_one_line(finished, tmp_path, data):
    whole = bytearray((finished / run_folder.LAST_CHECKPOINT).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(whole) - 1))
        run_length = data.draw(st.sampled_from([1, 8, 500]))
        whole[place : place + run_length] = data.draw(st.binary(min_size=run_length, max_size=run_length))
    (tmp_path / "damaged.ckpt").write_bytes(whole[: data.draw(st.integers(len(whole) // 2, len(whole)))])
    try:
        found = read_federation(tmp_path / "damaged.ckpt")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        expected = read_federation(finished / run_folder.LAST_CHECKPOINT)
        assert (found.config, found.rounds) == (expected.config, expected.rounds)
        assert all(torch.equal(found.shared[name], value) for name, value in expected.shared.items())


TYPED = {
    "--epochs -1": "--epochs = -1: must be at least 0, as in --epochs 5",
    "--lr 0": "--lr = 0.0: must be greater than 0, as in --lr 0.001",
    "--part tail": '--part = "tail": must be one of',
    "--precision 8-bit": '--precision = "8-bit": must be one of',
    "--dataset nowhere": '--dataset = "nowhere": ',
    "--data nowhere": '--data = "nowhere": ',
}


@pytest.mark.parametrize("words", TYPED)
def test_a_refusal_calls_an_option_as_it_was_typed(words, finished, capsys):
    assert COMMANDS["finetune"]([str(finished), *words.split()]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {TYPED[words]}")


@pytest.mark.slow
def test_a_full_disk_in_other_commands_names_the_file_and_the_next_step(tiny_disk, finished, tmp_path, capsys):
    (tiny_disk / "ballast").write_bytes(bytes(shutil.disk_usage(tiny_disk).free - 8192))
    checkpoint = str(finished / "checkpoints" / "last.ckpt")
    refused = {
        f"finetune {finished} --data digits --epochs 1 --save {tiny_disk}/me": "me/model.safetensors",
        f"predict {checkpoint} --export torch --out {tiny_disk}/model.pt2": "model.pt2",
        f"credentials {tiny_disk}/keys --sites 3": "keys/",
    }
    for command, file in refused.items():
        name, *words = command.split()
        assert COMMANDS[name](words) in (1, 2)
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and f"{tiny_disk}/{file}" in error and "No space left on device" in error
    left = [path for path in tiny_disk.rglob("*") if path.is_file()]
    assert left == [tiny_disk / "ballast"], "nothing hidden and nothing half written"
    (tiny_disk / "ballast").unlink()
    for command, file in refused.items():
        name, *words = command.split()
        assert COMMANDS[name](words) == 0, "the same command works after space was freed"
        made = tiny_disk / file.split("/")[0]
        shutil.rmtree(made) if made.is_dir() else made.unlink()
