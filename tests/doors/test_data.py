import csv
import importlib
import os
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from lit_fedbabu import data
from lit_fedbabu.config import Config
from lit_fedbabu.learning import cache
from lit_fedbabu.records.plots import fonts_for
from lit_fedbabu.records.run_folder import default_run_name
from lit_fedbabu.tasks.images.task import ImageClassification

run = importlib.import_module("lit_fedbabu.run")


def test_a_split_is_printed_written_and_drawn(tmp_path, capsys):
    out = tmp_path / "split"
    assert data.main(["dataset=digits", "num-clients=12", "partitioner=dirichlet", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    config = Config(dataset="digits", num_clients=12, partitioner="dirichlet")
    assert (out / "partition.csv").read_text() == ImageClassification(config).class_counts()
    with (out / "partition.csv").open(newline="") as file:
        first, *_ = csv.DictReader(file)
    images = {name: int(count) for name, count in first.items() if name.isdigit() and count != "0"}
    line = next(line for line in printed.splitlines() if line.split()[0] == "0")
    assert line.endswith(", ".join(f"{name} {count}" for name, count in images.items()))
    assert line.split()[1] == str(sum(images.values()))
    assert "digits by dirichlet: 12 clients with" in printed
    for path in (out / "partition.csv", out / "partition.png", out / "partition.svg"):
        assert str(path) in printed.splitlines() and path.stat().st_size > 0
    assert Image.open(out / "partition.png").width == 1050, "3.5 inches at 300 dots each"


def test_a_long_table_is_cut_and_says_so(monkeypatch):
    monkeypatch.setattr(data, "ROWS", 3)
    lines = data.table(ImageClassification(Config(dataset="digits", num_clients=8)).class_counts()).splitlines()
    assert len(lines) == 5 and lines[-1] == "and 5 more clients, in partition.csv"


def paint(folder, classes, count=5):
    for split in ("train", "test"):
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for each in range(count):
                pixels = np.random.default_rng([number, each]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{each}.png")
    return folder


@pytest.mark.parametrize("classes", [("client", "knot", "split"), ("$x^$", "a,b", 'say "a"')])
def test_any_name_of_a_class_can_be_printed_written_and_drawn(classes, tmp_path, capsys):
    folder, out = paint(tmp_path / "names", classes), tmp_path / "out"
    words = [f"dataset={folder}", "--out", str(out), "partitioner=iid", "num-clients=1", "min-client-images=1"]
    assert data.main(words) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[0] == "0")
    assert line.split(maxsplit=3)[3] == ", ".join(f"{name} 5" for name in classes)
    with (out / "partition.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["client", "split", *classes], ["0", "train", *"555"], ["0", "test", *"555"]]
    svg = (out / "partition.svg").read_text()
    assert all(name.replace('"', "&quot;") in svg or name in svg for name in classes)


def test_what_is_left_out_is_told(tmp_path, capsys):
    folder = paint(tmp_path / "pets", ("cat", "dog"))
    (folder / "train" / "cat" / "a.heic").touch()
    words = [f"dataset={folder}", "partitioner=iid", "num-clients=1", "min-client-images=1", "--out", str(tmp_path)]
    for _ in ("decoded", "from the cache"):
        assert data.main(words) == 0
        assert capsys.readouterr().out.splitlines()[0].startswith("note: left out, for they are no images that can be")


@pytest.mark.parametrize(("held_out", "first"), [(0.0, "10 of 10"), (0.4, "")])
def test_copies_of_training_images_among_test_images_are_told(held_out, first, tmp_path):
    folder = paint(tmp_path / "pets", ("cat", "dog"))
    options = {"partitioner": "iid", "num_clients": 2, "min_client_images": 1, "validation_fraction": held_out}
    note = "images that clients are evaluated on are copies of training images, pixel for pixel at 32 x 32"
    for copied in (False, True):
        notes = ImageClassification(Config(dataset=str(folder), **options)).notes
        assert notes == ((f"{first} {note}",) if first else ()) or (copied and notes[0].endswith(note))
        assert bool(notes) == bool(first or copied)
        for place in sorted(folder.glob("train/*/?.png")):
            place.with_stem(f"{place.stem} (copy)").write_bytes(place.read_bytes())


def test_the_folder_above_is_a_dataset_and_a_run_has_a_name_for_it(tmp_path, monkeypatch):
    folder = paint(tmp_path / ".my\npets", ("cat", "dog"))
    (folder / "train").joinpath("..", "..", "here").mkdir()
    monkeypatch.chdir(folder / "train")
    words = ["dataset=..", "partitioner=iid", "num-clients=1", "min-client-images=1", "--out", str(tmp_path / "out")]
    assert data.main(words) == 0
    name = default_run_name(Config(dataset=".."))
    assert name.startswith("my-pets-fedbabu-seed42-")
    assert Config(run_name=name).run_name == name
    assert default_run_name(Config(dataset="/")).startswith("data-fedbabu")
    assert default_run_name(Config(dataset="uoft-cs/cifar10")).startswith("cifar10-fedbabu")


def test_a_subset_of_a_folder_is_the_same_for_processes_that_start_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path)
    for dataset in ("pets", "pets:small", "nowhere/pets:small"):
        options, _ = run._new({"dataset": dataset, "output-dir": "~no-such-user/runs"})
        absolute = "" if dataset.startswith("nowhere") else f"{tmp_path}/"
        assert options["dataset"] == absolute + dataset
        assert options["output-dir"] == f"{tmp_path}/~no-such-user/runs"


def test_names_without_a_font_are_numbers_in_figures_and_told_once(tmp_path, capsys):
    folder = paint(tmp_path / "animals", ("犬", "猫", "고양이"))
    words = [f"dataset={folder}", "partitioner=iid", "num-clients=1", "min-client-images=1", "--out", str(tmp_path)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.main(words) == 0
    shown = capsys.readouterr().out
    assert "犬 5, 猫 5, 고양이 5" in shown
    if fonts_for("犬猫고양이") is None:
        assert shown.count("note: no font here has the characters of the class names") == 1
        svg = (tmp_path / "partition.svg").read_text()
        assert "class (order of partition.csv)" in svg and "猫" not in svg


def test_the_cache_of_decoded_images_is_removed_and_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.main(["--clean"]) == 0
    assert f"{tmp_path / 'lit_fedbabu'}: removed 0 decoded datasets, 0.0 MB" in capsys.readouterr().out
    ImageClassification(Config(dataset="digits")).source  # noqa: B018 - decoded here
    (digits,) = cache.folder().iterdir()
    size = sum(file.stat().st_size for file in digits.iterdir())
    weights = cache.folder() / cache.WEIGHTS
    weights.mkdir()
    now, left = cache.folder() / ".decoding-now", cache.folder() / ".decoding-left"
    for place, age in ((now, 60), (left, 7200)):
        place.mkdir()
        os.utime(place, (time.time() - age,) * 2)
    assert data.main(["--clean", "dataset=digits"]) == 2 and digits.exists()
    capsys.readouterr()
    assert data.main(["--clean"]) == 0
    told = capsys.readouterr().out
    assert f"removed {digits.name}  {size / 1e6:.1f} MB" in told and size > 1e6
    assert "note: .decoding-now is being written by a process, and stays" in told
    assert f"removed 2 decoded datasets, {size / 1e6:.1f} MB" in told
    assert set(cache.folder().iterdir()) == {now, weights}
