"""What the runs were: names, splits, failures, configuration, versions and machines."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lit_fedbabu.algorithms.table import title_of
from lit_fedbabu.records.run_folder import TUNED
from lit_fedbabu.reporting.compare import Study
from lit_fedbabu.reporting.runs import Partition, Run
from lit_fedbabu.reporting.tables import Row, place

SHOWN_FAILURES = 100
"""Rows of the table of failures; the rest is counted."""
MOST = 3
"""Settings or seeds that are named in the title of a split."""
REASON = 300
"""Characters of a reason that are shown."""


def name_table(study: Study) -> list[Row]:
    """What the names of methods and settings stand for, where an option tells them apart."""
    kinds = {"method": study.methods, "setting": study.settings}
    return [
        {"name": name, "kind": kind, "options": ", ".join(f"{key} = {value}" for key, value in options.items())}
        for kind, named in kinds.items()
        for name, options in named.items()
        if options
    ]


def tuning_table(study: Study) -> list[Row]:
    """What was chosen for each method, among what, and on what."""
    rows = [
        {**place(study, cell), "chosen": run.environment.get(TUNED, "")} for cell in study.cells for run in cell.runs
    ]
    return [dict(row) for row in dict.fromkeys(tuple(each.items()) for each in rows if each["chosen"])]


def splits(study: Study) -> list[tuple[str, Partition, list[Run]]]:
    """Every different split: a title, the split, and the runs that have it."""
    found: dict[str, list[tuple[str, Run]]] = defaultdict(list)
    for cell in study.cells:
        for run in cell.runs:
            if run.partition:
                found[run.partition.text].append((cell.setting, run))
    named = []
    for members in found.values():
        settings = list(dict.fromkeys(setting for setting, _ in members))
        runs = [run for _, run in members]
        seeds = [f"seed {seed}" for seed in sorted({run.config.seed for run in runs})]
        where = settings if len(settings) <= MOST else [f"{len(settings)} settings"]
        words = [*(where if len(settings) < len(study.settings) else []), *seeds[:MOST]]
        title = ", ".join([*words, *([f"and {len(seeds) - MOST} more"] if len(seeds) > MOST else [])])
        partition = runs[0].partition
        if partition:
            named.append((title, partition, runs))
    return named


def split_table(study: Study) -> list[Row]:
    """A row for every split: how many training images and classes the clients have."""
    rows = []
    for title, partition, members in splits(study):
        images, classes = partition.train.sum(1), (partition.train > 0).sum(1)
        row: Row = {"split": title, "runs": len(members), "clients": len(images), "classes": len(partition.names)}
        for what, values in (("images", images), ("classes", classes)):
            row[f"fewest {what}"] = int(values.min())
            row[f"mean {what}"] = f"{values.mean():.1f}"
            row[f"most {what}"] = int(values.max())
        rows.append(row)
    return rows


def unfinished_table(study: Study) -> list[Row]:
    """A row for every run that has no results."""
    names = study.names
    rows = []
    for each in study.unfinished:
        row = {"run": names[each.folder], "method": title_of(each.config.algorithm), "seed": each.config.seed}
        rows.append({**row, "why": short(each.reason, REASON)})
    return rows


def failure_table(study: Study) -> tuple[list[Row], str]:
    """A row for every reason in every run, the most frequent first, and a note on what is not shown."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    names = study.names
    for run in study.every:
        for failure in run.failures:
            found[names[run.folder], str(failure["reason"])].append(failure)
    rows: list[Row] = [
        {
            "run": name,
            "failures": len(failures),
            "clients": _counted(failures, "client"),
            "rounds": _counted(failures, "round"),
            "reason": short(reason, REASON),
        }
        for (name, reason), failures in sorted(found.items(), key=lambda entry: -len(entry[1]))
    ]
    rest = rows[SHOWN_FAILURES:]
    left_out = f"{len(rest)} more rows with {sum(row['failures'] for row in rest)} failures are in the runs' own files."
    return rows[:SHOWN_FAILURES], left_out if rest else ""


def short(text: str, most: int) -> str:
    """A text in so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _counted(failures: Sequence[Mapping[str, Any]], key: str) -> str:
    values = sorted({str(each[key]) for each in failures}, key=lambda text: (len(text), text))
    return ", ".join(values) if len(values) <= 5 else f"{len(values)} different"


def run_table(study: Study) -> list[Row]:
    """A row for every run, with the options, versions and machines in which the runs differ."""
    every = [(cell, run) for cell in study.cells for run in cell.runs]
    facts = [facts_of(run) for _, run in every]
    varied = [key for key in _keys(facts) if len({each.get(key, "") for each in facts}) > 1 and key != "seed"]
    rows, names = [], study.names
    for (cell, run), fact in zip(every, facts, strict=True):
        row: Row = {"run": names[run.folder], "method": cell.method}
        if len(study.settings) > 1:
            row["setting"] = cell.setting
        row |= {"seed": run.config.seed, "clients measured": len(run.outcome["clients"]), "failures": len(run.failures)}
        rows.append(row | {key: fact.get(key, "") for key in varied})
    return rows


def common_table(study: Study) -> list[Row]:
    """The options and versions that are the same in all runs."""
    facts = [facts_of(run) for run in study.runs]
    return [
        {"option or version": key, "in all runs": facts[0][key]}
        for key in _keys(facts)
        if len({each.get(key, "") for each in facts}) == 1 and facts[0].get(key, "") != ""
    ]


def facts_of(run: Run) -> dict[str, str]:
    """Options, versions and machine of a run as text."""
    return {key: str(value) for key, value in (*run.config.to_run_config().items(), *run.environment.items())}


def _keys(facts: Sequence[Mapping[str, str]]) -> list[str]:
    return list(Counter(key for each in facts for key in each))


def machine_table(study: Study) -> list[Row]:
    """How many runs were trained on what."""
    found = Counter(str(run.environment.get("trains-on", "not recorded")) for run in study.runs)
    return [{"trained on": name, "runs": count} for name, count in found.most_common()]
