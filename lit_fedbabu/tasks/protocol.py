"""What a task is to the rest of the package, and how the one of a configuration is made.

``ImageClassification`` and ``CustomTask``, which makes one of a user's LightningModule and LightningDataModule, are
such tasks. Nothing outside this folder asks which of them it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, cast, runtime_checkable

if TYPE_CHECKING:
    import lightning as L
    from torch import Tensor

    from lit_fedbabu.algorithms.algorithm import Algorithm
    from lit_fedbabu.config import Config
    from lit_fedbabu.learning.evaluation import Measured, Personalization, Score
    from lit_fedbabu.learning.losses import Loss
    from lit_fedbabu.learning.state import Learner

    Predicted = tuple[Tensor, Tensor, Tensor]
    """Of N samples features (N, F), logits (N, num_classes) and labels (N,)."""


class Data(Protocol):
    """The data of a client, in the order and with the augmentation of one use."""

    @property
    def num_train(self) -> int:
        """Training samples."""

    @property
    def num_test(self) -> int:
        """Test samples."""

    @property
    def class_counts(self) -> Tensor:
        """Training samples by class (C,); raises ValueError where there are no classes."""


class Batches(NamedTuple):
    """What a client's batches are at most and at least.

    Args:
        train: samples of the largest and the smallest batch that it trains on.
        test: the same of those that it is evaluated on.
        shape: of a sample.
    """

    train: Sequence[int]
    test: Sequence[int]
    shape: tuple[int, ...]


class AnyTask(Protocol):
    """What clients learn: modules, data, and how the one is trained and evaluated on the other."""

    config: Config

    @classmethod
    def of_site(cls, config: Config, client: int, data_path: str) -> Self:
        """The task on the machine of a client, which has the data of that client alone."""

    @classmethod
    def of_external(cls, config: Config, data: str, label_column: str, saved: Mapping[str, Any], further: bool) -> Self:
        """The task of someone who had no part in a federation, as of one client.

        Args:
            config: of the federation, with the options of fine-tuning.
            data: what names the data.
            label_column: of them, where they have several.
            saved: the provenance of the model that is fine-tuned.
            further: whether that is a personal model already.

        Raises:
            InputError: the data cannot be used.
        """

    @property
    def parts(self) -> tuple[str, ...]:
        """Of its modules: body and head, and others that it names."""

    @property
    def score(self) -> Score:
        """What clients are compared by."""

    @property
    def class_names(self) -> Sequence[str]:
        """By the numbers of the classes; empty where nothing is classified, or they are not known."""

    @property
    def client_names(self) -> Sequence[str]:
        """By the numbers of the clients; empty where they have none."""

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know of module and data before a run, a line each."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What a checkpoint says of inputs and outputs."""

    @property
    def sizes(self) -> Mapping[int, tuple[int, int]]:
        """Training and test samples of the clients of whom this machine knows them before a run."""

    @property
    def title(self) -> str:
        """What is learned, in a word or two."""

    def summary(self) -> str:
        """The split in one line."""

    def class_counts(self) -> str:
        """The split as CSV."""

    def batches(self, pooled: bool) -> Batches | None:
        """The largest and smallest batches; None where they are not known. ``pooled``: one participant has all."""

    def check(
        self, algorithm: Algorithm, initial: Callable[[], Learner], made: Callable[[], Learner], with_data: bool
    ) -> None:
        """Try module and data before a run.

        Args:
            algorithm: that will train.
            initial: gives the initial model, which is made once.
            made: makes the initial model anew.
            with_data: whether this machine has data. A server of sites has none.

        Raises:
            InputError: one line that names the key, the value and the remedy.
        """

    def refuse_other(self, saved: Mapping[str, Any], split: Path) -> None:
        """Raise InputError where the data are not those of a federation.

        Args:
            saved: the provenance of its checkpoint.
            split: the file with its split, as of ``class_counts``, if there is one.
        """

    def initial(self, seed: int) -> Learner:
        """The module with its first weights, which follow from the seed."""

    def client_data(self, client: int, seed: int, pooled: bool = False, test_batch_size: int | None = None) -> Data:
        """The data of a client.

        Args:
            client: its number.
            seed: of order and augmentation.
            pooled: take the training data of all clients.
            test_batch_size: test samples in a batch at most; None: as the configuration says.
        """

    def fit(
        self,
        modules: Sequence[Learner],
        data: Sequence[Data],
        *,
        mode: str,
        epochs: float,
        learning_rate: float,
        steps: int = 0,
        callbacks: Sequence[L.Callback] = (),
        losses: Sequence[Loss] = (),
        private: bool = False,
    ) -> list[float]:
        """Train a part of every module in place, several of them together as a cohort.

        Args:
            modules: what to train, one for each client.
            data: the clients'.
            mode: "body", "head" or "full"; of a user's task also others, as in "body+neck".
            epochs: over each client's training samples; of a fraction of an epoch its first batches, rounded up.
            learning_rate: 0: the module's own.
            steps: mini-batches of each client, in place of ``epochs``; 0: the epochs.
            callbacks: Lightning's.
            losses: one for each client, in place of the task's; empty: the task's.
            private: take steps of DP-SGD, by the options of ``privacy``, over Poisson batches of one client.

        Returns:
            For every client the mean training loss over all samples seen; nan if there was none.
        """

    def evaluate(self, modules: Sequence[Learner], data: Sequence[Data]) -> Sequence[Measured]:
        """Measures of every module on its client's test samples."""

    def personalize(
        self,
        modules: Sequence[Learner],
        data: Sequence[Data],
        *,
        part: str,
        epochs: int,
        learning_rate: float,
        losses: Sequence[Loss] = (),
        turns: Sequence[tuple[str, int, float]] = (),
        say: Callable[[Sequence[Measured]], None] = lambda _: None,
    ) -> list[Personalization]:
        """Fine-tune a part of the modules in place; evaluate before, and after every epoch.

        ``say`` is told of the first module's evaluations until now. Of images alone there are ``losses``, one for each
        client in place of the cross-entropy, and ``turns``: what trains afterwards, with epochs and rates. After all of
        these is one more evaluation.
        """

    def external_start(
        self, initial: Mapping[str, Tensor], shared: Mapping[str, Tensor], further: bool
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """What the model of someone who had no part starts from: initial weights, and what is laid over them.

        Raises:
            ValueError: there is nothing that others could make their own; its text says what is missing.
        """

    def described(self, data: Data) -> str:
        """A client's data in a few words."""

    def save(self, module: Learner, folder: Path) -> Sequence[str]:
        """Write a module with its provenance into a folder; returns the names of the files, that of the model first."""


@runtime_checkable
class Classifies(Protocol):
    """What a task can do beside that if its modules classify."""

    def predictions(self, modules: Sequence[Learner], data: Sequence[Data]) -> list[list[Predicted]]:
        """For every client what its module predicts of its training samples, its test samples and of others'."""

    def features(self, module: Learner, data: Data) -> tuple[Tensor, Tensor]:
        """What a body makes of all test samples as one batch (N, F), and their classes (N,)."""

    def vote(
        self,
        modules: Sequence[Learner],
        data: Sequence[Data],
        neighbors: int,
        weight: float,
        say: Callable[[Sequence[Measured]], None] = lambda _: None,
    ) -> list[Personalization]:
        """Let the nearest training samples vote beside each module, which is changed in place (kNN-Per).

        Args:
            modules: one for each client.
            data: the clients'.
            neighbors: k.
            weight: of their votes, 0 to 1; below 0: it is chosen on training samples that are not stored meanwhile.
            say: is told of the first module's evaluations until now.
        """

    def with_running_statistics(self, module: Learner, data: Data) -> Learner:
        """A copy whose batch norm uses statistics of the client's training samples, and not those of the batch."""


def class_of(config: Config) -> type[AnyTask]:
    """The class of the task that a configuration names."""
    module, _, name = config.kind.task.partition(":")
    return cast(type[AnyTask], getattr(import_module(module), name))


def task_of(config: Config) -> AnyTask:
    """The task that a configuration names.

    Raises:
        InputError: there is none.
    """
    return class_of(config)(config)  # type: ignore[call-arg] # a Protocol says nothing of how it is made
