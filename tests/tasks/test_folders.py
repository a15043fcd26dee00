"""Which file is in which split and class: from the folders alone."""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.tasks.images import folders, sources


def paint(folder, count, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng([seed, number, *os.fsencode(folder)]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
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
    "classes in one folder more": (
        lambda top: (top / "train").rename(top / "my_photos"),
        "has one folder, my_photos/, with cat, dog in it; name that: .*/my_photos",
    ),
    "a folder around two folders": (
        lambda top: [(top / "my").mkdir(), (top / "train").rename(top / "my" / "photos")],
        "has one folder, my/, with cat, dog in it; name that: .*/my/photos",
    ),
    "a class that is a link to nothing": (
        lambda top: (top / "train" / "owl").symlink_to(top / "nowhere"),
        "its link .*train/owl leads to nothing",
    ),
    "an image that is a link to nothing": (
        lambda top: (top / "train" / "cat" / "x.png").symlink_to(top / "nowhere"),
        "cannot be read: .*cat/x.png: No such file",
    ),
    "an image that is a pipe": (
        lambda top: os.mkfifo(top / "train" / "cat" / "x.png"),
        "cannot be read: .*cat/x.png: is no file",
    ),
    "an empty image": (lambda top: (top / "train" / "cat" / "x.png").touch(), "cannot be read: .*cat/x.png: is empty"),
    "an image of Git LFS": (
        lambda top: (top / "train" / "cat" / "x.png").write_text("version https://git-lfs.github.com/spec/v1"),
        "cannot be read: .*cat/x.png: is a pointer of Git LFS; fetch the files with git lfs pull",
    ),
    "a name that is no text": (
        lambda top: paint(top / "train" / "caf\udce9", 2),
        r"a class has characters in its name that no text has: 'caf\\udce9'",
    ),
    "a name of two lines": (lambda top: paint(top / "train" / "a\nb", 2), r"that no text has: 'a\\nb'"),
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


def test_files_that_are_left_out_are_told_each_time(tmp_path):
    for name in ("cat", "dog"):
        paint(tmp_path / name, 5)
    for name in ("one.heic", "two.pdf"):
        (tmp_path / "cat" / name).touch()
    paint(tmp_path, 1)
    for name in (".hidden", ".ipynb_checkpoints"):
        paint(tmp_path / "cat" / name, 2)
    for _ in ("decoded", "from the cache"):
        assert counts(tmp_path) == (2, 8, 2)
        hidden, kinds, loose = sources.load(str(tmp_path)).notes
        assert ".heic (1), .pdf (1);" in kinds and "one.heic" in kinds
        assert hidden.startswith("left out, for they are hidden: 4 images: ")
        assert loose == f"left out, for they are in no class folder: {tmp_path / '0.png'}"


def test_a_class_without_test_images_is_told(tmp_path):
    for name in ("cat", "dog"):
        paint(tmp_path / "train" / name, 5)
    paint(tmp_path / "val" / "dog", 5)
    assert counts(tmp_path) == (2, 10, 5)
    assert "split val has none of their images: the classes cat" in sources.load(str(tmp_path)).notes[0]


def test_splits_that_are_not_used_are_told(tmp_path):
    for split in ("train", "valid", "test"):
        for name in ("cat", "dog"):
            paint(tmp_path / split / name, 3)
    assert "neither training nor test images: the splits valid" in sources.load(str(tmp_path)).notes[0]


@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_a_name_in_two_forms_of_unicode_is_one_class(splits, tmp_path):
    forms = ("caf\u00e9", "cafe\u0301")
    for split in splits:
        for number, name in enumerate(forms if len(splits) == 1 else (forms[split == "train"],)):
            paint(tmp_path / split / name, 5, number)
        paint(tmp_path / split / "th\u00e9", 5)
    assert counts(tmp_path) == ((2, 12, 3) if len(splits) == 1 else (2, 10, 10))
    source = sources.load(str(tmp_path))
    assert source.class_names[0] == forms[1] and not source.notes, "the name that comes first, as before"
    assert sources.load(str(tmp_path), classes=("owl", forms[0], "the\u0301")).train.labels.tolist()[0] == 1


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("cat", "Cat", "cat "), "'Cat', 'cat', 'cat '"),
        (("t-shirt", "T_Shirt"), "'T_Shirt', 't-shirt'"),
        (("cat", "ｃａｔ"), r"'cat', '\uff43\uff41\uff54'"),
        (("cat", "c\u0430t"), r"'cat', 'c\u0430t'"),
        (("cat", "cat\u200b"), r"'cat', 'cat\u200b'"),
        (("straße", "STRASSE"), "'STRASSE', 'straße'"),
        (("1-2", "12"), ""),
        (("resume", "résumé"), ""),
    ],
)
def test_names_that_look_alike_are_told(names, shown, tmp_path):
    for number, name in enumerate(("dog", *names)):
        paint(tmp_path / name, 5, number)
    source = sources.load(str(tmp_path))
    assert len(source.class_names) == len(names) + 1
    told = (f"{len(names)} classes, though their names look alike: {shown}",)
    assert source.notes == (told if shown else ())


def test_files_that_systems_leave_in_folders_are_no_classes_and_no_images(tmp_path):
    for name in ("cat", "dog"):
        paint(tmp_path / name, 5)
        paint(tmp_path / "@eaDir" / name, 1)
    for name in (
        "__MACOSX/cat/._0.png",
        "cat/._1.png",
        "cat/.DS_Store",
        "cat/Thumbs.db",
        "dog/desktop.ini",
        "README.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert counts(tmp_path) == (2, 8, 2)
    hidden, others = sources.load(str(tmp_path)).notes
    assert hidden.startswith("left out, for they are hidden: 4 images: ") and "@eaDir" in hidden and "._1.png" in hidden
    assert "they are no images that can be read: .db (1), .ini (1); " in others


def test_lists_of_a_split_beside_the_classes_are_told(tmp_path):
    for name in ("cat", "dog"):
        paint(tmp_path / "images" / name, 5)
    (tmp_path / "images" / "test.txt").write_text("cat/0.png\n")
    (note,) = sources.load(str(tmp_path / "images")).notes
    assert note == f"left out, for they are no images that can be read: .txt (1); {tmp_path / 'images' / 'test.txt'}"


def test_folders_in_a_class_are_told(tmp_path):
    for name in ("cat/tabby", "cat/siamese", "dog"):
        paint(tmp_path / name, 5)
    assert counts(tmp_path) == (2, 12, 3)
    (note,) = sources.load(str(tmp_path)).notes
    assert note.startswith("no classes of their own, for they are in folders of classes: siamese, tabby; where folders")


NAMES = st.text(st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: not folders.is_hidden(name) and len(os.fsencode(name)) < 200
)


@given(st.dictionaries(NAMES, st.integers(1, 3), min_size=2, max_size=4), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_file_of_a_random_tree_is_in_one_class_of_one_split(tmp_path_factory, classes, in_splits):
    top = tmp_path_factory.mktemp("tree")
    for split in ("train", "test") if in_splits else ("",):
        for name, count in classes.items():
            paint(top / split / name, count)
    notes: list[str] = []
    found = folders.find_images(str(top), top, notes)
    assert not notes
    assert set(found) == ({"train", "test"} if in_splits else {"train"})
    for files in found.values():
        assert {name: len(paths) for name, paths in files.items()} == classes
    everyone = [path for files in found.values() for paths in files.values() for path in paths]
    assert len(everyone) == len(set(everyone)) == sum(classes.values()) * len(found)


@pytest.mark.parametrize("split", [("Train", "Test"), ("training", "testing"), ("seen", "unseen")])
def test_splits_by_other_names_do_not_become_classes(split, tmp_path):
    for place in split:
        for name in ("cat", "dog"):
            paint(tmp_path / place / name, 3)
    with pytest.raises(InputError, match="have the same folders in them: cat, dog; if they are splits, name them"):
        sources.load(str(tmp_path))


def test_a_class_of_one_image_is_refused_where_test_images_are_held_out(tmp_path):
    for name, count in (("cat", 5), ("dog", 5), ("owl", 1)):
        paint(tmp_path / name, count)
    with pytest.raises(InputError, match="has one image of the classes owl; without a test split"):
        sources.load(str(tmp_path))


def test_a_folder_that_cannot_be_read_is_refused_by_name(tmp_path, monkeypatch):
    for name in ("cat", "dog/pugs"):
        paint(tmp_path / name, 5)
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("pugs"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(InputError, match="dog/pugs cannot be read: Permission denied"):
        sources.load(str(tmp_path))
