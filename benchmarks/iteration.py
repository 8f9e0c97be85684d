"""How long is a whole iteration, here and in the authors' way?  `python benchmarks/iteration.py`

    training     the paper's MNIST network, 5 agents, 600 random images each, 3 local epochs in
                 batches of 32, SGD with rate .15
    paying       the server's step of CGSV; in PyTorch with top-k per agent, as the authors do
    evaluation   loss and accuracy of six models, the agents' and the server's, on 10,000 test
                 images and on all agents' images

The two take turns, one iteration each; the first iteration is not counted. PyTorch is installed by
pip in an environment of its own.
"""

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from jax import lax
from measure import report
from peer_processes import PeerProcess, Play, Row, play_in_turn
from peer_programs.work import IterationWork
from peers import shards_of

import fairjax as fj
from fairjax.simulation import training

BATCH = 100  # images evaluated at once


def main(
    rounds: int = 5,
    tiny: bool = False,
    seed: int = 0,
    environments: Path = Path("runs/peers"),
    patience: float = 3600.0,
    json: Path | None = None,
) -> None:
    """Time the authors' whole iteration on fairjax and in PyTorch.

    Args:
      rounds: how many are counted; one before them is not.
      tiny: time fairjax alone at a small size, and install nothing.
      seed: images, labels and parameters follow from it.
      environments: directory that PyTorch is installed in.
      patience: seconds after which an iteration in PyTorch counts as failed.
      json: the file for the numbers; by default one in runs/benchmarks/.
    """
    work = IterationWork(rounds=rounds, seed=seed)
    if tiny:
        work = IterationWork(2, 1, seed, samples=50, local_epochs=1, evaluated=100)
    with contextlib.ExitStack() as stack:
        players: dict[str, Play] = {"fairjax": iterations(work)}
        if not tiny:
            torch = PeerProcess(
                "torch", "torch_iteration.py", work, environments=environments, patience=patience
            )
            players["torch"] = stack.enter_context(torch).play
        games = play_in_turn(players, work.rounds)
    rows: list[Row] = []
    for name, game in games.items():
        row: Row = {"iteration": name}
        if not game.error:
            last = game.answers[-1]
            row |= {"s": game.median, "ratio": game.median / games["fairjax"].median}
            row |= {part: last[part] for part in ("local_steps", "loss", "accuracy")}
        rows.append(row | {"error": game.error})
    report("iteration: train, judge, pay, evaluate", rows, json_path=json, seed=seed)


def iterations(work: IterationWork) -> Play:
    """Returns a function that plays one iteration here."""
    model = fj.models.mnist_cnn()
    federation = fj.federation(
        model=model,
        mechanism=fj.mechanisms.cgsv(alpha=work.alpha, beta=work.beta, gamma=work.gamma),
        optimizer=optax.sgd(work.learning_rate),
        local_epochs=work.local_epochs,
        batch_size=work.batch_size,
    )
    shards = shards_of(work)
    state = federation.init(jax.random.key(work.seed), shards)
    evaluated = jax.device_put(work.images_evaluated())

    @functools.partial(jax.jit, donate_argnums=0)
    def iteration(state: fj.State, shards: fj.data.Shards, evaluated: Any) -> Any:
        state, _ = federation.step(state, shards)
        everybody = jax.tree.map(
            lambda agents, server: jnp.concatenate([agents, server[None]]),
            state.agents,
            state.server,
        )
        judge = functools.partial(loss_and_accuracy, model.apply)
        at_once = federation.agents_at_once(shards)
        return state, training.map_agents(judge, everybody, evaluated, at_once)

    def play() -> Row:
        nonlocal state
        start = time.perf_counter()
        state, (loss, right) = jax.block_until_ready(iteration(state, shards, evaluated))
        seconds = time.perf_counter() - start
        seen = {"loss": float(loss[-1]), "accuracy": float(right[-1])}
        return {"seconds": seconds, "local_steps": work.local_steps} | seen

    return play


def loss_and_accuracy(apply: Callable[..., Any], params: Any, evaluated: Any) -> Any:
    """Returns the mean loss and the accuracy of a model, from one forward pass."""

    def batch(xy: Any) -> Any:
        logits, y = apply(params, xy[0]), xy[1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean(), (logits.argmax(-1) == y).mean()

    batches = jax.tree.map(lambda part: part.reshape(-1, BATCH, *part.shape[1:]), evaluated)
    return jax.tree.map(jnp.mean, lax.map(batch, batches))


if __name__ == "__main__":
    tyro.cli(main)
