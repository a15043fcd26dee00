import pytest

from lit_fedbabu.algorithms.table import ALGORITHMS, algorithm_of
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.parts import parts_of
from tests.support import tiny_config

PARTS_OF = {  # what a round shares, trains and keeps, as the methods' papers say
    "fedbabu": ({"body"}, {"body"}, set()),
    "fedavg": ({"body", "head"}, {"body", "head"}, set()),
    "fedper": ({"body"}, {"body", "head"}, {"head"}),
    "fedrep": ({"body"}, {"body", "head"}, {"head"}),
    "lg-fedavg": ({"head"}, {"body", "head"}, {"body"}),
    "fedprox": ({"body", "head"}, {"body", "head"}, set()),
    "fedprox-babu": ({"body"}, {"body"}, set()),
    "ditto": ({"body", "head"}, {"body", "head"}, {"body", "head"}),
    "fedbn": ({"body", "head"}, {"body", "head"}, {"norm"}),
    "pfedme": ({"body", "head"}, {"body", "head"}, set()),
    "per-fedavg": ({"body", "head"}, {"body", "head"}, set()),
    "moon": ({"body", "head"}, {"body", "head"}, {"body"}),
    "moon-babu": ({"body"}, {"body"}, {"body"}),
    "fedrod": ({"body", "head"}, {"body", "head"}, {"own"}),
    "fednova": ({"body", "head"}, {"body", "head"}, set()),
    "fednova-babu": ({"body"}, {"body"}, set()),
    "feddyn": ({"body", "head"}, {"body", "head"}, {"gradient"}),
    "feddyn-babu": ({"body"}, {"body"}, {"gradient"}),
    "ifca": ({"body", "head"}, {"body", "head"}, set()),
    "feddbe": ({"body", "head"}, {"body", "head"}, {"own"}),
    "pfedfda": ({"body", "head"}, {"body"}, set()),
    "fedetf": ({"body", "head"}, {"body", "head"}, set()),
    "scaffold": ({"body", "head"}, {"body", "head"}, {"control"}),
    "scaffold-babu": ({"body"}, {"body"}, {"control"}),
    "apfl": ({"body", "head"}, {"body", "head"}, {"body", "head", "mixing"}),
    "fedala": ({"body", "head"}, {"body", "head"}, {"mixing"}),
    "fedas": ({"body"}, {"body", "head"}, {"body", "head"}),
    "fedpac": ({"body"}, {"body", "head"}, set()),
    "local": (set(), {"body", "head"}, {"body", "head"}),
    "centralized": ({"body", "head"}, {"body", "head"}, set()),
}


@pytest.mark.parametrize("algorithm", PARTS_OF)
def test_the_table_is_as_the_papers_say(algorithm):
    row = ALGORITHMS[algorithm]
    assert (set(parts_of(row.shared)), set(row.trained), set(row.kept)) == PARTS_OF[algorithm]


def test_an_unknown_algorithm_is_refused_with_the_names_there_are():
    with pytest.raises(InputError, match='algorithm = "fedbaboon": must be one of fedbabu, fedavg, fedper'):
        algorithm_of(tiny_config(algorithm="fedbaboon"))
