"""Folders with tables: which rows are in which split, and which of several datasets is meant."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.tasks.images import sources

FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
HEAD = """---
configs:
- config_name: small
  data_files: [{split: train, path: one/train-*}, {split: test, path: one/test.parquet}]
- config_name: large
  data_files: [{split: train, path: [one/train-*, two/train-*]}, {split: test, path: "*/test.parquet"}]
---
# Two subsets
"""


def table(count, seed=0, features=FEATURES):
    """Random images of three classes, as many of each."""
    pixels = np.random.default_rng([seed, count]).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    rows = {"image": [Image.fromarray(each) for each in pixels], "label": [row % 3 for row in range(count)]}
    return datasets.Dataset.from_dict(rows, features=features)


def write(path, count, features=FEATURES):
    path.parent.mkdir(parents=True, exist_ok=True)
    table(count, len(str(path)), features).to_parquet(path)


def counts(dataset, **options):
    source = sources.load(str(dataset), **options)
    return len(source.class_names), len(source.train.labels), len(source.test.labels)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.parquet", "test.parquet"),
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("train-0.parquet", "validation-0.parquet"),
        ("data [1]/train.parquet", "data [1]/test.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
        ("default/train/test_tubes.parquet", "default/val/train_station.parquet"),
    ],
)
def test_splits_of_tables_are_named_by_files_or_folders(train, test, tmp_path):
    write(tmp_path / train, 30)
    write(tmp_path / test, 9)
    assert counts(tmp_path) == (3, 30, 9)


@pytest.mark.parametrize(
    "names",
    [
        ["my_test_set.parquet"], ["part-0.parquet", "part-1.parquet"], ["0000.parquet", "0001.parquet"],
        ["data-00000-of-00002.parquet", "data-00001-of-00002.parquet"], ["train_0.parquet", "train_1.parquet"],
    ],
)  # fmt: skip
def test_a_word_in_the_name_of_a_table_does_not_move_its_rows(names, tmp_path):
    for name in names:
        write(tmp_path / name, 30 // len(names))
    assert counts(tmp_path) == (3, 24, 6)


def test_every_file_of_a_split_is_read_in_the_order_of_names(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", 9)
    write(tmp_path / "train-00001-of-00002.parquet", 12)
    write(tmp_path / "test.parquet", 6)
    parts = [table(count, len(str(tmp_path / "train-00000-of-00002.parquet"))) for count in (9, 12)]
    images = [
        np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)) for part in parts for image in part["image"]
    ]
    assert np.array_equal(sources.load(str(tmp_path)).train.images, images)


@pytest.mark.parametrize("splits", [("train",), ("train", "test")])
def test_what_save_to_disk_writes_is_read(splits, tmp_path):
    place = tmp_path / "saved [1]"
    if len(splits) == 1:
        table(30).save_to_disk(place)
    else:
        datasets.DatasetDict({name: table(30 if name == "train" else 9) for name in splits}).save_to_disk(place)
    assert counts(place) == ((3, 24, 6) if len(splits) == 1 else (3, 30, 9))


def test_a_partition_of_flwr_datasets_create_is_read_and_their_folder_names_one(tmp_path):
    for number in range(2):
        table(30, number).save_to_disk(tmp_path / f"partition_{number}")
    with pytest.raises(InputError, match=r"is a folder of 2 datasets; name one, as .*/partition_0"):
        sources.load(str(tmp_path))
    assert counts(tmp_path / "partition_1") == counts(f"{tmp_path}:partition_1") == (3, 24, 6)


@pytest.mark.parametrize("declared", [False, True])
def test_of_several_subsets_one_must_be_named(declared, tmp_path):
    for subset, count in (("one", 30), ("two", 60)):
        write(tmp_path / subset / "train-00000-of-00001.parquet", count)
        write(tmp_path / subset / "test.parquet", 9)
    if declared:
        (tmp_path / "README.md").write_text(HEAD)
    first, second = ("small", "large") if declared else ("one", "two")
    with pytest.raises(InputError, match=f"subsets.*{first}.*{second}.*; name one, as {tmp_path}:"):
        sources.load(str(tmp_path))
    assert counts(f"{tmp_path}:{first}") == (3, 30, 9)
    assert counts(f"{tmp_path}:{second}") == ((3, 90, 18) if declared else (3, 60, 9))
    assert counts(tmp_path / "one") == (3, 30, 9)
    with pytest.raises(InputError, match="other"):
        sources.load(f"{tmp_path}:other")


def test_a_subset_of_a_folder_that_has_one_dataset_is_refused(tmp_path):
    write(tmp_path / "train.parquet", 30)
    with pytest.raises(InputError, match="has no subset 'x'; it has|has no subset 'x'; the folder has one dataset"):
        sources.load(f"{tmp_path}:x")


def test_pictures_beside_tables_are_left_out_and_told(tmp_path):
    write(tmp_path / "data" / "train.parquet", 30)
    (tmp_path / "assets").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "assets" / "logo.png")
    assert counts(tmp_path) == (3, 24, 6)
    assert sources.load(str(tmp_path)).notes == (
        f"left out, for the dataset is in tables: {tmp_path / 'assets' / 'logo.png'}",
    )


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_metadata_file_gives_labels_to_the_images_beside_it(form, tmp_path):
    for split, count in (("train", 12), ("test", 6)):
        folder = tmp_path / split
        folder.mkdir()
        rows = [{"file_name": f"test_{row}.png", "label": ("NA", "nan", "train")[row % 3]} for row in range(count)]
        for row in rows:
            Image.new("RGB", (8, 8)).save(folder / row["file_name"])
        lines = ["file_name,label", *(",".join(row.values()) for row in rows)]
        text = "\n".join(lines if form == "csv" else map(json.dumps, rows))
        (folder / f"metadata.{form}").write_text(text)
    assert counts(tmp_path) == (3, 12, 6)
    assert sources.load(str(tmp_path)).class_names == ("NA", "nan", "train"), "no text is taken for a missing value"
    assert not sources.load(str(tmp_path)).notes
    (tmp_path / "train" / "test_7.png").unlink()
    with pytest.raises(InputError, match=rf"train/metadata.{form}, column file_name, row 7: there is no file test_7"):
        sources.load(str(tmp_path))


def described(top, metadata, images=9):
    """Images 0.png, 1.png and so on with metadata of them."""
    top.mkdir(parents=True, exist_ok=True)
    for image in range(images):
        Image.new("RGB", (8, 8)).save(top / f"{image}.png")
    (top / "metadata.csv").write_text(metadata)


def rows(*columns):
    """Metadata of nine images: a label of three, and what more columns hold, as in "owner", 0 to 8."""
    names, values = [column[0] for column in columns], [column[1] for column in columns]
    lines = [",".join([f"{row}.png", "abc"[row % 3], *(str(each[row]) for each in values)]) for row in range(9)]
    return "\n".join([",".join(["file_name", "label", *names]), *lines])


def test_images_without_a_row_and_outside_the_folder_are_told(tmp_path):
    described(tmp_path / "photos", rows() + "\n../aside.png,c", images=10)
    Image.new("RGB", (8, 8)).save(tmp_path / "aside.png")
    assert counts(tmp_path / "photos") == (3, 7, 3)
    assert sources.load(str(tmp_path / "photos")).notes == (
        f"left out, for no row of a metadata file names them: {tmp_path / 'photos' / '9.png'}",
        f"not decoded again when they change, for they lie outside the folder, or are hidden: {tmp_path / 'aside.png'}",
    )


@pytest.mark.parametrize(
    ("owners", "count"),
    [
        (["007", "7", "07", "70", "1", "01", "10", "001", "100"], 9),
        ([f"1234567890123456789{row}" for row in range(9)], 9),
        ([1, 2, 3] * 3, 3),
    ],
)
def test_what_looks_like_a_number_and_is_a_name_stays_one(owners, count, tmp_path):
    described(tmp_path, rows(("owner", owners)))
    source = sources.load(str(tmp_path), owner_column="owner")
    assert len(np.union1d(source.train.owners, source.test.owners)) == count


def test_tables_that_are_not_read_are_told(tmp_path):
    write(tmp_path / "parquet" / "train.parquet", 9)
    for name in ("cat", "dog"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        for image in ("0.png", "1.png"):
            Image.new("RGB", (8, 8)).save(tmp_path / "folders" / name / image)
    for place in ("parquet", "folders"):
        (tmp_path / place / "test.csv").write_text("image,label\n")
        (note,) = sources.load(str(tmp_path / place)).notes
        assert note.startswith("left out, for the ") and str(tmp_path / place / "test.csv") in note


def swapped(top):
    write(top / "test.parquet", 9, datasets.Features({**FEATURES, "label": datasets.ClassLabel(names=["c", "b", "a"])}))


def other_columns(top):
    (top / "train.parquet").rename(top / "train-0.parquet")
    table(9).add_column("age", range(9)).to_parquet(top / "train-1.parquet")


REFUSED = {
    "no split is named": (
        lambda top: [(top / "train.parquet").rename(top / "my_train.parquet"), write(top / "my_test.parquet", 9)],
        "which split has these tables: my_test.parquet, my_train.parquet",
    ),
    "one split is named": (lambda top: write(top / "more.parquet", 9), "which split has these tables: more.parquet"),
    "classes in another order": (swapped, r"holds classes \(a, b, c\) in split train, but classes \(c, b, a\) in"),
    "other columns": (other_columns, "train-1.parquet has other columns than .*train-0.parquet: .*age"),
    "no rows": (
        lambda top: pq.write_table(pq.read_table(top / "train.parquet").slice(0, 0), top / "test.parquet"),
        "its split 'test' has no images",
    ),
    "Git LFS": (lambda top: (top / "train.parquet").write_text(LFS), "train.parquet is a pointer of Git LFS; fetch"),
    "cut off": (lambda top: (top / "train.parquet").write_bytes(b"PAR1"), "train.parquet cannot be read: "),
    "an archive": (
        lambda top: (top / "train.parquet").rename(top / "train.zip"),
        r"has neither folders of images, one for each class, nor tables .*; it has .zip \(1\)",
    ),
    "nothing": (lambda top: (top / "train.parquet").unlink(), "it has no file"),
    "a table of other things": (
        lambda top: (top / "train.parquet").rename(top / "x") and (top / "train.csv").write_text("a;b\n1;2\n"),
        r"needs one Image column; it has a \(Value\), b \(Value\); an image is the bytes of .*; it has .csv \(1\)",
    ),
    "an empty table": (
        lambda top: [(top / "train.parquet").unlink(), (top / "train.csv").touch()],
        "train.csv cannot be read: Empty CSV file",
    ),
    "half a line": (
        lambda top: [(top / "train.parquet").unlink(), (top / "a.jsonl").write_text('{"a": 1}\n{"a": ')],
        "a.jsonl cannot be read: line 2: Expecting value",
    ),
    "a saved split without its file": (
        lambda top: [
            (top / "train.parquet").unlink(),
            table(9).save_to_disk(top),
            next(top.glob("*.arrow")).unlink(),
        ],
        "cannot be loaded from .*No such file",
    ),
    "an image of two rows": (
        lambda top: [(top / "train.parquet").unlink(), described(top, rows() + "\n8.png,a")],
        "8.png has two rows in .*metadata.csv; give each image one",
    ),
    "two columns of a name": (
        lambda top: [(top / "train.parquet").unlink(), described(top, rows(("label", range(9))))],
        "metadata.csv has two columns label; rename one",
    ),
    "a column with the name of the images": (
        lambda top: [(top / "train.parquet").unlink(), described(top, rows(("image", range(9))))],
        "metadata.csv has a column image, which is that of the images; rename it",
    ),
    "another encoding": (
        lambda top: [
            (top / "train.parquet").unlink(),
            described(top, ""),
            (top / "metadata.csv").write_bytes(b"file_name,label\n0.png,caf\xe9"),
        ],
        "metadata.csv cannot be read: line 2 is not in UTF-8; save the file in that",
    ),
    "labels in a table beside one folder": (
        lambda top: [
            (top / "train.parquet").unlink(),
            described(top / "one", ""),
            (top / "one" / "metadata.csv").rename(top / "labels.csv"),
        ],
        "one class alone, one; there must be two or more; left out, .*/labels.csv; the name of one that gives labels",
    ),
    "a declared file that is missing": (
        lambda top: (top / "README.md").write_text("---\nconfigs: [{config_name: x, data_files: a/*}]\n---\n"),
        r"its README.md declares a/\*, of which there is no file",
    ),
}


@pytest.mark.parametrize("how", REFUSED)
def test_tables_that_are_not_understood_are_refused_in_one_line(how, tmp_path):
    write(tmp_path / "train.parquet", 9)
    change, words = REFUSED[how]
    change(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        sources.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def without_a_word(top, change):
    """The tables of ``write`` as other libraries write them again: without the schema of images."""
    for split, count in (("train", 30), ("test", 9)):
        table = change(datasets.Dataset.with_format(_encoded(count), "arrow")[:])
        pq.write_table(table.replace_schema_metadata(None), top / f"{split}.parquet")


def _encoded(count):
    return table(count, count).cast_column("image", datasets.Image(decode=False))


def column(name, kind, values):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values(table), kind))


BINARY = {
    kind: column("image", pa_kind, lambda table: [each["bytes"] for each in table["image"].to_pylist()])
    for kind, pa_kind in (("binary", pa.binary()), ("large binary", pa.large_binary()), ("a view", pa.binary_view()))
}
FORMS = {
    "a struct": lambda table: table,
    **BINARY,
    "bytes alone": column(
        "image",
        pa.struct([("bytes", pa.large_binary())]),
        lambda table: [{"bytes": each["bytes"]} for each in table["image"].to_pylist()],
    ),
    "categories": column(
        "label",
        pa.dictionary(pa.int8(), pa.string()),
        lambda table: ["abc"[each] for each in table["label"].to_pylist()],
    ),
    "views of texts": column(
        "label", pa.string_view(), lambda table: ["abc"[each] for each in table["label"].to_pylist()]
    ),
    "a type that nobody needs": lambda table: table.append_column(
        "at", pa.array([[("x", 1)]] * len(table), pa.map_(pa.string(), pa.int8()))
    ),
    "bytes of a hash": lambda table: table.append_column("at", pa.array([b"0123"] * len(table), pa.binary(4))),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_are_found_without_a_schema_of_the_hub(form, tmp_path):
    without_a_word(tmp_path, FORMS[form])
    assert counts(tmp_path) == (3, 30, 9)
    pixels = [np.asarray(each.resize((32, 32), Image.Resampling.BILINEAR)) for each in table(30, 30)["image"]]
    assert np.array_equal(sources.load(str(tmp_path)).train.images, pixels)


def test_a_struct_may_name_the_files_beside_its_table(tmp_path):
    names = [f"{row}.png" for row in range(30)]
    for name, image in zip(names, table(30)["image"], strict=True):
        (tmp_path / "images").mkdir(exist_ok=True)
        image.save(tmp_path / "images" / name)
    rows = {"image": [{"bytes": None, "path": f"images/{name}"} for name in names], "label": ["a", "b", "c"] * 10}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows["image"], kind), "label": rows["label"]}), tmp_path / "t.parquet")
    assert counts(tmp_path) == (3, 24, 6)


NO_IMAGES = {
    "lists": (
        {"image": [[[0, 255], [9, 9]]] * 6, "label": [0, 1] * 3},
        "it has image \\(List\\), label \\(Value\\); an image is",
    ),
    "names": (
        {"image": ["0.png"] * 6, "label": [0, 1] * 3},
        "it has image \\(Value\\), label \\(Value\\); an image is the bytes of",
    ),
    "no images": ({"image": [b"no"] * 6, "label": [0, 1] * 3}, "row . of column image: is no image"),
    "nothing": (
        {"image": [{"bytes": None, "path": None}] * 6, "label": [0, 1] * 3},
        "needs one Image column|row . of column image: there is none",
    ),
    "a missing one": (
        {"image": [None, b"no"] * 3, "label": [0, 1] * 3},
        "row . of column image: (there is none|is no image)",
    ),
}


@pytest.mark.parametrize("form", NO_IMAGES)
def test_columns_without_images_are_refused_by_name(form, tmp_path):
    rows, words = NO_IMAGES[form]
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=words) as caught:
        sources.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_of_arrays_is_refused_with_the_way_that_works(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for client in range(2):
            np.savez(tmp_path / split / f"{client}.npz", data=np.zeros(3))
    remedy = r"it has .*.npz \(4\); arrays are not read: write each image into a file, as client/class/0.png"
    with pytest.raises(InputError, match=remedy):
        sources.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"needs one Image column; it has no column.*{remedy}"):
        sources.load(str(tmp_path))


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize(
    ("encoding", "delimiter", "ending"),
    [
        *((encoding, ",", "\n") for encoding in ENCODINGS),
        *(("utf-8", each, "\r\n") for each in ",;\t|"),
        ("utf-16", "\t", "\r\n"),
    ],
)
def test_metadata_is_read_as_spreadsheets_write_it(encoding, delimiter, ending, tmp_path):
    (tmp_path / "imgs").mkdir()
    lines = [["file_name", " label "]]
    for row in range(9):
        Image.new("L", (8, 8), row).save(tmp_path / "imgs" / f"é{row}.png")
        lines.append([f"imgs{'/' if row % 2 else chr(92)}é{row}.png", ('"a, b; c|e"', "b", "ü")[row % 3]])
    text = ending.join([*(delimiter.join(line) for line in lines), ""])
    (tmp_path / "metadata.csv").write_bytes(text.encode(encoding))
    assert counts(tmp_path) == (3, 6, 3)
    assert sources.load(str(tmp_path)).class_names == ("a, b; c|e", "b", "ü")


def test_metadata_may_say_how_it_is_divided_and_name_images_as_another_system_does(tmp_path):
    described(tmp_path, "sep=;\nfile_name;label\n" + "\n".join(f"caf\u00e9{row}.png;{row % 2}" for row in range(4)), 0)
    for row in range(4):
        Image.new("L", (8, 8), row).save(tmp_path / f"cafe\u0301{row}.png")
    assert counts(tmp_path) == (2, 2, 2)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("column", "train", "test"),
    [
        ("split", "train", "test"), ("Split", "Training", "Testing"), ("set", "TRAIN", "val"), ("part", "train", "dev"),
        ("Usage", "Training", "PrivateTest"), ("any", "train", "hold-out"), ("is_train", True, False), ("isTest", 0, 1),
        ("partition", "trn", "eval"), ("fold", "train", "valid"), ("in_training_split", "train", "test"),
    ],
)  # fmt: skip
def test_a_column_may_say_which_images_are_test_images(form, column, train, test, tmp_path):
    said = [(train, test)[row % 3 == 0] for row in range(18)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    if form == "parquet":
        table(18, features=features).map(
            lambda _, row: {column: said[row], "label": row % 2}, with_indices=True
        ).to_parquet(tmp_path / "all.parquet")
    else:
        lines = [{"file_name": f"{row}.png", "label": "ab"[row % 2], column: said[row]} for row in range(18)]
        described(tmp_path, "", 18)
        (tmp_path / "metadata.csv").unlink()
        text = [",".join(map(str, line.values())) for line in lines] if form == "csv" else map(json.dumps, lines)
        head = [",".join(lines[0])] if form == "csv" else []
        (tmp_path / f"metadata.{form}").write_text("\n".join([*head, *text]))
    assert counts(tmp_path)[1:] == (12, 6)
    assert any(
        note.startswith(f"the column {column} says which images are of which split: train 12, ")
        for note in sources.load(str(tmp_path)).notes
    )


COLUMNS = {
    "no word": ({"split": list("aab" * 3)}, "column split says which split a row is of, and has 'a' in row 0; write"),
    "numbers": ({"partition": [0, 1, 2] * 3}, "its column partition .* has 0 in row 0"),
    "some words": ({"fold": ["train", "test", "unused"] * 3}, "its column fold .* has 'unused' in row 2"),
    "a gap": ({"split": ["train", "test", ""] * 3}, "its column split .* has '' in row 2"),
    "two that differ": (
        {"split": ["train", "test", "test"] * 3, "is_train": [1, 0, 1] * 3},
        "columns split and is_train name different splits in row 2",
    ),
    "two flags of a row": (
        {"is_val": [0, 1, 0] * 3, "is_test": [0, 1, 1] * 3, "is_train": [1, 0, 0] * 3},
        "is_train name 2 splits in row 1",
    ),
    "all of them test images": ({"split": ["test"] * 9}, "split says of no image that it is a training image"),
}  # fmt: skip


@pytest.mark.parametrize("how", COLUMNS)
def test_a_column_that_does_not_say_which_images_are_test_images_is_refused(how, tmp_path):
    columns, words = COLUMNS[how]
    described(tmp_path, rows(*columns.items()))
    with pytest.raises(InputError, match=words):
        sources.load(str(tmp_path))


def test_a_column_may_have_a_name_of_splits_and_mean_another_thing(tmp_path):
    described(
        tmp_path,
        rows(("fold", [0, 1, 2] * 3), ("validation", ["good", "bad", "none"] * 3), ("constant", ["train"] * 9)),
    )
    assert counts(tmp_path) == (3, 6, 3)
    assert sources.load(str(tmp_path)).notes[:2] == (
        "not used: the column fold, whose values name no split: 0, 1, 2",
        "not used: the column validation, whose values name no split: good, bad, none",
    )
    described(tmp_path, rows(("split", ["x", "y", "z"] * 3)))
    assert len(sources.load(str(tmp_path), owner_column="split").train.owners) == 6, "it was said what the column is"


def test_a_column_that_contradicts_the_tables_is_refused(tmp_path):
    for split, says in (("train", ["train"] * 9), ("test", ["test"] * 8 + ["train"])):
        described(tmp_path / split, rows(("split", says)))
    with pytest.raises(
        InputError, match="its column split has train in row 8 of split test; move it, or rename the column"
    ):
        sources.load(str(tmp_path))
    described(tmp_path / "test", rows(("split", ["val"] * 9)))
    assert counts(tmp_path) == (3, 9, 9)
