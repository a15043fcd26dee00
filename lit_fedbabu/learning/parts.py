"""The parts of a model: a *body* that extracts features, a *head* that classifies them, and those that a task names."""

from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

PARTS = ("body", "head")
NORM = "norm"
"""The part of normalization layers, which lies across body and head."""
REST = "rest"
"""What of a user's module lies in no part: weights that its maker froze, and buffers. It never travels."""
FRAME = "head.etf"
"""The frame of classes of a head as of ``simplex.SimplexHead``, which follows from the seed."""
PRIVATE = "private"
"""Where the provenance of a checkpoint has the names of weights that stay with clients, though their part travels."""

Value = TypeVar("Value")


def parts_of(part: str) -> tuple[str, ...]:
    """The parts that a mode names: "full" is body and head, "none" is none; others are themselves, as "body+neck"."""
    return {"full": PARTS, "none": ()}.get(part, tuple(part.split("+")))


def select(state: Mapping[str, Value], parts: Iterable[str]) -> dict[str, Value]:
    """The entries of a model's state that lie in the given parts, in the order of the state."""
    prefixes = tuple(f"{part}." for part in parts)
    return {name: value for name, value in state.items() if name.startswith(prefixes)}


def behind(prefix: str, state: Mapping[str, Value]) -> dict[str, Value]:
    """The entries whose names begin with a prefix, under the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def without(state: Mapping[str, Value], names: Collection[str]) -> dict[str, Value]:
    """The entries of a model's state but those of these names."""
    return {name: value for name, value in state.items() if name not in names}
