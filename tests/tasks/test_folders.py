"""Which file is in which split and class: from the folders alone."""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lit_fedbabu.errors import InputError
from lit_fedbabu.tasks.images import folders, sources


def paint(folder, count, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng([seed, number, *str(folder).encode()]).integers(
            0, 256, (8, 8, 3), dtype=np.uint8
        )
        Image.fromarray(pixels).save(folder / f"{number}.png")


def counts(folder):
    source = sources.load(str(folder))
    return len(source.class_names), len(source.train.labels), len(source.test.labels)


@pytest.mark.parametrize("name", ["test_tube", "train", "blood test", "class [1]", "test", "a*b?", "Größe", "val-1"])
def test_a_word_in_the_name_of_a_class_does_not_move_its_images(name, tmp_path):
    for each in ("cat", "dog", name):
        paint(tmp_path / "splits" / "train" / each, 20)
        paint(tmp_path / "splits" / "test" / each, 5)
        paint(tmp_path / "flat" / each, 20)
    assert counts(tmp_path / "splits") == (3, 60, 15)
    assert counts(tmp_path / "flat") == (3, 48, 12)


def test_names_of_files_and_links_do_not_move_images(tmp_path):
    for name in ("cat", "dog"):
        paint(tmp_path / "elsewhere" / name, 20)
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / name).symlink_to(tmp_path / "elsewhere" / name)
    for number in range(10):
        (tmp_path / "elsewhere" / "cat" / f"{number}.png").rename(
            tmp_path / "elsewhere" / "cat" / f"train_{number}.png"
        )
    (tmp_path / "elsewhere" / "cat" / "loop").symlink_to(tmp_path / "elsewhere" / "cat")
    assert counts(tmp_path / "flat") == (2, 32, 8)


REFUSED = {
    "test/ without class folders": (lambda top: paint(top / "test", 3), r"its folder test/ has no class folders"),
    "a folder beside the splits": (lambda top: paint(top / "more" / "cat", 3), "its folder more/ is beside train"),
    "a class only in test/": (lambda top: paint(top / "test" / "owl", 3), "that its split train does not have: owl"),
    "a class without images": (
        lambda top: (top / "train" / "owl").mkdir() or (top / "train" / "owl" / "a.svg").touch(),
        r"owl has no image that can be read: .svg \(1\)",
    ),
    "an image cut in half": (
        lambda top: (top / "train" / "cat" / "3.png").write_bytes((top / "train" / "cat" / "3.png").read_bytes()[:90]),
        "cannot be read: .*train/cat/3.png: ",
    ),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_would_be_lost_is_refused_by_name(how, tmp_path):
    for name in ("cat", "dog"):
        paint(tmp_path / "train" / name, 5)
    change, words = REFUSED[how]
    change(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        sources.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_files_that_are_left_out_are_counted(tmp_path, capsys):
    for name in ("cat", "dog"):
        paint(tmp_path / name, 5)
    (tmp_path / "cat" / "one.heic").touch()
    (tmp_path / "cat" / ".hidden.png").touch()
    assert counts(tmp_path) == (2, 8, 2)
    assert "1 files of" in (told := capsys.readouterr().out) and ".heic (1)" in told


NAMES = st.text(st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: not name.startswith(".") and len(os.fsencode(name)) < 200
)


@given(st.dictionaries(NAMES, st.integers(1, 3), min_size=2, max_size=4), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_file_of_a_random_tree_is_in_one_class_of_one_split(tmp_path_factory, classes, in_splits):
    top = tmp_path_factory.mktemp("tree")
    for split in ("train", "test") if in_splits else ("",):
        for name, count in classes.items():
            paint(top / split / name, count)
    found = folders.find_images(str(top))
    assert set(found) == ({"train", "test"} if in_splits else {"train"})
    for files in found.values():
        assert {name: len(paths) for name, paths in files.items()} == classes
    everyone = [path for files in found.values() for paths in files.values() for path in paths]
    assert len(everyone) == len(set(everyone)) == sum(classes.values()) * len(found)
