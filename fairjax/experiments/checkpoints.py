"""Checkpoints: the last two states of a run and its rows so far, saved by Orbax.

    checkpoint/240             the state and the rows after 240 rounds: arrays, by number
    checkpoint/240/files.json  the names of the arrays, and the SHA-256 of each file in it
    checkpoint/partial         a checkpoint that is being written; it is renamed when complete

A finished run of T rounds ends with checkpoint T + 1: one extra round gives the last accuracies
after training. The sums are compared before Orbax reads a checkpoint, so Orbax never reads damaged
files.
"""

import contextlib
import hashlib
import logging
import math
import os
import re
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairjax.experiments import records
from fairjax.files import DamagedError
from fairjax.simulation import Progress

PARTIAL, SUMS = "partial", "files.json"
NUM_KEPT = 2
PART_BYTES = 2**26


class Checkpoints:
    """The last checkpoints of a run under `out`; `save` returns once a checkpoint is complete."""

    def __init__(self, out: Path):
        self._folder = (out / records.CHECKPOINT).resolve()

    def save(self, progress: Progress) -> None:
        """Saves the progress of a run, and keeps the previous checkpoint.

        A signal that arrives meanwhile takes effect afterwards.

        Raises:
          OSError: the disk is full, or permission is missing. Earlier checkpoints remain.
        """
        partial = self._folder / PARTIAL
        import orbax.checkpoint as ocp

        with _delay_signals():
            try:
                arrays, _ = _name_arrays(progress)
                saved = _drop_empty(_number(arrays))
                with _silence_orbax(), _open_orbax(saved) as orbax:
                    self._keep_only(map(str, self.rounds()))
                    parts = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PART_BYTES), saved)
                    orbax.save(partial, args=ocp.args.PyTreeSave(saved, save_args=parts))
                self._commit(partial, progress.num_rounds, arrays)
            except (OSError, ValueError) as error:
                with contextlib.suppress(OSError):
                    self._keep_only(map(str, self.rounds()))
                raise _as_os_error(error, self._folder) from error

    def load(self, like: Progress) -> Progress | None:
        """Returns the progress of the last readable checkpoint, or None if none was saved.

        A warning names the later checkpoints that cannot be read.

        Args:
          like: progress of the same experiment after any number of rounds, for its shapes.

        Raises:
          DamagedError: checkpoints were saved, but none can be read.
        """
        unread = []
        for num_rounds in self.rounds():
            progress = self._restore(num_rounds, like)
            if progress is not None:
                if unread:
                    warnings.warn(
                        f"The checkpoint after {unread[0]} rounds in {self._folder} cannot be "
                        f"read. The run goes on from the checkpoint after {num_rounds} rounds.",
                        stacklevel=2,
                    )
                return progress
            unread.append(num_rounds)
        if unread:
            raise self._damage()
        return None

    def check_readable(self) -> None:
        """Raises if checkpoints were saved, but all are damaged.

        Raises:
          DamagedError: they are.
        """
        found = self.rounds()
        if found and not any(_read_names(self._folder / str(number)) for number in found):
            raise self._damage()

    def _damage(self) -> DamagedError:
        return DamagedError(
            f"No checkpoint in {self._folder} can be read. Start over with `resume=False` "
            "(--resume False), or choose another directory."
        )

    def final(self, like: Progress, num_rounds: int, other: Sequence[str]) -> Progress | None:
        """Returns the progress saved after a number of rounds, or None if there is none.

        A checkpoint that cannot be read gives a warning and None, and so does one of `other`
        settings of JAX, which are named, if keys made here are of another kind than its own.
        """
        if num_rounds not in self.rounds():
            return None
        kinds = {jax.random.key_impl(key) for key in (jax.random.key(0), like.state.key)}
        progress = None if other and len(kinds) > 1 else self._restore(num_rounds, like)
        if progress is None:
            set_them = f"To read it, set {', '.join(other)}."
            needed = set_them if other else "Start over with `resume=False` to have it again."
            warnings.warn(
                f"The final state in {self._folder} cannot be read, so the result's `state` is "
                f"None. {needed}",
                stacklevel=2,
            )
        return progress

    def rounds(self) -> list[int]:
        """Returns the numbers of rounds after which there are checkpoints, the largest first."""
        if not self._folder.is_dir():
            return []
        names = [entry.name for entry in self._folder.iterdir() if entry.is_dir()]
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def delete(self) -> None:
        """Deletes all checkpoints."""
        self._keep_only(())

    def _keep_only(self, names: Iterable[str]) -> None:
        """Deletes everything in the folder except `names`; only the first process does so."""
        kept = set(names)
        if jax.process_index() == 0 and self._folder.is_dir():
            for entry in sorted(self._folder.iterdir()):  # those with a point come first
                if entry.name.isdecimal() and entry.name not in kept:  # never half of it
                    entry = entry.rename(self._folder / f".{entry.name}")
                if entry.name not in kept:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _commit(self, partial: Path, num_rounds: int, names: Iterable[str]) -> None:
        """Makes the partial checkpoint the last one; only the first process does so."""
        if jax.process_index() > 0:
            return
        records.write_json(partial / SUMS, {"files": _hash_files(partial), "arrays": [*names]})
        before = [str(rounds) for rounds in self.rounds() if rounds < num_rounds]
        # Checkpoints of later rounds are damaged, since the run went on from an earlier one.
        self._keep_only([PARTIAL, *before])
        partial.rename(self._folder / str(num_rounds))
        self._keep_only([str(num_rounds), *before[: NUM_KEPT - 1]])

    def _restore(self, num_rounds: int, like: Progress) -> Progress | None:
        """Returns the progress saved after some rounds, or None if it cannot be read."""
        import orbax.checkpoint as ocp

        folder = self._folder / str(num_rounds)
        rows = jax.tree.map(
            lambda row: jax.ShapeDtypeStruct((num_rounds, *row.shape[1:]), row.dtype), like.rows
        )
        arrays, structure = _name_arrays(like._replace(rows=rows))
        if _read_names(folder) != [*arrays]:
            return None
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _drop_empty(_number(arrays)))
        how = ocp.checkpoint_utils.construct_restore_args(target)
        try:
            with _silence_orbax(), _open_orbax({}) as orbax:
                saved = orbax.restore(folder, ocp.args.PyTreeRestore(target, how))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # complete, but written by another version of fairjax
        leaves = [
            saved[name] if name in saved else np.zeros(leaf.shape, leaf.dtype)
            for name, leaf in _number(arrays).items()
        ]
        state, rows = jax.tree.unflatten(structure, leaves)
        key = jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(like.state.key))
        return Progress(state._replace(key=key), jax.tree.map(np.asarray, rows))


def _name_arrays(progress: Progress) -> tuple[dict[str, Any], Any]:
    """Returns the arrays of a progress by path, and the structure; a PRNG key becomes its data."""
    state = progress.state._replace(key=jax.random.key_data(progress.state.key))
    found, structure = jax.tree_util.tree_flatten_with_path((state, progress.rows))
    return {jax.tree_util.keystr(path): leaf for path, leaf in found}, structure


def _number(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arrays by number.

    Paths would make names of files, in which "a.b" and an entry "b" of "a" are the same.
    """
    return {f"array_{number}": leaf for number, leaf in enumerate(arrays.values())}


def _drop_empty(numbered: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arrays without those of no entries, which Orbax does not save."""
    return {name: leaf for name, leaf in numbered.items() if math.prod(leaf.shape)}


def _open_orbax(saved: Any) -> Any:
    """Returns Orbax's checkpointer for arrays, as a context manager."""
    import orbax.checkpoint as ocp

    # Arrays are copied and written in parts: a state of gigabytes needs no second one.
    # Orbax refuses an array that is larger than what it may copy at a time.
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(saved)]
    gigabytes = math.ceil(max(sizes, default=1) / 1e9)
    # One folder per array takes half the time of a database for states of usual sizes.
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, save_concurrent_gb=gigabytes, save_device_host_concurrent_gb=gigabytes
    )
    return ocp.Checkpointer(handler)


def _hash_files(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file below a folder, by relative path."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            sums[path.relative_to(folder).as_posix()] = digest
    return sums


def _read_names(folder: Path) -> list[str] | None:
    """Returns the names of a checkpoint's arrays; None unless it has all its files, unchanged."""
    try:
        content = records.read_json(folder / SUMS, ("files", "arrays"))
        found = _hash_files(folder)
    except (OSError, DamagedError):
        return None
    saved = content["files"]
    whole = isinstance(saved, dict) and {**found, **saved} == found
    return content["arrays"] if whole else None


@contextlib.contextmanager
def _silence_orbax() -> Iterator[None]:
    """Keeps Orbax and TensorStore from printing errors that are raised in a block.

    If the block fails they stay silent, since their threads report the failure later.
    """
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        own = "orbax" in getattr(code, "co_filename", "")
        if not own and str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(_is_not_from_orbax)
    sys.unraisablehook = report_others
    yield
    sys.unraisablehook = report
    for logger in loggers:
        logger.removeFilter(_is_not_from_orbax)


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname and "orbax" not in str(record.exc_info)


@contextlib.contextmanager
def _delay_signals() -> Iterator[None]:
    """Delays SIGINT and SIGTERM until a block is done."""
    arrived: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in arrived:
            signal.raise_signal(number)


def _as_os_error(error: OSError | ValueError, folder: Path) -> Exception:
    """Returns the system's error that TensorStore describes in text, or the error unchanged."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    return error if number is None else OSError(number, os.strerror(number), str(folder))
