"""What is printed: lines in which text of others steers no terminal."""

import re
import sys
from typing import TextIO

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move the cursor, set colours, turn text or are none; tabs and ends of lines aside."""
MARKED = re.compile(r"([\\|`*_\[\]])")
"""What has a meaning in Markdown."""


def printable(text: str) -> str:
    """A text with escapes for what steers a terminal; tabs and ends of lines stay."""
    return CONTROLS.sub(_escaped, text)


def in_line(text: str) -> str:
    """A text of others, as a name of a class or of a file, in one line that can be printed."""
    return re.sub(r"[\t\n]", _escaped, printable(text))


def in_markdown(text: str) -> str:
    """A text of others as one line of Markdown, in which nothing is a mark, a link or a tag."""
    return MARKED.sub(r"\\\1", in_line(text).replace("&", "&amp;").replace("<", "&lt;"))


def in_code(text: str) -> str:
    """A text of others as code in a line of Markdown."""
    code = in_line(text).replace("`", "\\x60")
    return f"`{code}`"


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def say(text: object, file: TextIO | None = None) -> None:
    """Print a text at once, on stdout if no file is given."""
    print(printable(str(text)), file=file or sys.stdout, flush=True)
