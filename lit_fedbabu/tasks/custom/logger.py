"""The logger of a user's module, which takes whatever is logged and keeps nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger


class Dropped(TensorBoardLogger):
    """Lightning's default logger without its files. What other loggers can do, it takes too, and drops.

    Args:
        folder: its ``log_dir``, where a module may write files of its own.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="")

    @property
    def experiment(self) -> Any:
        """Takes every call, as of TensorBoard's writer and of other services."""
        return _Anything(self.log_dir)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.experiment, name)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    log_metrics = log_graph = save = finalize = after_save_checkpoint = log_hyperparams


class _Anything:
    """Has every attribute, item and method, each of which is such an object again; as a path it is a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python asks for by itself, as when something is copied
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> _Anything:
        return self

    __getitem__ = __enter__ = __call__

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __fspath__(self) -> str:
        return self._folder

    __str__ = __fspath__
