"""Files of a run's folder, each of whose values is replaced by others: used as before, or refused in one line."""

import json
import shutil
import tomllib

import pytest
import tomli_w

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.personal.sweep import ROWS, Tuning, _done
from lit_fedbabu.records import run_folder, seal
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.records.saved import find_model
from lit_fedbabu.reporting.runs import read_run
from lit_fedbabu.server.spent import _read
from tests.support import tiny_config

VALUES: list[object] = [None, True, -1, 2.5, 10**400, "", "\x1b\n", [], [1], {}, float("nan")]


def places(value, above=()):
    """Where the values in tables and at the start of lists are."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*above, key)
        yield from places(each, (*above, key))


def changed(content, place, value):
    copy = inner = json.loads(json.dumps(content))
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return copy


def taken_or_refused(*reads):
    """How many of these refuse what they read."""
    refused = 0
    for read in reads:
        try:
            read()
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and "\x1b" not in str(error)
    return refused


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_values_of_results(run):
    path, tuning = run / run_folder.RESULTS, Tuning(tiny_config(), run, None, False)
    whole = json.loads(path.read_text())
    refused = 0
    for number, place in enumerate(places(whole)):
        for value in VALUES[number % 4 :: 4]:
            path.write_text(json.dumps(changed(whole, place, value)))
            refused += taken_or_refused(lambda: read_run(run), lambda: _done(tuning))
    assert refused > 200


def test_values_of_a_configuration(run):
    path = run / run_folder.CONFIG
    whole = tomllib.loads(path.read_text())
    reads = (
        lambda: read_run(run),
        lambda: read_federation(run / run_folder.LAST_CHECKPOINT),
        lambda: find_model(run, None),
        lambda: run_folder.memory_of(run, True),
    )
    for place in [("environment",), *(("environment", key) for key in ("begun", "trains-on")), ("seed",), ("norm",)]:
        for value in (each for each in VALUES if each not in (None, 10**400)):
            path.write_text(tomli_w.dumps(changed(whole, place, value)))
            refused = taken_or_refused(*reads)
            assert refused or isinstance(value, str | dict), (place, value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (seal.SEAL, {"round": 1, "file": "memory/client_0/round_0001.safetensors", "sha256": "0"}),
        (run_folder.ASKED, {"round": 1, "clients": [0]}),
        (ROWS, {"client": 1}),
    ],
)
def test_values_of_lines(name, line, run):
    path, tuning = run / name, Tuning(tiny_config(), run, None, False)
    reads = {
        seal.SEAL: (lambda: seal.check_checkpoints(run), lambda: seal.check_memories(run, 1)),
        run_folder.ASKED: (lambda: _read(run),),
        ROWS: (lambda: _done(tuning),),
    }[name]
    for place in places(line):
        for value in VALUES:
            path.write_text(json.dumps(changed(line, place, value)) + "\n")
            same_type = type(value) is (int if place[-1] == 0 else type(line[place[0]])) or name == seal.SEAL
            assert taken_or_refused(*reads) or same_type, (place, value)
    for content in (b"[]\n", b"1\n", b'{"round": "1"}\n'):
        path.write_bytes(content)
        assert taken_or_refused(*reads)
    path.write_bytes(b'\xff\xfe\n{"round": 1, "cli')
    assert not taken_or_refused(*reads), "lines that were cut off are left out"
