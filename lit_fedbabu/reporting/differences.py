"""Differences between methods: paired by seed, by client, and by ranks over settings."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lit_fedbabu.reporting.compare import Cell, Study, pairs_of
from lit_fedbabu.reporting.statistics import (
    RANKED_SETTINGS,
    SIGNED_RANK_SEEDS,
    Difference,
    Ranks,
    difference,
    holm,
    in_words,
    over_clients,
    ranks,
    shown_interval,
    shown_p,
)
from lit_fedbabu.reporting.tables import Row, place

TOLD = 6
"""Methods of a setting that have a sentence each; more of them share one."""
LEVEL = 0.05
SHOWN_SEEDS = 5
"""More are counted instead of listed."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A method minus the reference, in one setting, by the initial or the personalized score.

    Args:
        cell: the method.
        stage: of the score.
        seeds: of the pairs.
        found: the difference.
        corrected: p of the t-test, corrected over the methods compared.
        corrected_signed_rank: the same of Wilcoxon's test.
        kinds: what is the same in the pairs.
    """

    cell: Cell
    stage: str
    seeds: tuple[int, ...]
    found: Difference
    corrected: float | None
    corrected_signed_rank: float | None
    kinds: str


def comparisons(study: Study, stage: str) -> list[Comparison]:
    """Every method with the reference in every setting where both have a seed in common."""
    made = []
    for setting in study.settings:
        cells = study.of_setting(setting)
        reference = next((cell for cell in cells if cell.method == study.reference), None)
        if reference is None:
            continue
        others = [cell for cell in cells if cell is not reference]
        paired = [(cell, pairs) for cell in others if (pairs := pairs_of(cell, reference)).runs]
        found = [
            difference(
                [run.spreads(stage)["mean"] for run, _ in pairs.runs],
                [run.spreads(stage)["mean"] for _, run in pairs.runs],
                study.score.higher_is_better,
            )
            for _, pairs in paired
        ]
        corrected = holm([each.p for each in found])
        signed_rank = holm([each.p_signed_rank for each in found])
        for (cell, pairs), each, p, p_signed_rank in zip(paired, found, corrected, signed_rank, strict=True):
            seeds = tuple(run.config.seed for run, _ in pairs.runs)
            made.append(Comparison(cell, stage, seeds, each, p, p_signed_rank, pairs.kinds))
    return made


def sentences(study: Study) -> list[str]:
    """What the personalized scores say of methods beside the reference: of many in one sentence for each setting."""
    told, made = [], comparisons(study, "personalized")
    for setting in study.settings:
        found = [each for each in made if each.cell.setting == setting]
        words = [in_words(each.cell.method, study.reference, each.found, each.corrected, study.score) for each in found]
        if len(found) > TOLD:
            words = [_together(found, study)]
        told += [f"{setting}: {each}." if len(study.settings) > 1 else f"{each}." for each in words]
    return told


def _together(found: Sequence[Comparison], study: Study) -> str:
    """Which methods are ahead of the reference and which are behind it, with their mean differences."""
    ahead, behind = f"ahead of {study.reference}", f"behind {study.reference}"
    no_difference, untested = "no difference is shown", "not tested, for want of seeds that differ"
    groups: dict[str, list[str]] = {title: [] for title in (ahead, behind, no_difference, untested)}
    for each in found:
        if each.corrected is None:
            title = untested
        elif each.corrected >= LEVEL:
            title = no_difference
        else:
            title = ahead if (each.found.over.mean > 0) == study.score.higher_is_better else behind
        groups[title].append(f"{each.cell.method} ({each.found.over.mean:+.{study.score.digits}f})")
    told = [f"{title}: {', '.join(names)}" for title, names in groups.items() if names]
    return "; ".join([f"p below {LEVEL} after Holm's correction, mean differences in brackets", *told])


def unpaired(study: Study) -> list[str]:
    """What could not be compared with the reference, and why."""
    told = []
    for setting in study.settings:
        where = f" in {setting}" if len(study.settings) > 1 else ""
        cells = study.of_setting(setting)
        reference = next((cell for cell in cells if cell.method == study.reference), None)
        if reference is None:
            told.append(f"{study.reference} has no run{where}: nothing is compared there.")
            continue
        for cell in (each for each in cells if each is not reference):
            pairs = pairs_of(cell, reference)
            if pairs.left_out:
                seeds = ", ".join(map(str, pairs.left_out))
                told.append(f"{cell.method}{where}: seed {seeds} left out, for its split is not {study.reference}'s.")
            elif not pairs.runs:
                told.append(f"{cell.method}{where}: no seed in common with {study.reference}.")
    return told


def difference_table(study: Study) -> list[Row]:
    """A row for every method beside the reference and stage; accuracies in percentage points."""
    digits = study.score.digits
    made = [each for stage in ("personalized", "initial") for each in comparisons(study, stage)]
    wilcoxon = any(each.found.over.count >= SIGNED_RANK_SEEDS for each in made)
    rows = []
    for each in made:
        count = len(each.seeds)
        listed = count <= SHOWN_SEEDS
        row = {
            **place(study, each.cell),
            "minus": study.reference,
            study.score.name: each.stage,
            "seeds": ", ".join(map(str, each.seeds)) if listed else str(count),
            "differences": ", ".join(f"{value:.{digits}f}" for value in each.found.each) if listed else "",
            "ahead": f"{each.found.ahead} of {count}",
            "mean": f"{each.found.over.mean:.{digits}f}",
            "95 % interval": shown_interval(each.found.over, study.score),
            "p": shown_p(each.found.p),
            "p, Holm": shown_p(each.corrected),
        }
        if wilcoxon:
            row |= {
                "p, Wilcoxon": shown_p(each.found.p_signed_rank),
                "p, Wilcoxon, Holm": shown_p(each.corrected_signed_rank),
            }
        rows.append({**row, "pairs": each.kinds})
    return rows


def client_table(study: Study) -> list[Row]:
    """Personalized scores compared client by client within each seed; accuracies in percentage points.

    Every run beside its own initial model, and beside the reference's run of the same seed where both have the same
    clients.
    """
    digits, better = study.score.digits, 1 if study.score.higher_is_better else -1
    rows = []
    for cell in study.cells:
        reference = next((each for each in study.of_setting(cell.setting) if each.method == study.reference), None)
        others = {}
        if reference is not None and reference is not cell:
            others = {run.config.seed: other for run, other in pairs_of(cell, reference).runs}
        for run in cell.runs:
            own = run.scores("personalized")
            beside = {"its initial model": run.scores("initial")}
            other = others.get(run.config.seed)
            if other is not None and np.array_equal(run.of_clients("client"), other.of_clients("client")):
                beside[study.reference] = other.scores("personalized")
            for name, values in beside.items():
                interval = over_clients(own, values)
                rows.append(
                    {
                        **place(study, cell),
                        "seed": run.config.seed,
                        "minus": name,
                        "clients": len(own),
                        "ahead": int((better * own > better * values).sum()),
                        "level": int((own == values).sum()),
                        "mean": f"{(own - values).mean():.{digits}f}",
                        "95 % interval over clients": " to ".join(f"{edge:.{digits}f}" for edge in interval or ()),
                    }
                )
    return rows


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Methods ranked over settings by personalized score, mean over seeds.

    Args:
        methods: those that were run in all of the settings.
        settings: that have all of the methods.
        found: their ranks.
    """

    methods: list[str]
    settings: list[str]
    found: Ranks


def ranking(study: Study) -> Ranking | None:
    """Ranks of the methods that were run in five settings or more; None if there are too few of either."""
    better = 1 if study.score.higher_is_better else -1
    means = {(cell.method, cell.setting): better * float(np.mean(cell.means("personalized"))) for cell in study.cells}
    often = [
        method for method in study.methods if sum((method, each) in means for each in study.settings) >= RANKED_SETTINGS
    ]
    settings = [each for each in study.settings if all((method, each) in means for method in often)]
    scores = np.array([[means[method, each] for method in often] for each in settings])
    found = ranks(scores.reshape(len(settings), len(often)))
    return Ranking(often, settings, found) if found else None


def rank_table(ranked: Ranking) -> list[Row]:
    """A row for every method, the highest first."""
    order = np.argsort(ranked.found.average, kind="stable")
    return [
        {
            "method": ranked.methods[place],
            "average rank": f"{ranked.found.average[place]:.2f}",
            "settings": len(ranked.settings),
        }
        for place in order
    ]
