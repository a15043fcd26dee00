"""``lit-fedbabu study STUDY.toml``: many runs that differ in a few options, and the report that compares them."""

import argparse
import sys
import time
from datetime import timedelta
from pathlib import Path

from lit_fedbabu.errors import RunError, one_line_errors
from lit_fedbabu.files import make_folder, refuse_unwritable
from lit_fedbabu.studies.plan import Run, Study, read_study, refuse_other_studies
from lit_fedbabu.system import configs_folder
from lit_fedbabu.workers.worker import Warm, threads

REPORT = "report"
"""In a study's folder: what ``lit-fedbabu report`` writes."""
LOG = "workers.log"
"""In a study's folder: what workers printed beside their runs."""
LOOK_S = 5.0
"""Seconds between two looks at runs that others do."""


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lit_fedbabu.study",
        description="Do all runs of a study that are not done yet, side by side, and compare them. A study that was"
        " stopped, at whatever moment, is finished by the same command.",
    )
    about = "options; those with a list are axes; or the name of a shipped study: digits, cifar10"
    parser.add_argument("file", type=Path, metavar="STUDY.toml", help=about)
    parser.add_argument("--dry-run", action="store_true", help="print the runs, their state and an estimate of time")
    parser.add_argument("--plain", action="store_true", help="print lines alone, without a live table")
    parser.add_argument(
        "--worker",
        action="store_true",
        help="take runs that nobody does, as one of several machines with the study's folder, and write no report",
    )
    arguments = parser.parse_args(argv)
    shipped = configs_folder() / "studies" / f"{arguments.file}.toml"
    study = read_study(shipped if shipped.is_file() and not arguments.file.exists() else arguments.file)
    refuse_unwritable("output-dir", study.folder)
    try:
        if arguments.dry_run:
            return _dry_run(study)
        return _do(study, arguments.plain, arguments.worker)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from here") from None


def _dry_run(study: Study) -> int:
    from lit_fedbabu.studies.tuning import chosen, tuning_of
    from lit_fedbabu.studies.work import is_done, times  # imports PyTorch, which takes seconds

    tuning = tuning_of(study)
    if tuning is not None:
        refuse_other_studies(tuning.study)
        tried = sum(is_done(run.config) for run in tuning.study.runs)
        print(f"{tried} of {len(tuning.study.runs)} runs of the tuning are done")
        if tried < len(tuning.study.runs):
            print(f"the {len(study.runs)} runs of the study come after the tuning, with the options that it chooses")
            return 0
        study, _ = chosen(study, tuning, {})
    refuse_other_studies(study)
    known = times(study.folder)
    todo = []
    for run in study.runs:
        state = "done" if is_done(run.config) else "begun" if run.folder.exists() else "to do"
        print(f"{state:<6} {run.name}  {_told(study.estimate(run, known))}")
        todo += [] if state == "done" else [run]
    estimates = [seconds for run in todo if (seconds := study.estimate(run, known)) is not None]
    whole = _told(sum(estimates) / _side_by_side(study)) if len(estimates) == len(todo) else "unknown"
    print(f"{len(study.runs) - len(todo)} of {len(study.runs)} runs are done; the others take: {whole}")
    return 0


def _told(seconds: float | None) -> str:
    return "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))


def _side_by_side(study: Study) -> int:
    from lit_fedbabu.engines.resources import worker_environments

    return min(len(worker_environments(run.config)) for run in study.runs)


def _do(study: Study, plain: bool, is_worker: bool) -> int:
    from lit_fedbabu.studies.tuning import chosen, tuning_of, write_choice

    tuning = tuning_of(study)
    refuse_other_studies(study if tuning is None else tuning.study)
    most_threads = max(run.config.num_threads for run in study.runs)
    with Warm("lit_fedbabu.client_app:prepare", environment=threads(most_threads)) as warm:
        warm.start()
        print(f"checking {len(study.runs) + (len(tuning.study.runs) if tuning else 0)} runs", flush=True)
        _check(study)
        words: dict[str, str] = {}
        if tuning is not None:
            _check(tuning.study)
            print(f"tuning {', '.join(tuning.axes)} on images held out of training", flush=True)
            study, words = chosen(study, tuning, _work(tuning.study, warm, plain)[0])
            for group, told in {run.group: words[run.name] for run in study.runs}.items():
                print(f"chosen for {group}: {told}", flush=True)
            refuse_other_studies(study)
        failed, elsewhere = _work(study, warm, plain, is_worker)
        for run in study.runs:
            if run.name in words and run.name not in failed and run.name not in elsewhere:
                write_choice(run, words[run.name])
    done = len(study.runs) - len(failed) - len(elsewhere)
    print(f"{done} of {len(study.runs)} runs are done")
    if elsewhere:
        print(f"{len(elsewhere)} runs are done by others at this moment: {', '.join(elsewhere)}")
    for name, reason in failed.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    if not is_worker and done:
        from lit_fedbabu.reporting.files import write_report

        ready = [run.folder for run in study.runs if run.name not in failed]
        write_report(ready, study.folder / REPORT)
    return int(bool(failed))


def _check(study: Study) -> None:
    """Check one run of every kind: what differs in the seed alone is alike."""
    import dataclasses

    from lit_fedbabu.experiment import Experiment

    seen = set()
    for run in study.runs:
        kind = dataclasses.replace(run.config, seed=0, run_name="")
        if kind not in seen:
            seen.add(kind)
            Experiment(run.config).check()


def _work(study: Study, warm: Warm, plain: bool, is_worker: bool = False) -> tuple[dict[str, str], list[str]]:
    """Do the runs that are not done; returns the failed ones with their reasons, and those that others do.

    A worker leaves the runs of others to them. The command itself waits for them, and does those whose worker died.

    Raises:
        RunError: no worker can be started.
    """
    from lit_fedbabu.engines.resources import worker_environments
    from lit_fedbabu.studies.show import shown
    from lit_fedbabu.studies.work import DONE, ELSEWHERE, is_done
    from lit_fedbabu.workers.pool import Pool
    from lit_fedbabu.workers.worker import StartError

    make_folder("output-dir", study.folder)
    todo = [run for run in study.runs if not is_done(run.config)]
    size = _side_by_side(study)
    environments = worker_environments(study.runs[0].config)[:size]
    failed: dict[str, str] = {}
    elsewhere: list[Run] = []
    with shown(study, todo, plain) as show, Pool(warm, size, environments, str(study.folder / LOG), show.say) as pool:
        while todo:
            elsewhere = []
            try:
                for place, outcome in pool.answers("lit_fedbabu.studies.work:work", [(run.config,) for run in todo]):
                    run = todo[place]
                    if isinstance(outcome, Exception):
                        failed[run.name] = f"{outcome}; {run.folder}.log has what it printed"
                        show.ended(run, "failed")
                    elif outcome == DONE:
                        show.ended(run, outcome)
                    else:
                        elsewhere.append(run)
            except StartError as error:
                raise RunError(str(error)) from None
            if is_worker:
                break
            if elsewhere and len(elsewhere) == len(todo):
                show.waits(elsewhere)
                time.sleep(LOOK_S)
            todo = elsewhere
    for run in elsewhere:
        show.ended(run, ELSEWHERE)
    return failed, [run.name for run in elsewhere]


if __name__ == "__main__":
    sys.exit(main())
