"""Datasets of every form, drawn at random: no image in two roles, none lost without a word, and what is said is so."""

import csv
import io
import json
import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lit_fedbabu.config import Config
from lit_fedbabu.data import table
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.tasks.images.names import composed
from lit_fedbabu.tasks.images.task import ImageClassification

SIZE = 8
CLASSES = ("cat", "dog", "test_tube", "café", "train 1", "cafe\u0301", "x,y", "007")
CLIENTS = ("alice", "bob", "Zoë")
SPLIT_FORMS = ("split/class", "split/client/class", "client/split/class")
FORMS = ("class", "client/class", *SPLIT_FORMS, "metadata", "split/metadata", "parquet", "split.parquet")
WORDS = {
    "split": ("train", "test"),
    "Set": ("Training", "hold-out"),
    "is_train": (True, False),
    "use": ("TRAIN", "dev"),
}
JUNK = ("hidden", "in a hidden folder", "of a system", "no image", "loose")


class Numbers(dict[bytes, int]):
    """What hypothesis prints of the numbers of images."""

    def __repr__(self):
        return "numbers"


@pytest.fixture(scope="module")
def pool():
    """Small PNG files, and the number of each by its pixels; they are linked to where they are needed."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        numbers = Numbers()
        for number in range(130):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder) / f"{number}.png")
            numbers[pixels.tobytes()] = number
        yield Path(folder), numbers


@st.composite
def drawn(draw):
    """What a dataset is: its form, where each image is, and what else lies there."""
    form = draw(st.sampled_from(FORMS))
    several = st.lists(st.sampled_from(CLASSES), min_size=2, max_size=3, unique=True)
    classes = draw(several.filter(lambda names: len(set(map(composed, names))) > 1))
    said = draw(st.sampled_from(sorted(WORDS)))
    splits = ("train", "test")
    if form in SPLIT_FORMS or form.startswith("split"):
        splits = ("train", "test", *draw(st.sampled_from([(), ("val",)])))
    rows = [
        (draw(st.integers(2, 4)), split, client, name)
        for split in splits
        for client in (CLIENTS if "client" in form else ("",))
        for name in classes
    ]
    junk = draw(st.lists(st.sampled_from(JUNK), max_size=3))
    column = draw(st.sampled_from(["", said])) if form in ("metadata", "parquet") else ""
    return {
        "form": form,
        "images": [row[1:] for row in rows for _ in range(row[0])],
        "junk": junk,
        "column": column,
        "kind": draw(st.sampled_from(["csv", "jsonl", "parquet", "utf-16"])),
        "windows": draw(st.booleans()),
        "schema": draw(st.sampled_from(["struct", "binary"])),
        "clients": draw(st.integers(1, 2)),
        "validation": draw(st.sampled_from([0.0, 0.3])),
        "partitioner": draw(st.sampled_from(["iid", "dirichlet", "classes"])),
    }


def build(top, pool, dataset):
    """Write the dataset; returns split, client and class of each image by its number, and how many more lie there."""
    form, column = dataset["form"], dataset["column"]
    placed = dict(enumerate(dataset["images"]))
    if form.endswith(("class", "metadata")):
        for number, (split, client, name) in placed.items():
            names = {"split": split, "client": client, "class": name, "metadata": "images"}
            link(pool / f"{number}.png", top.joinpath(*(names[each] for each in form.split("/"))) / f"{number}.png")
    rows: dict[str, list[dict[str, object]]] = {}
    for number, (split, _, name) in placed.items():
        place = split if form.startswith("split") else ""
        content = (pool / f"{number}.png").read_bytes()
        image = content if dataset["schema"] == "binary" else {"bytes": content, "path": None}
        file = {"image": image} if form.endswith("parquet") else {"file_name": f"images/{number}.png"}
        more = {column: WORDS[column][split != "train"]} if column else {}
        rows.setdefault(place, []).append({**file, "label": f"{name}", **more})
    for place, of_place in rows.items():
        if form.endswith("parquet"):
            top.mkdir(exist_ok=True)
            pq.write_table(pa.Table.from_pylist(of_place), top / f"{place or 'all'}.parquet")
        elif form.endswith("metadata"):
            write_metadata(top / place, of_place, dataset)
    return placed, add_junk(top, pool, dataset)


def write_metadata(folder, rows, dataset):
    if dataset["windows"]:
        rows = [{**row, "file_name": row["file_name"].replace("/", "\\")} for row in rows]
    if dataset["kind"] == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    elif dataset["kind"] == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        file = io.StringIO()
        writer = csv.DictWriter(file, rows[0], delimiter=";" if dataset["windows"] else ",")
        writer.writeheader()
        writer.writerows(rows)
        encoding = "utf-16" if dataset["kind"] == "utf-16" else "utf-8"
        (folder / "metadata.csv").write_bytes(file.getvalue().encode(encoding))


def add_junk(top, pool, dataset):
    """Files that are no images of the dataset; returns how many of them look like images."""
    places = {
        "hidden": "._{}.png",
        "in a hidden folder": ".thumbs/{}.png",
        "of a system": "__MACOSX/{}.png",
        "no image": "{}.heic",
        "loose": "{}.png",
    }
    count = 0
    for number, kind in enumerate(dataset["junk"], 120):
        link(pool / f"{number}.png", top / places[kind].format(number))
        count += kind != "no image"
    return count


def link(file, place):
    place.parent.mkdir(parents=True, exist_ok=True)
    os.link(file, place)


def told(notes):
    """How many images notes say are left out."""
    count = 0
    for note in notes:
        if splits := re.fullmatch(r"left out, for they are neither .*: the splits (.*)", note):
            count += sum(map(int, re.findall(r"\((\d+)\)", splits[1])))
        elif hidden := re.match(r"left out, for they are hidden: (\d+) images", note):
            count += int(hidden[1])
        elif note.startswith("left out") and "no images that can be read" not in note:
            files = note.partition(": ")[2]
            more = re.search(r" and (\d+) more$", files)
            count += files.count(".png") + (int(more[1]) if more else 0)
    return count


def check(pool, dataset):
    folder, numbers = pool
    with tempfile.TemporaryDirectory(dir=folder) as place:
        top = Path(place) / "data"
        placed, others = build(top, folder, dataset)
        clients = "client" in dataset["form"]
        config = Config(
            dataset=str(top),
            image_size=SIZE,
            partitioner="natural-id" if clients else dataset["partitioner"],
            natural_id_column="client/class" if clients else "",
            num_clients=len(CLIENTS) if clients else dataset["clients"],
            num_classes_per_client=2,
            min_client_images=1,
            validation_fraction=dataset["validation"],
        )
        task = ImageClassification(config)
        try:
            task.check_data()
        except InputError as error:  # a split of so few images may be refused, and a dataset may not
            assert error.key in ("num-clients", "partitioner"), error
            return "refused"
        source = task.source

        def names_of(split, rows):
            """The number and the class of these images."""
            return [
                (numbers[split.images[row].tobytes()], source.class_names[split.labels[row]]) for row in rows.tolist()
            ]

        both = [names_of(split, np.arange(len(split.labels))) for split in (source.train, source.test)]
        read = [number for each in both for number, _ in each]
        assert len(read) == len(set(read)), "no image is read twice"
        assert len(read) + told(source.notes) == len(placed) + others, (source.notes, dataset)
        for each in both:
            assert all(composed(placed[number][2]) == composed(name) for number, name in each), (
                "every image has its class"
            )
        declared = dataset["form"].startswith("split") or "/split/" in dataset["form"] or dataset["column"]
        if declared:
            for split, each in zip(("train", "test"), both, strict=True):
                assert {placed[number][0] for number, _ in each} == {split}
        # What every client has, as training takes it, against what is printed.
        counts = list(csv.DictReader(io.StringIO(task.class_counts())))
        lines = table(task.class_counts(), task.client_names).splitlines()[1:]
        trained: Counter[int] = Counter()
        tested: Counter[int] = Counter()
        for client in range(config.num_clients):
            data = task.client_data(client, 0)
            for split, rows, seen in (("train", data.train_set, trained), ("test", data.test_set, tested)):
                images, labels = (each.numpy() for each in rows.tensors)
                seen.update(numbers[image.tobytes()] for image in images)
                (row,) = (row for row in counts if (row["client"], row["split"]) == (str(client), split))
                printed = {name: int(row[name]) for name in source.class_names}
                assert printed == {name: int((labels == n).sum()) for n, name in enumerate(source.class_names)}
                if clients:
                    owners = {placed[numbers[image.tobytes()]][1] for image in images}
                    assert owners == {task.client_names[client]}, "a client has the images of its folder alone"
            assert lines[client].split()[:3] == [str(client), str(len(data.train_set)), str(len(data.test_set))]
        assert not trained.keys() & tested.keys(), "no image is trained on and tested"
        assert max([*trained.values(), *tested.values()]) == 1, "no image is of two clients"
        assert not [note for note in task.notes if "copies of training images" in note]
        left = sum(map(int, re.findall(r"(\d+) of \d+ (?:training|test)", task.summary())))
        dealt = len(source.train.labels) + (0 if dataset["validation"] else len(source.test.labels))
        assert len(trained) + len(tested) + left == dealt, task.summary()
        return "dealt"


@given(drawn())
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_every_image_has_one_role_or_is_told(pool, dataset):
    check(pool, dataset)


@pytest.mark.slow
@given(drawn())
@settings(max_examples=200, deadline=None)
def test_every_image_of_many_datasets_has_one_role_or_is_told(pool, dataset):
    check(pool, dataset)
