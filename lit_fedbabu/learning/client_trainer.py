"""The Trainer of one client or cohort, which leaves signals to the process that it is in."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L

from lit_fedbabu.ground import compat


class ClientTrainer(L.Trainer):
    """A Trainer of one client or cohort. Nobody listens to it, so modules save the time that logging takes.

    A signal does what it does outside of a Trainer. Lightning's would end the process at Ctrl-C without a word, and
    make of SIGTERM a quiet end with exit status 0 after the batch.
    """

    mini_batches: int = -1
    """That are trained on, in all epochs together; -1: all that there are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        compat.begin_where_told(self)

    @property
    def max_steps(self) -> int:
        """The same, by which ``estimated_stepping_batches`` plans, and schedules of learning rates with it."""
        return self.mini_batches

    @property
    def received_sigterm(self) -> bool:
        """False: the process's own handler says what SIGTERM does."""
        return False

    def release(self) -> None:
        """Let go of the module and its optimizers: a Trainer's parts refer to each other, so it is not freed soon."""
        self.strategy.connect(L.LightningModule())
        self.strategy.optimizers, self.strategy.lr_scheduler_configs = [], []

    def fit(self, *args: Any, **options: Any) -> None:
        with _signals_as_before():
            super().fit(*args, **options)

    def validate(self, *args: Any, **options: Any) -> Any:
        with _signals_as_before():
            return super().validate(*args, **options)

    def test(self, *args: Any, **options: Any) -> Any:
        with _signals_as_before():
            return super().test(*args, **options)

    def predict(self, *args: Any, **options: Any) -> Any:
        with _signals_as_before():
            return super().predict(*args, **options)


@contextmanager
def _signals_as_before() -> Iterator[None]:
    """Lightning calls handlers beside its own, but not the default one, for which a handler stands here meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def as_before(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[signal.SIGTERM])
        signal.raise_signal(number)

    try:
        if before[signal.SIGTERM] in (signal.SIG_DFL, signal.SIG_IGN):
            signal.signal(signal.SIGTERM, as_before)
        yield
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
