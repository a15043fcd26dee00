import json

import numpy as np

from lit_fedbabu.ground import files
from lit_fedbabu.records import results, run_folder
from lit_fedbabu.reporting.compare import compare
from lit_fedbabu.reporting.runs import read_run
from tests.support import tiny_config


def made_up_run(folder, algorithm="fedbabu", seed=1, epochs=2, rounds=4, last=4, gain=0.0, facts=None, **options):
    """A run's folder as a federation of two clients would leave it; accuracies are drawn."""
    rng = np.random.default_rng([seed, *algorithm.encode()])
    folder.mkdir(parents=True)
    options = {"num_clients": 2, "num_server_rounds": rounds, **options}
    config = tiny_config(algorithm=algorithm, seed=seed, num_finetune_epochs=epochs, **options)
    history = [
        {
            "round": each,
            "train_loss": 1.0,
            **({"initial_accuracy": results.spread(0.5 + rng.random(2) / 2**each)} if each % 2 == 0 else {}),
        }
        for each in range(1, last + 1)
    ]
    clients = []
    for client in range(2):
        values = ((1 - gain) * rng.random(epochs + 1) + gain).tolist()
        row = {"client": client, "initial_accuracy": values[0], "personalized_accuracy": values[-1]}
        clients.append(row | {f"accuracy_epoch_{epoch}": value for epoch, value in enumerate(values)})
    run_folder.write_config(folder, config, facts or {})
    files.write_json(folder / run_folder.RESULTS, results.results(config, history, clients))
    (folder / run_folder.PARTITION).write_text(
        "client,split,cat,dog\n0,train,5,0\n1,train,2,3\n0,test,1,0\n1,test,1,1\n"
    )
    return folder


def study_of(*folders, reference=""):
    return compare([read_run(folder) for folder in folders], reference)


def change(folder, **changes):
    """Change keys of a run's results."""
    path = folder / run_folder.RESULTS
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder
