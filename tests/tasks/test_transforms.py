import numpy as np
import torch
from torchvision.transforms import v2

from lit_fedbabu.tasks.images.transforms import augment, crop, draw, normalize
from tests.support import tiny


def random_images(count):
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_every_augmented_image_is_a_crop_of_its_padded_self():
    images = random_images(64)
    augmented = augment(images, "crop-flip", torch.Generator().manual_seed(1))
    padded = np.pad(images.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)))
    seen = set()
    for image, result in zip(padded, augmented.numpy(), strict=True):
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
    constants = tiny(normalization="imagenet").task.constants
    reference = v2.Normalize(*constants)(v2.functional.to_dtype(images.permute(0, 3, 1, 2), scale=True))
    ours = normalize(images, *constants)
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_padding_and_crop_grow_with_the_image():
    images = torch.randint(0, 256, (300, 64, 64, 1), dtype=torch.uint8)
    places = draw(300, 64, "crop", torch.Generator().manual_seed(1))
    assert places.shape == (2, 300, 64)
    assert [places[axis, :, 0].unique().tolist() for axis in (0, 1)] == [list(range(17))] * 2, "8 of 64, as 4 of 32"
    padded = torch.nn.functional.pad(images, (0, 0, 8, 8, 8, 8))
    for image, result, top, left in zip(padded, crop(images, places), *places[:, :, 0], strict=True):
        assert torch.equal(result, image[top : top + 64, left : left + 64])
