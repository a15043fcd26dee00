import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lit_fedbabu"
ORDER = [
    "config", "runs", "models", "algorithms", "hub", "sources", "partition", "preflight", "batches", "module",
    "cohort", "training", "steps", "memory", "update", "card", "compare", "figures", "checkpoint", "board",
    "privacy", "sampling", "nodes", "aggregation", "failures", "strategy", "client", "host", "worker", "warm",
    "client_app", "server_app", "superlink", "run", "newcomer", "sweep", "finetune", "predict", "report", "data",
    "credentials",
]  # fmt: skip
SERVER = {"sampling", "nodes", "aggregation", "failures", "strategy", "server_app", "board"}
CLIENT = {"client", "host", "worker", "warm", "client_app"}


def imported(path):
    """Names of this package's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "lit_fedbabu":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lit_fedbabu."):
            yield node.module.removeprefix("lit_fedbabu.")


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_imports_run_downwards_and_the_server_never_imports_the_client(path):
    room = path.stem
    assert room in ORDER, "give the new room a place in ORDER"
    for other in imported(path):
        assert ORDER.index(other) < ORDER.index(room), f"{room} imports {other}"
        assert not (room in SERVER and other in CLIENT), f"{room} imports {other}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_no_room_is_long(path):
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 260


def test_there_is_one_training_loop_and_it_is_lightnings():
    text = "\n".join(path.read_text() for path in PACKAGE.glob("*.py"))
    assert ".backward(" not in text and text.count("L.Trainer(") == 1
