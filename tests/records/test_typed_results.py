"""Results as Python has them, and what a round cost."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_fedbabu import Results, finetune
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.files import append_json_line, read_json_lines
from lit_fedbabu.records.results import costs, read_results
from lit_fedbabu.records.run_folder import COSTS, RESULTS
from lit_fedbabu.reporting.runs import read_run
from lit_fedbabu.training.privacy import epsilon
from tests.server.test_federate import StoppedGrid
from tests.support import NARROW, tiny_config

pytestmark = pytest.mark.usefixtures("one_core")


def test_results_have_the_fields_of_their_file(finished):
    outcome = read_results(finished)
    assert outcome == json.loads((finished / RESULTS).read_text()), "a mapping, as before"
    assert (outcome.algorithm, outcome.round, outcome.folder) == ("fedbabu", 1, finished)
    assert outcome.summary["initial_accuracy"]["mean"] == outcome["summary"]["initial_accuracy"]["mean"]
    assert [client["client"] for client in outcome.clients] == list(range(6)) and len(outcome.rounds) == 1
    assert outcome.missing == [] and outcome.score.is_accuracy
    assert (outcome.precision, outcome.epsilon) == ("32-true", None)
    assert read_run(finished).outcome == outcome


def test_what_rounds_cost_is_in_a_file_of_its_own_also_after_a_stop(federate, tmp_path):
    config = tiny_config(model_name=NARROW, clipping_norm=1.0, noise_multiplier=2.0, num_server_rounds=3)
    with pytest.raises(KeyboardInterrupt):
        federate(config, StoppedGrid(config, "evaluate", 3))
    folder = tmp_path / "run1"
    with (folder / COSTS).open("a") as file:
        file.write('{"round": 3, "sec')
    federate(
        tiny_config(model_name=NARROW, resume=str(folder), clipping_norm=1.0, noise_multiplier=2.0, num_server_rounds=3)
    )
    outcome = read_results(folder)
    assert [cost["round"] for cost in outcome.costs] == [1, 2, 3]
    events = EventAccumulator(str(folder)).Reload()
    for key, tag in (("bytes_up", "communication/bytes_up"), ("seconds", "time/seconds_per_round")):
        logged = {event.step: event.value for event in events.Scalars(tag)}
        found = {cost["round"]: dict(cost)[key] for cost in outcome.costs}
        assert found == pytest.approx(logged, rel=1e-6)
        assert getattr(read_run(folder).cost, key) == sum(found.values())
    assert outcome.epsilon > epsilon(2.0, 2), "the round that was done twice is counted"


@pytest.mark.parametrize("line", ['{"round": 1, "seconds": "2", "bytes_up": 3, "bytes_down": 4}', "[]"])
def test_other_costs_are_refused_by_their_line(line, tmp_path):
    assert costs(tmp_path) == []
    (tmp_path / COSTS).write_text(line + "\n")
    with pytest.raises(InputError, match=r"costs.jsonl\": line 1 has no (seconds|round) that is of the type"):
        costs(tmp_path)


@pytest.mark.parametrize("cut", ["", '{"round": 1}\n', '{"round": 1}\n{"rou'])
def test_a_line_after_one_that_was_cut_off_is_whole(cut, tmp_path):
    path = tmp_path / "lines"
    path.write_text(cut)
    append_json_line(path, {"round": 2})
    assert read_json_lines(path, {"round": int}) == [{"round": 1}] * ("\n" in cut) + [{"round": 2}]


def test_fine_tuning_takes_numbers_and_lists(finished, tmp_path, capsys):
    by_words = finetune(finished, part="head,full", epochs=1, lr="0.01", clients="0,3")
    by_values = finetune(finished, part=["head", "full"], epochs=1, lr=0.01, clients=[0, 3])
    assert by_values == by_words and [type(each) for each in by_values] == [Results, Results]
    assert by_values[0].folder.name == by_words[0].folder.name == "head-1epochs-lr0.01"
    assert (
        finetune(finished, part="head", epochs=1, lr=[0.01], clients=range(3, 4))[0].clients == by_words[0].clients[1:]
    )
    assert finetune(finished, part="head", epochs=1, lr=0.01, clients=3)[0].clients == by_words[0].clients[1:]
    with pytest.raises(InputError, match="--lr = true: must be a text"):
        finetune(finished, lr=True)
    capsys.readouterr()
