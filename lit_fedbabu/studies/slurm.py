"""Jobs of a Slurm cluster that do the runs of a study, submitted by submitit."""

import dataclasses
import importlib.util
import platform
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_fedbabu.ground import system
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.ground.files import make_folder
from lit_fedbabu.ground.printing import say
from lit_fedbabu.ground.stops import settle
from lit_fedbabu.studies.conduct import check, do
from lit_fedbabu.studies.plan import Study, refuse_other_studies
from lit_fedbabu.studies.tuning import tuning_of

if TYPE_CHECKING:
    import submitit

JOBS = "slurm"
"""In a study's folder: what submitit keeps of its jobs, and what they print."""
PLACES = ("slurm", "local")
"""Values of the key ``cluster``: Slurm, or processes of this machine, to try a study."""
TIME = "timeout_min"
_ONE = "is not for a study, whose jobs are one worker each; --slurm JOBS says how many there are"
INSTEAD = {
    **dict.fromkeys(("nodes", "tasks_per_node", "slurm_nodes", "slurm_ntasks_per_node"), _ONE),
    **dict.fromkeys(("time", "slurm_time"), f"must be given as {TIME}, in minutes"),
}
"""Parameters that a study does not take, and why."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One of the workers of a study, as a job. Before its time is over submitit queues it again, to go on.

    Args:
        study: whose runs it does.
        jobs: how many such jobs there are.
        asker: what is installed where they were submitted.
    """

    study: Study
    jobs: int
    asker: Mapping[str, Any] = dataclasses.field(default_factory=system.installed)

    def __call__(self) -> None:
        """Do runs until nobody is needed; exits with a failing status where one fails or cannot be like others."""
        if reason := system.unlike(system.installed(), self.asker):
            sys.exit(f"error: {platform.node()} takes no part: {reason}")
        try:
            status = do(self.study, plain=True, is_worker=True, machines=self.jobs)
        except (InputError, RunError) as error:
            sys.exit(f"error: {error}")
        if status:
            sys.exit(status)

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """What is queued when the job is stopped: the same, for runs are resumed by themselves."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def submit(study: Study, jobs: int) -> int:
    """Submit jobs that do the runs of a study which are not done, and say where they print; returns the exit status.

    Args:
        study: its table ``slurm`` has parameters of submitit's AutoExecutor, and ``cluster``.
        jobs: how many.

    Raises:
        InputError: there is no Slurm or no submitit, or the table has what that does not take.
        RunError: Slurm refuses the jobs.
    """
    if jobs < 1:
        raise InputError("--slurm", jobs, "must be at least 1, the number of jobs")
    if importlib.util.find_spec("submitit") is None:
        raise InputError("--slurm", jobs, "needs submitit: pip install 'lit-fedbabu[slurm]'")
    parameters = {"name": study.folder.name, "stderr_to_stdout": True, **study.slurm}
    cluster = parameters.pop("cluster", PLACES[0])
    _refuse(cluster, parameters)
    tuning = tuning_of(study)
    studies = [study] if tuning is None else [tuning.study, study]
    refuse_other_studies(studies[0])
    from lit_fedbabu.studies.work import is_done  # imports PyTorch, which takes seconds

    todo = sum(not is_done(run.config) for each in studies for run in each.runs)
    if not todo:
        say(f"all {len(study.runs)} runs are done, and no job is needed; the command without --slurm reports")
        return 0
    count = min(jobs, todo)
    if count < jobs:
        say(f"note: {todo} runs are not done, so that there are {todo} jobs")
    say(f"checking {sum(len(each.runs) for each in studies)} runs")
    for each in studies:
        check(each)
    make_folder("output-dir", study.folder / JOBS)
    settle()  # else some of the jobs would be left, which nobody was told of
    for job in _submitted(cluster, study.folder / JOBS, parameters, [Job(study, count)] * count):
        say(f"job {job.job_id}  {job.paths.stdout}")
    say("--dry-run in place of --slurm shows which runs are done; without either, when the jobs have ended, the same")
    say("command does what they have left and writes the report")
    return 0


def _submitted(
    cluster: str, folder: Path, parameters: dict[str, Any], jobs: list[Job]
) -> "list[submitit.core.core.Job[None]]":
    import submitit

    executor = submitit.AutoExecutor(folder, cluster=cluster)
    executor.update_parameters(**parameters)
    try:
        return executor.submit_array(jobs)
    except RuntimeError as error:  # what sbatch says
        raise RunError(f"the jobs were not submitted: {' '.join(str(error).split())}") from None


def _refuse(cluster: Any, parameters: dict[str, Any]) -> None:
    """Raise InputError where there is no such cluster, or submitit would not take a parameter."""
    if cluster not in PLACES:
        raise InputError("slurm.cluster", cluster, f"must be one of {', '.join(PLACES)}")
    for key, value in parameters.items():
        if key in INSTEAD:
            raise InputError(f"slurm.{key}", value, INSTEAD[key])
        if not (wrong := _wrong(key, value)):
            continue
        word = key.replace("-", "_")
        close = [name for name in (word, f"slurm_{word}") if not _wrong(name, value)]
        raise InputError(f"slurm.{key}", value, f"{wrong}; did you mean {close[0]}?" if close else wrong)
    if TIME not in parameters:
        raise InputError(
            f"slurm.{TIME}", None, f"must be in the table [slurm], the minutes a job may run, as in {TIME} = 240"
        )
    if cluster == "slurm" and shutil.which("srun") is None:
        remedy = 'there is no srun here; submit on a machine of the cluster, or try with cluster = "local"'
        raise InputError("slurm.cluster", cluster, remedy)


def _wrong(key: str, value: Any) -> str:
    """What submitit says against a parameter of its AutoExecutor; empty: nothing."""
    import submitit

    try:
        with warnings.catch_warnings(action="error"):  # of names that it takes no longer
            submitit.AutoExecutor(JOBS, cluster="debug").update_parameters(**{key: value})
    except NameError:
        return "submitit's AutoExecutor has no such parameter"
    except Exception as error:  # of a value, which submitit asserts
        return " ".join(str(error).split())
    return ""
