"""Names that others chose, as of their classes: no command lets them steer a terminal, a page or a Markdown viewer."""

import html.parser
import string

import markdown
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_fedbabu.data import main as data
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.ground.printing import in_code, in_line, in_markdown, printable
from lit_fedbabu.predict import main as predict
from lit_fedbabu.report import main as report
from tests.support import tiny_config

CLASSES = ("<img src=x>", "`[dog](evil)`", "*owl*|_x_", "plain")
MARKS = {"img", "script", "a"}


class Page(html.parser.HTMLParser):
    """The tags and the words of a page."""

    def __init__(self, text):
        super().__init__()
        self.found, self.words = set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.add(tag)

    def handle_data(self, words):
        self.words += words


def rendered(text):
    return markdown.markdown(text, extensions=["tables", "fenced_code"])


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos`[x](evil)`"
    draws = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = draws.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}\x1b[31m.png")
    return folder


def test_names_of_classes_and_files_are_escaped_wherever_they_are_shown(photos, tmp_path, federate, capsys):
    options = {"dataset": str(photos), "num_clients": 2, "partitioner": "iid", "image_size": 32}
    config = tiny_config(**options, num_server_rounds=1, num_finetune_epochs=1)
    words = [f"{key.replace('_', '-')}={value}" for key, value in options.items()]
    assert data([*words, "--out", str(tmp_path / "d")]) == 0
    folder, _ = federate(config)
    me = tmp_path / "me"
    assert finetune([str(folder), "--data", str(photos), "--save", str(me), "--epochs", "1"]) == 0
    assert report([str(folder), "--out", str(tmp_path / "report")]) == 0
    assert predict([str(me), *map(str, sorted((photos / CLASSES[0]).iterdir())[:2])]) == 0
    told = capsys.readouterr()
    for line in (told.out + told.err).split("\n"):
        assert line.isprintable(), line
    assert r"0\x1b[31m.png" in told.out
    texts = [path for path in tmp_path.rglob("*") if path.suffix in (".md", ".html", ".csv", ".tex", ".svg")]
    assert {path.suffix for path in texts} >= {".md", ".html"}
    for path in texts:
        assert not set(path.read_text()) & {"\x1b", "\x9b", "\u202e"} or path.suffix == ".csv", path
    for card in (path for path in texts if path.suffix == ".md"):
        page = Page(rendered(card.read_text()))
        assert not page.found & MARKS, (card, page.found)
    assert ", ".join(sorted(CLASSES)) in Page(rendered((me / "README.md").read_text())).words
    events = EventAccumulator(str(folder)).Reload()
    for tag in events.Tags()["tensors"]:
        for event in events.Tensors(tag):
            for text in event.tensor_proto.string_val:
                assert not Page(rendered(text.decode(errors="ignore"))).found & MARKS, (tag, text)


@pytest.mark.parametrize("escape", [printable, in_line, in_markdown, in_code])
def test_an_escaped_text_steers_nothing_and_a_plain_one_stays(escape):
    anything = "".join(map(chr, range(0x3000)))
    shown = escape(anything)
    assert not set(shown) & (set(map(chr, range(32))) - set("\t\n")) and "\u202e" not in shown and "\x9b" not in shown
    assert ("\n" in shown) == (escape is printable)
    for plain in (string.ascii_letters + string.digits + " .,-", "katze 猫", "क्‍ष", "café"):
        assert escape(plain) == (f"`{plain}`" if escape is in_code else plain)
