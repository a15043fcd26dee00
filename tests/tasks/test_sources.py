import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.learning import cache, reach
from lit_fedbabu.tasks.images import hub, learner, sources
from lit_fedbabu.tasks.images.transforms import normalize
from lit_fedbabu.training.experiment import Experiment
from tests.support import tiny, tiny_config


def test_digits_are_whole_and_split_by_class():
    digits = sources.load("digits")
    assert len(digits.train.labels) + len(digits.test.labels) == 1797
    assert digits.train.images.shape[1:] == (32, 32, 1) and digits.train.images.dtype == np.uint8
    assert digits.class_names == tuple("0123456789")
    for split in (digits.train, digits.test):
        assert (np.bincount(split.labels) / len(split.labels)).min() > 0.09


def write_image_folder(root, splits=("train", "test"), size=(32, 32), count=4):
    random = np.random.default_rng(0)
    for split in splits:
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return root


def test_a_folder_of_images_is_a_dataset_and_is_decoded_once(tmp_path, monkeypatch):
    root = write_image_folder(tmp_path / "pets")
    source = sources.load(str(root))
    assert source.class_names == ("cat", "dog")
    assert source.train.labels.tolist() == [0] * 4 + [1] * 4
    assert np.array_equal(source.test.images[5], np.asarray(Image.open(root / "test/dog/1.png")))
    assert isinstance(source.train.images, np.memmap)
    monkeypatch.setattr(sources, "_decode", lambda *_: pytest.fail("decoded again"))
    sources.load(str(root))


def test_a_changed_folder_is_decoded_again(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    before = sources.load(str(root)).train.images[0].copy()
    Image.fromarray(255 - before).save(root / "train/cat/0.png")
    assert np.array_equal(sources.load(str(root)).train.images[0], 255 - before)


def test_parquet_with_the_columns_of_cifar10_is_a_dataset(tmp_path):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["plane", "frog"])})
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    rows = {"img": [Image.fromarray(image) for image in pixels], "label": [0, 1] * 3}
    (tmp_path / "plain_text").mkdir()
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            tmp_path / "plain_text" / f"{split}-00000-of-00001.parquet"
        )
    source = sources.load(str(tmp_path))
    assert source.class_names == ("plane", "frog")
    assert source.train.images.shape == (6, 32, 32, 3), "other sizes are resized"


def test_without_a_test_split_a_fifth_of_every_class_is_held_out(tmp_path):
    source = sources.load(str(write_image_folder(tmp_path / "pets", splits=("train",), count=12)))
    assert source.train.labels.tolist() == [0] * 9 + [1] * 9 and source.test.labels.tolist() == [0] * 3 + [1] * 3
    rows = {image.tobytes() for split in (source.train, source.test) for image in split.images}
    assert len(rows) == 24, "no image is in both"


def test_a_folder_without_a_training_split_is_refused(tmp_path):
    root = write_image_folder(tmp_path / "pets", splits=("test",))
    with pytest.raises(InputError, match="has no split train; it has test"):
        sources.load(str(root))


def test_a_table_without_images_is_refused_with_its_columns_named(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"age": 3, "name": "x"}) + "\n")
    with pytest.raises(InputError, match=r"needs one Image column; it has age .*name"):
        sources.load(str(tmp_path))


def tables(modes, columns, count=8):
    """Training and test split as the hub gives them: random images of these modes, and the columns asked for."""
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (28, 28, 3), dtype=np.uint8) for _ in range(count)]
    images = [Image.fromarray(image).convert(modes[i % len(modes)]) for i, image in enumerate(pixels)]
    features = {"image": datasets.Image()}
    rows = {"image": images}
    for name, (feature, values) in columns.items():
        features[name], rows[name] = feature, [values[i % len(values)] for i in range(count)]
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    return {"train": table, "test": table}


def classes(count):
    return datasets.ClassLabel(num_classes=count), range(count)


@pytest.mark.parametrize(
    ("name", "mode", "columns", "channels", "num_classes"),
    [
        ("ylecun/mnist", "L", {"label": classes(10)}, 1, 10),
        ("zalando-datasets/fashion_mnist", "L", {"label": classes(10)}, 1, 10),
        ("tanganke/emnist_letters", "L", {"label": classes(26)}, 1, 26),
        ("ufldl-stanford/svhn", "RGB", {"label": classes(10)}, 3, 10),
        ("uoft-cs/cifar10", "RGB", {"label": classes(10)}, 3, 10),
        ("uoft-cs/cifar100", "RGB", {"fine_label": classes(100), "coarse_label": classes(20)}, 3, 100),
    ],
)
def test_hub_datasets_say_their_channels_classes_and_normalization(
    name, mode, columns, channels, num_classes, monkeypatch
):
    monkeypatch.setattr(hub, "read", lambda dataset: tables([mode], columns, num_classes))
    source = sources.load(name)
    assert (source.channels, len(source.class_names)) == (channels, num_classes)
    assert source.train.images.shape == (num_classes, 32, 32, channels)
    config = tiny_config(dataset=name, num_clients=1, partitioner="iid", min_client_images=1)
    images, labels = (torch.from_numpy(np.array(array)) for array in (source.train.images, source.train.labels))
    experiment = Experiment(config)
    normalized = normalize(images, *experiment.task.constants)
    torch.testing.assert_close(normalized.mean((0, 2, 3)), torch.zeros(channels), rtol=0, atol=1e-5)
    torch.testing.assert_close(normalized.std((0, 2, 3), correction=0), torch.ones(channels), rtol=0, atol=1e-5)
    module = experiment.new_module()
    assert module(normalized).shape == (num_classes, num_classes)
    assert learner.fit([module], [experiment.client_data(0, 1)], mode="full", epochs=1, learning_rate=0.1)[0] > 0


@pytest.mark.parametrize(
    ("dataset", "place", "subset"),
    [
        ("ufldl-stanford/svhn", "ufldl-stanford/svhn", "cropped_digits"),
        ("ufldl-stanford/svhn:full_numbers", "ufldl-stanford/svhn", "full_numbers"),
        ("uoft-cs/cifar10", "uoft-cs/cifar10", None),
    ],
)
def test_a_hub_name_may_name_a_subset(dataset, place, subset, monkeypatch):
    asked = []
    monkeypatch.setattr(reach, "answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments: asked.append(arguments) or {})
    assert hub.read(dataset) == {}
    assert asked == [(place, subset)]


def test_several_label_columns_need_a_word(monkeypatch):
    both = {"fine_label": classes(4), "coarse_label": classes(2), "writer": (datasets.Value("string"), ["x", "y"])}
    monkeypatch.setattr(hub, "read", lambda dataset: tables(["RGB"], both))
    with pytest.raises(InputError, match=r"or label-column=NAME; it has image .*fine_label \(ClassLabel\), "):
        sources.load("some/two-labels")
    assert len(sources.load("some/two-labels", "coarse_label").class_names) == 2
    assert sources.load("some/two-labels", "writer").class_names == ("x", "y"), "any column can be the label"
    with pytest.raises(InputError, match=r'label-column = "lable": is no column of the dataset; it has image'):
        sources.load("some/two-labels", "lable")


def test_owners_of_images_are_read_from_their_column(monkeypatch):
    columns = {"label": classes(2), "writer_id": (datasets.Value("string"), ["w9", "w1", "w5"])}
    monkeypatch.setattr(hub, "read", lambda dataset: tables(["L"], columns))
    assert sources.load("some/letters").train.owners is None
    assert sources.load("some/letters", "", "writer_id").test.owners.tolist() == [2, 0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(InputError, match='natural-id-column = "author": is no column of the dataset; it has image'):
        sources.load("some/letters", "", "author")


def test_whole_numbers_can_be_labels_where_there_are_no_class_labels(monkeypatch):
    columns = {"label": (datasets.Value("int64"), [7, 3]), "age": (datasets.Value("int64"), [1])}
    monkeypatch.setattr(hub, "read", lambda dataset: tables(["L"], columns))
    source = sources.load("some/numbers")
    assert source.class_names == ("3", "7") and source.train.labels.tolist() == [1, 0] * 4


def test_one_coloured_image_makes_the_dataset_coloured(monkeypatch):
    monkeypatch.setattr(hub, "read", lambda dataset: tables(["L", "L", "RGB"], {"label": classes(2)}))
    images = sources.load("some/mixture").train.images
    assert images.shape == (8, 32, 32, 3)
    assert (images[0, :, :, 0] == images[0, :, :, 2]).all() and (images[2, :, :, 0] != images[2, :, :, 2]).any()


def test_an_image_of_one_value_can_be_normalized():
    mean, std = sources._statistics(np.full((2, 32, 32, 1), 51, dtype=np.uint8))
    assert mean == [0.2] and std == [1.0]


def test_imagenets_constants_are_refused_for_grey_images():
    with pytest.raises(InputError, match='normalization = "imagenet": is of colour images'):
        tiny(dataset="digits", normalization="imagenet").check()


@pytest.mark.parametrize("normalization", ["data", "none"])
def test_sites_take_constants_for_coloured_images(normalization):
    with pytest.raises(InputError, match="no one sees the images of all sites; take imagenet"):
        tiny_config(partitioner="sites", class_names="a,b", normalization=normalization)


def test_nothing_is_left_behind_when_decoding_fails(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    Path(root / "train/dog/2.png").write_bytes(b"no image")
    before = set(cache.folder().iterdir())
    with pytest.raises(InputError, match="split .train. cannot be read: .*2.png"):
        sources.load(str(root))
    assert set(cache.folder().iterdir()) == before


def test_decoded_images_that_are_damaged_are_told_and_decoded_anew_once_removed(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    before = set(cache.folder().iterdir())
    whole = sources.load(str(root)).train.images.tobytes()
    (folder,) = set(cache.folder().iterdir()) - before
    for name, left in (("about.json", 0), ("about.json", 9), ("train_images.npy", 0), ("train_images.npy", 200)):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        if left:
            (folder / name).write_bytes(content[:left])
        with pytest.raises(RunError, match=f"{folder}: these decoded images are damaged; remove that folder"):
            sources.load(str(root))
        shutil.rmtree(folder)
        assert sources.load(str(root)).train.images.tobytes() == whole


def test_a_hub_out_of_reach_is_within_reach_the_next_time(monkeypatch):
    """HF_HUB_OFFLINE once stayed set, and a hub dataset asked for next could not be reached."""
    seen = []

    def state():
        return os.environ.get("HF_HUB_OFFLINE"), datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE

    before = state()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: seen.append(state()) or {})
    for answers in (False, True):
        monkeypatch.setattr(reach, "answers", lambda answers=answers: answers)
        hub.read("some/dataset")
    assert seen == [(before[0], True, True), before], "the cache alone is asked where the hub does not answer"
    assert state() == before


def test_an_image_replaced_by_one_of_the_same_size_and_time_is_decoded_again(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    path = root / "train" / "cat" / "0.png"
    before, stat = sources.load(str(root)).train.images[0].copy(), path.stat()
    Image.fromarray(255 - before).save(path)
    path.write_bytes(path.read_bytes().ljust(stat.st_size, b"\0")[: stat.st_size])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert np.array_equal(sources.load(str(root)).train.images[0], 255 - before)


def test_a_column_of_labels_and_one_of_owners_are_cached_apart(monkeypatch):
    columns = {"label": classes(2), "writer": (datasets.Value("string"), ["w9", "w1", "w5"])}
    monkeypatch.setattr(hub, "read", lambda dataset: tables(["L"], columns))
    assert sources.load("some/notes", "writer").class_names == ("w1", "w5", "w9")
    assert sources.load("some/notes", "", "writer").class_names == ("0", "1")


@pytest.mark.parametrize("name", ["x" * 250, "a/b:c?", "café \udce9"])
def test_any_name_can_be_in_the_cache(name, tmp_path):
    root = write_image_folder(tmp_path / name)
    assert sources.load(str(root)).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_fotos", "is no folder here; did you mean my_photos?"),
        ("data/my_fotos", "is no folder here; did you mean data/my_photos?"),
        ("data/birds", "is no folder here; data has the folders cats, my_photos; give a folder"),
        ("data/cats/none/at/all", "is no folder here; give a folder"),
        ("~no-such-user", "is no folder here; give a folder"),
        ("data/my_fotos:small", "is no folder here; did you mean data/my_photos?"),
    ],
)
def test_a_mistyped_folder_is_told_at_once_and_not_asked_of_the_hub(name, words, tmp_path, monkeypatch):
    for each in ("data/my_photos", "data/cats", "my_photos"):
        (tmp_path / each).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reach, "answers", lambda: pytest.fail("the hub was asked"))
    with pytest.raises(InputError, match=words):
        sources.load(name)


def test_images_of_each_size_have_a_place_of_their_own_in_the_cache(tmp_path):
    folder = str(write_image_folder(tmp_path / "pets", splits=("train",), count=5))
    for size in (32, 48, 32):
        source = sources.load(folder, size=size)
        assert source.train.images.shape[1:] == source.test.images.shape[1:] == (size, size, 3)
    assert sources.load("digits", size=8).train.images.shape == (1433, 8, 8, 1)
