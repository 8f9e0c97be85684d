"""Endings: how a command of the command line ends, in one sentence and an exit code.

    a user's mistake, a full disk, no permission   2
    SIGINT, SIGTERM                                128 + the signal's number
    a reader of standard output that has left      128 + SIGPIPE, without a sentence

Warnings are told as sentences too. All goes to standard error.
"""

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from fairjax.experiments import records

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # that stop a command
REPEAT_SECONDS = 0.1
BROKEN_PIPE = 128 + 13  # SIGPIPE, which not all systems have


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Ends the process with a sentence and a code where a block does not end well."""
    try:
        with _stopped_by_signals(), _told_warnings():
            yield
    except ValueError as error:
        complain(_with_notes(str(error), error))
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        complain(_with_notes("stopped.", stop))
        number = stop.args[0] if stop.args else signal.SIGINT
        raise SystemExit(128 + number) from None
    except BrokenPipeError:
        _drop_output()
        raise SystemExit(BROKEN_PIPE) from None
    except OSError as error:
        complain(_with_notes(_describe(error), error))
        _drop_output()
        raise SystemExit(2) from None


class Saved(NamedTuple):
    """What a command leaves below its directory to go on from."""

    pattern: str
    words: str
    absent: str


CHECKPOINTS = Saved(
    f"{records.CHECKPOINT}/[0-9]*", "the last checkpoint", "There is no checkpoint yet"
)
CELLS = Saved("cells/*.json", "the cells that are done", "No cell is done yet")


@contextlib.contextmanager
def resumable(out: Path, resume: bool, saved: Saved = CHECKPOINTS) -> Iterator[None]:
    """Adds to what stops a command from where the same command goes on."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as stop:
        command = "The same command" if resume else "The same command without --resume False"
        if any(out.rglob(saved.pattern)):
            stop.add_note(f"{command} goes on from {saved.words}.")
        else:
            stop.add_note(f"{saved.absent}: the same command begins anew.")
        raise


def complain(sentence: str) -> None:
    """Prints a sentence to standard error; if that cannot be written, nothing."""
    with contextlib.suppress(OSError):
        Console(stderr=True).print(
            f"fairjax: {sentence}", style="red", markup=False, emoji=False, highlight=False,
            soft_wrap=True,
        )  # fmt: skip


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Has each signal end a block by a KeyboardInterrupt that holds the signal's number."""

    def stop(number: int, _: Any) -> None:
        raise KeyboardInterrupt(number)

    def repeat(unraisable: Any) -> None:
        """Sends a signal again that was raised where Python drops exceptions, as in a finalizer."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            number = unraisable.exc_value.args[0]
            threading.Timer(REPEAT_SECONDS, os.kill, (os.getpid(), number)).start()
        else:
            report(unraisable)

    report = sys.unraisablehook
    main = threading.current_thread() is threading.main_thread()
    # Shells have commands in the background ignore SIGINT; what is ignored stays so.
    numbers = [one for one in SIGNALS if main and signal.getsignal(one) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _told_warnings() -> Iterator[None]:
    """Tells warnings as sentences, but for JAX's that it cannot keep a compiled program."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
        warnings.showwarning = lambda message, *_, **__: complain(str(message))
        yield


def _describe(error: OSError) -> str:
    """Returns what the system says, with the file that it is about."""
    if error.strerror is None:
        return str(error)
    return f"{error.strerror}: {error.filename or 'standard output'}."


def _with_notes(sentence: str, error: BaseException) -> str:
    return " ".join([sentence, *getattr(error, "__notes__", ())])


def _drop_output() -> None:
    """Forgets what could not be written, or Python would try once more at its exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
