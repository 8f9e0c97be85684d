"""Records: what a run leaves on disk, how it is checkpointed, and how it is read again.

    experiment.json   what was run: the description, versions, device, agents_at_once
    checkpoint/       the state and the rows so far, by Orbax; at the end the final state
    history.npz       one row per round
    time.json         seconds by part, of all sittings that were saved
    result.json       the figures at the end; written last, so its presence means finished

A comparison's directory holds one such run per mechanism, and `comparison.json`, their names.
Every file is written beside its place and moved there, so a killed run leaves
either the old one or the new one.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fairjax.simulation import History, Progress
from fairjax.states import State

EXPERIMENT, HISTORY, RESULT, CHECKPOINT, TIME, COMPARISON = (
    "experiment.json",
    "history.npz",
    "result.json",
    "checkpoint",
    "time.json",
    "comparison.json",
)


def claim(out: Path, description: Mapping[str, Any]) -> dict[str, Any]:
    """Makes `out` the directory of an experiment, and returns its record.

    Args:
      out: a directory that does not exist, is empty, or belongs to the same experiment.
      description: the experiment, as JSON.

    Returns:
      The content of `experiment.json`, the one on disk where there is one.

    Raises:
      ValueError: the directory cannot be written, belongs to another experiment (the
        message says in which fields), or holds something else.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(f"no permission to write in {out}")
        present = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(
            f"`out` must be a directory that can be written, got {out}: {error}."
        ) from error
    if EXPERIMENT in present:
        record = read_json(out / EXPERIMENT)
        differences = [
            f"{name}={record['experiment'].get(name)!r} there, {value!r} here"
            for name, value in description.items()
            if record["experiment"].get(name) != value
        ]
        if differences:
            raise ValueError(
                f"`out` must not belong to another experiment, got {out}, which differs: "
                f"{'; '.join(differences)}. Choose another directory."
            )
        return record
    if present:
        raise ValueError(
            f"`out` must be empty or hold a run of fairjax, got {out}, which holds "
            f"{', '.join(sorted(present)[:5])}."
        )
    return {"experiment": dict(description), "environment": environment()}


def environment() -> dict[str, str]:
    """Returns the versions and the device that the bits of a result may depend on."""
    packages = ("fairjax", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **versions,
        "device": f"{device.platform}: {device.device_kind}",
    }


def write_json(path: Path, content: Any) -> None:
    """Writes JSON to a file in one move; a number that is not finite becomes null.

    Of several processes, the first one writes.
    """
    if jax.process_index() > 0:
        return
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, or says that it is damaged."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a record of fairjax: {error}.") from error


def read_times(out: Path) -> dict[str, float]:
    """Returns the seconds by part of the run in a directory; none where they were not kept."""
    return read_json(out / TIME) if (out / TIME).exists() else {}


def write_history(out: Path, history: History) -> None:
    """Writes a history to `history.npz` in one move.

    Recorded uploads are further arrays, named by their path: "updates['head']['bias']".
    Of several processes, the first one writes.
    """
    if jax.process_index() > 0:
        return
    paths, _ = jax.tree_util.tree_flatten_with_path(history)
    arrays = {jax.tree_util.keystr(path).removeprefix("."): leaf for path, leaf in paths}
    temporary = out / f".{HISTORY}.partial"
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    temporary.replace(out / HISTORY)


class Clock:
    """Seconds by part of a run, on the host's clock.

    Rounds come in chunks that are one compiled program, so what a round spends on training,
    contributions and evaluation cannot be told apart here. `compiling` is what the first chunk
    took longer than the median of the others: to trace, to compile (or to find the program in
    JAX's cache) and to move data. Where there is one chunk only, all of it is `rounds`.

    Args:
      before: seconds by part of earlier sittings, which are added.
    """

    def __init__(self, before: Mapping[str, float]):
        self._before = before
        self._parts: dict[str, float] = {
            "data": 0.0, "compiling": 0.0, "rounds": 0.0, "records": 0.0,
        }  # fmt: skip
        self._chunks: list[float] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time that a block takes to a part."""
        start = time.monotonic()
        yield
        self._parts[name] += time.monotonic() - start

    def chunk(self, seconds: float) -> None:
        """Adds the time that the next chunk of rounds took."""
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


class Checkpoints:
    """The last checkpoint of a run under `out`, as Orbax keeps it.

    Use as a context manager; `save` returns once the checkpoint is complete.
    """

    def __init__(self, out: Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager((out / CHECKPOINT).resolve(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, progress: Progress) -> None:
        """Saves the progress of a run, and then drops the one before."""
        self._manager.save(progress.num_rounds, args=ocp.args.StandardSave(_plain(progress)))

    def load(self, like: Progress) -> Progress | None:
        """Returns the last progress saved, or None.

        Args:
          like: progress of the same experiment, of any number of rounds; gives shapes.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        rows = jax.tree.map(
            lambda row: jax.ShapeDtypeStruct((step, *row.shape[1:]), row.dtype), like.rows
        )
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(like._replace(rows=None)))
        target = {**target, "rows": _present(rows)}
        saved = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        key = jax.random.wrap_key_data(saved["key"], impl=jax.random.key_impl(like.state.key))
        state = State(key=key, **saved["state"])
        return Progress(state, History(**jax.tree.map(np.asarray, saved["rows"])))

    def delete(self) -> None:
        """Drops what was saved."""
        for step in self._manager.all_steps():
            self._manager.delete(step)


def _plain(progress: Progress) -> dict[str, Any]:
    """Returns progress as nested dicts of arrays; a PRNG key becomes its data."""
    state = progress.state._asdict()
    key = jax.random.key_data(state.pop("key"))
    rows = {} if progress.rows is None else _present(progress.rows)
    return {"state": state, "key": key, "rows": rows}


def _present(rows: History) -> dict[str, Any]:
    """Returns what is recorded, by name."""
    return {name: value for name, value in rows._asdict().items() if value is not None}


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    if isinstance(content, float) and not np.isfinite(content):
        return None
    return content
