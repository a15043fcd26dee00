"""The order of the rooms, held by import-linter and by reading every file."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent.parent / "lit_fedbabu"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = {path: path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__") for path in FILES}
PLACES = {name: path for path, name in NAMES.items()}
CACHED = {
    "ground/system": ["source_digest"], "learning/trainer": ["quiet_lightning"], "ground/compat": ["entry_points"],
    "records/live": ["_template"],
}  # fmt: skip
"""All that is kept for the life of a process."""


def target(module):
    """The file that a module of this package lies in; None for others."""
    name = module.removeprefix("lit_fedbabu").lstrip(".").replace(".", "/")
    return (name or "__init__") if module.split(".")[0] == "lit_fedbabu" and (name or "__init__") in PLACES else None


def imports(path):
    """Files of this package that a file imports, anywhere in it, but for those for types alone."""
    tree = ast.parse(path.read_text())
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            skipped |= {id(each) for each in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found |= {target(f"{node.module}.{alias.name}") or target(node.module)}
        elif isinstance(node, ast.Import):
            found |= {target(alias.name) for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("lit_fedbabu."):
            found |= {target(node.value)}
    return found - {None, NAMES[path]}


def test_imports_run_downwards_and_nothing_reaches_images_but_tasks():
    """As pyproject.toml says it to import-linter."""
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_else_asks_which_task_it_has():
    question = re.compile(r"(if|or|and|not) [a-z_.]*config\.task\b|isinstance\([^)]*(CustomTask|ImageClassification)")
    for path in FILES:
        if not NAMES[path].startswith("tasks"):
            assert not question.search(path.read_text()), NAMES[path]


def test_imports_have_no_circle():
    @cache
    def height(name):
        return 1 + max((height(other) for other in imports(PLACES[name]) if other in PLACES), default=0)

    assert 5 < max(map(height, PLACES)) < 40, "a circle would not end"


def test_no_file_is_a_mixture():
    assert not [path for path in FILES if path.stem == "utils"]


def test_there_is_one_training_loop_and_it_is_lightnings():
    text = "\n".join(path.read_text() for path in FILES)
    assert ".backward(" not in text
    assert (text.count("L.Trainer("), text.count("return ClientTrainer(")) == (0, 1)


@pytest.mark.parametrize("path", FILES, ids=NAMES.get)
def test_nothing_else_is_cached_for_the_life_of_a_process(path):
    tree = ast.parse(path.read_text())
    decorated = [
        node.name
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.FunctionDef)
            and any(
                name in ast.unparse(each) for each in node.decorator_list for name in ("lru_cache", "functools.cache")
            )
        )
        or (isinstance(node, ast.FunctionDef) and any(ast.unparse(each) == "cache" for each in node.decorator_list))
    ]
    called = [
        "entry_points"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and "lru_cache" in ast.unparse(node.func)
    ]
    assert decorated + called == CACHED.get(NAMES[path], [])
