"""What follows from the options of an experiment: seeds, rates and counts."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from lit_fedbabu.config.options import key_of, read_trainer, with_trainer
from lit_fedbabu.config.rules import Kind, kind_of
from lit_fedbabu.ground.errors import InputError, close_to
from lit_fedbabu.ground.files import from_home

PLACES = ("engine", "ray-address", "output-dir", "run-name", "resume")
"""Keys that say where a run lies and what carries it, and nothing about its numbers."""
WITHOUT_NUMBERS = (*PLACES, "logger", "round-timeout")
"""Keys that change no number."""
OF_CODE = ("task", "model-name", "augmentation", "algorithm", "aggregator", "engine", "logger")
"""Keys whose values may be import paths: what they name is run."""
OF_SERVER = ("aggregator", "engine", "logger")
"""Of them those that nodes have no use for."""
OF_DATA = (
    "task", "dataset", "label-column", "class-names", "partitioner", "num-clients", "num-new-clients",
    "num-classes-per-client", "dirichlet-alpha", "lognormal-sigma", "natural-id-column", "min-client-images",
)  # fmt: skip
"""Options that say which data the clients have."""
BUFFER = 10
"""Updates of a full buffer, as in the experiments of Nguyen et al. 2022."""
FINETUNING = ("finetune_part", "num_finetune_epochs", "finetune_learning_rate", "knn_neighbors", "knn_weight")
"""Fields that say how models become personal."""
OTHER_WORDS = {
    **dict.fromkeys(("method", "algo", "strategy"), "algorithm"),
    **dict.fromkeys(("model", "arch", "net", "network", "backbone"), "model-name"),
    **dict.fromkeys(("data", "data-path", "data-dir"), "dataset"),
    **dict.fromkeys(("classes", "labels"), "class-names"),
    **dict.fromkeys(("partition", "split", "splitter"), "partitioner"),
    **dict.fromkeys(("clients", "n", "n-clients", "num-users", "users", "nodes", "num-supernodes"), "num-clients"),
    **dict.fromkeys(("s", "shards", "shards-per-client", "classes-per-client"), "num-classes-per-client"),
    **dict.fromkeys(("alpha", "beta", "concentration"), "dirichlet-alpha"),
    **dict.fromkeys(("sigma",), "lognormal-sigma"),
    **dict.fromkeys(("k", "rounds", "num-rounds", "n-rounds", "max-rounds"), "num-server-rounds"),
    **dict.fromkeys(("tau", "epochs", "e", "local-epochs", "num-epochs", "max-epochs"), "num-local-epochs"),
    **dict.fromkeys(("steps", "max-steps", "local-steps"), "num-local-steps"),
    **dict.fromkeys(("f", "c", "frac", "fraction", "fraction-fit", "participation"), "fraction-train"),
    **dict.fromkeys(("bs", "b", "batch", "batchsize"), "batch-size"),
    **dict.fromkeys(("lr", "eta", "rate", "lrate"), "learning-rate"),
    **dict.fromkeys(("wd", "decay", "l2"), "weight-decay"),
    **dict.fromkeys(("mu", "prox", "lambda", "lam"), "proximal-mu"),
    **dict.fromkeys(("server-lr",), "server-learning-rate"),
    **dict.fromkeys(("clip", "max-grad-norm", "clip-norm"), "clipping-norm"),
    **dict.fromkeys(("noise", "dp-noise"), "noise-multiplier"),
    **dict.fromkeys(("dp", "differential-privacy"), "privacy"),
    **dict.fromkeys(("secagg", "secagg-plus", "secure-sum"), "secure-aggregation"),
    **dict.fromkeys(("epsilon", "target-epsilon", "budget"), "max-epsilon"),
    **dict.fromkeys(("ft-epochs", "finetune-epochs", "personalization-epochs"), "num-finetune-epochs"),
    **dict.fromkeys(("ft-lr", "finetune-lr"), "finetune-learning-rate"),
    **dict.fromkeys(("eval-every", "eval-interval"), "evaluate-every"),
    **dict.fromkeys(("eval-clients", "fraction-evaluate", "fraction-eval"), "evaluate-clients"),
    **dict.fromkeys(("threads", "workers", "num-workers"), "num-threads"),
    **dict.fromkeys(("weights", "checkpoint", "ckpt", "init"), "initial-weights"),
    **dict.fromkeys(("out", "outdir", "output", "log-dir", "logdir", "save-dir"), "output-dir"),
    **dict.fromkeys(("name", "experiment", "exp-name"), "run-name"),
    **dict.fromkeys(("random-state", "rng"), "seed"),
}
"""Words of papers and of other programs, and the keys that they mean."""
EVERYONE = 1000
"""Clients that are all looked at before a run, where somebody has to make their data for it."""


def protection_of(privacy: str, noise_multiplier: float) -> str:
    """What the option ``privacy`` stands for: none, local, central or sample."""
    if privacy == "auto":  # which was all there was before the option
        return "local" if noise_multiplier else "none"
    return privacy


def code_in(options: Mapping[str, Any]) -> dict[str, str]:
    """Of options by their keys those that name code outside this package by its import path, and these."""
    paths = {key: str(value) for key, value in options.items() if key in OF_CODE}
    return {key: path for key, path in paths.items() if ":" in path and not path.startswith("timm:")}


class Derived:
    """The part of ``Config`` that is no option."""

    given: frozenset[str]
    """Fields that were given, also those whose value is the default."""
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    seed: int
    algorithm: str
    task: str
    engine: str
    partitioner: str
    class_names: str
    num_clients: int
    num_new_clients: int
    fraction_train: float
    evaluate_clients: int
    aggregator: str
    privacy: str
    noise_multiplier: float
    secure_aggregation: bool
    secure_threshold: int
    num_server_rounds: int
    num_local_epochs: int | float
    num_local_steps: int
    finetune_part: str
    num_finetune_epochs: int
    trainer_options: str
    initial_weights: str
    initial_weights_digest: str
    logger: str
    round_timeout: float
    round_deadline_s: float
    over_selection: float
    server_mode: str
    buffer_size: int
    client_speeds: str

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> Self:
        """Make a Config from kebab-case keys, as Flower's ``context.run_config`` has them.

        Raises:
            InputError: an unknown key, or a value that is refused.
        """
        names = {key_of(field): field.name for field in dataclasses.fields(cls)}
        run_config = with_trainer(run_config)
        for key, value in run_config.items():
            if key not in names:
                word = key.lower().replace("_", "-")
                hint = f"; did you mean {OTHER_WORDS[word]}?" if word in OTHER_WORDS else close_to(word, names)
                raise InputError(key, value, f"no such key{hint or '; lit-fedbabu run --help lists them'}")
        return cls(**{names[key]: value for key, value in run_config.items()})

    def to_run_config(self) -> dict[str, Any]:
        """The same options under their kebab-case keys."""
        return {key_of(field): getattr(self, field.name) for field in dataclasses.fields(self)}

    def code(self) -> dict[str, str]:
        """The options that name code outside this package by its import path, and these."""
        return code_in(self.to_run_config())

    def experiment(self) -> dict[str, Any]:
        """The options that decide numbers: all but those that name places."""
        return {key: value for key, value in self.to_run_config().items() if key not in WITHOUT_NUMBERS}

    def derived_seed(self, purpose: str, *ids: int) -> int:
        """A 63-bit seed that depends on (seed, purpose, ids) alone, as on (seed, "train", round, client)."""
        word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "big")
        return int(np.random.SeedSequence([self.seed, word, *ids]).generate_state(1, np.uint64)[0] >> 1)

    def pinned(self, given: str = "") -> Self:
        """The same options with the absolute path of the file of initial weights, and its digest.

        Args:
            given: the file, where it is not that of the options.

        Raises:
            InputError: there is no such file, or it is another one than the digest says.
        """
        given = given or self.initial_weights
        if not given:
            return self
        path = from_home(given).resolve()
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            remedy = f"cannot be read ({error.strerror}); give a state dict, .safetensors or a checkpoint"
            raise InputError("initial-weights", given, remedy) from None
        if self.initial_weights_digest not in ("", digest):
            remedy = f"has the SHA-256 {digest[:16]}..., and that of the run began with"
            remedy += f" {self.initial_weights_digest[:16]}...; put that file back"
            raise InputError("initial-weights", str(path), remedy)
        return dataclasses.replace(self, initial_weights=str(path), initial_weights_digest=digest)

    @property
    def trainer(self) -> dict[str, Any]:
        """Arguments of Lightning's Trainer that the options give."""
        return read_trainer(self.trainer_options, self.kind.trainer)

    @property
    def devices(self) -> int:
        """GPUs, or where there are none processes, that train one client together."""
        return int(self.trainer.get("devices", 1))

    @property
    def kind(self) -> Kind:
        """What is learned: images, or a task of the user's own."""
        return kind_of(self.task)

    @property
    def trusted(self) -> str:
        """What names the model: an import path is the user's code, which this configuration trusts."""
        name: str = getattr(self, self.kind.model)
        return name

    @property
    def timeout_s(self) -> float:
        """Seconds of the clock that a round waits for its clients."""
        longest = 60 * (self.round_timeout or (120 if self.on_sites else 720))
        return min(longest, self.round_deadline_s) if self.on_sites and self.round_deadline_s else longest

    @property
    def speed_sigma(self) -> float:
        """S of ``client-speeds``, the deviation of the logarithm of the seconds that clients take for a sample."""
        return float(self.client_speeds.removeprefix("lognormal:") or 0)

    @property
    def on_sites(self) -> bool:
        """Whether every client is a machine of its own with its own images."""
        return self.partitioner == "sites"

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names that the configuration gives; none if it leaves them to the dataset."""
        return tuple(name.strip() for name in self.class_names.split(",")) if self.class_names else ()

    @property
    def loggers(self) -> tuple[str, ...]:
        """The loggers beside TensorBoard."""
        return tuple(dict.fromkeys(name.strip() for name in self.logger.split(","))) if self.logger else ()

    @property
    def protection(self) -> str:
        """``privacy``, with what auto stands for: none, local, central or sample."""
        return protection_of(self.privacy, self.noise_multiplier)

    @property
    def num_federated(self) -> int:
        """Clients that can be drawn, 0 to this number without it; those after them are new."""
        return self.num_clients - self.num_new_clients

    @property
    def evaluated(self) -> list[int]:
        """Clients of the federation that are evaluated: all of them, or ``evaluate-clients``, drawn by the seed."""
        if not self.evaluate_clients:
            return list(range(self.num_federated))
        rng = np.random.default_rng(self.derived_seed("evaluated"))
        return sorted(rng.choice(self.num_federated, self.evaluate_clients, replace=False).tolist())

    @property
    def evaluated_last(self) -> list[int]:
        """Clients that are evaluated after the last round: those of the federation, and all new ones."""
        return [*self.evaluated, *range(self.num_federated, self.num_clients)]

    @property
    def clients_per_round(self) -> int:
        """Clients that are drawn for a round: int(f N), at least one."""
        return max(1, int(self.fraction_train * self.num_federated + 1e-9))

    @property
    def is_buffered(self) -> bool:
        """Whether the server makes a step whenever a buffer is full, and waits for no round."""
        return self.server_mode == "buffered"

    @property
    def updates_per_step(self) -> int:
        """Updates that the server makes one model of: those of a round, or of a full buffer."""
        size = self.buffer_size or min(BUFFER, self.clients_per_round)
        return size if self.is_buffered else self.clients_per_round

    @property
    def unmasking_threshold(self) -> int:
        """Shares that make a secret in secure aggregation: ``secure-threshold``, or two thirds of a round's clients."""
        return self.secure_threshold or -(-2 * self.clients_per_round // 3)

    @property
    def clients_asked(self) -> int:
        """Clients that a round asks: ``over-selection`` times as many as are to count, rounded up."""
        return min(self.num_federated, math.ceil(self.over_selection * self.clients_per_round - 1e-9))

    def drawn(self, server_round: int) -> list[int]:
        """Clients that (seed, round) alone draw, without replacement, in order: ``clients_asked``."""
        rng = np.random.default_rng(self.derived_seed("sampling", server_round))
        return sorted(rng.choice(self.num_federated, self.clients_asked, replace=False).tolist())

    @property
    def looked_at(self) -> list[int]:
        """Clients whose data are looked at before a run: all, or of more than ``EVERYONE`` those of the first round.

        Privacy of samples, simulated speeds and secure aggregation count the samples of all clients, so that all are.
        """
        counted = self.protection == "sample" or self.client_speeds or self.secure_aggregation
        if self.num_clients <= EVERYONE or counted:
            return list(range(self.num_clients))
        return self.drawn(1)[:EVERYONE]

    def reads(self, field: str) -> bool:
        """Whether algorithm, partitioner, aggregator, privacy, fine-tuning, engine or server mode read a field."""
        read_by: str = self.__dataclass_fields__[field].metadata["read_by"]
        readers = {self.algorithm, self.partitioner, self.aggregator, self.finetune_part, self.protection, self.engine}
        readers |= {self.server_mode}
        readers |= {"secure-aggregation"} if self.secure_aggregation else set()
        return not read_by or bool(readers & set(read_by.split(", ")))

    @property
    def unread(self) -> list[str]:
        """A line for each option that has another value than its default, and that nothing reads."""
        return [
            f"{key_of(field)} = {getattr(self, field.name)} changes nothing: it is used by {field.metadata['read_by']}"
            for field in self.__dataclass_fields__.values()
            if not self.reads(field.name) and getattr(self, field.name) != field.default
        ]

    @property
    def finetune_length(self) -> int:
        """How often a model is evaluated in fine-tuning after the beginning: after every epoch; with knn once."""
        return 1 if self.finetune_part == "knn" else self.num_finetune_epochs

    def length(self, field: str) -> tuple[float, int]:
        """Epochs of a phase, by the field that has them, and mini-batches in their place; 0: the epochs."""
        return getattr(self, field), self.num_local_steps if field == "num_local_epochs" else 0

    @property
    def local_length(self) -> str:
        """How long a participant trains in a round, in words."""
        steps, epochs = self.num_local_steps, self.num_local_epochs
        return f"{steps} local steps" if steps else f"{epochs} local epochs"

    def learning_rate_in(self, server_round: int, field: str = "learning_rate") -> float:
        """Learning rate of a round, counted from 1: decayed after rounds K//2 and 3K//4, for good."""
        return self.decayed(getattr(self, field), server_round, field)

    def decayed(self, rate: float, server_round: int, field: str = "learning_rate") -> float:
        """What a learning rate of the first round has become in a round."""
        factor: float = getattr(self, f"{field}_decay")
        for milestone in sorted({self.num_server_rounds // 2, self.num_server_rounds * 3 // 4}):
            if 0 < milestone < server_round:
                rate *= factor
        return rate
