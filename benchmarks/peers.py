"""How long is a round of FedAvg, here and on other simulators?  `python benchmarks/peers.py`

    the work   the paper's MNIST network, 600 random images per agent, 3 local epochs in batches
               of 32, SGD with rate .1, then the plain mean of all agents; no evaluation
    in turn    every player plays one round after the other; the first round is not counted
    useful     multiply-adds of outputs that reach the loss, forward and backward, without the
               gradient with respect to the images

A second table has the server's step of CGSV beside PyTorch. Every peer is installed by pip in an
environment of its own; if it cannot be installed or run, its row says why.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from measure import flops_per_image, gemm_peak, print_table, report
from peer_processes import PEERS, PeerProcess, Play, Row, play_in_turn
from peer_programs.work import ServerWork, Work

import fairjax as fj
from fairjax import checks
from fairjax.mechanisms.base import Context

SERVER_SIZES = ((10, 104_242), (100, 1_000_000))
TORCH_STEPS = ("top-k per agent", "one sort")
TINY = {"num_agents": 2, "rounds": 1, "samples": 40, "local_epochs": 1}

Seat = Callable[..., PeerProcess]


def main(
    peers: str = ",".join(PEERS),
    num_agents: tuple[int, ...] = (10, 50),
    rounds: int = 5,
    tiny: bool = False,
    seed: int = 0,
    environments: Path = Path("runs/peers"),
    patience: float = 3600.0,
    server_step: bool = True,
    json: Path | None = None,
) -> None:
    """Time the same round of FedAvg on fairjax and its peers, and the server's step of CGSV.

    Args:
      peers: names, separated by commas.
      num_agents: how many agents, one comparison for each.
      rounds: how many are counted; one before them is not.
      tiny: time fairjax alone at a small size, and install nothing.
      seed: images, labels, parameters and uploads follow from it.
      environments: directory that the peers are installed in.
      patience: seconds after which a peer's round counts as failed.
      server_step: time the server's step too.
      json: the file for the numbers; by default one in runs/benchmarks/.
    """
    checks.count("rounds", rounds)
    names = [name.strip() for name in peers.split(",") if name.strip()]
    for name in names:
        checks.choice("peer", name, PEERS)
    works = [Work(number, rounds, seed) for number in num_agents]
    servers = [ServerWork(*size, rounds, seed) for size in SERVER_SIZES]
    if tiny:
        names, works, servers = [], [Work(**TINY, seed=seed)], [ServerWork(4, 1000, 1, seed)]
    seat = functools.partial(PeerProcess, environments=environments, patience=patience)
    peak = gemm_peak()
    rows = [row for work in works for row in round_rows(work, names, seat, peak)]
    steps: list[Row] = []
    if server_step:
        steps = [row for work in servers for row in step_rows(work, "torch" in names, seat)]
        print_table("the server's step of CGSV", steps)
    title = f"peers: a round of FedAvg; the GEMM peak is {peak / 1e9:.0f} GFLOP/s"
    report(title, rows, json_path=json, seed=seed, server_step=steps, gemm_peak=peak)


def round_rows(work: Work, names: Sequence[str], seat: Seat, peak: float) -> list[Row]:
    """Returns a row for fairjax and one for each peer."""
    with contextlib.ExitStack() as stack:
        players = {"fairjax": fairjax_rounds(work)}
        for name in names:
            players[name] = stack.enter_context(seat(name, PEERS[name].program, work)).play
        played = play_in_turn(players, work.rounds)
    flops = flops_per_image() * work.samples * work.local_epochs * work.num_agents
    rows = []
    for name, game in played.items():
        row: Row = {"peer": name, "N": work.num_agents}
        error = game.error or wrong_round(work, game.answers[-1])
        if not error:
            row |= {
                "s per round": game.median,
                "ratio": game.median / played["fairjax"].median,
                "GFLOP/s": flops / game.median / 1e9,
                "% of peak": 100 * flops / game.median / peak,
                "first round s": game.answers[0]["seconds"],
                "loss": game.answers[-1]["loss"],
            }
        rows.append(row | {"error": error})
    return rows


def wrong_round(work: Work, answer: Row) -> str:
    """Returns a sentence if a player's answer shows that it did not do the work."""
    if answer["local_steps"] != work.local_steps:
        return f"took {answer['local_steps']} local steps in a round, not {work.local_steps}"
    return "" if math.isfinite(answer["loss"]) else f"the loss is {answer['loss']}"


def step_rows(work: ServerWork, with_torch: bool, seat: Seat) -> list[Row]:
    """Returns a row for fairjax's server step and, if asked for, one for each form in PyTorch."""
    with contextlib.ExitStack() as stack:
        players = {"fairjax": fairjax_server_steps(work)}
        if with_torch:
            process = stack.enter_context(seat("torch", "torch_server_step.py", work))
            players |= {
                f"torch, {form}": functools.partial(process.play, form) for form in TORCH_STEPS
            }
        played = play_in_turn(players, work.rounds)
    ours = played["fairjax"]
    rows = []
    for name, game in played.items():
        row: Row = {"server step": name, "N": work.num_agents, "D": work.num_parameters}
        error = game.error or wrong_step(ours.answers[-1], game.answers[-1])
        if not error:
            row |= {"ms": 1000 * game.median, "ratio": game.median / ours.median}
        rows.append(row | {"error": error})
    return rows


def wrong_step(ours: Row, theirs: Row) -> str:
    """Returns a sentence if two server steps paid differently."""
    if math.isclose(ours["length"], theirs["length"], rel_tol=1e-3):
        return ""
    return f"paid a vector of length {theirs['length']:.4g}, not {ours['length']:.4g}"


def fairjax_rounds(work: Work) -> Play:
    """Returns a function that plays one round of FedAvg here."""
    shards = shards_of(work)
    model = fj.models.mnist_cnn()
    federation = fj.federation(
        model=model,
        mechanism=fj.mechanisms.fedavg(),
        optimizer=optax.sgd(work.learning_rate),
        local_epochs=work.local_epochs,
        batch_size=work.batch_size,
    )
    step = jax.jit(federation.step, donate_argnums=0)
    state = federation.init(jax.random.key(work.seed), shards)
    x, y = work.shard(0)

    def play() -> Row:
        nonlocal state
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, shards))
        seconds = time.perf_counter() - start
        logits = model.apply(state.server, x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return {"seconds": seconds, "local_steps": work.local_steps, "loss": float(loss)}

    return play


def shards_of(work: Work) -> fj.data.Shards:
    """Returns all agents' shards, on the device."""
    x, y = map(np.concatenate, zip(*map(work.shard, range(work.num_agents)), strict=True))
    rows = np.arange(len(x)).reshape(work.num_agents, -1)
    train = fj.data.Dataset(x=x, y=y, num_classes=work.num_classes)
    return jax.device_put(fj.data.Shards.from_indices(train, list(rows)))


def fairjax_server_steps(work: ServerWork) -> Play:
    """Returns a function that judges and pays once, with the mechanism `cgsv`."""
    mechanism = fj.mechanisms.cgsv(alpha=work.alpha, beta=work.beta, gamma=work.gamma)
    uploads = jax.device_put(work.uploads())
    agents, importance = jnp.zeros_like(uploads), mechanism.init(work.num_agents)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(agents: jax.Array, importance: jax.Array, uploads: jax.Array) -> Any:
        context = Context(shard_sizes=jnp.ones(work.num_agents))
        outcome, importance = mechanism.update(uploads, importance, context)
        return agents + outcome.rewards, importance

    def play() -> Row:
        nonlocal agents, importance
        start = time.perf_counter()
        agents, importance = jax.block_until_ready(step(agents, importance, uploads))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "length": float(jnp.linalg.norm(agents[0]))}

    return play


if __name__ == "__main__":
    tyro.cli(main)
