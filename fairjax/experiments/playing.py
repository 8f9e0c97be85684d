"""Playing: plays the rounds of one run, and times, shows, tracks and checkpoints them.

last checkpoint -> stages of rounds -> clock, watcher, tracker -> checkpoints -> last progress
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jax.experimental import multihost_utils

from fairjax import simulation
from fairjax.experiments import records
from fairjax.experiments.longer import prolonged
from fairjax.experiments.run_folder import RunFolder
from fairjax.experiments.tracking import Tracker
from fairjax.simulation import Progress, Rounds

CHECKPOINT_SECONDS = 2.0, 600.0  # the shortest and longest time between checkpoints
CHECKPOINT_SHARE = 0.01  # between those, the share of the time that writing them takes

WATCHES = "watch(name, rounds played, their number)"
Watcher = Callable[[str, int, int], None]  # name of the run, rounds played, rounds in all


class Run(NamedTuple):
    """One run: its rounds, and a name that watchers show."""

    name: str
    rounds: Rounds

    def play(
        self, folder: RunFolder, clock: records.Clock, tracker: Tracker, watch: Watcher | None
    ) -> Progress:
        """Returns the progress after the last round.

        Args:
          folder: keeps checkpoints, and gives the last one if the run goes on.
          clock: counts the time of stages and of checkpoints.
          tracker: receives every round's scalars.
          watch: called with the name, the rounds played and the rounds in all.
        """
        with clock.part("records"):
            start = progress = self._resume(folder)
        saved, pause = time.monotonic(), CHECKPOINT_SECONDS[0]
        for progress in self._stages(start, clock, tracker, watch):
            finished = progress.num_rounds > self.rounds.num_rounds
            # All processes save together; the clock of the first one decides when.
            due = multihost_utils.broadcast_one_to_all(time.monotonic() - saved > pause)
            if finished or due:
                began = time.monotonic()
                folder.save(progress, clock)
                saved = time.monotonic()
                pause = np.clip((saved - began) / CHECKPOINT_SHARE, *CHECKPOINT_SECONDS)
        assert progress is not None  # a run has a round to play, or has been played
        return progress

    def _resume(self, folder: RunFolder) -> Progress | None:
        """Returns the progress of the last checkpoint, or None where the run starts anew."""
        rounds = self.rounds
        start = folder.last(lambda: rounds.beginning(measured=False), rounds.num_rounds)
        if start is None:
            return None
        return prolonged(start, rounds.last_round, rounds.eval_every)

    def _stages(
        self,
        start: Progress | None,
        clock: records.Clock,
        tracker: Tracker,
        watch: Watcher | None,
    ) -> Iterator[Progress]:
        """Yields the progress after each stage, and updates clock, watcher and tracker."""
        num_rounds = self.rounds.num_rounds
        shown = 0
        if watch is not None and start is None:  # show the run while it compiles
            watch(self.name, shown, num_rounds)
        began = time.monotonic()
        for progress in self.rounds.stages(start, spare=True):
            clock.chunk(time.monotonic() - began)
            played = min(progress.num_rounds, num_rounds)
            if watch is not None and played > shown:  # after the last round only training is left
                watch(self.name, played, num_rounds)
                shown = played
            # Leave out the last round: the next one gives its `trained_accuracies`.
            tracker.rounds(simulation.history(progress, progress.num_rounds - 1))
            yield progress
            began = time.monotonic()
