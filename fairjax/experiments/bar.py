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

BAR_LINE = 75  # characters that a bar, rounds, speed and time need
SPEED_SECONDS = 3600.0  # over which the speed of rounds is estimated


class ProgressBar:
    """Shows how far runs are, how fast, and the time left; a watcher for `Experiment.run`.

    One line per run: rounds, their speed without the time to compile, and an estimate of what
    is left. On standard error in a terminal, below the cell in a notebook (by ipywidgets).

    Raises:
      ValueError: it is called outside of its `with`, or with something else than a name and counts.

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
            TextColumn("{task.description:>14}"),
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
            self._progress.refresh()  # a notebook would keep what it drew last
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
        self._progress.start()  # at the first call: where a run fails before, nothing is shown
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done)


class _Speed(ProgressColumn):
    """Rounds per second, or seconds per round where they are slow."""

    def render(self, task: Task) -> Text:
        speed = task.speed
        if not speed:
            return Text(" " * len("9.99 s/round"))
        shown = f"{speed:.3g}/s" if speed >= 1 else f"{1 / speed:.3g} s/round"
        return Text(f"{shown:>12}", style="progress.data.speed")
