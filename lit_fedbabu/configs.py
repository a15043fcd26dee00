"""``lit-fedbabu configs``: the configurations and the bodies that come with the package."""

import sys

from lit_fedbabu.completion import Parser, complete
from lit_fedbabu.ground.errors import one_line_errors
from lit_fedbabu.ground.printing import say
from lit_fedbabu.ground.system import configs_folder, next_step, shipped_bodies, title_of


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="lit-fedbabu configs", description="List the configurations and the bodies that come with the package."
    )
    complete(parser)
    parser.parse_args(argv)
    for path in sorted(configs_folder().glob("*.toml")):
        first = path.read_text().partition("\n")[0]
        say(f"{path.stem:<14} {first.removeprefix('#').strip()}")
    say(f"they lie in {configs_folder()}, those of studies in studies/")
    say("bodies to begin with, as in: lit-fedbabu finetune cifar10 --data my_photos --save me")
    for name, folder in shipped_bodies().items():
        say(f"{name:<14} {title_of(folder)}")
    say(next_step("run", "demo"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
