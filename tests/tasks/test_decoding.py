"""One decoding for datasets, newcomers and prediction."""

import io
import warnings

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.tasks.images import sources
from lit_fedbabu.tasks.images.decoding import decode, quiet_pillow, read_images, to_array, with_channels

RAMP = np.arange(32 * 32, dtype=np.float64).reshape(32, 32) / (32 * 32 - 1)
COLOURS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_sixteen_bits_and_floats_keep_their_levels():
    expected = np.rint(RAMP * 255).astype(np.uint8)[..., None]
    sixteen = Image.fromarray((RAMP * 65535).round().astype(np.uint16))
    assert sixteen.mode == "I;16"
    for image in (sixteen, sixteen.convert("I"), Image.fromarray(RAMP.astype(np.float32))):
        assert np.abs(to_array(image).astype(int) - expected).max() <= 1, image.mode
        assert len(np.unique(to_array(image))) == 256


@pytest.mark.parametrize("values", [RAMP * 300, RAMP - 0.5, RAMP * np.nan])
def test_floats_of_another_range_are_refused(values):
    with pytest.raises(ValueError, match="its values, of mode F, are not all between 0 and 1"):
        to_array(Image.fromarray(values.astype(np.float32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_is_white(mode):
    colour = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    colour.paste((0, 0, 0, 255), (0, 0, 16, 32))
    array = to_array(colour.convert(mode) if mode != "PA" else colour.quantize().convert("PA"))
    assert array.shape[-1] == (1 if mode == "LA" else 3)
    assert (array[:, :16] == 0).all()
    assert (array[:, 16:] == 255).all() or mode == "PA"


def test_a_shape_in_the_alpha_channel_alone_is_seen():
    icon = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    icon.paste((0, 0, 0, 255), (8, 8, 24, 24))
    assert sorted(np.unique(to_array(icon)).tolist()) == [0, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_modes_are_grey_or_colours(mode):
    image = Image.fromarray(COLOURS)
    image = image.convert(mode) if mode != "LAB" else Image.merge("LAB", image.split())
    array = to_array(image)
    assert array.shape == (32, 32, 1 if mode in ("1", "L") else 3)
    assert array.dtype == np.uint8
    assert array.std() > 0


@pytest.mark.parametrize("form", ["png", "jpg", "webp", "bmp", "tiff", "gif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_dataset_and_a_file_are_decoded_alike(form, orientation, tmp_path):
    if form in ("bmp", "gif") and orientation > 1:
        pytest.skip("has no EXIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    for split in ("train", "test"):
        for name in ("red", "blue"):
            (tmp_path / split / name).mkdir(parents=True)
            pixels = np.random.default_rng(len(name)).integers(0, 256, (40, 24, 3), dtype=np.uint8)
            options = {} if form in ("bmp", "gif") else {"exif": exif}
            Image.fromarray(pixels).save(tmp_path / split / name / f"a.{form}", **options)
    source = sources.load(str(tmp_path))
    paths = [tmp_path / "test" / name / f"a.{form}" for name in source.class_names]
    assert np.array_equal(source.test.images, read_images(paths, source.channels))


FORMS = ["png", "jpeg", "webp", "tiff", "gif", "avif", "jpeg2000", "dds", "tga", "ppm", "ico"]


def content(form):
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, form)
    return file.getvalue()


def check_damaged(damaged):
    """It is decoded, or refused in one line, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with quiet_pillow():
                array = decode(bytes(damaged))
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert array.shape in ((32, 32, 1), (32, 32, 3))


@given(form=st.sampled_from(FORMS), data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_image_is_decoded_or_refused_in_one_line(form, data):
    damaged = bytearray(content(form))
    for place in data.draw(st.lists(st.integers(0, min(120, len(damaged) - 1)), max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    check_damaged(damaged[: data.draw(st.integers(0, len(damaged)))])


@pytest.mark.parametrize(("form", "place", "value"), [("avif", 81, 0), ("dds", 80, 0), ("tiff", 72, 2)])
def test_damage_that_pillow_tells_by_other_errors_is_one_line(form, place, value):
    """By RuntimeError, NotImplementedError and TypeError."""
    damaged = bytearray(content(form))
    damaged[place] = value
    check_damaged(damaged)


@pytest.mark.parametrize("error", [RuntimeError("no such codec"), NotImplementedError(), MemoryError()])
def test_whatever_pillow_raises_is_one_line(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=f"cannot be read as an image: {str(error) or type(error).__name__}"):
        read_images([tmp_path / "a.png"], 3)


def test_grey_with_a_transparent_value_has_one_channel():
    file = io.BytesIO()
    Image.fromarray(COLOURS[..., 0]).save(file, "png", transparency=int(COLOURS[0, 0, 0]))
    array = decode(file.getvalue())
    assert array.shape == (32, 32, 1) and array[0, 0, 0] == 255


def test_a_big_endian_tiff_keeps_its_levels(tmp_path):
    ramp = (RAMP * 65535).round().astype(">u2")
    Image.frombytes("I;16B", (32, 32), ramp.tobytes()).save(tmp_path / "ramp.tiff")
    assert len(np.unique(decode(tmp_path / "ramp.tiff"))) == 256


MODES = {
    "png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "tiff": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"],
    "jpeg": ["L", "RGB", "CMYK"], "webp": ["RGB", "RGBA"], "avif": ["RGB", "RGBA"], "jpeg2000": ["L", "RGB", "RGBA"],
    "gif": ["P", "RGBA"], "bmp": ["1", "L", "P", "RGB"], "ico": ["RGBA"], "tga": ["L", "RGBA"], "ppm": ["L", "RGB"],
}  # fmt: skip


def of_mode(mode, seed):
    """Random squares, some of them transparent where the mode has alpha."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 5, 4), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in MODES.items() for mode in modes])
def test_folder_table_and_file_are_decoded_alike(form, mode, tmp_path):
    suffix = {"jpeg2000": "jp2"}.get(form, form)
    turns = form in ("png", "tiff", "jpeg", "webp", "avif")
    paths = []
    for number, name in enumerate(("red", "blue", "red", "blue")):
        path = tmp_path / "folder" / ("train", "test")[number // 2] / name / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        of_mode(mode, number).save(path, form, **({"exif": exif} if turns else {}))
        paths.append(path)
    for split, files in (("train", paths[:2]), ("test", paths[2:])):
        rows = {"image": [{"bytes": path.read_bytes(), "path": None} for path in files], "label": ["red", "blue"]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
        (tmp_path / "table").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "table" / f"{split}.parquet")
    folder, table = sources.load(str(tmp_path / "folder")), sources.load(str(tmp_path / "table"))
    assert folder.channels == table.channels == (1 if mode in ("1", "L", "LA", "I;16", "F") else 3)
    assert np.array_equal(folder.test.images[::-1], read_images(paths[2:], folder.channels))
    assert np.array_equal(table.test.images, read_images(paths[2:], folder.channels))
    if turns and mode != "P":
        turned = with_channels(to_array(of_mode(mode, 2).transpose(Image.Transpose.ROTATE_270))[None], folder.channels)
        alike = np.corrcoef(folder.test.images[1].ravel(), turned.ravel())[0, 1]
        assert alike > 0.7, "turned as EXIF says"


def test_a_decompression_bomb_is_one_line_for_a_file_and_for_a_dataset(tmp_path, monkeypatch):
    for split in ("train", "test"):
        for name in ("red", "blue"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(COLOURS).save(tmp_path / split / name / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="cannot be read as an image: .*decompression bomb"):
        read_images([tmp_path / "test" / "red" / "a.png"], 3)
    with pytest.raises(InputError, match="cannot be read: .*decompression bomb"):
        sources.load(str(tmp_path))
