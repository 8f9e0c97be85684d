"""Cache: decoded data sets as arrays on disk, so that the next load takes no decoding."""

import contextlib
import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fairjax import files
from fairjax.data import text


def arrays_of(
    name: str, data_dir: Path, read: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns `read()`, or the same from the cache if the prepared files have not changed."""
    cached = _cache_file(name, data_dir)
    if cached is not None:
        arrays = _read_cache(cached)
        if _are_examples(arrays, *((np.bytes_, 1) if name in text.CLEANING else (np.uint8, 4))):
            return arrays
    arrays = read()
    cached = _cache_file(name, data_dir)  # `read` may have prepared the files
    if cached is not None:
        _write_cache(cached, arrays)
    return arrays


def _read_cache(cached: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file in the cache, or none if the file is damaged or no archive."""
    # Errors besides OSError that zipfile and numpy raise for damaged files.
    damages = (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
    try:
        with zipfile.ZipFile(cached) as file:
            # Read whole members: with a damaged shape numpy would stop before the checksum.
            members = {name: io.BytesIO(file.read(name)) for name in file.namelist()}
            return {Path(name).stem: np.load(member) for name, member in members.items()}
    except (OSError, *damages):
        return {}


def _are_examples(arrays: dict[str, np.ndarray], kind: type[np.generic], ndim: int) -> bool:
    """Says whether arrays are a data set with examples of the given kind and their classes."""
    names = [name for name in arrays if name.startswith("x_")]
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        return False
    return {"x_train", "num_classes"} <= set(arrays) and all(
        np.issubdtype(arrays[name].dtype, kind)
        and arrays[name].ndim == ndim
        and name.replace("x_", "y_", 1) in arrays
        and arrays[name.replace("x_", "y_", 1)].shape == arrays[name].shape[:1]
        for name in names
    )


def _write_cache(cached: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays completely or not at all; without a cache the next load decodes again."""
    with contextlib.suppress(OSError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(cached) as file:
            np.savez(file, allow_pickle=False, **arrays)


def _cache_file(name: str, data_dir: Path) -> Path | None:
    """Returns the cache file for the present prepared files, or None if there are none."""
    folder = data_dir / name.replace(":", "/")
    if not name or ".." in folder.parts or not folder.is_dir():
        return None
    prepared = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in prepared]
    digest = hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    return files.cache_folder() / f"{name.replace('/', '-').replace(':', '-')}-{digest}.npz"
