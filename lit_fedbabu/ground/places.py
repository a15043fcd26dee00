"""Where files go that belong to nobody's run, also where the user's home cannot be written to."""

import os
import tempfile
from pathlib import Path

SCRATCH = "LIT_FEDBABU_SCRATCH"
"""Variable of workers: a folder for their temporary ones, which who has forked them removes. A killed one cannot."""


def beside() -> str | None:
    """The folder that temporary ones of this process are made in; None: the system's."""
    place = os.environ.get(SCRATCH, "")
    return place if os.path.isdir(place) else None


def scratch() -> "tempfile.TemporaryDirectory[str]":
    """A temporary folder of this process."""
    return tempfile.TemporaryDirectory(prefix="lit_fedbabu-", dir=beside(), ignore_cleanup_errors=True)


def cache() -> Path:
    """Where caches go: ``$XDG_CACHE_HOME``, else ``~/.cache``; without a home that can be written to, ``temporary``."""
    given = os.environ.get("XDG_CACHE_HOME")
    found = Path(given) if given else _home(".cache")
    return found if given or is_writable(found) else temporary()


def temporary() -> Path:
    """A folder of this user alone in the temporary one.

    Raises:
        PermissionError: it is somebody else's.
    """
    folder = Path(tempfile.gettempdir()) / f"lit_fedbabu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if about.st_uid != os.getuid() or about.st_mode & 0o077 or not folder.is_dir() or folder.is_symlink():
        raise PermissionError(13, "is not a folder of this user alone; set XDG_CACHE_HOME to one", str(folder))
    return folder


def is_writable(folder: Path) -> bool:
    """Whether a folder, or what it would be made in, can be written to."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)


def keep_matplotlib_quiet() -> None:
    """Give Matplotlib a folder where it has none that it can write to, and would say so before every output."""
    if "MPLCONFIGDIR" in os.environ or "XDG_CONFIG_HOME" in os.environ or is_writable(_home(".config")):
        return
    os.environ["MPLCONFIGDIR"] = str(temporary() / "matplotlib")


def _home(name: str) -> Path:
    """A folder in the user's home; of a user without one it is nothing that can be written to."""
    home = os.path.expanduser("~")
    return Path(home if os.path.isabs(home) else os.devnull) / name
