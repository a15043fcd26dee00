"""Results of a last round in which some clients could not be evaluated, kept for the run that is resumed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.files import write_json
from lit_fedbabu.records.results import everyone, refuse_unnumbered

INCOMPLETE = "results.incomplete.json"
"""What is known where clients could not be evaluated after the last round."""


def write_incomplete(folder: Path, outcome: Mapping[str, Any], missing: Sequence[int], arrays: str) -> Path:
    """Keep the results of the clients that were evaluated after the last round, for a run that is to be resumed.

    Args:
        folder: the run's.
        outcome: of ``results``, of these clients.
        missing: the clients that were not evaluated.
        arrays: digest of the shared weights that they are of.
    """
    path = folder / INCOMPLETE
    write_json(path, {"missing": list(missing), "arrays": arrays, **outcome})
    return path


def read_incomplete(folder: Path, arrays: str) -> list[dict[str, Any]]:
    """The clients' entries that ``write_incomplete`` kept; none where they are of other weights.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / INCOMPLETE
    if not path.exists():
        return []
    try:
        kept = json.loads(path.read_text())
        rows: list[dict[str, Any]] = everyone(kept)
        refuse_unnumbered(rows)
        return rows if kept["arrays"] == arrays else []
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError("results", str(path), f"cannot be read: {error!r}; delete it to evaluate all again") from None
