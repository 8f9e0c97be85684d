"""Peers: other people's simulators, each in an environment and a process of its own.

environment   python -m venv, pip install of pinned versions; reused while the versions are the same
process       a program of `peer_programs`, which plays one turn when it is told to
"""

import contextlib
import json
import os
import re
import select
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from peer_programs.work import ServerWork, Work

PROGRAMS = Path(__file__).parent / "peer_programs"
_ERROR = re.compile(r"[\w.]*(Error|Exception)\b: ")  # the last line of a traceback
# Flower would send usage statistics home.
SETTINGS = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}


Row = dict[str, Any]
Play = Callable[[], Row]  # plays one turn: its seconds, and its results


class Peer(NamedTuple):
    """A program, and the packages that pip installs for it."""

    program: str
    requirements: tuple[str, ...]


TORCH = "torch==2.13.0"
PEERS = {
    "torch": Peer("torch_loop.py", (TORCH, "numpy==2.4.6")),
    "fedjax": Peer(
        "fedjax_loop.py",
        ("fedjax==0.0.17", "jax==0.10.2", "dm-haiku==0.0.17", "optax==0.2.8", "numpy==2.4.6"),
    ),
    "flower": Peer("flower_simulation.py", ("flwr[simulation]==1.42.0", TORCH, "numpy==2.4.6")),
    "pfl": Peer("pfl_loop.py", ("pfl[pytorch]==0.6.0", TORCH, "numpy==2.4.6")),
}


class PeerError(RuntimeError):
    """A peer could not be installed, or could not play; the message is one line."""


def environment(name: str, directory: Path) -> Path:
    """Returns the interpreter of a peer's environment, and makes the environment if it is missing.

    Raises:
      PeerError: pip could not install the peer; the message is pip's.
    """
    python = directory / name / "bin" / "python"
    installed = directory / name / "installed.txt"
    wanted = "\n".join(PEERS[name].requirements) + "\n"
    if installed.exists() and installed.read_text() == wanted:
        return python
    print(f"installing {name} in {directory / name}", file=sys.stderr)
    _install(sys.executable, "-m", "venv", str(directory / name))
    _install(str(python), "-m", "pip", "install", "-q", *PEERS[name].requirements)
    installed.write_text(wanted)
    return python


def _install(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PeerError(reason(done.stderr))


class PeerProcess:
    """A running peer; it is installed and started at its first turn.

    Args:
      name: the peer, whose environment it runs in.
      program: a file of `peer_programs`.
      work: what it must do.
      environments: the directory of all environments and logs.
      patience: seconds to wait for an answer.
    """

    def __init__(
        self,
        name: str,
        program: str,
        work: Work | ServerWork,
        *,
        environments: Path,
        patience: float,
    ):
        self._name, self._program, self._work = name, program, work
        self._environments, self._patience = environments.absolute(), patience
        self._log = self._environments / f"{Path(program).stem}.log"
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "PeerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for the peer to end, as it does when no turn comes any more, or kills it."""
        if self._process is None:
            return
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def play(self, turn: str = "round") -> dict[str, Any]:
        """Lets the peer play one turn, and returns its answer: its seconds and its results.

        Raises:
          PeerError: the peer could not be installed, ended, or took too long; the message is
            the line of its log that says why.
        """
        if self._process is None:
            self._process = self._start()
        # If the peer has ended, writing fails and no answer comes.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{turn}\n".encode())
            self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], self._patience)
        if not ready:
            self._process.kill()  # it would slow the others down
            raise PeerError(f"no answer within {self._patience:.0f} s; see {self._log}")
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            raise PeerError(reason(self._log.read_text(errors="replace")))
        return json.loads(answer)

    def _start(self) -> subprocess.Popen:
        python = environment(self._name, self._environments)
        with self._log.open("w") as log:
            return subprocess.Popen(
                [python, PROGRAMS / self._program, self._work.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | SETTINGS,
            )


class Game(NamedTuple):
    """The answers of a player, turn by turn, or the reason why it stopped."""

    answers: list[Row]
    error: str = ""

    @property
    def median(self) -> float:
        """The median seconds of a turn, without the first one."""
        return statistics.median(answer["seconds"] for answer in self.answers[1:])


def play_in_turn(players: Mapping[str, Play], rounds: int) -> dict[str, Game]:
    """Lets all players take turns: once to warm up, then `rounds` times."""
    games = {name: Game([]) for name in players}
    for _ in range(rounds + 1):
        for name, play in players.items():
            if games[name].error:
                continue
            try:
                games[name].answers.append(play())
            except PeerError as error:
                games[name] = Game([], str(error))
    return games


def reason(output: str) -> str:
    """Returns the line of a failed program's output that says why, cut to fit a table."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("ERROR: ") or _ERROR.match(line)]
    return (telling or lines or ["it ended without a word"])[-1][:100]
