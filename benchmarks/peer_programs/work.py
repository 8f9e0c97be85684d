"""The work of all players, and the protocol of their turns; needs nothing but NumPy.

    the referee writes one line to a player's standard input     begin
    the player plays one turn, stops its clock, and answers      {"seconds": ..., "loss": ...}

A peer's program runs in an environment of its own, and waits between its turns.
"""

import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np

NUM_WORDS, NUM_TOKENS = 18_000, 56  # of sentences as in MR, 64% of whose tokens are padding
IMAGES = {"mnist_cnn": (32, 32, 1), "cifar_cnn": (32, 32, 3), "mlp": (1024,), "logistic": (1024,)}
HIDDEN = 64  # of the perceptron


@dataclass(frozen=True)
class Work:
    """Rounds of FedAvg on random examples, the same for all from one seed.

    The networks are those of fairjax: "mnist_cnn", "cifar_cnn", "mlp" and "logistic" take images,
    "text_cnn" sentences. Text is trained with Adam, the others with SGD.
    """

    num_agents: int = 10
    rounds: int = 5  # after the first, which warms up
    seed: int = 0
    samples: int = 600
    local_epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 0.1
    network: str = "mnist_cnn"

    @property
    def num_classes(self) -> int:
        return 2 if self.network == "text_cnn" else 10

    @property
    def local_steps(self) -> int:
        """The number of local steps of all agents together in a round."""
        return self.num_agents * self.local_epochs * math.ceil(self.samples / self.batch_size)

    def shard(self, agent: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns an agent's images `[M, ...]`, or tokens `[M, 56]`, and labels `[M]`."""
        rng = np.random.default_rng((self.seed, agent))
        if self.network == "text_cnn":
            lengths = np.clip(rng.normal(20, 9, (self.samples, 1)), 1, NUM_TOKENS)
            tokens = rng.integers(1, NUM_WORDS, size=(self.samples, NUM_TOKENS))
            x = np.where(np.arange(NUM_TOKENS) < lengths, tokens, 0).astype(np.int32)
        else:
            x = rng.standard_normal((self.samples, *IMAGES[self.network]), np.float32)
        return x, rng.integers(self.num_classes, size=self.samples)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class IterationWork(Work):
    """Iterations of the authors' program: training, rewards, and evaluation of all models.

    Every agent's model and the server's are evaluated on `evaluated` test images and on all
    agents' images: one loss and one accuracy for all of these together.
    """

    num_agents: int = 5
    learning_rate: float = 0.15
    evaluated: int = 10_000
    alpha: float = 0.95
    beta: float = 1.0
    gamma: float = 0.5

    def images_evaluated(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns test images followed by all agents' images, `[M, 32, 32, 1]`, and labels."""
        rng = np.random.default_rng((self.seed, self.num_agents))
        test = rng.standard_normal((self.evaluated, 32, 32, 1), np.float32)
        parts = [(test, rng.integers(10, size=self.evaluated))]
        parts += [self.shard(agent) for agent in range(self.num_agents)]
        x, y = map(np.concatenate, zip(*parts, strict=True))
        return x, y


@dataclass(frozen=True)
class ServerWork:
    """Server steps of CGSV on random uploads; the first one warms up."""

    num_agents: int = 10
    num_parameters: int = 104_242
    rounds: int = 5
    seed: int = 0
    alpha: float = 0.95
    beta: float = 1.0
    gamma: float = 0.5

    @property
    def floor(self) -> float:
        """The least importance before normalisation."""
        return 1e-3 * min(1, 10 / self.num_agents)

    def uploads(self) -> np.ndarray:
        """Returns `[N, D]` raw uploads around a common direction, of varied quality."""
        rng = np.random.default_rng(self.seed)
        uploads = rng.standard_normal((self.num_agents, self.num_parameters), np.float32)
        common = rng.standard_normal(self.num_parameters, np.float32)
        uploads += np.linspace(0, 1, self.num_agents, dtype=np.float32)[:, None] * common
        return uploads

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Turns:
    """A player's side of the protocol: it waits for its turn, and answers with its time.

    All other output of the player's libraries goes to standard error.
    """

    def __init__(self):
        self._answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._start = self._seconds = 0.0

    def begin(self) -> str:
        """Waits for the turn, starts the clock, and returns the line that said so."""
        line = sys.stdin.readline()
        if not line:
            raise EOFError("The referee has left: no turn will come.")
        self._start = time.perf_counter()
        return line.strip()

    def end(self) -> None:
        """Stops the clock."""
        self._seconds = time.perf_counter() - self._start

    def answer(self, **outcome: float) -> None:
        """Answers with the turn's seconds and its results."""
        print(json.dumps({"seconds": self._seconds, **outcome}), file=self._answers, flush=True)
