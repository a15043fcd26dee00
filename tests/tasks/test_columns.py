"""Columns and rows as people's tables have them: numbers of classes, or one line that names column and row."""

from datetime import UTC, datetime

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from PIL import Image

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.tasks.images import hub, sources

DAY = datetime(2020, 1, 1, tzinfo=UTC)
ABC = ClassLabel(names=["a", "b", "c"])


@pytest.fixture
def given(monkeypatch, tmp_path):
    """Make a hub dataset of 12 training and 6 test rows whose columns repeat these values."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def make(train, test=None, feature=ABC, column="label", images=None, image=None, **more):
        splits = {}
        for split, count, values in (("train", 12, train), ("test", 6, test or train)):
            pixels = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
            rows = {"image": [Image.fromarray(each) for each in pixels]}
            features = {"image": datasets.Image(), column: feature}
            rows[column] = [values[row % len(values)] for row in range(count)]
            for name, (kind, each) in more.items():
                features[name], rows[name] = kind, [each[row % len(each)] for row in range(count)]
            if images:
                rows["image"] = images(rows["image"])
            splits[split] = Dataset.from_dict(rows, features=Features(features))
            if image is not None:
                splits[split] = splits[split].cast_column("image", image)
        monkeypatch.setattr(hub, "read", lambda _: splits)

    return make


@pytest.mark.parametrize(
    ("values", "feature", "names"),
    [
        ([0, 1, 2], ABC, ("a", "b", "c")),
        (["x", "NA", "nan"], Value("string"), ("NA", "nan", "x")),
        ([10, 9], Value("uint8"), ("9", "10")),
        ([3.0, 1.0], Value("float32"), ("1", "3")),
        ([True, False], Value("bool"), ("False", "True")),
        ([2, 0], ABC, ("a", "c")),
    ],
)
def test_labels_of_any_plain_type_are_classes(values, feature, names, given):
    given(values, feature=feature)
    source = sources.load("some/labels")
    assert source.class_names == names
    assert [names[label] for label in source.train.labels[: len(values)]] == [
        feature.int2str(each) if feature is ABC else str(int(each) if feature.dtype == "float32" else each)
        for each in values
    ]
    unused = ("left out, for they have no image: the classes b",)
    assert source.notes == (unused if len(names) == 2 and feature is ABC else ())


LABELS = [
    ([0, 1, 2], [-1], ABC, "its column label has -1, but its classes are 0 to 2, in row 0 of split test"),
    ([0, 1, 2], [0, 1, 2, None], ABC, "its column label has no value in row 3 of split test"),
    (["x", "y", None], None, Value("string"), "its column label has no value in row 2 of split train"),
    (["x", "y", " "], None, Value("string"), "its column label has an empty text in row 2 of split train"),
    ([1.0, 2.0, np.nan], None, Value("float32"), "its column label has nan, which is no whole number, in row 2 of"),
    ([1.0, 0.5, 2.0], None, Value("float64"), "its column label has 0.5, which is no whole number, in row 1 of split"),
    ([[0], [1]], None, List(Value("int64")), "its column label holds List from row 0 of split train on"),
    ([b"a", b"b"], None, Value("binary"), "its column label holds binary from row 0 of split train on"),
    ([DAY], None, Value("timestamp[s, tz=UTC]"), "its column label holds timestamp.* from row 0 of split train on"),
    (["x"], None, Value("string"), "has images of one class alone, x; there must be two or more"),
    (["x", "y"], ["x", "z"], Value("string"), "its split test has classes that its split train does not have: z"),
    ([0, 1], [2], ABC, "its split test has classes that its split train does not have: c"),
    (list(range(12)), [50, 51], Value("int64"), "that its split train does not have: 50, 51"),
]  # fmt: skip


@pytest.mark.parametrize(("train", "test", "feature", "words"), LABELS, ids=[words for *_, words in LABELS])
def test_odd_labels_are_refused_by_column_and_row(train, test, feature, words, given):
    given(train, test, feature)
    with pytest.raises(InputError, match=words) as caught:
        sources.load("some/labels")
    assert "\n" not in str(caught.value)


def test_floats_are_classes_only_where_they_are_few(given, monkeypatch):
    given([0.0, 1.0], feature=Value("float64"))
    monkeypatch.setattr("lit_fedbabu.tasks.images.columns.MOST_FLOATS", 1)
    with pytest.raises(InputError, match="its column label has 2 different numbers with decimal points: a measure"):
        sources.load("some/measures")


def test_labels_of_two_types_in_two_splits_are_refused(given, monkeypatch):
    given([0, 1], feature=Value("int64"))
    first = hub.read("")
    given(["0", "1"], feature=Value("string"))
    second = hub.read("")
    monkeypatch.setattr(hub, "read", lambda _: {"train": first["train"], "test": second["test"]})
    with pytest.raises(InputError, match="holds whole numbers in split train, but texts in split test"):
        sources.load("some/mixture")
    monkeypatch.setattr(hub, "read", lambda _: {**first, "test": first["test"].rename_column("label", "class")})
    with pytest.raises(InputError, match="its split test has no column label"):
        sources.load("some/mixture")


def test_the_column_of_images_is_no_column_of_labels_or_owners(given):
    given([0, 1])
    for columns in (("image", ""), ("", "image")):
        with pytest.raises(InputError, match="its column image holds Image from row 0 of split train on"):
            sources.load("some/images", *columns)


@pytest.mark.parametrize(
    ("feature", "values", "words"),
    [
        (Value("string"), ["w1", "w2", None], "its column writer has no value in row 2 of split train"),
        (List(Value("string")), [["w1"], ["w2"]], "its column writer holds List from row 0 of split train on"),
        (Value("float64"), [1.0, 2.0, float("nan")], "its column writer has nan, which is no whole number"),
    ],
)
def test_odd_owners_are_refused_by_column_and_row(feature, values, words, given):
    given([0, 1], writer=(feature, values))
    with pytest.raises(InputError, match=words):
        sources.load("some/letters", "", "writer")


def test_owners_may_be_many_whole_floats(given, monkeypatch):
    monkeypatch.setattr("lit_fedbabu.tasks.images.columns.MOST_FLOATS", 1)
    given([0, 1], writer=(Value("float64"), [7.0, 3.0]))
    assert sources.load("some/letters", "", "writer").train.owners.tolist() == [1, 0] * 6


def test_a_missing_image_is_named_by_column_and_row(given):
    given([0, 1], images=lambda rows: [*rows[:4], None, *rows[5:]])
    with pytest.raises(InputError, match="split 'train' cannot be read: row 4 of column image: there is none"):
        sources.load("some/images")


def test_a_broken_image_is_named_by_column_and_row(given):
    given([0, 1], images=lambda rows: [*rows[:3], {"bytes": b"no image", "path": None}, *rows[4:]])
    with pytest.raises(InputError, match="row 3 of column image: is no image, or of a format that cannot be read"):
        sources.load("some/images")


def test_images_that_are_not_to_be_decoded_are_refused_by_column_and_row(given):
    given([0, 1], image=datasets.Image(decode=False))
    with pytest.raises(InputError, match="its column image has images that are not to be decoded, from row 0 of"):
        sources.load("some/images")


def test_the_mode_of_a_column_decides_its_channels(given):
    given([0, 1], image=datasets.Image(mode="L"))
    assert sources.load("some/images").channels == 1


def test_a_class_of_class_names_without_an_image_is_told(given):
    given([0, 2])
    assert sources.load("some/images").notes == ("left out, for they have no image: the classes b",)
    source = sources.load("some/images", classes=("c", "a", "owl"))
    assert source.class_names == ("c", "a", "owl") and source.train.labels[:2].tolist() == [1, 0]
    assert source.notes[1:] == ("without an image in some/images: the classes owl of class-names",)


def test_one_class_is_enough_for_a_site_whose_federation_has_more(given):
    given([1])
    with pytest.raises(InputError, match="has images of one class alone, b"):
        sources.load("some/images")
    assert sources.load("some/images", classes=("a", "b")).train.labels.tolist() == [1] * 12
