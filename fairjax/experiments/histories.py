"""Histories: write and read `history.npz`, which holds the rows of all rounds."""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairjax import files
from fairjax.experiments.records import HISTORY
from fairjax.files import DamagedError
from fairjax.simulation import History

DAMAGED_ARCHIVE = (
    ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


def write(out: Path, history: History) -> None:
    """Writes a history to `history.npz`.

    Recorded uploads are further arrays, named by their path: "updates['head']['bias']".
    If there are several processes, only the first one writes.
    """
    if jax.process_index() > 0:
        return
    names, leaves, _ = _name_leaves(history)
    with files.replacing(out / HISTORY) as file:
        np.savez_compressed(file, **dict(zip(names, leaves, strict=True)))


def read(out: Path, like: History, num_rounds: int) -> History:
    """Returns the history in `history.npz`.

    Args:
      out: the run's directory.
      like: a history of the same experiment, with any number of rounds.
      num_rounds: the number of rounds that the file must hold.

    Raises:
      DamagedError: the file is missing, is damaged, or holds other arrays.
    """
    path = out / HISTORY
    names, leaves, structure = _name_leaves(like)
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise DamagedError(f"{path} is damaged in {broken}.")
        with path.open("rb") as file, np.load(file) as arrays:
            found = [arrays[name] for name in names]
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror or error}.") from error
    except DAMAGED_ARCHIVE as error:
        raise DamagedError(f"{path} is damaged: {error}.") from error
    # Floats keep the dtype with which the run was played.
    wanted = [((num_rounds, *leaf.shape[1:]), leaf.dtype.kind) for leaf in leaves]
    if [(array.shape, array.dtype.kind) for array in found] != wanted:
        raise DamagedError(f"{path} does not hold the {num_rounds} rounds of this run.")
    return jax.tree.unflatten(structure, found)


def _name_leaves(history: History) -> tuple[list[str], list[Any], Any]:
    """Returns the names of a history's arrays in `history.npz`, the arrays and the structure."""
    paths, structure = jax.tree_util.tree_flatten_with_path(history)
    names = [jax.tree_util.keystr(path).removeprefix(".") for path, _ in paths]
    return names, [leaf for _, leaf in paths], structure
