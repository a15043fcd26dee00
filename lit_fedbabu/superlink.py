"""``lit-fedbabu superlink``: Flower's SuperLink for sites elsewhere, and runs of this user of this machine alone."""

import sys

from lit_fedbabu.ground.errors import one_line_errors
from lit_fedbabu.ground.printing import waiting


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    sys.argv = ["lit-fedbabu superlink", *(sys.argv[1:] if argv is None else argv)]  # where Flower reads its options
    with waiting("loading Flower"):
        from lit_fedbabu.engines import guard

    guard.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
