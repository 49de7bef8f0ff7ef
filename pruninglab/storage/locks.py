"""One process at a time works on a file or in a folder."""

import os
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import RunError

WAIT = 6.0
"""Seconds until a second process is refused: as long as data workers of a killed one may live on with its lock."""
_HELD: set[tuple[int, Path]] = set()


@contextmanager
def alone(path: str | Path | None, advice: str) -> Generator[None]:
    """Hold a checkpoint, or a folder, for this block; who has it already is named in a RunError.

    The lock goes with its process, however that ends. Where the file system has no locks, and without a path, the
    block runs as it is.
    """
    if path is None:
        yield
        return
    path = Path(path).resolve()
    mine = threading.get_ident(), path
    if mine in _HELD:  # a recipe inside a recipe
        yield
        return
    file = path / ".lock" if path.is_dir() else path.with_name(f"{path.name}.lock")
    owner = _owner(file)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=WAIT)
    except Timeout:
        raise RunError(f"{path} is in use by {_owner(file) or owner or 'another process'}. {advice}") from None
    except (OSError, NotImplementedError):
        pass
    _HELD.add(mine)
    try:
        if lock.is_locked:
            _note(file)
        yield
    finally:
        _HELD.discard(mine)
        if lock.is_locked:
            with suppress(OSError):  # Windows removes no open file
                file.unlink()
            lock.release()


def _note(file: Path) -> None:
    with suppress(OSError):
        file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")


def _owner(file: Path) -> str:
    """Who noted itself in a lock file; older versions of filelock empty it when they fail to get it."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")[:200]
    except OSError:
        return ""
