"""``lit-fedbabu COMMAND``: the one command. ``python -m lit_fedbabu.COMMAND`` is the same."""

import importlib
import os
import sys

from lit_fedbabu.ground import stops
from lit_fedbabu.ground.printing import say

COMMANDS = {
    "run": "run a federation on this machine",
    "finetune": "make personal models from a federation's",
    "body": "save what a federation shares, for others to fine-tune",
    "predict": "classify images by a saved model, or export it",
    "study": "do many runs that differ in a few options, and compare them",
    "report": "compare runs: a page, tables and figures",
    "data": "show which client has which images",
    "new": "make a project of your own, with a model, data and a study",
    "examples": "copy the package's examples and configurations",
    "configs": "list the configurations and bodies that come with the package",
    "doctor": "look at what a run needs on this machine",
    "credentials": "make certificates and keys for real nodes",
    "trial": "try real machines on this one: a server and its sites",
    "sites": "show the sites of a run on real machines",
    "superlink": "be the server that real nodes connect to",
    "supernode": "be a real node",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first word names; returns its exit status."""
    if argv is None:
        stops.is_command()
    words = sys.argv[1:] if argv is None else argv
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next
        from lit_fedbabu.completion import command_typed

        words = command_typed(COMMANDS)
    if words and words[0] in COMMANDS:
        status: int = importlib.import_module(f"lit_fedbabu.{words[0]}").main(words[1:])
        return status
    if words and words[0] == "--version":
        from lit_fedbabu import __version__

        say(f"lit-fedbabu {__version__}")
        return 0
    lines = [f"  {name:<12} {about}" for name, about in COMMANDS.items()]
    usage = "\n".join(["usage: lit-fedbabu COMMAND ...", "", *lines, "", "lit-fedbabu COMMAND --help says more"])
    if words and words[0] in ("-h", "--help"):
        say(usage)
        return 0
    if words:
        from lit_fedbabu.ground.errors import close_to

        remedy = f"must be one of {', '.join(COMMANDS)}{close_to(words[0], COMMANDS)}"
        say(f"error: command = {words[0]!r}: {remedy}", sys.stderr)
    else:
        say(usage, sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
