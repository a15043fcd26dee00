import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from lit_fedbabu import sources, training
from lit_fedbabu.batches import ClientData, augment, mean_and_std, normalize
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
    constants = mean_and_std(tiny_config(normalization="imagenet"))
    reference = v2.Normalize(*constants)(v2.functional.to_dtype(images.permute(0, 3, 1, 2), scale=True))
    ours = normalize(images, *constants)
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
    training.fit([training.new_module(config, 10, 0)], [module_data], mode="head", epochs=3, learning_rate=0.1)
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(len(module_data.train_set), generator=generator) for _ in range(3)]
    assert torch.equal(torch.cat(seen), module_data.train_set.tensors[1][torch.cat(orders)])
    assert not torch.equal(orders[0], orders[1])


def test_test_images_come_as_one_batch_in_order():
    module_data = ClientData(tiny_config(), 3, 5)
    (batch,) = list(module_data.test_dataloader())
    assert torch.equal(batch[0], module_data.test_set.tensors[0])


def test_the_configuration_alone_decides_a_clients_images():
    config = tiny_config()
    one = ClientData(config, 2, 0).train_set.tensors[0]
    two = ClientData(dataclasses.replace(config, learning_rate=0.5), 2, 1).train_set.tensors[0]
    assert torch.equal(one, two)
