"""The public face: light to import, and complete."""

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lit_fedbabu
from lit_fedbabu.__main__ import COMMANDS, main

ROOT = Path(__file__).parent.parent.parent


def test_importing_the_package_is_quick_and_brings_nothing_heavy():
    script = (
        "import sys, time; start = time.perf_counter(); import lit_fedbabu; print(time.perf_counter() - start);"
        "print([name for name in ('torch', 'lightning', 'flwr', 'datasets', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script]
    told = [subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.split("\n") for _ in range(3)]
    assert min(float(seconds) for seconds, *_ in told) < 0.5
    assert {heavy for _, heavy, *_ in told} == {"[]"}


def test_every_public_name_is_there_and_says_what_it_is():
    for name in lit_fedbabu.__all__:
        value = getattr(lit_fedbabu, name)
        assert name in dir(lit_fedbabu)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        lit_fedbabu.nonsense  # noqa: B018


def test_run_and_finetune_stay_functions_when_their_files_are_imported():
    script = (
        "import lit_fedbabu.run, lit_fedbabu.finetune, inspect; from lit_fedbabu import run, finetune;"
        "print(inspect.isfunction(run), inspect.isfunction(finetune), lit_fedbabu.run is run)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True"] * 3, done.stderr


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: lit_fedbabu.run({"dataset": "digits"}), r"config = .*must be a lit_fedbabu.Config, as in Config\("),
        (lambda: lit_fedbabu.finetune("cifar10", data="digits", lr=True), "--lr = true: must be a text"),
        (lambda: lit_fedbabu.finetune("cifar10", data="digits", lr=["a"]), '--lr = "a": must be numbers'),
        (lambda: lit_fedbabu.finetune("cifar10", save="me"), '--save = "me": must be true or false'),
    ],
)
def test_arguments_of_other_types_are_refused_in_a_line(call, told):
    with pytest.raises(lit_fedbabu.InputError, match=told):
        call()


@pytest.mark.parametrize(
    "modules",
    [
        "typer",
        pytest.param(
            "flwr.cli.app, lit_fedbabu.learning.trainer, lit_fedbabu.tasks.custom.loaders", marks=pytest.mark.slow
        ),
    ],
)
def test_warnings_as_errors_are_the_users_own_and_none_of_libraries(modules):
    script = f"""
import warnings
import lit_fedbabu, {modules}
try:
    warnings.warn("mine", DeprecationWarning)
except DeprecationWarning:
    print("raised")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("raised\n", "")


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == lit_fedbabu.__version__


def test_the_extra_all_has_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (everything,) = extras.pop("all")
    assert everything == f"lit-fedbabu[{','.join(extras)}]"


def test_the_one_command_names_its_commands(capsys):
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"lit-fedbabu {lit_fedbabu.__version__}"
    assert main(["dance"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: command = 'dance': must be one of run") and error.count("\n") == 1
    assert main(["report", "nowhere"]) == 2
    assert "is no run's folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_called_as_the_command_is_typed(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    told = capsys.readouterr().out
    assert told.startswith(f"usage: lit-fedbabu {name} [-h]")
    assert "``" not in told


def test_the_version_is_the_same_wherever_it_is_written():
    assert f"version: {lit_fedbabu.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {lit_fedbabu.__version__} (" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fintune", "x"], "did you mean finetune?"),
        (["run", "--resme", "x"], "unrecognized arguments: --resme; did you mean --resume?"),
        (["run", "--lr=0.1"], "unrecognized arguments: --lr=0.1; options have no dashes: learning-rate=0.1"),
        (["doctor", "--num_clients", "3"], "; options have no dashes: num-clients=..."),
        (["finetune", "x", "--learning-rate", "1"], "unrecognized arguments: --learning-rate 1; did you mean --lr?"),
        (["finetune", "x", "--epochs", "two"], "argument --epochs: invalid int value: 'two'; lit-fedbabu finetune --h"),
        (["study"], "the following arguments are required: STUDY.toml; lit-fedbabu study --help says more"),
    ],
)
def test_what_is_mistyped_is_one_line_with_what_was_meant(words, told, capsys):
    try:
        status = main(words)
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and told in error
