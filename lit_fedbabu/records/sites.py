"""sites.json of a run: which sites are registered and there, what each did and failed at, and what is next for it."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.files import write_json

SITES = "sites.json"
KINDS = {
    "site": int, "name": str, "registered": str, "online": bool, "since": str, "seen": str, "round": int,
    "failures": dict, "epsilon": str, "next": str,
}  # fmt: skip
"""Entries of a site and their types. Times are local ones in ISO 8601; empty or zero: not known."""
COLUMNS = {
    "site": "site", "name": "name", "registered": "registered", "there": "there", "round": "round",
    "failures": "failures", "epsilon": "epsilon", "next": "next step",
}  # fmt: skip


class Seen(NamedTuple):
    """What Flower says of a site that is there, in seconds since 1970.

    Args:
        registered: when its key was.
        since: when it came.
        last: when it last said that it is there.
    """

    registered: float
    since: float
    last: float


class Sites:
    """What is known of the sites of a run that goes on, or that was resumed.

    Args:
        folder: the run's.
        names: of the sites, by their numbers.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        empty: dict[str, Any] = {"registered": "", "online": True, "since": "", "seen": "", "round": 0}
        empty |= {"failures": {}, "epsilon": "", "next": ""}
        self.rows: list[dict[str, Any]] = [{"site": site, "name": name, **empty} for site, name in enumerate(names)]
        if (folder / SITES).exists():
            for row, before in zip(self.rows, read(folder)["sites"], strict=False):
                row |= {key: before[key] for key in ("registered", "since", "seen", "round", "failures", "epsilon")}

    def saw(self, there: Mapping[int, Seen]) -> None:
        """Take down which sites are there."""
        for row in self.rows:
            row["online"] = row["site"] in there
            if row["online"]:
                seen = there[row["site"]]
                row |= {"registered": _iso(seen.registered), "since": _iso(seen.since), "seen": _iso(seen.last)}

    def trained(self, server_round: int, clients: Iterable[int], epsilons: Mapping[int, float]) -> None:
        """Sites trained in a round, by whose end each has spent so much of its privacy, where that is known."""
        for client in clients:
            self.rows[client]["round"] = server_round
        for client, epsilon in epsilons.items():
            self.rows[client]["epsilon"] = f"{epsilon:.3g}"

    def failed(self, client: int, kind: str) -> None:
        """A site failed."""
        failures = Counter(self.rows[client]["failures"])
        failures[kind] += 1
        self.rows[client]["failures"] = dict(failures)

    def write(self, state: str, asked: Iterable[int], going: bool, bad: bool) -> None:
        """Write the file; ``state``, ``going`` and ``bad`` are those of the run's page, ``asked`` whom it waits for."""
        asked, now = set(asked), state.partition(":")[0]
        for row in self.rows:
            if going:
                is_asked = f"asked: {now}" if row["site"] in asked else "waits"
                row["next"] = is_asked if row["online"] else "start its SuperNode"
            else:
                row["next"] = "the run is resumed" if bad else "finetune --save"
        write_json(self._folder / SITES, {"state": state, "going": going, "written": time.time(), "sites": self.rows})


def kind_of(reason: str) -> str:
    """A reason of failures.jsonl in a word: gone, late, error where the site raised one, or what it sent is refused."""
    first = reason.partition(":")[0]
    if "Node Unavailable" in reason:
        return "gone"
    return "late" if first == "late" else "error" if first.isidentifier() else "refused"


def read(folder: Path) -> dict[str, Any]:
    """The content of the file.

    Raises:
        InputError: there is none, or it is damaged.
    """
    try:
        content: dict[str, Any] = json.loads((folder / SITES).read_text())
        types = {"state": str, "going": bool, "written": float, "sites": list}
        for values, kinds in [(content, types), *((row, KINDS) for row in content["sites"])]:
            if wrong := [key for key, kind in kinds.items() if type(values[key]) is not kind]:
                raise ValueError(f"has a false {wrong[0]}")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError("file", str(folder / SITES), f"cannot be read: {error}; delete it, a run writes it") from None
    return content


def cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The table of sites: its columns, without those that nothing is known of, and the rows of texts."""
    table = [
        {
            "site": str(row["site"]),
            "name": row["name"],
            "registered": row["registered"][:10],
            "there": _when("since", row["since"]) if row["online"] else _when("gone", row["seen"]),
            "round": str(row["round"] or ""),
            "failures": ", ".join(f"{count} {kind}" for kind, count in row["failures"].items()),
            "epsilon": row["epsilon"],
            "next": row["next"],
        }
        for row in rows
    ]
    shown = [key for key in COLUMNS if key not in ("name", "epsilon") or any(row[key] for row in table)]
    return [COLUMNS[key] for key in shown], [[row[key] for key in shown] for row in table]


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))


def _when(word: str, iso: str) -> str:
    """With the time of today, or else the day; nothing where it is not known."""
    return f"{word} {iso[11:16] if iso[:10] == time.strftime('%Y-%m-%d') else iso[5:10]}" if iso else ""
