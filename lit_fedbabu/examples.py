"""``lit-fedbabu examples FOLDER``: copies of the examples and configurations, and of what servers need."""

import shutil
import sys
from pathlib import Path

from lit_fedbabu.completion import Parser, complete
from lit_fedbabu.ground.errors import one_line_errors
from lit_fedbabu.ground.files import new_folder
from lit_fedbabu.ground.printing import say
from lit_fedbabu.ground.system import configs_folder, examples_folder

SERVER_FILES = (
    "Dockerfile", "compose.yaml", "site.sh", "lit-fedbabu-site.service", "lit-fedbabu-superlink.service"
)  # fmt: skip


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="lit-fedbabu examples",
        description="Copy the package's examples/ and configs/, and the files that make a server, into a folder.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new, or empty")
    complete(parser)
    folder: Path = parser.parse_args(argv).folder
    source = examples_folder()
    with new_folder("FOLDER", folder) as scratch:
        unwanted = shutil.ignore_patterns("__pycache__", "*.tar.gz", *SERVER_FILES)
        shutil.copytree(source, scratch / "examples", ignore=unwanted)
        shutil.copytree(configs_folder(), scratch / "configs")
        for name in SERVER_FILES:
            inside = source / name
            shutil.copy(inside if inside.exists() else source.parent / name, scratch)
    say(f"{folder} has {', '.join(sorted(path.name for path in folder.iterdir()))}")
    say(f"next: cd {folder} && lit-fedbabu study examples/regression/study.toml")
    return 0


if __name__ == "__main__":
    sys.exit(main())
