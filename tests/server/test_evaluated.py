"""A federation of which some clients alone are evaluated, drawn by the seed."""

import numpy as np
import pytest
from scipy import stats

from lit_fedbabu.config import Config
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.records import model_card
from lit_fedbabu.records.results import read_results, spread
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT
from lit_fedbabu.reporting.compare import compare
from lit_fedbabu.reporting.runs import read_run
from lit_fedbabu.reporting.tables import method_table
from tests.support import NARROW, tiny_config


def config_of(**options):
    return tiny_config(model_name=NARROW, num_clients=6, num_server_rounds=2, **options)


def test_drawn_clients_are_evaluated_and_fine_tuned_and_training_is_as_with_all(federate, one_core, capsys):
    config = config_of(evaluate_clients=4, num_new_clients=1)
    assert len(set(config.evaluated)) == 4 and max(config.evaluated) < 5
    others = [config_of(evaluate_clients=4, num_new_clients=1, seed=seed).evaluated for seed in range(9)]
    assert len({*map(tuple, others)}) > 2
    folder, _ = federate(config)
    whole, _ = federate(config_of(num_new_clients=1))
    outcome, of_all = read_results(folder), read_results(whole)
    rows = {row["client"]: row for row in of_all.clients}
    assert outcome.clients == [rows[client] for client in config.evaluated]
    assert outcome["new_clients"] == of_all["new_clients"]
    assert [each["train_loss"] for each in outcome.rounds] == [each["train_loss"] for each in of_all.rounds]
    for over in (outcome.summary["personalized_accuracy"], outcome.rounds[0]["initial_accuracy"]):
        assert over["low"] <= over["mean"] <= over["high"]
    assert "low" not in of_all.summary["personalized_accuracy"]
    over = outcome.summary["personalized_accuracy"]
    words = f"{over['mean']:.4f} ± {over['std']:.4f}, 95 % interval {over['low']:.4f} to {over['high']:.4f}"
    assert f"| personalized accuracy, over 4 clients | {words} |" in (folder / model_card.NAME).read_text()
    assert "interval" not in (whole / model_card.NAME).read_text()
    for each, interval in ((folder, f"{100 * over['low']:.2f} to {100 * over['high']:.2f}"), (whole, "")):
        (row,) = (row for row in method_table(compare([read_run(each)])) if row["accuracy"] == "personalized")
        assert row["95 % interval"] == interval
    assert "over 4 of 5 clients, 95 % interval " in capsys.readouterr().out
    assert finetune([str(folder), "--epochs", "1", "--model-name", NARROW]) == 0
    (tuned,) = (folder / "finetune").iterdir()
    found = read_results(tuned)
    assert [row["client"] for row in found.clients] == config.evaluated and "low" in found.summary["initial_accuracy"]
    assert (
        finetune([str(folder), "--epochs", "1", "--model-name", NARROW, "--clients", "0,1,2"]) == 0
    )  # which nobody has drawn
    (others,) = {*(folder / "finetune").iterdir()} - {tuned}
    assert "low" not in read_results(others).summary["initial_accuracy"]
    assert (folder / LAST_CHECKPOINT).is_file()


def test_the_interval_holds_the_mean_of_all_clients_as_often_as_it_says():
    rng = np.random.default_rng(0)
    population, held = rng.beta(4, 2, 60), []
    for _ in range(2000):
        over = spread(rng.choice(population, 20, replace=False), drawn_from=60)
        held.append(over["low"] <= population.mean() <= over["high"])
    assert 0.935 < np.mean(held) < 0.965
    values = [0.2, 0.4, 0.9]
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3) * np.sqrt(1 - 3 / 60)
    over = spread(values, drawn_from=60)
    assert (over["low"], over["high"]) == pytest.approx((0.5 - half, 0.5 + half))
    assert "low" not in spread([0.5], drawn_from=60)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"evaluate_clients": 6, "num_new_clients": 1}, "at most the 5 clients"),
        ({"evaluate_clients": 2, "partitioner": "sites", "class_names": "a,b"}, "every site gets the model"),
    ],
)
def test_clients_that_cannot_be_drawn_are_refused(options, told):
    with pytest.raises(InputError, match=told):
        Config(num_clients=6, **options)
