"""What a client has spent of the privacy of its samples: steps, in ``memory/client_0007/steps.jsonl``."""

from pathlib import Path

from lit_fedbabu.ground.files import append_json_line, read_json_lines
from lit_fedbabu.training.experiment import Experiment
from lit_fedbabu.training.privacy import Course, course_of, steps_epsilon

STEPS = "steps.jsonl"
"""A line for each round that the client has begun, also where it did not finish it."""
FORM = {"round": int, "rate": float, "noise": float, "steps": int}


def begin(experiment: Experiment, client: int, server_round: int, num_train: int, memories: Path | None) -> None:
    """Write down the steps of a round before the first of them is taken. Clients count for themselves, for with
    ``privacy=sample`` they trust no server.

    Args:
        experiment: with the options of privacy.
        client: its number.
        server_round: number of the round, from 1.
        num_train: its training samples.
        memories: folder of what clients keep.

    Raises:
        ValueError: ``max-epsilon`` is less than epsilon would be afterwards, or no folder was given.
    """
    if memories is None:
        raise ValueError("privacy=sample counts steps over rounds and was given no folder for them")
    config, file = experiment.config, memories / f"client_{client:04d}" / STEPS
    now = course_of(config, experiment.algorithm, num_train)
    if config.max_epsilon:
        after = steps_epsilon([*courses(file), now], config.delta)
        if after > config.max_epsilon:
            left = f"max-epsilon = {config.max_epsilon:g}, and epsilon of this client would be {after:.4g}"
            raise ValueError(f"nothing is trained: {left} after round {server_round}")
    file.parent.mkdir(parents=True, exist_ok=True)
    append_json_line(file, {"round": server_round, **now._asdict()})


def courses(file: Path) -> list[Course]:
    """The steps of the rounds that a client has begun, by the file with them; none where there is no file."""
    return [Course(line["rate"], line["noise"], line["steps"]) for line in read_json_lines(file, FORM)]
