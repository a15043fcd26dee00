"""The page of all messages, read from the source: what is refused and what stops a run, with cause and remedy."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "lit_fedbabu"
ERRORS = {"InputError": "Refused before any work", "RunError": "Stops a run"}
INTRODUCTION = """# Every message

What commands refuse, and what stops a run, as the source has it; `…` stands for names, numbers and values. Each
message is one line, and says what is wrong and what to do. A refusal begins with `error: KEY = VALUE:`, and its exit
status is 2; of what stops a run it is 1. [Troubleshooting](troubleshooting.md) has more on the most frequent.
"""


def messages() -> Iterator[tuple[str, str, str]]:
    """Kind, key and text of every error that is raised, in the order of files."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for function in (each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)):
            known: dict[str, ast.expr] = {}
            for each in ast.walk(function):
                if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name):
                    known[each.targets[0].id] = each.value
            for call in ast.walk(function):
                if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ERRORS):
                    continue
                if call.func.id == "InputError" and len(call.args) == 3:
                    yield call.func.id, text_of(call.args[0], known), text_of(call.args[2], known)
                elif call.func.id == "RunError" and call.args:
                    yield call.func.id, "", text_of(call.args[0], known)


def text_of(node: ast.expr, known: dict[str, ast.expr], depth: int = 3) -> str:
    """A text of the source; what is not known before it runs is an ellipsis."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(each, known, depth) for each in node.values)
    if isinstance(node, ast.FormattedValue):
        return text_of(node.value, known, depth)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left, known, depth) + text_of(node.right, known, depth)
    if isinstance(node, ast.Name) and node.id in known and depth:
        return text_of(known[node.id], known, depth - 1)
    return "…"


def page() -> str:
    """The page in Markdown."""
    parts = [INTRODUCTION]
    for kind, title in ERRORS.items():
        rows = sorted({(key, text) for found, key, text in messages() if found == kind and text.strip("… ")})
        head = "| key | message |\n|---|---|" if kind == "InputError" else "| message |\n|---|"
        keys = [f"| `{key}` " if kind == "InputError" else "" for key, _ in rows]
        body = [f"{key}| {escaped(text)} |" for key, (_, text) in zip(keys, rows, strict=True)]
        parts += [f"## {title}", "\n".join([head, *body])]
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """A text in a cell of a table, in which nothing is a mark."""
    text = " ".join(text.split())
    for mark in "\\`*_[]|<>":
        text = text.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return text
