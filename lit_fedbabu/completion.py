"""What is read of a command line, and what a shell offers after TAB, through argcomplete: commands, flags, options."""

import argparse
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

from lit_fedbabu.config import Config
from lit_fedbabu.config.derived import OTHER_WORDS
from lit_fedbabu.config.options import key_of
from lit_fedbabu.ground.errors import close_to
from lit_fedbabu.ground.system import configs_folder, shipped_bodies

ASKED = "_ARGCOMPLETE"
"""Is set where a shell asks: the place of the first word to be completed, from 1, in the line that was typed."""
Offers = Callable[..., Iterable[str]]
"""What may stand in the place of an argument; called with ``prefix``, what was typed of it, and more."""


class Parser(argparse.ArgumentParser):
    """A parser that refuses in one line."""

    def error(self, message: str) -> NoReturn:
        _, of_unknown, words = message.partition("unrecognized arguments: ")
        hint = self._hint(*words.split()[0].split("=")) if of_unknown else ""
        self.exit(2, f"error: {message}{hint or f'; {self.prog} --help says more'}\n")

    def _hint(self, flag: str, *value: str) -> str:
        """What was meant by a flag that is none."""
        key = flag.lstrip("-").lower().replace("_", "-")
        flags = [each for action in self._actions for each in action.option_strings if each.startswith("--")]
        if same := [each for each in flags if OTHER_WORDS.get(each[2:]) == key]:
            return f"; did you mean {same[0]}?"
        option = OTHER_WORDS.get(key, key)
        if any(action.dest == "words" for action in self._actions) and option in Config().to_run_config():
            return f"; options have no dashes: {option}={'='.join(value) or '...'}"
        return close_to(f"--{key}", flags)


def command_typed(commands: Mapping[str, str]) -> list[str]:
    """The command whose arguments the shell asks for. If it asks for a command, offer these and end the process."""
    from argcomplete.lexers import split_line

    _, _, _, words, _ = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))
    place = int(os.environ[ASKED])
    if len(words) > place and words[place] in commands:
        os.environ[ASKED] = str(place + 1)
        return [words[place]]
    parser = Parser(prog="lit-fedbabu")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("command", choices=commands)
    complete(parser)
    return []


def complete(parser: argparse.ArgumentParser, **offers: Offers) -> None:
    """Where a shell asks, offer what may come next and end the process; otherwise do nothing.

    Args:
        parser: of the command.
        offers: for arguments by their names; files for others.
    """
    if ASKED not in os.environ:
        return
    import argcomplete

    for action in parser._actions:
        if action.dest in offers:
            action.completer = offers[action.dest]  # type: ignore[attr-defined] # where argcomplete looks for it
    argcomplete.autocomplete(parser)


def option_words(prefix: str, **_: object) -> list[str]:
    """Shipped configurations, TOML files, and ``key=`` of options; after it the values where they are few."""
    if "=" in prefix:
        key = prefix.partition("=")[0]
        return [f"{key}={each}" for each in values(key)(prefix)]
    shipped = [path.stem for path in configs_folder().glob("*.toml")]
    return [*shipped, *_files("toml")(prefix), *(f"{key_of(field)}=" for field in dataclasses.fields(Config))]


def values(key: str) -> Offers:
    """The values of an option that has few."""
    field = next((each for each in dataclasses.fields(Config) if key_of(each) == key), None)
    found: Iterable[str] = ()
    if key == "algorithm":
        from lit_fedbabu.algorithms.table import ALGORITHMS

        found = list(ALGORITHMS)
    elif field is not None:
        found = ("true", "false") if field.type in (bool, "bool") else field.metadata["choices"]
    return lambda prefix, **_: found


def bodies(prefix: str, **_: object) -> list[str]:
    """Bodies that come with the package, and files and folders."""
    return [*shipped_bodies(), *_files()(prefix)]


def studies(prefix: str, **_: object) -> list[str]:
    """Studies that come with the package, and TOML files."""
    return [*(path.stem for path in (configs_folder() / "studies").glob("*.toml")), *_files("toml")(prefix)]


def _files(*endings: str) -> Offers:
    from argcomplete.completers import FilesCompleter

    return FilesCompleter(endings)
