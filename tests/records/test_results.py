import json

import pytest

from lit_fedbabu.config import Config
from lit_fedbabu.ground.files import write_json
from lit_fedbabu.records import results


def test_worst_decile_is_the_mean_of_the_lowest_tenth():
    values = [i / 100 for i in range(100)]
    assert results.spread(values[::-1])["worst_decile"] == pytest.approx(0.045)
    assert results.spread([0.5])["worst_decile"] == 0.5
    assert results.spread([0.0, 1.0]) == {"mean": 0.5, "std": 0.5, "worst_decile": 0.0, "jain": 0.5}


def test_no_rate_of_fine_tuning_is_told_as_zero():
    assert [results.rate_words(rate) for rate in (0.001, 1e-9, 0.0)] == ["0.001", "1e-09", "of the last round"]


def test_clients_as_columns_have_a_value_for_each_client():
    rows = [{"client": 0, "accuracy": 0.5}, {"client": 1, "accuracy": 0.25, "extra": 1}]
    assert results.as_columns({"clients": rows}) == {"client": [0, 1], "accuracy": [0.5, 0.25], "extra": [None, 1]}


def test_results_are_valid_json_whatever_a_model_became(tmp_path):
    row = {"client": 0, "initial_accuracy": 0.5, "personalized_accuracy": 0.5}
    row |= {"initial_loss": float("nan"), "personalized_loss": float("inf")}
    outcome = results.results(Config(), [{"round": 1, "train_loss": 0.5}], [row])
    write_json(tmp_path / "results.json", outcome)
    text = (tmp_path / "results.json").read_text()
    assert not any(word in text for word in ("NaN", "Infinity"))
    (client,) = json.loads(text)["clients"]
    assert client["initial_loss"] is client["personalized_loss"] is None
