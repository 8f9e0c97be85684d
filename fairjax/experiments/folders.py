"""Folders: whether a directory may be written, what is in it, and whether its run may go on."""

import contextlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairjax.experiments import records
from fairjax.files import DamagedError

AUDIT = "audit.json"  # what is audited, as `experiment.json` is what is run


def check_environment(out: Path) -> None:
    """Raises if the run in a directory began under other settings; warns of another machine.

    Raises:
      ValueError: JAX draws other random numbers here, or computes with other floats.
    """
    there, here = records.read_experiment(out), records.surroundings()
    settings, environment = (
        {name: (there.get(kind, {}).get(name, now), now) for name, now in here[kind].items()}
        for kind in ("settings", "environment")
    )
    for name, (before, now) in settings.items():
        if before != now:
            raise ValueError(
                f"`{name}` must be {before} to go on with the run in {out}, which began so, got "
                f"{now}. Set it, start over with `resume=False` (--resume False), or choose "
                "another directory."
            )
    changed = [
        f"{name} {before}, here {now}"
        for name, (before, now) in environment.items()
        if before != now
    ]
    if changed:
        warnings.warn(
            f"The run in {out} goes on elsewhere than it began, so an unbroken run would have "
            f"other bits: {'; '.join(changed)}.",
            stacklevel=2,
        )


def check_free(out: Path, record: str) -> None:
    """Raises if a directory holds files, and none of them is a `record` of its kind.

    Raises:
      ValueError: it does, or it holds a run; the message names the files.
    """
    found = [entry.name for entry in out.iterdir()] if out.is_dir() else []
    kinds = {records.EXPERIMENT: "run", records.COMPARISON: "comparison", AUDIT: "audit"}
    for other, kind in kinds.items():
        if other in found and other != record:
            raise ValueError(
                f"`out` must not be the directory of another {kind}, got {out}, which holds one."
            )
    foreign = sorted(
        name for name in found if not name.startswith(".") and not (out / name).is_dir()
    )
    if record not in found and foreign:
        raise ValueError(
            f"`out` must be empty or hold the same of fairjax, got {out}, which holds "
            f"{', '.join(foreign[:5])}."
        )


def check_audit(out: Path, description: Mapping[str, Any]) -> None:
    """Raises if a directory belongs to another audit, or holds other files.

    Raises:
      ValueError: it does; the message names what differs.
    """
    check_free(out, AUDIT)
    if (out / AUDIT).exists():
        there = records.read_json(out / AUDIT)
        records.check_same(out, {"experiment": there}, description)


def add_to_comparison(out: Path, names: Iterable[str], seeds: Sequence[int] | None = None) -> None:
    """Writes which mechanisms were compared in a directory, after those that are there already.

    A damaged file gives a warning; all mechanisms with a result in the directory are then listed.
    """
    path, drawn = out / records.COMPARISON, {} if seeds is None else {"seeds": list(seeds)}
    if path.exists():
        try:
            before = records.read_json(path, ("mechanisms",))
        except DamagedError as damage:
            done = sorted(one.parent.name for one in out.glob(f"*/{records.RESULT}"))
            before = {**drawn, "mechanisms": [name for name in done if name != "standalone"]}
            warnings.warn(f"{damage} It is written again.", stacklevel=2)
        if before.get("seeds") == drawn.get("seeds"):
            names = _with_earlier(out, before["mechanisms"], list(names))
    records.write_json(path, {"mechanisms": list(names), **drawn})


def _with_earlier(out: Path, earlier: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns names of runs after earlier ones that are as long; a warning names the others."""

    def num_rounds(name: str) -> Any:
        with contextlib.suppress(DamagedError):
            return records.read_experiment(out / str(name))["experiment"].get("rounds")

    now = num_rounds(names[0])
    shorter = [
        name for name in earlier if name not in names and num_rounds(name) not in (now, None)
    ]
    if shorter:
        warnings.warn(
            f"The comparison in {out} has {now} rounds now, so it leaves out "
            f"{', '.join(shorter)}, until these are compared with as many.",
            stacklevel=2,
        )
    return list(dict.fromkeys([*(name for name in earlier if name not in shorter), *names]))
