"""All runs of a study: checked, done side by side, and compared."""

import dataclasses
import sys
import time

from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.ground.files import make_folder
from lit_fedbabu.ground.printing import say, waiting
from lit_fedbabu.studies.claims import release
from lit_fedbabu.studies.plan import Run, Study, refuse_other_studies
from lit_fedbabu.studies.tuning import chosen, tuning_of, write_choice
from lit_fedbabu.workers.pool import Pool
from lit_fedbabu.workers.worker import StartError, Warm, threads

REPORT = "report"
"""In a study's folder: what ``lit-fedbabu report`` writes."""
LOG = "workers.log"
"""In a study's folder: what workers printed beside their runs."""
LOOK_S = 5.0
"""Seconds between two looks at runs that others do."""


def do(study: Study, plain: bool, is_worker: bool = False, machines: int = 1) -> int:
    """Do all runs of a study that are not done, after those of its tuning, and report; returns the exit status.

    Args:
        study: whose runs they are.
        plain: whether lines alone are printed, without a live table.
        is_worker: whether this process is one of several that do the study: it leaves the runs of others to them, and
            writes no report.
        machines: how many of them there are; each begins no more runs at once than would be its part.

    Raises:
        InputError: a run cannot be done, or was begun with other options.
        RunError: no worker can be started.
    """
    tuning = tuning_of(study)
    refuse_other_studies(study if tuning is None else tuning.study)
    most_threads = max(run.config.num_threads for run in study.runs)
    most_devices = max(run.config.devices for run in study.runs)
    folders = [each.folder for each in (study, tuning and tuning.study) if each]
    try:
        with Warm("lit_fedbabu.client_app:prepare", environment=threads(most_threads, most_devices)) as warm:
            warm.start()
            say(f"checking {len(study.runs) + (len(tuning.study.runs) if tuning else 0)} runs")
            with waiting("loading PyTorch, then data and model of each kind of run"):
                need = check(study)
            words: dict[str, str] = {}
            if tuning is not None:
                need = max(need, check(tuning.study))
                say(f"tuning {', '.join(tuning.axes)} on images held out of training")
                out, _ = _work(tuning.study, warm, plain, need, machines=machines)
                for name, reason in out.items():
                    log = f"{tuning.study.folder / name}.log"
                    say(f"note: {name} is out of the choice: {reason}; {log} has what it printed")
                study, words = chosen(study, tuning, out)
                for group, told in {run.group: words[run.name] for run in study.runs if run.name in words}.items():
                    say(f"chosen for {group}: {told}")
                refuse_other_studies(study)
            failed, elsewhere = _work(study, warm, plain, need, is_worker, machines)
            for run in study.runs:
                if run.name in words and run.name not in failed and run.name not in elsewhere:
                    write_choice(run, words[run.name])
    finally:
        release(path for folder in folders for path in folder.glob("*.claim"))  # of workers that were ended
    done = len(study.runs) - len(failed) - len(elsewhere)
    say(f"{done} of {len(study.runs)} runs are done")
    if elsewhere:
        say(f"{len(elsewhere)} runs are done by others at this moment: {', '.join(elsewhere)}")
    for name, reason in failed.items():
        say(f"error: {name}: {reason}; {study.folder / name}.log has what it printed", sys.stderr)
    if not is_worker and done:
        from lit_fedbabu.reporting.files import write_report
        from lit_fedbabu.reporting.runs import Unfinished

        ready = [run.folder for run in study.runs if run.name not in failed]
        lost = [Unfinished(run.folder, run.config, failed[run.name]) for run in study.runs if run.name in failed]
        with waiting("drawing the report"):
            write_report(ready, study.folder / REPORT, failed=lost)
    return int(bool(failed))


def check(study: Study) -> int:
    """Check one run of every kind, for what differs in the seed alone is alike; returns the memory of one, in bytes.

    Raises:
        InputError: a run cannot be done.
    """
    from lit_fedbabu.aggregation import table as aggregation
    from lit_fedbabu.studies.shares import need_of
    from lit_fedbabu.training.experiment import Experiment

    seen, need = set(), 0
    for run in study.runs:
        kind = dataclasses.replace(run.config, seed=0, run_name="")
        if kind not in seen:
            seen.add(kind)
            experiment = Experiment(run.config)
            experiment.check()
            aggregation.check(experiment)
            need = max(need, need_of(experiment))
    return need


def _work(
    study: Study, warm: Warm, plain: bool, need: int, is_worker: bool = False, machines: int = 1
) -> tuple[dict[str, str], list[str]]:
    """Do the runs that are not done; returns the failed ones with their reasons, and those that others do.

    A worker leaves the runs of others to them. The command itself waits for them, and does those whose worker died.

    Raises:
        RunError: no worker can be started.
    """
    from lit_fedbabu.studies.shares import shares, workers_of
    from lit_fedbabu.studies.show import shown
    from lit_fedbabu.studies.work import DONE, ELSEWHERE, PLACE, is_done

    make_folder("output-dir", study.folder)
    todo = [run for run in study.runs if not is_done(run.config)]
    workers = workers_of(study, need)
    if len(workers) < len(workers_of(study)):
        say(f"note: memory is free for {len(workers)} workers of about {need / 2**30:.1f} GiB each")
    at_once = [{**share[0], PLACE: str(place)} for place, share in enumerate(shares(workers, len(todo), machines))]
    failed: dict[str, str] = {}
    elsewhere: list[Run] = []
    with (
        shown(study, todo, plain) as show,
        Pool(warm, len(at_once), at_once, str(study.folder / LOG), show.say) as pool,
    ):
        while todo:
            elsewhere = []
            dealt = shares(workers, min(len(todo), len(at_once)))  # of fewer runs as time goes by, and never of more
            requests = [(run.config, dealt) for run in todo]
            try:
                for place, outcome in pool.answers("lit_fedbabu.studies.work:work", requests):
                    run = todo[place]
                    if isinstance(outcome, Exception):
                        failed[run.name] = str(outcome)
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
