"""Statistics over seeds, between methods, over clients and over settings, with the tests of scipy.stats."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from lit_fedbabu.learning.evaluation import ACCURACY, Score

LEVEL = 0.95
"""Of every interval, and 1 minus the level of significance of the critical difference."""
SIGNED_RANK_SEEDS = 5
"""With fewer seeds Wilcoxon's p cannot come below 0.1."""
RANKED_METHODS, RANKED_SETTINGS = 3, 5
"""Fewer have no ranks."""
RESAMPLES = 9999
TIE = 1e-9
"""Smaller differences are rounding of equal values."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Args:
        count: of seeds.
        mean: over seeds.
        std: over seeds, with n - 1; None for one seed.
        interval: of the mean by Student's t; None for one seed.
    """

    count: int
    mean: float
    std: float | None
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Difference:
    """A method minus another one, paired by seed.

    Args:
        each: the difference in every seed.
        over: their mean, std and interval.
        ahead: in how many seeds it is better.
        level: in how many seeds it is 0.
        p: of the paired t-test; None for one seed, or where the difference is the same in every seed.
        p_signed_rank: of Wilcoxon's test; None in the same cases, and for fewer than five seeds.
    """

    each: tuple[float, ...]
    over: Estimate
    ahead: int
    level: int
    p: float | None
    p_signed_rank: float | None


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Methods by their ranks in every setting; 1 is the highest score.

    Args:
        average: rank of each method, (methods,).
        statistic: Friedman's chi-squared, corrected for ties.
        p: of Friedman's test.
        critical_difference: Nemenyi's: average ranks that are farther apart differ at 5 %.
    """

    average: npt.NDArray[np.float64]
    statistic: float
    p: float
    critical_difference: float


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and interval of the mean over seeds."""
    count, mean = len(values), float(np.mean(values))
    if count == 1:
        return Estimate(1, mean, None, None)
    std = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * std / math.sqrt(count)
    return Estimate(count, mean, std, (mean - half, mean + half))


def difference(first: Sequence[float], second: Sequence[float], higher_is_better: bool = True) -> Difference:
    """What ``first`` has more than ``second``; both have a value for each seed, in the same order."""
    each = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    each[np.abs(each) < TIE] = 0
    p = signed_rank = None
    if len(each) > 1 and np.ptp(each) > TIE:
        p = float(stats.ttest_1samp(each, 0).pvalue)
        if len(each) >= SIGNED_RANK_SEEDS:
            signed_rank = float(stats.wilcoxon(each.round(9)).pvalue)
    ahead, level = int((each > 0 if higher_is_better else each < 0).sum()), int((each == 0).sum())
    return Difference(tuple(each.tolist()), over_seeds(each.tolist()), ahead, level, p, signed_rank)


def holm(pvalues: Sequence[float | None]) -> list[float | None]:
    """The p of several comparisons, corrected by Holm's method; None is no comparison."""
    order = sorted((p, place) for place, p in enumerate(pvalues) if p is not None)
    corrected: list[float | None] = [None] * len(pvalues)
    least = 0.0
    for done, (p, place) in enumerate(order):
        corrected[place] = least = max(least, min(1.0, (len(order) - done) * p))
    return corrected


def over_clients(
    first: Sequence[float] | npt.NDArray[np.float64], second: Sequence[float] | npt.NDArray[np.float64]
) -> tuple[float, float] | None:
    """Interval of the mean difference over clients, by a bootstrap that draws clients with both of their values.

    The same values give the same interval. It says how the mean depends on which clients there are, and nothing about
    other seeds. None for one client.
    """
    gains = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if len(gains) == 1:
        return None
    batch = max(1, 2_000_000 // len(gains))  # 16 MB
    found = stats.bootstrap(
        (gains,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=batch,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def ranks(scores: npt.NDArray[np.float64]) -> Ranks | None:
    """Compare methods over settings by Friedman's and Nemenyi's tests (Demšar 2006).

    Args:
        scores: (settings, methods), more is better.

    Returns:
        None for fewer than three methods or five settings.
    """
    settings, methods = scores.shape
    if methods < RANKED_METHODS or settings < RANKED_SETTINGS:
        return None
    scores = scores.round(9)
    average = stats.rankdata(-scores, axis=1).mean(axis=0)
    if np.ptp(scores, axis=1).any():
        statistic, p = map(float, stats.friedmanchisquare(*scores.T))
    else:
        statistic, p = 0.0, 1.0
    quantile = float(stats.studentized_range.ppf(LEVEL, methods, np.inf)) / math.sqrt(2)
    return Ranks(average, statistic, p, quantile * math.sqrt(methods * (methods + 1) / (6 * settings)))


def in_words(name: str, other: str, found: Difference, corrected: float | None, score: Score = ACCURACY) -> str:
    """A difference as a sentence, of accuracies in percentage points, with the p that Holm's method gives it."""
    over = found.over
    seeds = f"{name} is ahead of {other} in {found.ahead} of {over.count} seeds"
    level = f", and level in {found.level}" if found.level else ""
    least = f"{10**-score.digits:.{score.digits}f}"
    points = f"less than {least}" if abs(over.mean) < float(least) else f"{abs(over.mean):.{score.digits}f}"
    points += " points" if score.is_accuracy else f" of {score.name}"
    average = " on average" if over.count > 1 else ""
    is_ahead = (over.mean > 0) == score.higher_is_better
    size = f", {'by' if is_ahead else 'behind by'} {points}{average}" if over.mean else ""
    if over.interval is None:
        return f"{seeds}{level}{size}; one seed gives no interval"
    if found.p is None or corrected is None:
        return f"{seeds}{level}{size}; the difference is the same in every seed"
    first, second = (shown if shown.startswith("<") else f"= {shown}" for shown in map(shown_p, (found.p, corrected)))
    return f"{seeds}{level}{size} (95 % interval {shown_interval(over, score)}, p {first}, corrected p {second})"


def plus_minus(over: Estimate, score: Score = ACCURACY) -> str:
    """Mean ± std over seeds; the mean alone for one seed."""
    mean = f"{over.mean:.{score.digits}f}"
    return mean if over.std is None else f"{mean} ± {over.std:.{score.digits}f}"


def shown_interval(over: Estimate, score: Score = ACCURACY) -> str:
    """The interval of a mean, with the decimals of the score; empty for one seed."""
    return "" if over.interval is None else " to ".join(f"{edge:.{score.digits}f}" for edge in over.interval)


def shown_p(p: float | None) -> str:
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"
