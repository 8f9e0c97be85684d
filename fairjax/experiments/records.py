"""Records: the files that a run writes, and how they are read again.

    experiment.json   the description, versions, device, settings of JAX, agents_at_once
    checkpoint/       the state and the rows so far; at the end the final state
    history.npz       one row per round
    time.json         seconds by part, summed over all saved sittings
    result.json       the final figures; it is written last, so it exists if the run is finished

The directory of a comparison holds one run per mechanism, and their names in `comparison.json`.
Each JSON file holds the SHA-256 of its content, so that damage is noticed.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairjax import files
from fairjax.experiments import objects
from fairjax.files import DamagedError

EXPERIMENT, HISTORY, RESULT, CHECKPOINT, TIME, COMPARISON = (
    "experiment.json",
    "history.npz",
    "result.json",
    "checkpoint",
    "time.json",
    "comparison.json",
)
# Settings of JAX under which a run has other numbers from the start.
SETTINGS = (
    "jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable",
    "jax_random_seed_offset",
)  # fmt: skip
DIGEST = "sha256"  # the entry of a JSON file that holds its SHA-256
PARTS = ("data", "compiling", "rounds", "records")  # parts of the time that a run takes


class OtherExperimentError(ValueError):
    """A directory belongs to another experiment: `there`, as JSON."""

    def __init__(self, message: str, there: Mapping[str, Any]):
        super().__init__(message)
        self.there = there


def claim(
    out: Path,
    description: Mapping[str, Any],
    resume: bool = True,
    accepts: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] = lambda there, here: False,
) -> dict[str, Any]:
    """Returns the record of an experiment, if a directory belongs to it or is free for it.

    Args:
      out: a directory that does not exist, is empty, or belongs to the same experiment.
      description: the experiment, as JSON.
      resume: False: a damaged `experiment.json` is ignored.
      accepts: whether another recorded experiment may be continued as this one.

    Returns:
      The content of `experiment.json` on disk if that exists, else of a new one.

    Raises:
      ValueError: `out` is no directory, holds other files, or belongs to another experiment;
        the message then lists the fields that differ.
    """
    fresh = {"experiment": dict(description), **surroundings()}  # before looking: it takes time
    try:
        entries = list(out.iterdir()) if out.exists() else []
    except OSError as error:
        raise ValueError(
            f"`out` must be a directory that can be written, got {out}: {error.strerror}."
        ) from error
    present = [entry.name for entry in entries if not entry.name.startswith(".")]
    if EXPERIMENT in present:
        try:
            record = read_experiment(out)
        except DamagedError as damage:
            if not resume:
                return fresh
            raise DamagedError(
                f"{damage} What was run in {out} is not known: start over with `resume=False` "
                "(--resume False), or choose another directory."
            ) from damage
        if not accepts(record["experiment"], description):
            check_same(out, record, description)
        # Starting over, keep only which experiment was here, perhaps a shorter one.
        return record if resume else {**fresh, "experiment": record["experiment"]}
    if present:
        raise ValueError(
            f"`out` must be empty or hold a run of fairjax, got {out}, which holds "
            f"{', '.join(sorted(present)[:5])}."
        )
    return fresh


def check_same(out: Path, record: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Raises if a record describes another experiment, and lists the fields that differ."""
    there = record["experiment"]
    # Fields at their defaults may be missing on either side.
    pairs = {
        name: (there.get(name), description.get(name))
        for name in dict.fromkeys([*description, *there])
    }
    differences = [
        f"{name}={objects.shown(old)} there, {objects.shown(new)} here"
        for name, (old, new) in pairs.items()
        if not objects.same(old, new)
    ]
    if differences:
        raise OtherExperimentError(
            f"`out` must not belong to another experiment, got {out}, which differs: "
            f"{'; '.join(differences)}. Choose another directory.",
            there,
        )


def locked(out: Path | None) -> contextlib.AbstractContextManager[None]:
    """Makes a directory and locks it against other processes during a block.

    If a run has several processes, only the first one locks.

    Args:
      out: the directory; None: nothing is locked.
    """
    if out is None or jax.process_index() > 0:
        return contextlib.nullcontext()
    return files.locked(out)


def environment() -> dict[str, str]:
    """Returns the versions and the device, on which the bits of a result may depend."""
    packages = ("fairjax", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **versions,
        "device": f"{device.platform}: {device.device_kind}",
    }


def surroundings() -> dict[str, dict[str, str]]:
    """Returns the environment, and settings of JAX, as a record holds them."""
    settings = {name: str(getattr(jax.config, name)) for name in SETTINGS}
    return {"environment": environment(), "settings": settings}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON to a file; numbers that are not finite become null.

    If there are several processes, only the first one writes.
    """
    if jax.process_index() > 0:
        return
    content = _without_nan(content)
    text = json.dumps({**content, DIGEST: _digest(content)}, indent=2, allow_nan=False) + "\n"
    files.write(path, text)


def read_json(path: Path, entries: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the content of a JSON file.

    Args:
      path: a file that `write_json` wrote.
      entries: names of entries that it must hold.

    Raises:
      DamagedError: the file cannot be read, is damaged, or lacks an entry.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is not a record of fairjax: {error}.") from error
    if not isinstance(content, dict):
        raise DamagedError(
            f"{path} is not a record of fairjax: it must hold a JSON object, got {content!r:.40}."
        )
    if content.pop(DIGEST, None) not in (None, _digest(content)):
        raise DamagedError(f"{path} is damaged: its content does not match the SHA-256 in it.")
    for name in entries:
        if name not in content:
            raise DamagedError(f"{path} is not a record of fairjax: it does not hold {name!r}.")
    return content


def read_experiment(out: Path) -> dict[str, Any]:
    """Returns the content of `experiment.json` in a directory."""
    record = read_json(out / EXPERIMENT, ("experiment",))
    if not isinstance(record["experiment"], dict):
        raise DamagedError(f"{out / EXPERIMENT} is damaged: it does not describe an experiment.")
    return record


def read_times(out: Path) -> dict[str, float]:
    """Returns the seconds by part of the run in a directory, empty if there is no `time.json`.

    A damaged file gives a warning and an empty result.
    """
    path = out / TIME
    if not path.exists():
        return {}
    try:
        times = read_json(path, PARTS)
        if not all(isinstance(times[name], int | float) for name in PARTS):
            raise DamagedError(f"{path} is damaged: it does not hold seconds.")
    except DamagedError as damage:
        warnings.warn(f"{damage} Time is counted from here on.", stacklevel=2)
        return {}
    return {name: times[name] for name in PARTS}


def read_standalone_accuracies(out: Path, num_agents: int) -> np.ndarray:
    """Returns `[N]` standalone accuracies from `result.json` of a directory.

    Raises:
      DamagedError: the file is missing or damaged, or does not hold N numbers.
    """
    path, name = out / RESULT, "standalone_accuracies"
    try:
        alone = np.array(read_json(path, (name,))[name], np.float32)
    except (TypeError, ValueError) as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{path} is damaged: `{name}` must be numbers.") from error
    if alone.shape != (num_agents,):
        raise DamagedError(f"{path} is damaged: `{name}` must be {num_agents} numbers.")
    return alone


class Clock:
    """Seconds by part of a run, on the host's clock.

    A chunk of rounds is one compiled program, so the times of training, contributions and
    evaluation cannot be separated here. `compiling` is the extra time of the first chunk over
    the median of the others: to trace, to compile (or to find the program in JAX's cache) and to
    move data. If there is only one chunk, all of its time counts as `rounds`.

    Args:
      before: seconds by part of earlier sittings; they are added.
    """

    def __init__(self, before: Mapping[str, float]):
        self._before = before
        self._parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._chunks: list[float] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of a block to a part."""
        start = time.monotonic()
        yield
        self._parts[name] += time.monotonic() - start

    def chunk(self, seconds: float) -> None:
        """Adds the time of the next chunk of rounds."""
        self._chunks.append(seconds)

    def seconds(self) -> dict[str, float]:
        """Returns seconds by part."""
        compiling = 0.0
        if len(self._chunks) > 1:
            compiling = max(0.0, self._chunks[0] - statistics.median(self._chunks[1:]))
        now = {
            **self._parts, "compiling": compiling, "rounds": sum(self._chunks) - compiling,
        }  # fmt: skip
        return {name: self._before.get(name, 0.0) + value for name, value in now.items()}


def _without_nan(content: Any) -> Any:
    """Returns JSON, which has neither nan, null here, nor infinity, "inf" or "-inf"."""
    if isinstance(content, Mapping):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    if isinstance(content, float) and not np.isfinite(content):
        return None if np.isnan(content) else str(content)
    return content


def _digest(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of JSON; layout and order of names do not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
