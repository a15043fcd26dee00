"""A federation in one process, for tests that kill it: ``python -m tests.engines.endure DATASET OUT``. It resumes."""

import sys
from pathlib import Path

from lit_fedbabu.server.federate import federate
from lit_fedbabu.training.experiment import Experiment
from tests.support import NARROW, FakeGrid, tiny_config


def main(dataset: str, out: str) -> None:
    tiny_config.dataset = dataset
    begun = Path(out) / "run"
    places = {"output_dir": out, "run_name": "run", "resume": str(begun) if begun.exists() else ""}
    config = tiny_config(model_name=NARROW, algorithm="fedper", num_server_rounds=60, evaluate_every=2, **places)
    federate(FakeGrid(config, 2), Experiment(config))
    print("finished")


if __name__ == "__main__":
    main(*sys.argv[1:])
