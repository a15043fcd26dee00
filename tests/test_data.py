import dataclasses
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from lit_fedbabu import data, sources, training
from lit_fedbabu.config import ConfigError
from lit_fedbabu.data import ClientData, augment, normalize
from lit_fedbabu.module import LitFedBABU
from lit_fedbabu.partition import partition
from tests.helpers import tiny_config


def random_images(count):
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_every_augmented_image_is_a_crop_of_its_padded_self():
    images = random_images(64)
    augmented = augment(images, "crop-flip", torch.Generator().manual_seed(1))
    padded = np.pad(images.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)))
    seen = set()
    for image, result in zip(padded, augmented.numpy()):
        places = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
            if np.array_equal(result, image[top : top + 32, left : left + 32][:, :: -1 if flip else 1])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(9)), "offsets reach both ends"
    assert {flip for _, _, flip in seen} == {False, True}


def test_augmentation_can_leave_out_the_flip_or_everything():
    images = random_images(200)
    images[:, :, :16] = 0  # black on the left: a flip would bring it to the right
    cropped = augment(images, "crop", torch.Generator().manual_seed(1))
    assert (cropped[:, :, :12] == 0).all()
    assert torch.equal(augment(images, "none", torch.Generator()), images)


def test_augmentation_depends_on_its_generator_alone():
    images = random_images(8)
    torch.manual_seed(0)
    first = augment(images, "crop-flip", torch.Generator().manual_seed(1))
    assert torch.equal(first, augment(images, "crop-flip", torch.Generator().manual_seed(1)))
    assert not torch.equal(first, augment(images, "crop-flip", torch.Generator().manual_seed(2)))


def test_normalization_is_torchvisions():
    images = random_images(4)
    reference = v2.Normalize(data.MEAN, data.STD)(v2.functional.to_dtype(images.permute(0, 3, 1, 2), scale=True))
    ours = normalize(images)
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_is_the_clients_images_once_and_the_seed_orders_them():
    config = tiny_config(batch_size=20)
    own = partition(config).train[1]

    def epoch(seed):
        loader = ClientData(config, 1, seed).train_dataloader()
        batches = [images for images, _ in loader]
        assert [len(images) for images in batches[:-1]] == [20] * (len(own) // 20)
        return torch.cat(batches)

    expected = np.sort(sources.load(config.dataset).train.images[own].reshape(len(own), -1).sum(1, dtype=int))
    first = epoch(5)
    assert np.array_equal(np.sort(first.numpy().reshape(len(own), -1).sum(1, dtype=int)), expected)
    assert torch.equal(first, epoch(5))
    assert not torch.equal(first, epoch(6))


@pytest.mark.parametrize("batch_size", [8, 10])
def test_an_epoch_takes_one_draw_however_it_ends(batch_size, monkeypatch):
    config = tiny_config(batch_size=batch_size, augmentation="none")
    module_data = ClientData(config, 1, 5)
    seen = []
    monkeypatch.setattr(LitFedBABU, "on_train_batch_start", lambda module, batch, index: seen.append(batch[1].clone()))
    training.fit(training.new_module(config, 10, 0), module_data, mode="head", epochs=3, learning_rate=0.1)
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(len(module_data.train_set), generator=generator) for _ in range(3)]
    assert torch.equal(torch.cat(seen), module_data.train_set.tensors[1][torch.cat(orders)])
    assert not torch.equal(orders[0], orders[1])


def test_test_images_come_as_one_batch_in_order():
    module_data = ClientData(tiny_config(), 3, 5)
    (batch,) = list(module_data.test_dataloader())
    assert torch.equal(batch[0], module_data.test_set.tensors[0])


def test_digits_are_whole_and_split_by_class():
    digits = sources.load("digits")
    assert len(digits.train.labels) + len(digits.test.labels) == 1797
    assert digits.train.images.shape[1:] == (32, 32, 3) and digits.train.images.dtype == np.uint8
    assert digits.class_names == tuple("0123456789")
    for split in (digits.train, digits.test):
        assert (np.bincount(split.labels) / len(split.labels)).min() > 0.09


def write_image_folder(root, splits=("train", "test"), size=(32, 32)):
    random = np.random.default_rng(0)
    for split in splits:
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return root


def test_a_folder_of_images_is_a_dataset_and_is_decoded_once(tmp_path, monkeypatch):
    root = write_image_folder(tmp_path / "pets")
    source = sources.load(str(root))
    assert source.class_names == ("cat", "dog")
    assert source.train.labels.tolist() == [0] * 4 + [1] * 4
    assert np.array_equal(source.test.images[5], np.asarray(Image.open(root / "test/dog/1.png")))
    assert isinstance(source.train.images, np.memmap)
    sources.load.cache_clear()
    monkeypatch.setattr(sources, "_decode", lambda *_: pytest.fail("decoded again"))
    sources.load(str(root))


def test_a_changed_folder_is_decoded_again(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    before = sources.load(str(root)).train.images[0].copy()
    Image.fromarray(255 - before).save(root / "train/cat/0.png")
    sources.load.cache_clear()
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


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("nowhere", ["nowhere", "folder", "digits"]),
        ("./nowhere", ["./nowhere", "folder", "digits"]),
        ("no-such-owner/no-such-dataset", ["network", 'dataset="<local folder>"', 'dataset="digits"']),
    ],
)
def test_absent_datasets_are_refused_in_one_line(dataset, words, monkeypatch):
    monkeypatch.setattr(sources, "_hub_answers", lambda: False)
    with pytest.raises(ConfigError) as caught:
        sources.load(dataset)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_folder_without_a_test_split_is_refused(tmp_path):
    root = write_image_folder(tmp_path / "pets", splits=("train",))
    with pytest.raises(ConfigError, match="split 'test'"):
        sources.load(str(root))


def test_a_table_without_images_is_refused_with_its_columns_named(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"age": 3, "name": "x"}) + "\n")
    with pytest.raises(ConfigError, match=r"one Image and one ClassLabel column; it has age .*name"):
        sources.load(str(tmp_path))


def test_nothing_is_left_behind_when_decoding_fails(tmp_path):
    root = write_image_folder(tmp_path / "pets")
    Path(root / "train/dog/2.png").write_bytes(b"no image")
    before = set(sources._cache_root().iterdir())
    with pytest.raises(ConfigError, match="split .train. cannot be read: .*2.png"):
        sources.load(str(root))
    assert set(sources._cache_root().iterdir()) == before


def test_the_configuration_alone_decides_a_clients_images():
    config = tiny_config()
    one = ClientData(config, 2, 0).train_set.tensors[0]
    two = ClientData(dataclasses.replace(config, learning_rate=0.5), 2, 1).train_set.tensors[0]
    assert torch.equal(one, two)
