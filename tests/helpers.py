"""Checkpoints of version 0.1, as in tests/data, name ``tests.helpers:narrow_model``."""

from tests.support import narrow_model

__all__ = ["narrow_model"]
