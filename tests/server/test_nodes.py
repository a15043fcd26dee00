import pytest

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.server import patience
from lit_fedbabu.server.nodes import find_nodes
from tests.support import (
    FakeGrid,
    tiny_config,
    unavailable,
)


def test_nodes_are_ordered_by_their_place_even_if_they_register_late():
    grid = FakeGrid(tiny_config(), 4)
    late = iter([[], list(grid.contexts)[:1], list(grid.contexts)[:1], list(grid.contexts)[:3]])
    grid.get_node_ids = lambda: next(late, list(grid.contexts)[::-1])
    assert [node.id for node in find_nodes(grid, print)] == list(grid.contexts)


def test_nodes_that_never_come_are_named():
    grid = FakeGrid(tiny_config(), 4)
    grid.get_node_ids = lambda: list(grid.contexts)[:3]
    with pytest.raises(RunError, match="only 3 of 4 nodes"):
        find_nodes(grid, print, timeout_s=2)


def test_a_node_that_is_gone_when_it_is_asked_is_waited_for(capsys):
    grid = FakeGrid(tiny_config(), 3)
    answer, gone = grid.answer, iter([True])

    def sometimes(message, context):
        if context.node_config["partition-id"] == 1 and next(gone, False):
            return unavailable(message)
        return answer(message, context)

    grid.answer = sometimes
    assert [node.id for node in find_nodes(grid, print)] == list(grid.contexts)
    assert "waiting for nodes: 2 of 3 are there" in capsys.readouterr().out


def test_nodes_that_came_but_never_answer_are_not_counted():
    grid = FakeGrid(tiny_config(), 3)
    answer = grid.answer

    def only_the_first(message, context):
        return unavailable(message) if context.node_config["partition-id"] else answer(message, context)

    grid.answer = only_the_first
    with pytest.raises(RunError, match="only 1 of 3 nodes came"):
        find_nodes(grid, print, timeout_s=2)


def test_answers_of_real_nodes_are_looked_for_as_those_of_sites():
    real, other = type("HttpGrid", (), {})(), object()
    assert type(patience.patient(real, Config(), print)) is patience.PatientGrid
    assert patience.patient(other, Config(), print) is other
