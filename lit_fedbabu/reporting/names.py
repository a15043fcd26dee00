"""Names of methods and settings, made from the options that tell them apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_fedbabu.algorithms.table import title_of
from lit_fedbabu.ground.printing import in_line

METHOD_WIDTH, SETTING_WIDTH = 32, 40
"""Characters of a name. Longer ones become numbers, which the report explains."""


def _varied(options: Sequence[Mapping[str, Any]]) -> list[str]:
    return [key for key in options[0] if len({each[key] for each in options}) > 1]


def _words(options: Mapping[str, Any]) -> str:
    return in_line(" ".join(f"{key}={value}" for key, value in options.items()))


def run_names(folders: Sequence[Path]) -> dict[Path, str]:
    """The names of runs by their folders: so much of the path as tells them apart, and with a fine-tuning its run."""
    parts = {folder: folder.resolve().parts for folder in folders}
    names = {}
    for folder, own in parts.items():
        least = 3 if own[-2:-1] == ("finetune",) else 1
        others = {each for each in parts.values() if each != own}
        lengths = range(least, len(own) + 1)
        name = next((own[-n:] for n in lengths if all(each[-n:] != own[-n:] for each in others)), own)
        names[folder] = "/".join(name)
    return names


def setting_names(options: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """For each of the options the name of its setting, and what tells it apart. A single setting has the name ""."""
    varied = _varied(options)
    told = [{key: each[key] for key in varied} for each in options]
    return list(zip(_names("setting", told, SETTING_WIDTH), told, strict=True))


def method_names(options: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """For each of the options the name of its method, and what tells it apart from others of its algorithm."""
    names: list[tuple[str, dict[str, Any]]] = [("", {})] * len(options)
    for algorithm in dict.fromkeys(each["algorithm"] for each in options):
        places = [place for place, each in enumerate(options) if each["algorithm"] == algorithm]
        varied = _varied([options[place] for place in places])
        told = [{key: options[place][key] for key in varied} for place in places]
        title = title_of(algorithm)
        short = _names("", told, METHOD_WIDTH - len(title) - 1)
        for place, name, which in zip(places, short, told, strict=True):
            names[place] = f"{title} {name}".strip(), which
    return names


def _names(noun: str, told: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """The words of each; numbers where words are longer than the width or the same for two."""
    different = list(dict.fromkeys(tuple(each.items()) for each in told))
    words = [_words(dict(each)) for each in different]
    if len(set(words)) < len(words) or max(map(len, words)) > width:
        words = [f"{noun} {number}".strip() for number in range(1, len(words) + 1)]
    return [words[different.index(tuple(each.items()))] for each in told]
