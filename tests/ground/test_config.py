import dataclasses
import importlib
import pickle
import tomllib
from pathlib import Path

import pytest

from lit_fedbabu.config import Config
from lit_fedbabu.config.words import parse_words
from lit_fedbabu.ground.errors import RunError

run_module = importlib.import_module("lit_fedbabu.run")
ROOT = Path(__file__).parent.parent.parent


def test_the_dataclass_equals_the_apps_config():
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert shipped == Config().to_run_config()
    assert {key: type(value) for key, value in shipped.items()} == {
        key: type(value) for key, value in Config().to_run_config().items()
    }


def test_every_option_says_what_it_is():
    assert all(len(field.metadata["about"]) > 10 for field in dataclasses.fields(Config))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_shipped_configs_are_accepted(path):
    config = Config.from_run_config(parse_words([str(path)]))
    assert config != Config(), "a configuration that changes nothing"


@pytest.mark.parametrize(
    ("rounds", "first_rounds"),
    [(80, [1, 41, 61]), (320, [1, 161, 241]), (32, [1, 17, 25]), (4, [1, 3, 4]), (1, [1])],
)
def test_learning_rate_falls_tenfold_after_half_and_three_quarters_for_good(rounds, first_rounds):
    config = Config(num_server_rounds=rounds, learning_rate=0.1)
    rates = [config.learning_rate_in(server_round) for server_round in range(1, rounds + 1)]
    changes = [i + 1 for i, rate in enumerate(rates) if i == 0 or rate != rates[i - 1]]
    assert changes == first_rounds
    assert [rates[i - 1] for i in changes] == pytest.approx([0.1, 0.01, 0.001][: len(changes)])


def test_derived_seeds_depend_on_everything_they_are_told():
    config = Config(seed=1)
    seeds = [
        config.derived_seed("train", 1, 2),
        config.derived_seed("train", 2, 1),
        config.derived_seed("finetune", 1, 2),
        Config(seed=2).derived_seed("train", 1, 2),
    ]
    assert len(set(seeds)) == 4
    assert seeds[0] == Config(seed=1, num_clients=7).derived_seed("train", 1, 2)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_what_is_given_is_told_from_a_default():
    own, default = Config(task="m:t"), Config(task="m:t", learning_rate=0.1)
    assert (own.learning_rate, own.finetune_learning_rate, default.learning_rate) == (0.0, 0.0, 0.1)
    assert default.given == {"task", "learning_rate"}
    for config in (own, default):
        for same in (pickle.loads(pickle.dumps(config)), Config.from_run_config(config.to_run_config())):
            assert same == config
        assert dataclasses.replace(config, seed=1).learning_rate == config.learning_rate
    assert Config.from_run_config({"task": "m:t", "learning-rate": 0.1}) == default


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Config(task="m:t", learning_rate=0.1), {"task": "m:t", "learning-rate": 0.1}),
        (Config(resume="run", num_clients=100), {"resume": "run", "num-clients": 100}),
        (dataclasses.replace(Config(resume="run"), seed=1), {"resume": "run", "seed": 1, "num-clients": 100}),
    ],
)
def test_run_takes_what_is_given_also_where_it_is_the_default(config, expected, monkeypatch):
    seen = []
    monkeypatch.setattr(run_module, "_run", lambda options: (seen.append(options) or "folder", 1))
    with pytest.raises(RunError):
        run_module.run(config)
    assert expected.items() <= seen[0].items() and "output-dir" not in seen[0]
