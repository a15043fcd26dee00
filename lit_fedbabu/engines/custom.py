"""An engine of the user's own: a function that gives a Flower ``Grid``."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

from flwr.serverapp import Grid

from lit_fedbabu.config import Config
from lit_fedbabu.config.options import imported
from lit_fedbabu.ground.compat import identify_process
from lit_fedbabu.ground.errors import InputError, told

REMEDY = "must be local, ray, flower, or the import path of a function that takes a Config and gives a Flower Grid"


@contextmanager
def opened(config: Config) -> Iterator[Grid]:
    """The grid of the engine that ``engine`` names by an import path.

    The function gives a grid, or a context manager of one, which is left when the run ends.

    Raises:
        InputError: there is no such function, it raises an exception, or it gives something else.
    """
    engine = imported("engine", config.engine, REMEDY)
    if not callable(engine):
        raise InputError("engine", config.engine, f"{REMEDY}; it is a {type(engine).__name__}")
    identify_process()
    try:
        made = engine(config)
    except Exception as error:  # whatever the user's code raises
        raise InputError("engine", config.engine, f"gives no grid: {told(error)}") from error
    if isinstance(made, AbstractContextManager):
        with made as grid:
            yield _grid(config, grid)
    else:
        yield _grid(config, made)


def _grid(config: Config, made: Any) -> Grid:
    if not all(callable(getattr(made, name, None)) for name in ("get_node_ids", "send_and_receive")):
        raise InputError("engine", config.engine, f"{REMEDY}; it gives a {type(made).__name__}")
    return cast(Grid, made)
