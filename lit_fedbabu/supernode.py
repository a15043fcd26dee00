"""``lit-fedbabu supernode``: Flower's SuperNode, which runs the app of this package and no code of a server's."""

import sys

from lit_fedbabu.ground.errors import one_line_errors
from lit_fedbabu.ground.printing import waiting


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    with waiting("loading Flower and PyTorch"):
        from lit_fedbabu.engines import node

    node.serve(sys.argv[1:] if argv is None else argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
