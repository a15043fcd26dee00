"""``lit-fedbabu new NAME``: a project of one's own, with a task and a study, in which ``flwr run .`` works."""

import re
import sys
from pathlib import Path

from lit_fedbabu.completion import Parser, complete
from lit_fedbabu.ground.errors import InputError, one_line_errors
from lit_fedbabu.ground.files import new_folder
from lit_fedbabu.ground.printing import say
from lit_fedbabu.ground.system import examples_folder

TITLE = "my-project"
"""The name of the project that is copied."""


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="lit-fedbabu new",
        description="Make a project with a model, data and a study, to put your own in their places.",
    )
    parser.add_argument("name", metavar="NAME", help="a new folder; its last word names the project")
    complete(parser)
    folder = Path(parser.parse_args(argv).name)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", folder.name):
        raise InputError("NAME", str(folder), "must be a letter, and then letters, digits, - or _, as in my_project")
    with new_folder("NAME", folder) as scratch:
        for path in sorted((examples_folder() / "project").iterdir()):
            if path.is_file():
                (scratch / path.name).write_text(path.read_text().replace(TITLE, folder.name))
    say(f"{folder} has {', '.join(sorted(path.name for path in folder.iterdir()))}")
    say(f"next: cd {folder} && lit-fedbabu run task=task:task num-clients=6 run-name=first")
    return 0


if __name__ == "__main__":
    sys.exit(main())
