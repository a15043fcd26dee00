import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.trainer import cohorts
from lit_fedbabu.tasks.images.transforms import augment, crop, draw, normalize, resized_crop
from lit_fedbabu.training.client_update import cohort_update
from tests.support import NARROW, tiny, tiny_config


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


def test_resized_crops_are_parts_of_the_image_in_its_size():
    ramp = torch.arange(48.0)[None, :, None].expand(48, -1, 1)
    images = torch.stack([ramp, ramp.transpose(0, 1)]).expand(-1, -1, -1, 3).byte()
    whole = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0]] * 2).T
    torch.testing.assert_close(resized_crop(images, whole), images.float(), atol=1e-3, rtol=0)
    mirrored = torch.tensor([[1.0, 1.0, 0.0, 0.0, -1.0]] * 2).T
    torch.testing.assert_close(resized_crop(images, mirrored), images.flip(2).float(), atol=1e-3, rtol=0)
    quarter = torch.tensor([[0.5, 0.5, 0.5, -0.5, 1.0]] * 2).T  # to the right, above
    right, above = resized_crop(images, quarter)[:, 1:-1, 1:-1, 0]
    reference = v2.functional.resized_crop(images.permute(0, 3, 1, 2).float(), 0, 24, 24, 24, [48, 48])
    torch.testing.assert_close(right, reference[0, 0, 1:-1, 1:-1], atol=1e-3, rtol=0)
    torch.testing.assert_close(above, reference[1, 0, 1:-1, 1:-1], atol=1e-3, rtol=0)


def test_resized_crops_have_the_areas_and_ratios_of_torchvision():
    drawn = draw(4000, 48, "resized-crop-flip", torch.Generator().manual_seed(0))
    assert drawn is not None
    width, height, across, down, direction = drawn
    area, ratio = width * height, width / height
    assert 0.07 < area.min() < 0.1 and 0.9 < area.max() <= 1 and 0.5 < area.mean() < 0.55
    assert 0.74 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.34
    for place, length in ((across, width), (down, height)):
        assert (place.abs() + length).max() <= 1 + 1e-6 < (place.abs() + length).max() + 0.01, "up to the edge"
    assert 1900 < (direction > 0).sum() < 2100


def noisy(images):
    """A user's own augmentation, which draws from torch's generator."""
    return images + 0.1 * torch.randn_like(images)


colours = v2.Compose([v2.ColorJitter(0.3, 0.3), v2.RandomHorizontalFlip()])
not_callable = 3


def narrower(images):
    return images[..., 1:]


def a_list(images):
    return list(images)


def broken(images):
    raise RuntimeError("no such\ncolour")


def infinite(images):
    return images / 0


@pytest.mark.parametrize("name", ["noisy", "colours"])
@pytest.mark.parametrize("cohort_size", [1, 3])
def test_a_users_own_augmentation_draws_by_seed_round_and_client(name, cohort_size, monkeypatch):
    experiment = tiny(augmentation=f"tests.tasks.test_transforms:{name}", cohort_size=cohort_size, model_name=NARROW)
    experiment.check()
    seen: dict[tuple[int, ...], list[tuple[torch.Tensor, int]]] = {}

    def watched(images):
        seen.setdefault(tuple(images.shape), []).append((own(images), torch.initial_seed()))
        return images

    own = experiment.task.augmentation
    experiment.task.__dict__["augmentation"] = watched
    shared = experiment.initial_shared()

    def of(clients, server_round):
        seen.clear()
        torch.manual_seed(7)
        before = torch.get_rng_state()
        for members in cohorts(experiment.config, clients):
            cohort_update(experiment, members, server_round, shared, 0.1)
        assert torch.equal(before, torch.get_rng_state())
        return {seed: images for batches in seen.values() for images, seed in batches}

    first = of([0, 1, 2], 1)
    batches = sum(-(-len(part) // 10) for part in experiment.task.partition.train[:3])
    assert len(first) == batches, "a seed for each batch of each client"
    again = of([2, 0, 1], 1)
    assert first.keys() == again.keys() and all(torch.equal(first[seed], again[seed]) for seed in first)
    assert not first.keys() & of([0, 1, 2], 2).keys()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("crp", "must be one of crop-flip, crop, resized-crop-flip, none, or an import path as in my_module:augment"),
        ("nowhere_at_all:augment", "must be the import path of a function, .*No module named"),
        ("tests.tasks.test_transforms:nothing", "must be the import path of a function, .*has no attribute"),
        ("tests.tasks.test_transforms:not_callable", "is a int and cannot be called with images"),
        ("tests.tasks.test_transforms:narrower", r"fails on .* of 3 x 32 x 32: ValueError: it returns .*32, 31\)"),
        ("tests.tasks.test_transforms:a_list", ".*TypeError: it returns a list and no tensor"),
        ("tests.tasks.test_transforms:broken", "fails on a batch of 10 images .*: RuntimeError: no such colour"),
        ("tests.tasks.test_transforms:infinite", "returns numbers that are not finite"),
    ],
)
def test_an_augmentation_that_is_none_is_refused_before_any_work(path, words):
    with pytest.raises(InputError, match=f'augmentation = "{path}": {words}') as refused:
        tiny(augmentation=path, model_name=NARROW).check()
    assert "\n" not in str(refused.value)


def test_code_that_a_checkpoint_names_is_not_run_unless_it_is_trusted(federate, capsys, one_core):
    path = "tests.tasks.test_transforms:noisy"
    folder, _ = federate(tiny_config(num_server_rounds=1, augmentation=path, model_name=NARROW))
    command = [str(folder), "--model-name", NARROW]
    for data in ([], ["--data", tiny_config.dataset]):
        assert finetune([*command, *data]) == 2
        assert f'augmentation = "{path}": is code that the checkpoint names' in capsys.readouterr().err
        for trusted in (path, "resized-crop-flip"):
            assert finetune([*command, *data, "--augmentation", trusted]) == 0
    assert finetune([*command, "--augmentation", "crp"]) == 2
    assert '--augmentation = "crp": must be one of crop-flip' in capsys.readouterr().err
