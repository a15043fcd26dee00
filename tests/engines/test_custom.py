"""Engines and loggers by an import path."""

import json

import pytest

from lit_fedbabu import run
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.records.results import read_results
from lit_fedbabu.run import main
from tests import own_engines
from tests.support import NARROW, files_that_decide, tiny_config

HERE = "tests.own_engines"
ROUNDS = {"model_name": NARROW, "num_server_rounds": 2}


@pytest.mark.parametrize("name", ["grid", "opened"])
def test_an_engine_by_import_path_writes_the_same_bytes_and_is_closed(name, federate, tmp_path):
    whole, _ = federate(tiny_config(**ROUNDS))
    place = {"output_dir": str(tmp_path), "run_name": name}
    assert run(tiny_config(**ROUNDS, engine=f"{HERE}:{name}", **place)) == read_results(whole)
    assert files_that_decide(tmp_path / name) == files_that_decide(whole)
    assert (own_engines.closed[-1:] == [name]) == (name == "opened")


REFUSED = {
    "number": "engine = .*takes a Config and gives a Flower Grid; it is a int$",
    "nothing": "engine = .*takes a Config and gives a Flower Grid; it gives a NoneType$",
    "fails": r"engine = .*gives no grid: ZeroDivisionError: division by zero \(.*own_engines.py:\d+\)$",
    "absent": "engine = .*has no attribute 'absent'$",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_engine_is_refused_before_the_run(name, tmp_path):
    with pytest.raises(InputError, match=REFUSED[name]):
        run(tiny_config(engine=f"{HERE}:{name}", output_dir=str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_name_that_is_no_engine_is_refused():
    with pytest.raises(InputError, match=r"\"locl\": must be one of local, ray, flower, .*did you mean local\?"):
        Config(engine="locl")


def test_a_run_goes_on_with_another_engine_and_not_unasked_with_that_of_a_file(federate, tmp_path, capsys):
    place = {"output_dir": str(tmp_path), "run_name": "mine"}
    run(tiny_config(**ROUNDS, engine=f"{HERE}:opened", logger=f"{HERE}:Lines", **place))
    count = len(own_engines.closed)
    capsys.readouterr()
    more = ["--resume", str(tmp_path / "mine"), f"model-name={NARROW}", "num-server-rounds=3"]
    assert main(more) == 2
    told = capsys.readouterr().err
    assert told.startswith(f'error: engine = "{HERE}:opened": is code that ') and told.count("\n") == 1
    assert main([*more, f"engine={HERE}:grid", "logger="]) == 0
    assert read_results(tmp_path / "mine")["round"] == 3 and len(own_engines.closed) == count


def test_a_logger_by_import_path_has_every_round(federate, tmp_path):
    folder, _ = federate(tiny_config(**ROUNDS, logger=f"csv,{HERE}:Lines"))
    rows = [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {1, 2} and any("train/loss" in row for row in rows), rows
    assert list(folder.glob("csv/**/metrics.csv"))


@pytest.mark.parametrize(("name", "told"), [(f"{HERE}:number", "it is a int"), ("cvs", r"did you mean csv\?")])
def test_what_is_no_logger_is_refused_before_the_run(name, told, tmp_path):
    with pytest.raises(InputError, match=f"logger = .*{told}"):
        run(tiny_config(logger=name, output_dir=str(tmp_path)))
    assert not list(tmp_path.iterdir())
