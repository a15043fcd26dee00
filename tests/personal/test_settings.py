"""What is asked of a fine-tuning, beside what its federation is."""

from pathlib import Path

import pytest

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.personal.settings import Request


@pytest.mark.parametrize(
    ("norm", "told"), [("batch-running", "the model has them already"), ("group", "its group norm needs none")]
)
def test_running_statistics_are_for_batch_norm_without_them(norm, told):
    asked = Request(Path("run"), save=True)
    assert asked.with_statistics(Config(norm="batch")).running_statistics
    assert not asked.with_statistics(Config(norm=norm)).running_statistics
    with pytest.raises(InputError, match=told):
        Request(Path("run"), running_statistics=True).with_statistics(Config(norm=norm))
