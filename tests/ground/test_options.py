import pytest

from lit_fedbabu import configs
from lit_fedbabu.errors import InputError
from lit_fedbabu.options import parse_words, read_toml
from lit_fedbabu.system import configs_folder


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


def test_a_shipped_configuration_is_named_without_a_path_and_later_words_win(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    demo = parse_words(["demo", "seed=7"])
    assert demo == {**read_toml(configs_folder() / "demo.toml"), "seed": 7}
    with pytest.raises(
        InputError, match=r'argument = "dem": write a file NAME.toml, key=value, or .*: centralized, demo'
    ):
        parse_words(["dem"])


def test_configs_are_listed_with_a_line_each(capsys):
    assert configs.main([]) == 0
    told = capsys.readouterr().out.splitlines()
    place = next(place for place, line in enumerate(told) if line.startswith("they lie in"))
    assert {line.split()[0] for line in told[:place]} == {path.stem for path in configs_folder().glob("*.toml")}
    assert [line.split()[0] for line in told[place + 2 :]] == ["cifar10", "cifar10-fedavg"]
    assert "demo           scikit-learn's digits" in "\n".join(told)
