"""What a report shows, in the order of the page: sections with words, tables and figures."""

import dataclasses
from collections.abc import Sequence

from lit_fedbabu.reporting import differences, dots, facts, figures, reliability, tables
from lit_fedbabu.reporting.compare import Study
from lit_fedbabu.reporting.formats import Table
from lit_fedbabu.reporting.panels import Drawing
from lit_fedbabu.reporting.statistics import shown_p

PAIRED = (
    "Runs are paired by seed. The interval and p are of Student's t on the differences; p of several methods is"
    " corrected by Holm's method, in each setting and for each stage. Wilcoxon's test needs five seeds."
)
BOOTSTRAP = (
    "Within one run, or two runs of a seed, clients are paired. Intervals are by a bootstrap over clients: they say how"
    " the mean depends on which clients there are, and nothing about other seeds."
)
METHODS = (
    "Accuracies in percent. Initial is the model as received, personalized after fine-tuning. Means are over clients"
    " and over seeds, the interval is of the mean over seeds by Student's t, and the worst decile is the mean of the"
    " weakest tenth of the clients. One seed has no std and no interval over seeds; where evaluate-clients drew the"
    " clients, its interval is of the mean over all of them. Models after the rounds are one for"
    " all clients or one each; bounds are what can be had without a federation."
)
OVER_SEEDS = "Mean ± std over seeds."
FINETUNED = "Means over clients and seeds, accuracies in percent; empty where a seed did not go that far."
FAIRNESS = "Means over seeds, accuracies in percent. Fairness is Jain's index: 1 where all clients are equal."
NEW_CLIENTS = (
    "Clients that had no part in any round. Each starts from what its method gives a newcomer, what is shared over the"
    " initial model, and is fine-tuned as the others are; it is in no other table and figure."
)
UNFINISHED = "They are in no figure, and in no other table but that of failures."
TUNING = "Chosen before the runs, on training images that were held out; no test image had a part in the choice."
PRIVACY = (
    "Epsilon is of shared weights, of the seed that spent most: with central privacy of a client, for whoever gets"
    " them, with local privacy also for the server, of the client that was asked most often; with privacy of samples"
    " of one sample of the client that spent most, likewise. Losses, accuracies and numbers of images are not covered."
)
COST = (
    "Images seen are what the drawn clients have on average, in all their epochs, and empty where not all clients were"
    " counted. Bytes are of shared weights without framing, seconds of rounds without evaluation; both are in"
    " TensorBoard's event files, and empty without them."
)


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report.

    Args:
        title: of it.
        words: paragraphs above its tables.
        tables: those that have rows.
        drawings: its figures.
    """

    title: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    drawings: Sequence[Drawing] = ()


def sections(study: Study) -> list[Section]:
    """All of a report; sections without content are left out, but for failures."""
    ranked = differences.ranking(study)
    calibrations = dots.calibrations(study)
    failures, more = facts.failure_table(study)
    count, score = sum(len(run.failures) for run in study.every), study.score
    failed = f"{count} failures of clients in {len(study.every)} runs." if count else "No client failed."
    found = [
        Section(
            score.title,
            tables=_tables(
                ("settings", f"Personalized {score.name} by setting", tables.setting_table(study), OVER_SEEDS),
                ("methods", "Methods", tables.method_table(study), METHODS),
                ("unfinished", "Runs without results", facts.unfinished_table(study), UNFINISHED),
                ("tuning", "Options chosen on a validation split", facts.tuning_table(study), TUNING),
                ("names", "What the names stand for", facts.name_table(study), ""),
            ),
        ),
        Section(
            "Differences",
            [*differences.sentences(study), *differences.unpaired(study)],
            _tables(
                ("differences", "Methods minus the reference", differences.difference_table(study), PAIRED),
                ("clients", "Client by client", differences.client_table(study), BOOTSTRAP),
            ),
            _drawings(dots.differences(study)),
        ),
        Section(
            "Ranks",
            ranking_words(ranked, study) if ranked else (),
            _tables(("ranks", "Average ranks over settings", differences.rank_table(ranked) if ranked else [], "")),
            _drawings(dots.ranks(ranked) if ranked else None),
        ),
        Section("Learning curves", drawings=_drawings(figures.rounds(study), figures.simulated_time(study))),
        Section(
            "Fine-tuning",
            tables=_tables(("finetuning", f"{score.title} over epochs", tables.finetuning_table(study), FINETUNED)),
            drawings=_drawings(figures.finetuning(study)),
        ),
        Section(
            "Clients",
            tables=_tables(
                ("each-client", "Each client", tables.each_client_table(study), ""),
                ("fairness", "Fairness and worst decile", tables.fairness_table(study), FAIRNESS),
            ),
            drawings=_drawings(figures.clients(study), dots.fairness(study)),
        ),
        Section(
            "New clients", (), _tables(("new-clients", "New clients", tables.new_client_table(study), NEW_CLIENTS))
        ),
        Section(
            "Calibration and other measures",
            [] if calibrations else ["Calibration error was measured in none of the runs."],
            _tables(("measures", "Measures", tables.measure_table(study), "Means over clients and seeds, 0 to 1.")),
            _drawings(calibrations, reliability.reliability(study)),
        ),
        Section(
            "Privacy",
            tables=_tables(("privacy", "Epsilon and what was reached", tables.privacy_table(study), PRIVACY)),
            drawings=_drawings(figures.privacy(study)),
        ),
        Section("Cost", (), _tables(("cost", "Cost", tables.cost_table(study), COST)), _drawings(figures.cost(study))),
        Section(
            "Split", (), _tables(("split", "Splits", facts.split_table(study), "")), _drawings(figures.partition(study))
        ),
    ]
    return [
        *(each for each in found if each.words or each.tables or each.drawings),
        Section(
            "Failures",
            [failed, more] if more else [failed],
            _tables(("failures", "Failures of clients", failures, "")),
        ),
        Section(
            "Configuration, versions and machines",
            tables=_tables(
                ("runs", "What differs between the runs", facts.run_table(study), ""),
                ("common", "What is the same in all runs", facts.common_table(study), ""),
                ("machines", "Machines", facts.machine_table(study), ""),
            ),
        ),
    ]


def _tables(*given: tuple[str, str, Sequence[tables.Row], str]) -> list[Table]:
    return [Table(name, title, rows, note) for name, title, rows, note in given if rows]


def _drawings(*given: Drawing | None) -> list[Drawing]:
    return [each for each in given if each is not None]


def ranking_words(ranked: differences.Ranking, study: Study) -> list[str]:
    """What the ranks say as a whole, and what has none."""
    found = ranked.found
    left_out = [name for name in study.methods if name not in ranked.methods]
    first = (
        f"Ranks by personalized {study.score.name} in {len(ranked.settings)} settings. Friedman's test of the"
        f" hypothesis that all methods rank alike: chi-squared {found.statistic:.2f}, p {shown_p(found.p)}. Nemenyi's"
        f" critical difference at 5 %: {found.critical_difference:.2f} ranks."
    )
    told = [first]
    if left_out:
        told.append(f"Not ranked, for they were run in too few settings: {', '.join(left_out)}.")
    if len(ranked.settings) < len(study.settings):
        count = len(study.settings) - len(ranked.settings)
        told.append(f"Left out: {count} setting{'s that lack' if count > 1 else ' that lacks'} one of the methods.")
    return told
