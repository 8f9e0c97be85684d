"""Run folder: the files of one run, in the order in which they are written.

claim -> begin (experiment.json) -> save (checkpoint/, time.json), often -> end (history.npz, ...)

A run that keeps nothing has a folder without a path: nothing was there before, and nothing is
written. So the code that plays a run is the same for both.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from fairjax.experiments import folders, histories, records
from fairjax.experiments.checkpoints import Checkpoints
from fairjax.files import DamagedError
from fairjax.simulation import History, Progress


class RunFolder:
    """The folder of one run.

    Attributes:
      path: the directory; None: nothing is kept.
      resume: whether the run goes on with what is there; otherwise it starts over.
    """

    def __init__(self, path: Path | None, resume: bool):
        self.path = None if path is None else path.absolute()  # the working directory may change
        self.resume = resume

    def below(self, name: str) -> "RunFolder":
        """Returns the folder of a part of this run or comparison."""
        return RunFolder(None if self.path is None else self.path / name, self.resume)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Makes the directory and locks it against other processes during a block."""
        return records.locked(self.path)

    def claim(
        self,
        describe: Callable[[], Mapping[str, Any]],
        accepts: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] = lambda there, here: False,
    ) -> dict[str, Any]:
        """Returns the record of this run, as `records.claim` does; it is empty without a path.

        Args:
          describe: returns the run as JSON; some runs that keep nothing have no description.
          accepts: as in `records.claim`.

        Raises:
          ValueError: as in `records.claim`.
        """
        if self.path is None:
            return {}
        return records.claim(self.path, describe(), self.resume, accepts)

    @property
    def finished(self) -> Path | None:
        """The directory, if a finished run is there that counts."""
        if self.path is None or not self.resume or not (self.path / records.RESULT).exists():
            return None
        return self.path

    def lengthen(self, before: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Makes the run of a claimed record an unfinished one of another record.

        Raises:
          ValueError: another process has changed the run since it was claimed.
        """
        if self.path is not None:
            with self.locked():
                self._check_unchanged(before)
                self._clear()
                records.write_json(self.path / records.EXPERIMENT, record)

    def begin(self, record: Mapping[str, Any], check: Callable[[], None] | None = None) -> None:
        """Writes which run is played; the result of an earlier one is deleted.

        Args:
          record: the run's record.
          check: called before anything is written; raises if the run cannot begin.

        Raises:
          ValueError: another process has begun another run since this one was claimed.
        """
        if self.path is None:
            return
        if check is not None:
            check()
        self.path.mkdir(parents=True, exist_ok=True)
        self._check_unchanged(record)
        self._clear()
        if not Checkpoints(self.path).rounds():  # nothing is left of an earlier sitting
            record = {**record, **records.surroundings()}
        records.write_json(self.path / records.EXPERIMENT, record)

    def _check_unchanged(self, claimed: Mapping[str, Any]) -> None:
        """Raises if the folder, now locked, belongs to another run than when it was claimed."""
        # Of several processes of one run only the first one writes.
        if self.path is None or jax.process_index() > 0:
            return
        if not (self.path / records.EXPERIMENT).exists():
            return
        with contextlib.suppress(*([] if self.resume else [DamagedError])):
            there = records.read_experiment(self.path)
            records.check_same(self.path, there, claimed["experiment"])

    def _clear(self) -> None:
        """Deletes the result, and what a run that starts over shall not go on from."""
        if self.path is None:
            return
        # Without a result the run counts as unfinished, whatever a kill leaves of the rest.
        (self.path / records.RESULT).unlink(missing_ok=True)
        if not self.resume:
            Checkpoints(self.path).delete()
            (self.path / records.TIME).unlink(missing_ok=True)

    def times(self) -> dict[str, float]:
        """Returns the seconds by part of earlier sittings."""
        return {} if self.path is None or not self.resume else records.read_times(self.path)

    def check_can_go_on(self) -> None:
        """Raises if what is there of the run cannot be gone on with.

        Raises:
          DamagedError: all checkpoints are damaged.
          ValueError: as in `folders.check_environment`.
        """
        if self.path is not None:
            Checkpoints(self.path).check_readable()
            folders.check_environment(self.path)

    def last(self, beginning: Callable[[], Progress], num_rounds: int) -> Progress | None:
        """Returns the progress to go on from; None: the run starts.

        Args:
          beginning: returns progress of the same run, for its shapes.
          num_rounds: the number of rounds of the run; with fewer played, its settings must fit.

        Raises:
          ValueError: as in `check_can_go_on`.
        """
        if self.path is None:
            return None
        checkpoints = Checkpoints(self.path)
        played = checkpoints.rounds()
        if not played:
            return None
        if played[0] <= num_rounds:
            folders.check_environment(self.path)
        return checkpoints.load(beginning())

    def save(self, progress: Progress, clock: records.Clock) -> None:
        """Saves a checkpoint, and the time so far."""
        if self.path is not None:
            with clock.part("records"):
                Checkpoints(self.path).save(progress)
            records.write_json(self.path / records.TIME, clock.seconds())

    def end(
        self,
        history: History,
        clock: records.Clock | None = None,
        summarise: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """Writes the history, and the time and the summary of a run that has them."""
        if self.path is None:
            return
        with contextlib.nullcontext() if clock is None else clock.part("records"):
            histories.write(self.path, history)
        if clock is not None:
            records.write_json(self.path / records.TIME, clock.seconds())
        if summarise is not None:
            records.write_json(self.path / records.RESULT, summarise())


def check_parts(parts: Iterable[RunFolder]) -> None:
    """Raises if some runs of a whole are finished under other settings than the rest will have.

    Args:
      parts: the folders of all runs, such as a run and its standalone run.

    Raises:
      ValueError: as in `folders.check_environment`.
    """
    parts = list(parts)
    done = [part.finished for part in parts if part.finished is not None]
    for path in done if len(done) < len(parts) else ():
        folders.check_environment(path)
