import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "add-an-algorithm.md"


@pytest.mark.slow
def test_algorithms_are_added_as_the_page_says_and_go_through_the_tests_of_every_row(tmp_path):
    for folder in ("lit_fedbabu", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    patches = re.findall(r"```diff\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(patches) == 2
    for patch in patches:
        subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=patch, text=True, check=True)
    tests = [
        "tests/server",
        "tests/algorithms/test_client_update.py",
        "-k",
        "random-body or fedbabu-clipped",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "7 passed" in done.stdout, done.stdout  # the tests of every row, and by hand where the step is plain SGD
