import importlib
import sys

import pytest

from lit_fedbabu import configs
from lit_fedbabu.errors import InputError
from lit_fedbabu.options import imported, parse_words, read_toml
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


FILES = [
    (
        "import nowhere_at_all",
        "its file cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all' .*py:1",
    ),
    ("import os; os.nothing", "its file cannot be imported: AttributeError: .*os.*nothing"),
    ("import argparse; argparse.ArgumentParser().parse_args(['x'])", "its file cannot be imported: SystemExit: 2"),
    ("y = 1", "must be a name; .*user_file_3.py has no attribute 'x'"),
    (
        "from lit_fedbabu.options import imported; x = 1; imported('task', f'{__name__}:x', '')",
        "asks for itself when it is imported; put what runs under if __name__",
    ),
]


@pytest.mark.parametrize(("number", "told"), list(enumerate(told for _, told in FILES)))
def test_a_file_of_the_users_that_cannot_be_imported_is_told_in_a_line(number, told, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"user_file_{number}.py").write_text(FILES[number][0])
    with pytest.raises(InputError, match=told):
        imported("task", f"user_file_{number}:x", "must be a name")


def test_a_file_that_was_edited_after_its_first_use_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "edited_file.py"
    file.write_text("x = 1")
    assert imported("task", "edited_file:x", "") == imported("task", "edited_file:x", "") == 1
    file.write_text("x = 22")
    with pytest.raises(InputError, match="edited_file.py was edited since this process imported it; restart Python"):
        imported("task", "edited_file:x", "")
    importlib.reload(sys.modules["edited_file"])
    assert imported("task", "edited_file:x", "") == 22


def test_the_program_itself_is_refused_where_workers_would_import_it():
    with pytest.raises(InputError, match="is this program or notebook, .* put it in a file of its own"):
        imported("task", "__main__:task", "")
