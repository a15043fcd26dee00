"""Runs with central privacy, and what ends a run whose budget is spent."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_fedbabu import client_app
from lit_fedbabu.aggregation import table
from lit_fedbabu.aggregation.aggregator import NoisedMean
from lit_fedbabu.algorithms.algorithm import Algorithm
from lit_fedbabu.client import numpy_client
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.ground.files import read_json_lines
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.results import read_results
from lit_fedbabu.server import sampling, spent
from lit_fedbabu.server.sampling import participants
from lit_fedbabu.server.spent import Ledger
from lit_fedbabu.studies.work import is_done
from lit_fedbabu.training import privacy
from lit_fedbabu.training.privacy import TRUST
from tests.server.test_federate import StoppedGrid
from tests.support import NARROW, FakeGrid, failing, failures_of, tiny, tiny_config


def central_config(**changes):
    options = {"privacy": "central", "clipping_norm": 1.0, "noise_multiplier": 2.0, "model_name": NARROW}
    return tiny_config(**{**options, "learning_rate_decay": 1.0, "num_server_rounds": 3, **changes})


class OwnSum(Algorithm):
    def combine(self, server, updates):
        return super().combine(server, updates[:1])


class OwnDraw(Algorithm):
    def drawn(self, config, server_round, clients):
        return [0]


OWN_SUM, OWN_DRAW = (kind("Own", "body", (("body", "num_local_epochs"),)) for kind in (OwnSum, OwnDraw))


def asked(folder):
    return [(line["round"], line["clients"]) for line in read_json_lines(folder / run_folder.ASKED, {})]


def trained(grid):
    """The messages that asked clients to train: their round, clients and weights."""
    return [
        (int(message.metadata.group_id), list(message.content["config"]["clients"]), message.content["arrays"])
        for message in grid.messages
        if message.metadata.message_type == "train"
    ]


@pytest.fixture
def draws(monkeypatch):
    """Who is drawn in the rounds of a run, one after the other."""
    planned: list[list[int]] = []
    monkeypatch.setattr(spent, "drawn_anew", lambda config: planned.pop(0))
    return planned


def test_a_round_is_the_plain_sum_of_updates_by_a_fixed_divisor_also_of_nobody(federate, draws, monkeypatch, capsys):
    draws += [[1, 4, 5], [], [2]]
    monkeypatch.setattr(table, "NoisedMean", lambda bound, noise, divisor: NoisedMean(bound, 0.0, divisor))
    config = central_config(partitioner="dirichlet", min_client_images=5)
    folder, grid = federate(config)
    assert asked(folder) == [(1, [1, 4, 5]), (2, []), (3, [2])]
    rounds = {server_round: (clients, arrays) for server_round, clients, arrays in trained(grid)}
    assert {server_round: clients for server_round, (clients, _) in rounds.items()} == {1: [1, 4, 5], 3: [2]}
    replies = [reply for reply in grid.replies if "arrays" in reply.content]
    counts = [list(reply.content["metrics"]["num_train"]) for reply in replies]
    assert len(set(counts[0])) > 1, "clients of other sizes, which count alike"
    last = checkpoint.read(folder / run_folder.LAST_CHECKPOINT, NARROW).state
    for name, array in rounds[1][1].items():
        before = array.numpy().astype(np.float64)
        for reply in replies:
            moves = reply.content["arrays"][name].numpy().astype(np.float64) - before
            before = (before + moves.sum(0) / 3).astype(np.float32).astype(np.float64)
        np.testing.assert_allclose(last[name].numpy(), before, rtol=0, atol=1e-7)
    assert [each["train_loss"] is None for each in read_results(folder).rounds] == [False, True, False]
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 3]
    assert "round 2/3  no client was drawn  epsilon" in capsys.readouterr().out


def test_clients_are_drawn_by_chance_each_by_itself_or_so_many(monkeypatch):
    config = Config(privacy="central", clipping_norm=1.0, noise_multiplier=1.0, num_clients=24, num_new_clients=4)
    config = dataclasses.replace(config, fraction_train=0.25)
    drawn = [sampling.drawn_anew(config) for _ in range(2000)]
    assert all(each == sorted(set(each)) and set(each) <= set(range(20)) for each in drawn)
    counts = np.bincount([client for each in drawn for client in each], minlength=20)
    assert np.all(np.abs(counts - 500) < 6 * np.sqrt(2000 * 0.25 * 0.75))
    sizes = np.array([len(each) for each in drawn])
    assert sizes.var() == pytest.approx(20 * 0.25 * 0.75, rel=0.25) and {type(each) for each in drawn[0]} <= {int}
    fixed = [sampling.drawn_anew(dataclasses.replace(config, client_sampling="fixed")) for _ in range(200)]
    assert {len(set(each)) for each in fixed} == {5} and len({tuple(each) for each in fixed}) > 100
    assert drawn[:20] != [sampling.drawn_anew(config) for _ in range(20)], "not by the seed"


@pytest.mark.slow
def test_two_runs_of_a_seed_have_other_noise_and_what_is_resumed_has_the_clients_that_were_drawn(federate, tmp_path):
    config = central_config(client_sampling="fixed")
    weights = []
    for _ in range(2):
        folder, _ = federate(config)
        weights.append(checkpoint.read(folder / run_folder.LAST_CHECKPOINT, NARROW).state)
    assert not any(
        np.any(weights[0][name].numpy() == weights[1][name].numpy())
        for name in tiny().shared_names
        if name in weights[0]
    )
    with pytest.raises(KeyboardInterrupt):
        federate(config, StoppedGrid(config, "train", 2))
    stopped = tmp_path / "run3"
    before = asked(stopped)
    folder, grid = federate(dataclasses.replace(config, resume=str(stopped)))
    after = asked(folder)
    assert after[:2] == before and after[2] == before[1] and [each for each, _ in after] == [1, 2, 2, 3]
    assert [clients for _, clients, _ in trained(grid)] == [clients for _, clients in after[2:]]
    outcome = read_results(folder)
    expected = [{1: 1}, {1: 1, 2: 1}, {1: 2, 2: 1}]
    found = [each["epsilon"] for each in outcome.rounds]
    assert found == [privacy.central_epsilon(config, each) for each in expected], "the repeated round counts twice"
    assert outcome.epsilon == pytest.approx(found[-1], rel=1e-5) and outcome["privacy"]["epsilon"] == found[-1]


@pytest.mark.parametrize("kind", ["none", "local", "central"])
def test_each_kind_says_who_is_protected_from_whom(kind, federate, capsys):
    options = {"noise_multiplier": 0.0, "clipping_norm": 0.0} if kind == "none" else {}
    folder, _ = federate(central_config(privacy=kind, delta=1e-4, **options))
    said, outcome = capsys.readouterr().out, read_results(folder)
    assert f"privacy {TRUST[kind]}\n" in said and ("normalization=data has mean" in said) == (kind != "none")
    assert outcome["privacy"]["kind"] == kind and outcome["privacy"]["trust"] == TRUST[kind]
    card = (folder / "README.md").read_text()
    assert f"Privacy {TRUST[kind]}." in card
    spent = [each["epsilon"] for each in outcome.rounds if "epsilon" in each]
    if kind == "none":
        assert spent == [] and set(outcome["privacy"]) == {"kind", "trust"} and "Epsilon" not in card
        return
    assert len(spent) == 3
    assert spent == sorted(spent) and spent[-1] == outcome["privacy"]["epsilon"] and outcome["privacy"]["delta"] == 1e-4
    assert f"Epsilon is {spent[-1]:.4g} for delta 0.0001." in card
    events = EventAccumulator(str(folder)).Reload()
    assert [event.value for event in events.Scalars("privacy/epsilon")] == pytest.approx(spent)
    facts = run_folder.read_environment(folder)
    assert f"{kind} differential privacy" in facts["privacy"] and "delta 0.0001" in facts["privacy"]
    of_clients = {row["client"]: row.get("epsilon") for row in outcome.clients}
    if kind == "central":
        assert set(of_clients.values()) == {None} and "does not repeat" in facts["privacy"]
    else:
        times = [client for _, clients in asked(folder) for client in clients]
        expected = {each: privacy.epsilon(2.0, times.count(each), 1e-4) if each in times else 0 for each in range(6)}
        assert of_clients == expected and max(expected.values()) == spent[-1]


def test_options_of_before_mean_what_they_meant():
    assert Config(clipping_norm=1.0, noise_multiplier=1.0).protection == "local"
    assert Config(clipping_norm=1.0).protection == Config().protection == "none"


def test_a_client_that_fails_adds_nothing_and_nobody_takes_its_place(federate, draws, monkeypatch):
    draws += [[0, 3], [1, 2, 3], [3]]
    config = central_config(max_round_retries=2, num_server_rounds=3)
    failing(monkeypatch, lambda client, _: client == 3)
    grid = FakeGrid(config)
    with pytest.raises(RunError, match="round 3: 0 clients trained and 1 are needed"):
        federate(config, grid)
    assert [(server_round, clients) for server_round, clients, _ in trained(grid)] == [
        (1, [0, 3]),
        (2, [1, 2, 3]),
        (3, [3]),
    ]


def test_an_update_that_was_not_clipped_is_left_out_and_a_short_one_among_longer_ones_is_not(
    federate, draws, monkeypatch, tmp_path
):
    draws += [[0, 1, 2, 3]]

    def protect(arrays, received, config):
        length = {0: 1.001, 1: 1e-4, 2: 1e-4, 3: 0.999}[protect.client]
        return [array + np.float32(length / np.sqrt(sum(each.size for each in received))) for array in received]

    fit = numpy_client.fit_together

    def one(participants, parameters, order):
        protect.client = participants[0].client
        return fit(participants, parameters, order)

    monkeypatch.setattr(numpy_client, "protect", protect)
    monkeypatch.setattr(numpy_client, "fit_together", one)
    folder, _ = federate(central_config(num_server_rounds=1))
    (failure,) = failures_of(folder)
    assert failure["client"] == 0 and "its update has the norm 1.001, and clipping-norm is 1" in failure["reason"]


def rounds_for(config, most, of):
    """How many rounds a budget has room for, counted one by one."""
    return next(count for count in range(1000) if of(count + 1) > most)


@pytest.mark.parametrize("client_sampling", ["poisson", "fixed"])
def test_a_budget_ends_the_run_before_the_round_that_would_pass_it(client_sampling, federate, capsys):
    config = central_config(client_sampling=client_sampling, num_server_rounds=9, evaluate_every=9)
    most = privacy.central_epsilon(config, {1: 4}) * 1.0001
    config = dataclasses.replace(config, max_epsilon=most)
    assert rounds_for(config, most, lambda count: privacy.central_epsilon(config, {1: count})) == 4
    folder, grid = federate(config)
    outcome = read_results(folder)
    assert (outcome.round, len(outcome.rounds), len(asked(folder))) == (4, 4, 4)
    assert {each for each, *_ in trained(grid)} <= {1, 2, 3, 4}
    assert outcome["privacy"]["stopped_before"] == 5 and outcome["privacy"]["epsilon"] <= most
    assert len(outcome.clients) == 6 and "personalized_accuracy" in outcome.clients[0], "the normal end of a run"
    after = privacy.central_epsilon(config, {1: 5})
    line = f"max-epsilon = {most:g} ends the run before round 5 of 9, after which epsilon would be {after:.4g}"
    assert capsys.readouterr().out.count(line) == 2, "at the beginning and at the end"
    assert checkpoint.read(folder / run_folder.LAST_CHECKPOINT, NARROW).provenance["round"] == 4
    assert run_folder.is_finished(folder) and is_done(
        dataclasses.replace(config, output_dir=str(folder.parent), run_name=folder.name)
    )
    for rounds in (9, 20):
        again = dataclasses.replace(config, resume=str(folder), num_server_rounds=rounds)
        with pytest.raises(InputError, match="is spent after round 4") as error:
            federate(again)
        assert (error.value.key, error.value.value) == ("max-epsilon", most)
    assert read_results(folder) == outcome


@pytest.mark.slow
def test_more_rounds_go_on_within_the_budget(federate):
    config = central_config(num_server_rounds=2)
    config = dataclasses.replace(config, max_epsilon=privacy.central_epsilon(config, {1: 5}) * 1.0001)
    folder, _ = federate(config)
    assert "stopped_before" not in read_results(folder)["privacy"]
    federate(dataclasses.replace(config, resume=str(folder), num_server_rounds=8))
    outcome = read_results(folder)
    assert (outcome.round, len(asked(folder)), outcome["privacy"]["stopped_before"]) == (5, 5, 6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_round_that_is_repeated_after_a_stop_is_paid_twice_and_the_run_ends_sooner(kind, federate, tmp_path):
    config = central_config(num_server_rounds=9, evaluate_every=9, client_sampling="fixed")
    most = privacy.central_epsilon(config, {1: 2, 2: 1}) * 1.0001
    config = dataclasses.replace(config, max_epsilon=most)
    assert rounds_for(config, most, lambda count: privacy.central_epsilon(config, {1: count})) == 4
    assert most < privacy.central_epsilon(config, {1: 3, 2: 1})
    with pytest.raises(KeyboardInterrupt):
        federate(config, StoppedGrid(config, "train", 2))
    folder, _ = federate(dataclasses.replace(config, resume=str(tmp_path / "run1")))
    assert [each for each, _ in asked(folder)] == [1, 2, 2, 3]
    assert (read_results(folder).round, read_results(folder)["privacy"]["stopped_before"]) == (3, 4)
    with pytest.raises(KeyboardInterrupt):
        federate(config, StoppedGrid(config, kind, 4))
    stopped = dataclasses.replace(config, resume=str(tmp_path / "run3"))
    folder, grid = federate(stopped)
    assert trained(grid) == [], "the fourth round cannot be paid twice"
    outcome = read_results(folder)
    assert (outcome.round, len(outcome.rounds), outcome["privacy"]["stopped_before"]) == (3, 3, 4)
    assert outcome["privacy"]["epsilon"] == privacy.central_epsilon(config, {1: 3})
    assert "initial_accuracy" in outcome.rounds[-1] and run_folder.is_finished(folder)
    with pytest.raises(InputError, match="is spent after round 3"):
        federate(stopped)


def test_a_ledger_outlives_a_line_that_was_cut_off(tmp_path):
    config = central_config()
    ledger = Ledger(config, tmp_path)
    first = ledger.drawn(1)
    ledger.note(1, first)
    with (tmp_path / run_folder.ASKED).open("a") as file:
        file.write('{"round": 2, "cli')
    ledger = Ledger(config, tmp_path, 1)
    assert ledger.drawn(1) == first
    second = ledger.drawn(2)
    ledger.note(2, second)
    assert asked(tmp_path) == [(1, first), (2, second)] and Ledger(config, tmp_path, 1).drawn(2) == second
    (tmp_path / run_folder.ASKED).unlink()
    assert Ledger(config, tmp_path, 3).epsilon(3) == privacy.central_epsilon(config, {1: 3}), "rounds count without it"


def local_config(**changes):
    return central_config(privacy="local", num_clients=3, fraction_train=0.34, num_server_rounds=12, **changes)


def test_with_local_privacy_a_budget_is_each_clients(federate):
    config = local_config(evaluate_every=12, max_epsilon=privacy.epsilon(2.0, 3) * 1.0001, seed=1)
    drawn = [participants(config, each)[0] for each in range(1, 13)]
    expected = next(each for each in range(1, 13) if max(map(drawn[:each].count, drawn)) > 3) - 1
    assert 3 < expected < 9, "another seed would show more"
    folder, _ = federate(config)
    outcome = read_results(folder)
    assert (outcome.round, outcome["privacy"]["stopped_before"]) == (expected, expected + 1)
    assert max(row["epsilon"] for row in outcome.clients) == privacy.epsilon(2.0, 3) == outcome["privacy"]["epsilon"]


def test_nobody_stands_in_for_others_who_could_not_pay_for_rounds_to_come(federate, monkeypatch, tmp_path):
    for seed in range(100):
        config = local_config(evaluate_every=12, max_epsilon=privacy.epsilon(2.0, 3) * 1.0001, seed=seed)
        drawn = [participants(config, each)[0] for each in range(1, 13)]
        last = next(each for each in range(1, 13) if max(map(drawn[:each].count, drawn)) > 3) - 1
        counts, bad = [drawn[:last].count(client) for client in range(3)], drawn[0]
        full = [client for client in range(3) if counts[client] == 3]
        if sampling.substitutes(config, 1, 1, [bad], 1) == full != [bad]:
            break
    assert Ledger(config, tmp_path).exhausted(0) == full and len(full) == 1, "whom the seed would ask"
    failing(monkeypatch, lambda client, server_round: client == bad and server_round == 1)
    folder, _ = federate(config)
    times = [client for _, clients in asked(folder) for client in clients]
    (other,) = {0, 1, 2} - {bad, *full}
    assert [times.count(client) for client in range(3)] == [counts[each] + (each == other) for each in range(3)]
    assert read_results(folder).round == last


@pytest.mark.parametrize("kind", ["local", "central"])
def test_a_budget_that_the_first_round_passes_is_refused(kind, federate):
    with pytest.raises(InputError, match="the first round alone spends") as error:
        federate(central_config(privacy=kind, max_epsilon=0.01))
    assert (error.value.key, error.value.value) == ("max-epsilon", 0.01)


REFUSED: dict[str, tuple[dict[str, Any], str, Any]] = {
    "a rule of its own": ({"aggregator": "median"}, "aggregator", "median"),
    "no noise": ({"noise_multiplier": 0.0}, "privacy", "central"),
    "no noise with local": ({"privacy": "local", "noise_multiplier": 0.0}, "privacy", "local"),
    "noise for nothing": ({"privacy": "none"}, "noise-multiplier", 2.0),
    "next to no noise": ({"noise_multiplier": 0.001}, "noise-multiplier", 0.001),
    "noise without a unit": ({"clipping_norm": 0.0}, "noise-multiplier", 2.0),
    "a budget of nothing": ({"privacy": "none", "noise_multiplier": 0.0, "max_epsilon": 3.0}, "max-epsilon", 3.0),
    "a delta for all": ({"delta": 0.5}, "delta", 0.5),
    "trained together": ({"cohort_size": 2}, "cohort-size", 2),
    "running statistics": ({"norm": "batch-running"}, "clipping-norm", 1.0),
    "a bound for nothing": ({"privacy": "local", "adaptive_clipping": True}, "adaptive-clipping", True),
    "nothing is shared": ({"algorithm": "local"}, "privacy", "central"),
    "nobody shares": ({"algorithm": "centralized"}, "privacy", "central"),
    "a sum of its own": ({"algorithm": "feddyn"}, "clipping-norm", 1.0),
    "a user's sum": ({"algorithm": "tests.server.test_central_privacy:OWN_SUM"}, "privacy", "central"),
    "a user's draw": ({"algorithm": "tests.server.test_central_privacy:OWN_DRAW"}, "privacy", "central"),
    **{
        name: ({"algorithm": name}, "privacy", "central")
        for name in ("fednova", "scaffold", "ifca", "feddbe", "pfedfda", "fedas", "fedpac")
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_counted_is_refused_before_a_run(name):
    changes, key, value = REFUSED[name]
    with pytest.raises(InputError) as error:
        tiny(**{**dataclasses.asdict(central_config()), **changes}).check()
    assert (error.value.key, error.value.value) == (key, value)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedrep", "ditto", "fedprox", "moon", "fedrod"])
def test_methods_whose_server_takes_the_mean_are_taken(algorithm):
    tiny(**{**dataclasses.asdict(central_config()), "algorithm": algorithm, "server_optimizer": "adam"}).check()


def test_a_server_that_adds_no_noise_is_refused_by_the_node():
    config = central_config(num_clients=1, fraction_train=1.0)
    grid = FakeGrid(config)
    (node,) = grid.contexts
    arrays = ArrayRecord(tiny(model_name=NARROW).initial_shared())
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
    (context,) = grid.contexts.values()
    with pytest.raises(ValueError, match="privacy=central adds noise where Flower's own strategies add none"):
        client_app.app(Message(content, node, "train"), context)


@pytest.mark.slow
def test_a_bound_that_adapts_is_recorded_and_goes_on_after_a_stop(federate, tmp_path):
    config = central_config(adaptive_clipping=True, clipping_norm=1e-3, client_sampling="fixed")
    with pytest.raises(KeyboardInterrupt):
        federate(config, StoppedGrid(config, "train", 2))
    folder, grid = federate(dataclasses.replace(config, resume=str(tmp_path / "run1")))
    bounds = [each["clipping_norm"] for each in read_results(folder).rounds]
    assert bounds[0] == 1e-3 and len(set(bounds)) == 3
    assert all(0.5 < after / before < 2 for before, after in itertools.pairwise(bounds))
    events = EventAccumulator(str(folder)).Reload()
    assert [event.value for event in events.Scalars("privacy/clipping_norm")] == pytest.approx(bounds)
    messages = [message for message in grid.messages if message.metadata.message_type == "train"]
    replies = [reply for reply in grid.replies if "arrays" in reply.content]
    for message, reply in zip(messages, replies, strict=True):
        received = [array.numpy() for array in message.content["arrays"].values()]
        for place in range(3):
            sent = [array.numpy()[place] for array in reply.content["arrays"].values()]
            assert privacy.update_norm(sent, received) > 0.01, "the server clips"
    assert read_results(folder)["privacy"]["epsilon"] == privacy.central_epsilon(config, {1: 2, 2: 1})
