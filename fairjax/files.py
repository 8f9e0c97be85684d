"""Files: each is written under a temporary name, flushed, and moved to its place.

    content -> .NAME.PROCESS.partial -> flushed to the disk -> NAME

A process that is killed, a full disk or a read-only folder leaves the old file
or the new one, never a part of one.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no advisory locks
    fcntl = None

LOCK = ".lock"


class DamagedError(ValueError):
    """A file does not hold what fairjax wrote there."""


def cache_folder() -> Path:
    """Returns the folder below which fairjax caches data and compiled programs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fairjax"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the name of a file or folder to the system's errors in a block."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file that replaces `path` at the end of the block.

    Raises:
      OSError: the file cannot be written. The error names `path`, which is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Writes a text to a file, as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder and locks it against other processes during a block.

    A folder that was made here and is empty in the end is removed.

    The lock ends with the process, even if that is killed. On systems without such locks,
    nothing is locked.

    Raises:
      ValueError: the folder cannot be written, or another process holds the lock.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _lock(folder / LOCK)
    except BlockingIOError:
        raise ValueError(
            f"`out` must not be in use, got {folder}, in which another process is writing. "
            "Wait for it to end, or choose another directory."
        ) from None
    except OSError as error:
        raise ValueError(
            f"`out` must be a directory that can be written, got {folder}: {error.strerror}."
        ) from error
    for partial in folder.glob(".*.partial"):  # of processes that were killed
        partial.unlink(missing_ok=True)
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)
                if made:
                    folder.rmdir()  # fails if it holds files


def _lock(path: Path) -> IO[bytes]:
    """Returns an open file, with its lock held by this process."""
    file = path.open("wb")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError:  # a file system without locks
        return file
    # A process that has just ended may have removed the file that was opened here.
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    file.close()
    return _lock(path)
