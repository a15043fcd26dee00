"""Images in files that threads write and all processes map."""

import errno
import os
import pty
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from lit_fedbabu.ground.errors import InputError, of_system
from lit_fedbabu.tasks.images import arrays, sources
from lit_fedbabu.tasks.images.arrays import ImageFiles, side_by_side, told
from lit_fedbabu.tasks.images.decoding import decode
from tests.support import client_data, tiny, tiny_config

GREY = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 1), dtype=np.uint8)


@pytest.mark.parametrize("coloured", [None, 7])
def test_one_coloured_image_gives_every_file_three_channels(coloured, tmp_path):
    with ImageFiles(tmp_path, 12, {"train": 20, "test": 1}) as files:
        files.write("test", 0, GREY[3])
        for row in np.random.default_rng(1).permutation(20).tolist():
            files.write("train", row, GREY[row] if row != coloured else GREY[row : row + 3, ..., 0].transpose(1, 2, 0))
    channels = 1 if coloured is None else 3
    images = files.read("train")
    assert isinstance(images, np.memmap) and images.shape == (20, 12, 12, channels)
    same = np.arange(20) != (coloured or 20)
    assert np.array_equal(images[same], np.broadcast_to(GREY[same], images[same].shape))
    assert np.array_equal(files.read("test")[0], np.broadcast_to(GREY[3], (12, 12, channels)))
    assert sorted(os.listdir(tmp_path)) == ["test_images.npy", "train_images.npy"]


def test_what_the_system_writes_in_pieces_is_whole(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, start: pwrite(file, content[:100], start))
    with ImageFiles(tmp_path, 12, {"train": 20}) as files:
        for row, image in enumerate(GREY):
            files.write("train", row, image)
    assert np.array_equal(files.read("train"), GREY)


def test_a_full_disk_is_told_with_its_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as refused:
        sources.load(tiny_config.dataset)
    assert "train_images.npy: No space left on device; free some space" in of_system(refused.value)
    assert not list((tmp_path / "lit_fedbabu").iterdir())


def test_an_array_is_as_numpy_saves_it_and_a_full_disk_is_told_with_its_file(tmp_path):
    for values in (np.arange(9)[::2], np.zeros(0, dtype=np.int64)):
        arrays.save(tmp_path / "a.npy", values)
        np.save(tmp_path / "b.npy", values)
        assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    (tmp_path / "full.npy").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as refused:
        arrays.save(tmp_path / "full.npy", np.arange(9))
    assert "full.npy: No space left on device; free some space" in of_system(refused.value)


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_no_bit(threads, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(arrays, "available_cores", lambda: threads)
    for number in range(60):
        place = tmp_path / "images" / "ab"[number % 2] / f"{number:02d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place)
    source = sources.load(str(tmp_path / "images"), size=48)
    in_order = np.stack([decode(path, size=48) for path in sorted((tmp_path / "images").rglob("*.jpg"))])
    held_out = sources.hold_out(np.repeat([0, 1], 30))
    assert np.array_equal(source.train.images, in_order[~held_out])
    assert np.array_equal(source.test.images, in_order[held_out])
    counts = np.stack([np.bincount(in_order[~held_out, ..., channel].ravel(), minlength=256) for channel in range(3)])
    assert list(source.mean) == (counts @ (np.arange(256) / 255) / counts.sum(1)).tolist()


def test_the_first_image_that_cannot_be_read_is_named_whichever_thread_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "available_cores", lambda: 4)
    monkeypatch.setattr(arrays, "AHEAD", 1)
    for number in range(120):
        place = tmp_path / "ab"[number % 2] / f"{number:03d}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(GREY[0, ..., 0]).save(place)
    for number in (118, 66, 32):
        (tmp_path / "a" / f"{number:03d}.png").write_bytes(b"no image")
    for _ in range(5):
        with pytest.raises(InputError, match=r"cannot be read: .*a/032.png: is no image"):
            sources.load(str(tmp_path))


def test_items_are_taken_as_they_are_needed(monkeypatch):
    monkeypatch.setattr(arrays, "available_cores", lambda: 2)
    taken, worked, most, lock = 0, 0, 0, threading.Lock()

    def items():
        nonlocal taken
        for item in range(1000):
            taken += 1
            yield item

    def work(item):
        nonlocal worked, most
        with lock:
            worked += 1
            most = max(most, taken - worked)

    counted: list[int] = []
    side_by_side(work, items(), counted.append)
    assert worked == sum(counted) == 1000 and most <= (2 * arrays.AHEAD + 1) * arrays.AT_ONCE


def test_a_client_has_no_copy_of_its_images():
    experiment = tiny()
    data = experiment.client_data(0, 1)
    for own, split in ((data.train_set, experiment.task.source.train), (data.test_set, experiment.task.source.test)):
        assert np.shares_memory(own._images, split.images) and isinstance(split.images, np.memmap)
    grey = client_data(tiny_config(dataset="digits", min_client_images=1), 0)
    assert grey.train_set[[3, 1]][0].shape == (2, 32, 32, 1)


def test_long_decoding_is_spoken_of_now_and_then(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(arrays.time, "monotonic", lambda: now[0])
    for seconds in (0.01, 4.0):
        with told("decoding images at 32 x 32", 1000) as done:
            for _ in range(10):
                now[0] += seconds
                done(100)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "decoding images at 32 x 32: 100 of 1000, 0:00:36 left",
        "decoding images at 32 x 32: 900 of 1000, 0:00:04 left",
    ]


SCRIPT = """
from lit_fedbabu.tasks.images import arrays
arrays.QUICK_S = 0
with arrays.told("decoding", 10) as done:
    done(4)
print("over")
"""


@pytest.mark.parametrize("plain", [False, True])
def test_a_terminal_has_a_bar_unless_plain_lines_are_wanted(plain):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", **({"TTY_INTERACTIVE": "0"} if plain else {})}
    subprocess.run([sys.executable, "-c", SCRIPT], stdout=theirs, env=environment, check=True)
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    assert (" 4/10" in text) != plain and ("decoding: 4 of 10" in text) == plain
    assert text.endswith("over\r\n")
