"""Images of many clients that are decoded when they are first needed: the same as if all had been decoded before."""

import dataclasses
import io
import itertools
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lit_fedbabu import run
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.learning import cache
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT
from lit_fedbabu.server.sampling import substitutes
from lit_fedbabu.tasks.images import decoding, hub, sources, undecoded
from lit_fedbabu.training.experiment import Experiment
from tests.support import NARROW, failing, failures_of, files_that_decide, tiny_config

COUNT = 40
"""Images of a split."""
rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (2, COUNT, 9, 9, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def images(split, mode="RGB"):
    return [Image.fromarray(each).convert(mode) for each in PIXELS[split]]


def folder_of_classes(folder, mode="RGB"):
    for place, split in enumerate(("train", "test")):
        for number, image in enumerate(images(place, mode)):
            path = folder / split / "ab"[number % 2] / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return str(folder)


def one_table(split=0, by_column=False):
    """A table of a split; or one of whose rows a column says the split."""
    rows = {
        "image": images(split),
        "label": [number % 2 for number in range(COUNT)],
        "split": ["test" if 10 <= number < 20 else "train" for number in range(COUNT)],
    }
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(num_classes=2),
        "split": datasets.Value("string"),
    }
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    return table if by_column else table.remove_columns("split")


def parquet(folder):
    folder.mkdir()
    for split, name in enumerate(("train", "test")):
        one_table(split).to_parquet(folder / f"{name}.parquet", batch_size=7)
    return str(folder)


def held_out(folder):
    folder.mkdir()
    one_table().to_parquet(folder / "images.parquet")
    return str(folder)


def split_by_a_column(folder):
    folder.mkdir()
    one_table(0, by_column=True).to_parquet(folder / "images.parquet")
    return str(folder)


def saved(folder):
    datasets.DatasetDict(train=one_table(0), test=one_table(1)).save_to_disk(folder)
    return str(folder)


def saved_and_split(folder):
    one_table(0, by_column=True).save_to_disk(folder)
    return str(folder)


def metadata(folder):
    folder.mkdir()
    rows = [f"{number}.png,{'ab'[number % 2]}" for number in range(COUNT)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    for number, image in enumerate(images(0)):
        image.save(folder / f"{number}.png")
    return str(folder)


KINDS = [folder_of_classes, parquet, held_out, split_by_a_column, saved, saved_and_split, metadata, "some/hub"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: getattr(kind, "__name__", kind))
def test_each_image_is_that_of_a_dataset_that_was_decoded_before(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "read", lambda _: {"train": one_table(0), "test": one_table(1).select([3, 2, 0, 5])})
    monkeypatch.setattr(undecoded, "PIECE", (3, 500))
    dataset = (
        kind if isinstance(kind, str) else kind(tmp_path / ("caf\udce9" if kind is folder_of_classes else "images"))
    )
    monkeypatch.chdir(tmp_path)  # paths are from anywhere
    found = sources.load(dataset, size=8, as_needed=True)
    assert bool(list(cache.folder().glob("*/*.arrow"))) == (kind is not saved), "what is mapped already is not copied"
    again = sources.load(dataset, size=8, as_needed=True)
    expected = sources.load(dataset, size=8)
    assert found.class_names == expected.class_names and found.channels == expected.channels == 3
    for mine, other, theirs in (
        (found.train, again.train, expected.train),
        (found.test, again.test, expected.test),
    ):
        assert mine.labels.tolist() == theirs.labels.tolist() and not mine.images.any() and theirs.images.all(0).any()
        for chosen in (np.array([2, 0, 2]), np.arange(len(mine.labels))):
            mine.undecoded.need(chosen)
            decoded = mine.images.any((1, 2, 3))
            assert decoded.sum() == len(set(chosen.tolist())), "and no others"
            assert np.array_equal(mine.images[decoded], theirs.images[decoded])
        with monkeypatch.context() as nothing:
            nothing.setattr(undecoded, "decode", lambda *_: pytest.fail("decoded twice"))
            other.undecoded.need(chosen)
    assert sources.load(dataset, size=8, as_needed=True).train.undecoded is None, "all are decoded by now"
    assert any("is not needed any more" in note for note in sources.load(dataset, size=8).notes)


def test_what_a_process_left_half_done_is_done_again(tmp_path):
    """An image without its mark, a mark without its image as after a failure of power, and half an image with one."""
    split = sources.load(parquet(tmp_path / "images"), size=8, as_needed=True).train
    split.undecoded.need(np.arange(COUNT))
    whole = split.images.copy()
    (folder,) = cache.folder().glob("*-as-needed")
    marks, pixels = (np.load(folder / f"train_{name}.npy", mmap_mode="r+") for name in ("decoded", "images"))
    marks[3], pixels[5], pixels[7, 4:] = 0, 0, 0
    other = sources.load(str(tmp_path / "images"), size=8, as_needed=True).train
    assert not np.array_equal(other.images, whole)
    other.undecoded.need(np.arange(COUNT))
    assert np.array_equal(other.images, whole) and marks.all()


KILLED = """
import os, signal, sys
import numpy as np
from lit_fedbabu.tasks.images import sources
pwrite, left = os.pwrite, 21
def dying(file, content, start):
    global left
    left -= 1
    if not left:
        pwrite(file, content[:50], start)
        os.kill(os.getpid(), signal.SIGKILL)
    return pwrite(file, content, start)
os.pwrite = dying
sources.load(sys.argv[1], size=8, as_needed=True).train.undecoded.need(np.arange(40))
"""


def test_a_process_that_is_killed_while_it_writes_harms_no_other(tmp_path):
    dataset = parquet(tmp_path / "images")
    split = sources.load(dataset, size=8, as_needed=True).train
    done = subprocess.run([sys.executable, "-c", KILLED, dataset], timeout=100)
    assert done.returncode == -9 and split.images.any((1, 2, 3)).sum() >= 8
    split.undecoded.need(np.arange(COUNT))
    assert np.array_equal(split.images, sources.load(dataset, size=8).train.images)


def test_grey_images_have_one_channel_and_a_coloured_one_that_comes_later_is_refused(tmp_path, monkeypatch):
    dataset = folder_of_classes(tmp_path / "images", "L")
    images(0)[4].save(tmp_path / "images/train/a/004.png")
    assert sources.load(dataset, as_needed=True).channels == sources.load(dataset).channels == 3
    assert cache.clean() and not cache.clean()[0]
    monkeypatch.setattr(undecoded, "LOOKED_AT", 1)
    found = sources.load(dataset, as_needed=True)
    found.train.undecoded.need(np.array([0, 1]))
    assert found.channels == 1 and found.train.images[:2].any((1, 2, 3)).all()
    with pytest.raises(InputError, match="has colours, and those looked at before are grey: .*a/004.png; decode all"):
        found.train.undecoded.need(np.arange(COUNT))
    assert sources.load(dataset).channels == sources.load(dataset, as_needed=True).channels == 3, "that is the remedy"


def test_files_that_are_gone_or_changed_are_named(tmp_path):
    dataset = folder_of_classes(tmp_path / "images")
    split = sources.load(dataset, as_needed=True).train
    paths = sorted((tmp_path / "images/train").rglob("*.png"))
    paths[0].unlink()
    images(1)[0].save(paths[1])
    with pytest.raises(InputError, match=r"cannot be read: .*a/000.png: No such file"):
        split.undecoded.need(np.array([0]))
    with pytest.raises(InputError, match=r"a/002.png has changed since the images were listed; begin a new run"):
        split.undecoded.need(np.array([1]))
    other = sources.load(saved(tmp_path / "saved"), as_needed=True).test
    (table,) = (tmp_path / "saved/test").glob("*.arrow")
    table.rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=f"{table}: these images are gone or changed"):
        other.undecoded.need(np.array([0]))


def test_what_cannot_be_read_is_refused_before_a_run_if_it_is_seen(tmp_path):
    dataset = folder_of_classes(tmp_path / "images")
    for path in (tmp_path / "images").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"cannot be read: .*png: is no image"):
        sources.load(dataset, as_needed=True)
    assert not list(cache.folder().iterdir())


def test_holes_are_no_bytes_of_the_cache(tmp_path):
    sources.load(parquet(tmp_path / "images"), size=512, as_needed=True)
    (name, size), *_ = cache.clean()[0]
    assert name.endswith("-as-needed") and size < 1e6 < COUNT * 512 * 512 * 3


def test_marks_have_their_place_on_disk_before_they_are_read(tmp_path, monkeypatch):
    """A process that reads a hole is killed where the cache lies in memory, as of tmpfs, and no more fits in it."""
    content = content_of(0, ("png", "RGB"), 1, (9, 9), 1)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)}
    rows = {"image": [{"bytes": content, "path": None}] * 8000, "label": [0, 1] * 4000}
    monkeypatch.setattr(hub, "read", lambda _: {"train": datasets.Dataset.from_dict(rows, datasets.Features(features))})
    sources.load("some/images", size=8, as_needed=True)
    (folder,) = cache.folder().glob("*-as-needed")
    for name in ("train", "test"):
        marks, pixels = ((folder / f"{name}_{what}.npy").stat() for what in ("decoded", "images"))
        assert 512 * marks.st_blocks >= marks.st_size > 8 * 1600 and 512 * pixels.st_blocks < pixels.st_size


WRITERS = 1001


@pytest.fixture
def many(tmp_path):
    """A run of 1,001 writers, of whom two train in a round, with grey images."""
    (tmp_path / "writers").mkdir()
    for split, count in (("train", 3), ("test", 1)):
        noise = rng.integers(0, 256, (WRITERS * count, 8, 8), dtype=np.uint8)
        rows = {
            "image": [Image.fromarray(each) for each in noise],
            "label": [number % 2 for number in range(len(noise))],
            "writer": [number // count for number in range(len(noise))],
        }
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)}
        features["writer"] = datasets.Value("int64")
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        table.to_parquet(tmp_path / "writers" / f"{split}.parquet")
    return Config(
        dataset=str(tmp_path / "writers"), partitioner="natural-id", natural_id_column="writer", num_clients=WRITERS,
        normalization="none", min_client_images=1, fraction_train=0.002, num_server_rounds=2, num_local_epochs=1,
        evaluate_clients=2, num_finetune_epochs=1, precision="32-true", model_name=NARROW, output_dir=str(tmp_path),
        engine="local",
    )  # fmt: skip


@pytest.mark.slow
def test_workers_decode_what_they_need(many, tmp_path):
    first = run(dataclasses.replace(many, run_name="as-needed"))
    (folder,) = cache.folder().glob("*-as-needed")
    assert 0 < np.count_nonzero(np.load(folder / "train_decoded.npy")) <= 3 * 2 * 3, "of two rounds and an evaluation"
    sources.load(many.dataset, "", "writer")
    assert run(dataclasses.replace(many, run_name="before")) == first
    assert files_that_decide(tmp_path / "as-needed") == files_that_decide(tmp_path / "before")


@pytest.fixture
def some_drawn(monkeypatch):
    """A run of six clients, of whom two train and one is evaluated, as if six were too many to be looked at."""
    monkeypatch.setattr("lit_fedbabu.config.derived.EVERYONE", 3)
    options = {"fraction_train": 0.34, "evaluate_clients": 1, "num_server_rounds": 1, "model_name": NARROW}
    return tiny_config(normalization="none", **options)


def test_a_run_decodes_the_images_of_those_drawn_and_gives_the_same_numbers(some_drawn, federate, monkeypatch):
    first, _ = federate(some_drawn)
    (folder,) = cache.folder().glob("*-as-needed")
    task = Experiment(some_drawn).task
    needed = {*some_drawn.drawn(1), *some_drawn.evaluated}
    own = np.concatenate([task.partition.train[client] for client in needed])
    assert np.flatnonzero(np.load(folder / "train_decoded.npy")).tolist() == sorted(own.tolist())
    assert task.constants == ((0.0,) * 3, (1.0,) * 3)
    assert "of 6 clients the images of 2, drawn first, were looked at; others are decoded" in task.notes[-1]
    monkeypatch.setattr("lit_fedbabu.config.derived.EVERYONE", 6)
    again, _ = federate(some_drawn)
    assert files_that_decide(again) == files_that_decide(first)


def test_the_images_of_those_drawn_first_are_looked_at(some_drawn):
    task = Experiment(some_drawn).task
    for split in (task.source.train, task.source.test):
        split.undecoded._encoded, kept = (
            dataclasses.replace(split.undecoded._encoded, mode="odd"),
            split.undecoded._encoded,
        )
        with pytest.raises(InputError, match="cannot be read: row [0-9]+ of column img: image has wrong mode"):
            task.check_data()
        split.undecoded._encoded = kept
    everything = Experiment(dataclasses.replace(some_drawn, normalization="data")).task.source
    assert everything.train.undecoded is None and everything.mean


@pytest.mark.parametrize("looked_at", [256, 1])
def test_a_broken_image_of_a_client_drawn_later_is_its_failure(looked_at, tmp_path, federate, monkeypatch):
    """It is refused before a run if it is seen; else the client does not count, and another takes its place."""
    monkeypatch.setattr("lit_fedbabu.config.derived.EVERYONE", 3)
    monkeypatch.setattr(undecoded, "LOOKED_AT", looked_at)
    options = {"fraction_train": 0.34, "evaluate_clients": 1, "normalization": "none", "model_name": NARROW}
    seeds = (tiny_config(seed=seed, **options) for seed in range(100))
    config, bad = next(
        (each, client) for each in seeds for client in each.drawn(2) if client not in (*each.drawn(1), *each.evaluated)
    )
    row, copy = int(Experiment(config).task.partition.train[bad][-1]), tmp_path / "broken"
    copy.mkdir()
    for split in ("train", "test"):
        (file,) = Path(tiny_config.dataset).glob(f"{split}-*.parquet")
        table = datasets.Dataset.from_parquet(str(file)).cast_column("img", datasets.Image(decode=False))
        contents = [{"bytes": each["bytes"], "path": None} for each in table["img"]]
        if split == "train":
            contents[row]["bytes"] = contents[row]["bytes"][:90]
        kinds = {**table.features, "img": datasets.Image()}
        made = {"img": contents, "label": table["label"]}
        datasets.Dataset.from_dict(made, features=datasets.Features(kinds)).to_parquet(copy / file.name)
    broken = dataclasses.replace(config, dataset=str(copy))
    if looked_at > 1:
        with pytest.raises(InputError, match=f"cannot be read: row {row} of column img"):
            federate(broken)
        return
    folder, grid = federate(broken)
    (failure,) = failures_of(folder)
    assert (failure["round"], failure["client"]) == (2, bad)
    assert failure["reason"].startswith("InputError: dataset = ")
    assert f"an image of its split 'train' cannot be read: row {row} of column img: " in failure["reason"]
    (instead,) = substitutes(config, 2, 1, config.drawn(2), 1)
    asked = [each.content["config"]["clients"] for each in grid.messages if each.metadata.message_type == "train"]
    assert asked[-1] == [instead]
    failing(monkeypatch, lambda client, _: client == bad)
    other, _ = federate(config)
    mine, theirs = (read_federation(each / LAST_CHECKPOINT, NARROW).shared for each in (folder, other))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_images_that_datasets_maps_as_paths_are_watched_too(tmp_path, monkeypatch):
    folder_of_classes(tmp_path / "images")
    tables = {}
    for split in ("train", "test"):
        paths = sorted((tmp_path / "images" / split).rglob("*.png"))
        rows = [{"image": str(path), "label": "ab".index(path.parent.name)} for path in paths]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)})
        tables[split] = datasets.Dataset.from_generator(
            lambda rows=rows: iter(rows), features, str(tmp_path / "hub"), split=split
        )
        assert tables[split].cache_files
    monkeypatch.setattr(hub, "read", lambda _: tables)
    split = sources.load("some/paths", size=8, as_needed=True).train
    split.undecoded.need(np.array([1]))
    assert np.array_equal(split.images[1], sources.load("some/paths", size=8).train.images[1])
    images(1)[0].save(tmp_path / "images/train/a/000.png")
    with pytest.raises(InputError, match=r"a/000.png has changed since the images were listed"):
        split.undecoded.need(np.array([0]))


def test_images_of_two_versions_of_pillow_do_not_lie_in_one_array(tmp_path, monkeypatch):
    dataset = folder_of_classes(tmp_path / "images")
    sources.load(dataset, as_needed=True).train.undecoded.need(np.arange(COUNT))
    assert sources.load(dataset, as_needed=True).train.images.any()
    monkeypatch.setattr("PIL.__version__", "0.1")
    assert not sources.load(dataset, as_needed=True).train.images.any()


def test_a_damaged_list_of_encoded_images_is_told(tmp_path):
    dataset = folder_of_classes(tmp_path / "images")
    sources.load(dataset, as_needed=True)
    (folder,) = cache.folder().glob("*-as-needed")
    (folder / undecoded.ENCODED).write_text("{}")
    with pytest.raises(RunError, match=f"{folder}: these decoded images are damaged; remove that folder"):
        sources.load(dataset, as_needed=True)


FORMS = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "jpeg": ("L", "RGB", "CMYK"), "gif": ("L", "P"),
    "tiff": ("L", "RGB", "CMYK", "I;16", "F"), "webp": ("RGB", "RGBA"), "bmp": ("1", "L", "RGB"),
}  # fmt: skip
IMAGES = st.tuples(
    st.sampled_from([(form, mode) for form, modes in FORMS.items() for mode in modes]),
    st.integers(1, 8),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.sampled_from([1, 1, 1, 1, 1, 0.9, 0.5, 0]),
)
"""Format and mode, EXIF orientation, width and height, and how much of the file is there."""


def content_of(number, kind, orientation, size, whole):
    (form, mode), (width, height) = kind, size
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    else:
        image = Image.fromarray(pixels).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(pixels[..., 1]))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(file, form, **({} if form in ("bmp", "gif") else {"exif": exif}))
    content = file.getvalue()
    return content[: round(whole * len(content))]


fresh = itertools.count()


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what is made here
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(IMAGES, min_size=4, max_size=9),
    st.sampled_from(["folder", None, None, "L", "RGB"]),
    st.integers(1, 9),
    st.sampled_from([1, 2, 256]),
)
def test_whatever_images_there_are_they_are_those_that_were_decoded_before(
    tmp_path, monkeypatch, drawn, kind, size, looked_at
):
    """Also images that cannot be read, each of which alone is refused, and colours that come after grey ones."""
    contents = [content_of(number, *each) for number, each in enumerate(drawn)]
    labels = [number % 2 for number in range(len(contents))]
    if kind == "folder":
        folder = tmp_path / f"images{next(fresh)}"
        for number, content in enumerate(contents):
            path = folder / "ab"[labels[number]] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        contents, labels, name = contents[::2] + contents[1::2], sorted(labels), str(folder)
    else:
        features = {"image": datasets.Image(mode=kind), "label": datasets.ClassLabel(num_classes=2)}
        rows = {"image": [{"bytes": each, "path": None} for each in contents], "label": labels}
        table, name = datasets.Dataset.from_dict(rows, datasets.Features(features)), f"some/images{next(fresh)}"
        monkeypatch.setattr(hub, "read", lambda _: {"train": table})
    expected = []
    for content in contents:
        try:
            expected.append(decoding.decode(content, None if kind == "folder" else kind, size))
        except ValueError as error:
            expected.append(str(error))
    broken = any(isinstance(each, str) for each in expected)
    monkeypatch.setattr(undecoded, "LOOKED_AT", looked_at)
    if looked_at == 256 and broken:
        with pytest.raises(InputError, match="cannot be read"):
            sources.load(name, size=size, as_needed=True)
        return
    try:
        found = sources.load(name, size=size, as_needed=True)
    except InputError as error:
        assert broken and "cannot be read" in str(error)
        return
    held_out = sources.hold_out(np.array(labels))
    for split, rows in ((found.train, np.flatnonzero(~held_out)), (found.test, np.flatnonzero(held_out))):
        for image, row in enumerate(rows.tolist()):
            want = expected[row]
            told = want if isinstance(want, str) else "has colours" if want.shape[-1] > found.channels else ""
            if told:
                with pytest.raises(InputError, match=re.escape(told)):
                    split.undecoded.need(np.array([image]))
            else:
                split.undecoded.need(np.array([image]))
                assert np.array_equal(split.images[image], decoding.with_channels(want, found.channels))
    if broken:
        with pytest.raises(InputError, match="cannot be read"):
            sources.load(name, size=size)
        return
    before = sources.load(name, size=size)
    assert before.channels == max(each.shape[-1] for each in expected)
    if before.channels == found.channels:
        assert np.array_equal(before.train.images, found.train.images)
        assert np.array_equal(before.test.images, found.test.images)
