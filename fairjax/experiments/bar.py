"""The progress bar: how far runs are, how fast, and the time left."""

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fairjax import checks

BAR_LINE = 75  # characters that a line with bar, rounds, speed and time needs
SPEED_SECONDS = 3600.0  # the speed is an average over this time


class ProgressBar:
    """Shows how far runs are, how fast, and the time left; a watcher for `Experiment.run`.

    Each run has one line: its rounds, their speed without the time to compile, and the estimated
    time left. Lines go to standard error, or below the cell of a notebook (with ipywidgets).

    Raises:
      ValueError: the bar is called outside its `with` block, `name` is no text, or `done` or
        `total` is no whole number of at least 0.

    Examples:
      >>> import fairjax as fj
      >>> experiment = fj.Experiment(num_agents=2, rounds=1, model="logistic")
      >>> with fj.ProgressBar() as bar:
      ...     result = experiment.run(watch=bar)
    """

    def __init__(self):
        console = Console(stderr=True)
        wide = console.width >= BAR_LINE
        self._progress = Progress(
            TextColumn("{task.description:>14}", markup=False),
            *([BarColumn(bar_width=20)] if wide else []),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            *([_Speed()] if wide else []),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            speed_estimate_period=SPEED_SECONDS,
        )
        self._tasks: dict[str, Any] = {}
        self._entered = False

    def __enter__(self) -> "ProgressBar":
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        if self._tasks:
            self._progress.refresh()  # otherwise a notebook keeps an outdated line
            self._progress.stop()

    def __call__(self, name: str, done: int, total: int) -> None:
        """Shows how many rounds of a run have been played."""
        checks.text("name", name)
        checks.count("done", done, least=0)
        checks.count("total", total, least=0)
        if not self._entered:
            raise ValueError(
                "A progress bar must be entered: "
                "`with fj.ProgressBar() as bar: experiment.run(watch=bar)`."
            )
        # Start at the first call, so that a run that fails before it shows no bar.
        self._progress.start()
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)


class _Speed(ProgressColumn):
    """Shows rounds per second, or seconds per round if a round takes over a second."""

    def render(self, task: Task) -> Text:
        speed = task.speed
        if not speed:
            return Text(" " * len("9.99 s/round"))
        shown = f"{speed:.3g}/s" if speed >= 1 else f"{1 / speed:.3g} s/round"
        return Text(f"{shown:>12}", style="progress.data.speed")
