"""The nodes of a Ray cluster as further workers of a study, each with the study's folder on a disk that all share."""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lit_fedbabu.config import Config
from lit_fedbabu.engines import ray
from lit_fedbabu.ground.errors import InputError, some
from lit_fedbabu.ground.files import make_folder
from lit_fedbabu.ground.printing import say
from lit_fedbabu.studies.plan import Study

MARK = ".shared-"
"""How a file in a study's folder begins by which a node sees that it has the folder."""


@contextmanager
def joined(study: Study, address: str) -> Iterator[int]:
    """Let every other node of a Ray cluster do runs of a study, as one of several workers; yields how many there are.

    They end with this context, or with this process. Notes on those that could not, or had enough, come at the end,
    also of what fails or is stopped.

    Args:
        study: its folder must be one that all nodes have.
        address: of the cluster; empty: there is none.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
    """
    if not address:
        yield 0
        return
    Config(engine="ray", ray_address=address)  # which refuses what is no address
    make_folder("output-dir", study.folder)
    mark = study.folder / f"{MARK}{secrets.token_hex(8)}"
    mark.touch()
    try:
        with ray.driver(address, "lit_fedbabu.studies.ray_nodes") as (_, connection, log):
            connection.send((address, study, str(mark), sys.path, os.getcwd()))
            try:
                kind, told = connection.recv() if connection.poll(ray.START_S) else ("refused", ray.last_error(log))
            except EOFError:
                kind, told = "refused", ray.last_error(log)
            if kind == "refused":
                raise InputError("ray-address", address, told)
            say(f"with the nodes {some(told)}" if told else "note: the Ray cluster has no node but this one")
            try:
                yield len(told)
            finally:
                try:
                    while connection.poll(0):
                        say(f"note: {connection.recv()}")
                except (EOFError, OSError):
                    say(f"note: the Ray cluster was lost, and its nodes did no more runs: {ray.last_error(log)}")
    finally:
        mark.unlink(missing_ok=True)
