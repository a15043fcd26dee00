"""The Python of the pages runs from top to bottom, and docs/python.md shows every public name."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lit_fedbabu

ROOT = Path(__file__).parent.parent
PAGE = "docs/python.md"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_page_shows_every_public_name():
    text = (ROOT / PAGE).read_text()
    missing = [name for name in lit_fedbabu.__all__ if name != "__version__" and name not in text]
    assert not missing


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(("page", "least", "told"), [(PAGE, 8, "num-clients = 0: must be"), ("README.md", 1, "['")])
def test_the_page_runs_from_top_to_bottom(page, least, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((32, 32), np.uint8)).save("image.png")
    assert len(blocks(page)) >= least
    names: dict[str, object] = {}
    for block in blocks(page):
        exec(compile(block, page, "exec"), names)
    assert told in capsys.readouterr().out
