"""Whether what a client sends for results.json can be true."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lit_fedbabu.ground.errors import some
from lit_fedbabu.learning.evaluation import BINS, STAGES, Evaluation, FeatureProbe, Score
from lit_fedbabu.protocol.fields import LARGEST, MOST_SAMPLES, is_whole

ROUNDING = 1e-5
"""By which a mean of numbers up to 1 may be above it."""


def row_problem(row: Mapping[str, Any], score: Score, images: bool, epochs: int | None, num_test: int | None) -> str:
    """Why a client's entry, as of ``Personalization.as_row``, cannot be true; empty if it can.

    Args:
        row: as it was sent: numbers and lists of numbers by any names, with ``num_test`` and the client's number.
        score: what clients are compared by.
        images: whether they are classified, so that the names are known and losses alone are above 1.
        epochs: of fine-tuning; None: the client was asked for its initial score alone.
        num_test: the client's test samples, where they are known.
    """
    if not is_whole(row["num_test"], 1, MOST_SAMPLES) or num_test not in (None, row["num_test"]):
        return f"says that it has {str(row['num_test'])[:50]} test samples" + (f", not {num_test}" if num_test else "")
    values = {key: value for key, value in row.items() if key not in ("client", "num_test")}
    stages = STAGES if epochs is not None else STAGES[:1]
    needed = {f"{stage}_{score.name}" for stage in stages}
    known = {key for key in values if key.startswith(tuple(f"{stage}_" for stage in stages)) and key.isprintable()}
    if images:
        needed = known = {f"{stage}_{measure}" for stage in stages for measure in _measures(probed=epochs is not None)}
    curve = f"{score.name}_epoch_"
    if epochs is not None:
        found = sum(key.startswith(curve) for key in values)
        needed = needed | {f"{curve}{epoch}" for epoch in range(min(max(found, 1), epochs + 1))}
    if odd := sorted((values.keys() - known - needed) | (needed - values.keys())):
        return f"sends other measures than those that it was asked for: {some(key[:100] for key in odd)!r}"
    for key, value in values.items():
        if not _is_possible(key, value, images, row["num_test"]):
            return f"its {key} cannot be {str(value)[:50]}"
    return ""


def _measures(probed: bool) -> list[str]:
    """Names of the measures of a classifier."""
    if not probed:
        return ["accuracy", "loss"]
    return [
        each.name for kind in (Evaluation, FeatureProbe) for each in dataclasses.fields(kind) if each.name != "count"
    ]


def _is_possible(key: str, value: Any, images: bool, num_test: int) -> bool:
    """Whether a measure can have this value. What is not finite is that of a model that diverged."""
    least, most = (0.0, 1.0) if images and not key.endswith("_loss") else (0.0 if images else -LARGEST, LARGEST)
    if images and "_bin_" in key:
        return isinstance(value, list) and len(value) == BINS and all(0 <= each <= num_test for each in value)
    if isinstance(value, list):
        return False
    return not math.isfinite(value) or least - ROUNDING <= value <= most + ROUNDING
