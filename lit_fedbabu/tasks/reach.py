"""What lies outside: the Hugging Face hub, and this package's cache."""

from lit_fedbabu.tasks.images.hub import _answers as answers
from lit_fedbabu.tasks.images.hub import _offline as offline
from lit_fedbabu.tasks.images.sources import _cache_root as cache_root

__all__ = ["answers", "cache_root", "offline"]
