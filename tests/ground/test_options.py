import json

import pytest

from lit_fedbabu.config import Config
from lit_fedbabu.errors import InputError
from lit_fedbabu.options import describe, parse_words


def test_overrides_are_toml_or_text_and_the_last_wins(tmp_path):
    path = tmp_path / "some.toml"
    path.write_text('seed = 1\ndataset = "digits"')
    assert parse_words([str(path), "seed=7", "dataset=uoft-cs/cifar10", "learning-rate=1e-2"]) == {
        "seed": 7,
        "dataset": "uoft-cs/cifar10",
        "learning-rate": 0.01,
    }
    for word in ("nonsense", "=3", str(tmp_path / "absent.toml")):
        with pytest.raises(InputError, match="argument|cannot be read"):
            parse_words([word])


def test_help_describes_every_option_with_its_default():
    text = describe(Config())
    for key, value in Config().to_run_config().items():
        assert f"  {key}={json.dumps(value)}\n      " in text
    assert max(map(len, text.splitlines())) <= 100
