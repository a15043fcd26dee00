"""The table of methods: which part of a model is shared, and what is trained in a round.

A client's model is made of three overlays, in this order:

    initial  <-  memory  <-  received

*initial* is built from the seed and equal on every client. *memory* is what this client keeps for itself between
rounds: what it trains and does not share. *received* is what the server sent. No message carries a part that is not
shared. What is its own in a method overrides a hook of ``Algorithm``.
"""

from collections import UserDict
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from lit_fedbabu.algorithms.algorithm import EPOCHS, Algorithm, Centralized, Ditto
from lit_fedbabu.config import Config
from lit_fedbabu.config.options import imported
from lit_fedbabu.ground.errors import InputError, close_to
from lit_fedbabu.learning.parts import NORM, PARTS, parts_of

BODY, FULL = (("body", EPOCHS),), (("full", EPOCHS),)
HEAD = ("head", "num_head_epochs")

SHARED = "shared"
"""Where the provenance of a checkpoint has the part that a method of the user's own shares."""


class Rows(UserDict[str, Any]):
    """Methods by their names; what ``of_file`` gives is imported when it is first asked for."""

    def __getitem__(self, name: str) -> Algorithm:
        found = super().__getitem__(name)
        row: Algorithm = found if isinstance(found, Algorithm) else found()
        self.data[name] = row
        return row


def of_file(file: str, kind: str, *fields: Any, **named: Any) -> Callable[[], Algorithm]:
    """A method with a file of its own in this folder, which may import PyTorch: commands that only name it do not.

    Args:
        file: its name.
        kind: the subclass of ``Algorithm`` in it.
        fields: of that, in their order.
        named: more of them.
    """

    def made() -> Algorithm:
        row: Algorithm = getattr(import_module(f"lit_fedbabu.algorithms.{file}"), kind)(*fields, **named)
        return row

    return made


_ROWS: dict[str, Algorithm | Callable[[], Algorithm]] = {
    "fedbabu": Algorithm("FedBABU", "body", BODY),  # Oh et al. 2022, Algorithm 1
    "fedavg": Algorithm("FedAvg", "full", FULL),  # McMahan et al. 2017, Algorithm 1
    "fedper": Algorithm("FedPer", "body", FULL),  # Arivazhagan et al. 2019, Algorithm 1
    "fedrep": Algorithm("FedRep", "body", (HEAD, *BODY)),  # Collins et al. 2021, Algorithm 1
    "lg-fedavg": Algorithm("LG-FedAvg", "head", FULL),  # Liang et al. 2020, Algorithm 1
    "fedbn": Algorithm("FedBN", "full", FULL, private=(NORM,)),  # Li et al. 2021, Algorithm 1
    "fedprox": Algorithm("FedProx", "full", FULL, step="proximal"),  # Li et al. 2020, Algorithm 2
    "fedprox-babu": Algorithm("FedProx+BABU", "body", BODY, step="proximal"),  # Oh et al. 2022
    "ditto": Ditto("Ditto", "full", FULL),  # Li et al. 2021, Algorithm 1
    "per-fedavg": Algorithm("Per-FedAvg", "full", FULL, step="first-order-maml"),  # Fallah et al. 2020, Algorithm 1
    "pfedme": Algorithm("pFedMe", "full", FULL, step="moreau-envelope"),  # Dinh et al. 2020, Algorithm 1
    "moon": of_file("moon", "Moon", "MOON", "full", FULL),  # Li et al. 2021, Algorithm 1
    "moon-babu": of_file("moon", "Moon", "MOON+BABU", "body", BODY),  # its loss on FedBABU's body
    "fedrod": of_file("fedrod", "FedRod", "FedRoD", "full", FULL, state=("own",)),  # Chen and Chao 2022, Algorithm 1
    "fednova": of_file("fednova", "FedNova", "FedNova", "full", FULL),  # Wang et al. 2020, section 4
    "fednova-babu": of_file("fednova", "FedNova", "FedNova+BABU", "body", BODY),  # the same of a FedBABU body
    "feddyn": of_file("feddyn", "FedDyn", "FedDyn", "full", FULL),  # Acar et al. 2021, Algorithm 1
    "feddyn-babu": of_file("feddyn", "FedDyn", "FedDyn+BABU", "body", BODY),  # the same of a FedBABU body
    "ifca": of_file("ifca", "Ifca", "IFCA", "full", FULL),  # Ghosh et al. 2020, Algorithm 1
    "feddbe": of_file("feddbe", "FedDbe", "FedDBE", "full", FULL, state=("own",)),  # Zhang et al. 2023, Algorithm 1
    "pfedfda": of_file("pfedfda", "PFedFda", "pFedFDA", "full", BODY),  # McLaughlin and Su 2024, Algorithm 1
    "fedetf": of_file("fedetf", "FedEtf", "FedETF", "full", FULL, head="etf"),  # Li et al. 2023, Section 4
    "scaffold": of_file("scaffold", "Scaffold", "SCAFFOLD", "full", FULL),  # Karimireddy et al. 2020, Algorithm 1
    "scaffold-babu": of_file("scaffold", "Scaffold", "SCAFFOLD+BABU", "body", BODY),  # the same of a FedBABU body
    "apfl": of_file("apfl", "Apfl", "APFL", "full", FULL),  # Deng et al. 2020, Algorithm 1
    "fedala": of_file("fedala", "FedAla", "FedALA", "full", FULL),  # Zhang et al. 2023, Algorithm 1
    "fedas": of_file("fedas", "FedAs", "FedAS", "body", FULL),  # Yang et al. 2024, Algorithm 1
    "fedpac": of_file("fedpac", "FedPac", "FedPAC", "body", (HEAD, *BODY)),  # Xu et al. 2023, Algorithm 1
    "local": Algorithm("Local only", "none", FULL),  # no federation: what a client can do alone
    "centralized": Centralized("Centralized", "full", FULL),  # no federation: all images in one place
}

ALGORITHMS = Rows(_ROWS)


def algorithm_of(config: Config) -> Algorithm:
    """The algorithm that the configuration names: a row, or one of the user's by its import path.

    Raises:
        InputError: there is none.
    """
    name = config.algorithm
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    remedy = f"must be one of {', '.join(ALGORITHMS)}, or the import path of a lit_fedbabu.Algorithm of your own"
    if ":" not in name:
        raise InputError("algorithm", name, remedy + close_to(name, ALGORITHMS))
    found = imported("algorithm", name, remedy)
    if not isinstance(found, Algorithm):
        raise InputError("algorithm", name, f"{remedy}; it is a {type(found).__name__}")
    return found


def shared_of(provenance: Mapping[str, Any]) -> str:
    """The part that the method of a checkpoint shares, without importing a file of the user's own."""
    name = provenance["config"]["algorithm"]
    return ALGORITHMS[name].shared if name in ALGORITHMS else str(provenance.get(SHARED, "none"))


def title_of(name: str) -> str:
    """The title of a method in tables: of a user's own, whose file is not imported for it, its name in the file."""
    return ALGORITHMS[name].title if name in ALGORITHMS else name.partition(":")[2]


def is_pooled(name: str) -> bool:
    """Whether one participant has all images, as none of a user's methods does."""
    return name in ALGORITHMS and ALGORITHMS[name].pooled


KINDS = ("one for all", "one each", "", "bound")


def kind_of(name: str) -> str:
    """What clients have after the rounds, before any fine-tuning.

    "one for all": one model; "one each": models with something of their own; "bound": what can be had without a
    federation; "": not known of a method of the user's own, whose file is not imported for it.
    """
    if name not in ALGORITHMS:
        return ""
    row = ALGORITHMS[name]
    if not row.federates:
        return "bound"
    own = {*row.kept} & {*PARTS} - {*parts_of(row.shared)} or type(row).own_model is not Algorithm.own_model
    return "one each" if own or row.private else "one for all"


def place_of(name: str) -> tuple[int, int]:
    """Where a method stands in tables: by its kind, and in it in the order of the rows."""
    return KINDS.index(kind_of(name)), list(ALGORITHMS).index(name) if name in ALGORITHMS else 0
