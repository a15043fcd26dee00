import contextlib
import importlib
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_fedbabu import configs
from lit_fedbabu.config import Config
from lit_fedbabu.config.derived import OTHER_WORDS
from lit_fedbabu.config.options import imported, read_toml
from lit_fedbabu.config.words import parse_words
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.system import configs_folder


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


TYPED = {
    "run-name=2026-11-28": "2026-11-28",
    "run-name=1e5": "1e5",
    "run-name=42": "42",
    "run-name=true": "true",
    "run-name=exp.toml": "exp.toml",
    'run-name="a b"': "a b",
    "label-column=7": "7",
    "dataset=a=b": "a=b",
    "output-dir=~nobody/x": "~nobody/x",
    "learning-rate=.1": 0.1,
    "learning-rate=1.": 1.0,
    "learning-rate=+1_0e-1": 1.0,
    "seed=007": 7,
    "num-clients=1_000": 1000,
    'class-names=["cat","dog"]': "cat,dog",
    "class-names=" + ",".join(map(str, range(200))): ",".join(map(str, range(200))),
    "initial-weights=" + "x" * 5000: "x" * 5000,
}


@pytest.mark.parametrize("word", TYPED, ids=lambda word: word[:40])
def test_a_value_is_read_by_the_type_of_its_option(word, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run-name=exp.toml").write_text("seed = 1")
    config = Config.from_run_config(parse_words([word]))
    value = getattr(config, word.partition("=")[0].replace("-", "_"))
    assert value == TYPED[word] and type(value) is type(TYPED[word])


@given(st.text(), st.sampled_from(["run-name", "dataset", "class-names", "task", "sauce", "learning-rate"]))
def test_every_text_is_a_value_or_refused(text, key):
    """A text option has the text, unless it is a text or a list in TOML's quotes."""
    value = parse_words([f"{key}={text}"])[key]
    if key not in ("sauce", "learning-rate") and text.strip()[:1] not in ("'", '"', "["):
        assert value == text
    with contextlib.suppress(InputError):
        Config.from_run_config({key: value})


@pytest.mark.parametrize("word", OTHER_WORDS)
def test_words_of_others_lead_to_the_option(word):
    assert word not in Config().to_run_config()
    with pytest.raises(InputError, match=rf"no such key; did you mean {OTHER_WORDS[word]}\?"):
        Config.from_run_config(parse_words([f"{word}=1"]))
    assert OTHER_WORDS[word] in Config().to_run_config()


def test_a_shipped_configuration_is_named_without_a_path_and_later_words_win(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    demo = parse_words(["demo", "seed=7"])
    assert demo == {**read_toml(configs_folder() / "demo.toml"), "seed": 7}
    with pytest.raises(
        InputError, match=r'argument = "dem": write a file NAME.toml, key=value, or .*: apfl, centralized, demo'
    ):
        parse_words(["dem"])


def test_configs_are_listed_with_a_line_each(capsys):
    assert configs.main([]) == 0
    told = capsys.readouterr().out.splitlines()
    place = next(place for place, line in enumerate(told) if line.startswith("they lie in"))
    assert {line.split()[0] for line in told[:place]} == {path.stem for path in configs_folder().glob("*.toml")}
    assert [line.split()[0] for line in told[place + 2 :]] == ["cifar10", "cifar10-fedavg", "next:"]
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
        "from lit_fedbabu.config.options import imported; x = 1; imported('task', f'{__name__}:x', '')",
        "asks for itself when it is imported; put what runs under if __name__",
    ),
]


@pytest.mark.parametrize(("number", "told"), list(enumerate(told for _, told in FILES)))
def test_a_file_of_the_users_that_cannot_be_imported_is_told_in_a_line(number, told, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"user_file_{number}.py").write_text(FILES[number][0])
    with pytest.raises(InputError, match=told):
        imported("task", f"user_file_{number}:x", "must be a name")


@pytest.mark.parametrize("name", ["test", "code", "datasets", "statistics", "sys", "json.tool"])
def test_a_file_that_another_module_of_its_name_hides_is_refused(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"{name.replace('.', '/')}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text("task = 1")
    with pytest.raises(InputError, match=rf"another module has this name, .*; give {file.name} another"):
        imported("task", f"{name}:task", "must be a name")


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


def test_an_option_that_nothing_reads_is_told():
    assert Config(dirichlet_alpha=0.5, ray_address="").unread == []  # the defaults
    told = Config(dirichlet_alpha=0.3, ray_address="auto").unread
    assert told == [
        "dirichlet-alpha = 0.3 changes nothing: it is used by dirichlet, inner-dirichlet",
        "ray-address = auto changes nothing: it is used by ray",
    ]
    assert Config(dirichlet_alpha=0.3, partitioner="dirichlet", ray_address="auto", engine="ray").unread == []


@pytest.mark.parametrize("path", sorted(configs_folder().glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configurations_give_no_option_that_nothing_reads(path):
    assert Config.from_run_config(parse_words([str(path)])).unread == []
