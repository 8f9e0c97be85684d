"""Endings: end a command with one sentence and an exit code.

    a user's mistake, a full disk, no permission   2
    SIGINT, SIGTERM                                128 + the signal's number
    the reader of standard output is gone          128 + SIGPIPE, without a sentence

Warnings are printed as sentences, too. All sentences go to standard error.
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

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # signals that stop a command
REPEAT_SECONDS = 0.1
HIDDEN_FRAMES = "JAX has removed its internal frames"  # in a note of JAX on its tracebacks
BROKEN_PIPE = 128 + 13  # SIGPIPE; some systems do not define it


@contextlib.contextmanager
def end_with_sentence() -> Iterator[None]:
    """Ends the process with a sentence and an exit code if a block fails."""
    try:
        with _stop_on_signals(), _print_warnings():
            yield
    except ValueError as error:
        complain(_add_notes(str(error), error))
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        complain(_add_notes("stopped.", stop))
        number = stop.args[0] if stop.args else signal.SIGINT
        raise SystemExit(128 + number) from None
    except BrokenPipeError:
        _drop_output()
        raise SystemExit(BROKEN_PIPE) from None
    except OSError as error:
        complain(_add_notes(_describe(error), error))
        _drop_output()
        raise SystemExit(2) from None


class Saved(NamedTuple):
    """Files from which a stopped command can go on, and words for them."""

    pattern: str
    words: str
    absent: str


CHECKPOINTS = Saved(
    f"{records.CHECKPOINT}/[0-9]*", "the last checkpoint", "There is no checkpoint yet"
)
MECHANISMS = Saved(
    f"*/{records.RESULT}", "the mechanisms that are done", "No mechanism is done yet"
)
NO_PARTS = Saved("no parts", "", "An audit keeps no parts")
CELLS = Saved("cells/*.json", "the cells that are done", "No cell is done yet")


@contextlib.contextmanager
def resumable(out: Path, resume: bool, saved: Saved = CHECKPOINTS) -> Iterator[None]:
    """Adds a note about where the same command goes on, if a block is stopped or fails."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as stop:
        command = "The same command" if resume else "The same command without --resume False"
        if any(out.rglob(saved.pattern)):
            stop.add_note(f"{command} goes on from {saved.words}.")
        else:
            stop.add_note(f"{saved.absent}: the same command starts over.")
        raise


def complain(sentence: str) -> None:
    """Prints a sentence to standard error, if that can be written."""
    with contextlib.suppress(OSError):
        Console(stderr=True).print(
            f"fairjax: {sentence}", style="red", markup=False, emoji=False, highlight=False,
            soft_wrap=True,
        )  # fmt: skip


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Makes signals raise a KeyboardInterrupt with the signal's number in a block."""

    def stop(number: int, _: Any) -> None:
        raise KeyboardInterrupt(number)

    def repeat(unraisable: Any) -> None:
        """Sends a signal again if Python dropped its exception, for example in a finalizer."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            number = unraisable.exc_value.args[0]
            threading.Timer(REPEAT_SECONDS, os.kill, (os.getpid(), number)).start()
        else:
            report(unraisable)

    report = sys.unraisablehook
    main = threading.current_thread() is threading.main_thread()
    # Shells make commands in the background ignore SIGINT; keep ignored signals ignored.
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
def _print_warnings() -> Iterator[None]:
    """Prints warnings as sentences, without JAX's warnings about its cache of programs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
        warnings.showwarning = lambda message, *_, **__: complain(str(message))
        yield


def _describe(error: OSError) -> str:
    """Returns the system's message, with the name of the file."""
    if error.strerror is None:
        return str(error)
    return f"{error.strerror}: {error.filename or 'standard output'}."


def _add_notes(sentence: str, error: BaseException) -> str:
    notes = [note for note in getattr(error, "__notes__", ()) if HIDDEN_FRAMES not in note]
    return " ".join([sentence, *notes])


def _drop_output() -> None:
    """Redirects standard output to nowhere, so that Python does not fail again at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
