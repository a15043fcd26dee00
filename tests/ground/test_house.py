"""The order of the rooms, held by reading every import of every file."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent.parent / "lit_fedbabu"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = {path: path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__") for path in FILES}
PLACES = {name: path for path, name in NAMES.items()}
DOORS = {
    "run", "finetune", "body", "predict", "study", "report", "data", "credentials", "configs", "doctor",
    "superlink", "supernode", "client_app", "server_app", "__main__", "__init__",
}  # fmt: skip
FLOORS = [
    {"printing"}, {"places", "stops", "compat"}, {"errors", "length"}, {"system"}, {"workers"}, {"files"}, {"options"},
    {"option_rules"}, {"derived"}, {"config"},
    {"handshake", "option_text", "words"}, {"fields"}, {"wire"}, {"plain"}, {"learning"},
    {"algorithms/algorithm", "algorithms/steps"},
    {
        "algorithms/apfl", "algorithms/fedala", "algorithms/fedas", "algorithms/feddbe", "algorithms/feddyn",
        "algorithms/fednova", "algorithms/fedrod", "algorithms/ifca", "algorithms/moon", "algorithms/pfedfda",
        "algorithms/scaffold",
    },
    {"algorithms/table"},
    {"tasks"},
    {"experiment", "completion"}, {"algorithms"}, {"aggregation"}, {"records"},
    {"server", "client", "personal", "reporting", "engines"}, {"studies"}, DOORS,
]  # fmt: skip
"""Files and folders from the bottom to the top. A folder imports only from lower floors and from itself."""
CACHED = {"system": ["source_digest"], "learning/trainer": ["quiet_lightning"], "compat": ["entry_points"]}
"""All that is kept for the life of a process."""


def place_of(name):
    """The entry of FLOORS that a file belongs to, and the number of its floor."""
    for entry in (name, name.partition("/")[0]):
        for number, floor in enumerate(FLOORS):
            if entry in floor:
                return entry, number
    raise AssertionError(f"give lit_fedbabu/{name}.py a place in FLOORS")


def target(module):
    """The file that a module of this package lies in; None for others."""
    name = module.removeprefix("lit_fedbabu").lstrip(".").replace(".", "/")
    return (name or "__init__") if module.split(".")[0] == "lit_fedbabu" and (name or "__init__") in PLACES else None


def imports(path, typing=True):
    """Files of this package that a file imports, anywhere in it; without those for types alone if not ``typing``."""
    tree = ast.parse(path.read_text())
    skipped = set()
    if not typing:
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


@pytest.mark.parametrize("path", FILES, ids=NAMES.get)
def test_imports_run_downwards_and_siblings_do_not_know_each_other(path):
    name = NAMES[path] or "__init__"
    room, floor = place_of(name)
    for other in imports(path, typing=name != "__init__"):
        other_room, other_floor = place_of(other)
        if room == other_room:
            continue
        apps = room == "engines" and other in ("client_app", "server_app")
        version = name == "__main__" and other == "__init__"
        assert other_floor < floor or apps or version, f"{name} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=NAMES.get)
def test_only_tasks_know_of_images(path):
    if not NAMES[path].startswith("tasks"):
        assert not [other for other in imports(path, typing=False) if other.startswith("tasks/images")]


def test_nothing_else_reaches_images_through_other_files():
    """But for reading images that are predicted. The class of a task is found by its name, as a user's is."""

    graph = {name: imports(path, typing=False) - {"tasks/preprocessing"} for name, path in PLACES.items()}
    for name in PLACES:
        found, open_ = set(), {name}
        while open_:
            found |= open_
            open_ = set().union(*(graph[each] for each in open_)) - found
        assert name.startswith("tasks") or not [each for each in found if each.startswith("tasks/images")], name


def test_nothing_else_asks_which_task_it_has():
    question = re.compile(r"(if|or|and|not) [a-z_.]*config\.task\b|isinstance\([^)]*(CustomTask|ImageClassification)")
    for path in FILES:
        if not NAMES[path].startswith("tasks"):
            assert not question.search(path.read_text()), NAMES[path]


def test_imports_have_no_circle():
    @cache
    def height(name):
        return 1 + max((height(other) for other in imports(PLACES[name], typing=False) if other in PLACES), default=0)

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
