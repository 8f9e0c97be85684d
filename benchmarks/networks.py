"""How fast is each of the paper's networks, here and in PyTorch?  `python benchmarks/networks.py`

    local step   of one agent: gradient, optimizer, and its share of a round of FedAvg, of 5 agents
    evaluation   of one model, forward only, per example
    GFLOP/s      multiply-adds of outputs that reach the loss, padding of sentences included; also
                 in percent of the GEMM peak
    GB/s         what a local step must at least read and write: parameters, gradients and the
                 optimizer's state; also in percent of the rate of x + 1 on a large array

The paper's networks and batch sizes, a perceptron with 64 hidden units and logistic regression on
1,024 features. Text is 64% padding and is trained with Adam, the others with SGD. The two take
turns; the first turn is not counted, and the best of the others is. PyTorch is a plain loop over
agents, in the faster memory format, in an environment of its own.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tyro
from measure import flops_per_image, gemm_peak, report, stream_rate
from peer_processes import PeerProcess, Row, play_in_turn
from peer_programs.work import HIDDEN, IMAGES, NUM_TOKENS, NUM_WORDS, Work
from peers import shards_of

import fairjax as fj
from fairjax import checks, trees

BATCHES = {
    "mnist_cnn": (32,), "cifar_cnn": (128, 64, 32), "text_cnn": (128, 32), "mlp": (32,),
    "logistic": (32,),
}  # fmt: skip
SIZE = IMAGES["mlp"][0]


def main(
    networks: tuple[str, ...] = tuple(BATCHES),
    num_agents: int = 5,
    samples: int = 512,
    rounds: int = 3,
    torch: bool = True,
    tiny: bool = False,
    seed: int = 0,
    environments: Path = Path("runs/peers"),
    patience: float = 3600.0,
    json: Path | None = None,
) -> None:
    """Time local steps and evaluation of the paper's networks, beside PyTorch.

    Args:
      networks: names, as in `fairjax.models.REGISTRY`.
      num_agents: how many agents.
      samples: examples per agent; a round is one epoch.
      rounds: how many turns are counted; one before them is not.
      torch: time PyTorch too.
      tiny: time fairjax alone at a small size, and install nothing.
      seed: examples, labels and parameters follow from it.
      environments: directory that PyTorch is installed in.
      patience: seconds after which a turn in PyTorch counts as failed.
      json: the file for the numbers; by default one in runs/benchmarks/.
    """
    for network in networks:
        checks.choice("network", network, BATCHES)
    if tiny:
        networks, num_agents, samples, rounds = ("logistic", "text_cnn"), 2, 32, 1
        torch = False
    limits = {"gemm_peak": gemm_peak(), "stream_rate": stream_rate()}
    rows = []
    for network in networks:
        for batch in BATCHES[network]:
            work = Work(
                num_agents, rounds, seed, samples, 1, batch, 1e-4 if is_text(network) else 0.05,
                network,
            )  # fmt: skip
            process = PeerProcess(
                "torch", "torch_loop.py", work, environments=environments, patience=patience
            )
            rows += rows_of(work, process if torch else None, **limits)
    title = (
        f"networks: the GEMM peak is {limits['gemm_peak'] / 1e9:.0f} GFLOP/s, "
        f"the stream rate {limits['stream_rate'] / 1e9:.1f} GB/s"
    )
    report(title, rows, json_path=json, seed=seed, num_agents=num_agents, samples=samples, **limits)


def rows_of(
    work: Work, torch: PeerProcess | None, gemm_peak: float, stream_rate: float
) -> list[Row]:
    """Returns a row for fairjax and one for PyTorch."""
    with contextlib.ExitStack() as stack:
        plays: dict[str, Callable[[str], Row]] = {"fairjax": player(work)}
        if torch is not None:
            plays["torch"] = stack.enter_context(torch).play
        turns = {
            f"{name} {turn}": functools.partial(play, turn)
            for turn in ("round", "evaluation")
            for name, play in plays.items()
        }
        games = play_in_turn(turns, work.rounds)
    flops, moved = flops_of(work.network), bytes_of(work)
    rows: list[Row] = []
    for name in plays:
        row: Row = {"network": work.network, "batch": work.batch_size, "by": name}
        error = games[f"{name} round"].error or games[f"{name} evaluation"].error
        if not error:
            step, example = (
                min(answer["seconds"] for answer in games[f"{name} {turn}"].answers[1:]) / number
                for turn, number in (
                    ("round", work.local_steps),
                    ("evaluation", work.num_agents * work.samples),
                )
            )
            rate = work.num_agents * work.samples * flops["step"] / (step * work.local_steps)
            row |= {"local step ms": 1e3 * step, "evaluation us": 1e6 * example}
            row |= {"GFLOP/s": rate / 1e9, "% of peak": 100 * rate / gemm_peak}
            row |= {"evaluation GFLOP/s": flops["forward"] / example / 1e9}
            row |= {"GB/s": moved / step / 1e9, "% of stream": 100 * moved / step / stream_rate}
            if name != "fairjax":
                for part in ("local step ms", "evaluation us"):
                    row[f"{part.split()[0]}: times fairjax"] = row[part] / rows[0][part]
        rows.append(row | ({"error": error} if error else {}))
    return rows


def player(work: Work) -> Callable[[str], Row]:
    """Returns a function that plays a round of FedAvg, or evaluates the server on all examples."""
    model, shards = model_of(work.network), shards_of(work)
    optimizer = optax.adam if is_text(work.network) else optax.sgd
    federation = fj.federation(
        model=model,
        mechanism=fj.mechanisms.fedavg(),
        optimizer=optimizer(work.learning_rate),
        local_epochs=work.local_epochs,
        batch_size=work.batch_size,
    )
    step = jax.jit(lambda state, shards: federation.step(state, shards)[0], donate_argnums=0)
    evaluate, data = jax.jit(federation.evaluate), jax.device_put(shards.data)
    state = federation.init(jax.random.key(work.seed), shards)

    def play(turn: str) -> Row:
        nonlocal state
        start = time.perf_counter()
        if turn == "round":
            state = jax.block_until_ready(step(state, shards))
        else:
            server = jax.tree.map(lambda leaf: leaf[None], state.server)
            jax.block_until_ready(evaluate(server, data))
        return {"seconds": time.perf_counter() - start}

    return play


def model_of(network: str) -> fj.models.Model:
    """Returns fairjax's network."""
    features = fj.data.Dataset(np.zeros((1, SIZE)), np.zeros(1, int), num_classes=10)
    makers = {
        "mnist_cnn": fj.models.mnist_cnn,
        "cifar_cnn": fj.models.cifar_cnn,
        "text_cnn": functools.partial(fj.models.text_cnn, NUM_WORDS, 2),
        "mlp": functools.partial(fj.models.mlp, features, hidden=(HIDDEN,)),
        "logistic": functools.partial(fj.models.logistic, features),
    }
    return makers[network]()


def is_text(network: str) -> bool:
    """Says whether a network takes sentences."""
    return network == "text_cnn"


def flops_of(network: str) -> dict[str, float]:
    """Returns the useful FLOPs for one example: forward, and of a whole step.

    Backward takes twice as many as forward, less the gradient with respect to the examples.
    """
    if network == "mnist_cnn":
        step = flops_per_image()
        first = 2 * 28 * 28 * 64 * 9
        return {"step": step, "forward": (step + first) / 3}
    layers = {
        "cifar_cnn": (28 * 28 * 16 * 75, 10 * 10 * 32 * 400, 800 * 120, 120 * 84, 84 * 10),
        "text_cnn": ((NUM_TOKENS - 2) * 900 * 384, 384 * 2),
        "mlp": (SIZE * HIDDEN, HIDDEN * 10),
        "logistic": (SIZE * 10,),
    }[network]
    learnt_first = 0 if is_text(network) else layers[0]
    return {"step": 6 * sum(layers) - 2 * learnt_first, "forward": 2 * sum(layers)}


def bytes_of(work: Work) -> float:
    """Returns the bytes that a local step moves at least.

    Gradients are written and read, and parameters too; Adam's two moments as well.
    """
    x, y = work.shard(0)
    train = fj.data.Dataset(x[:1], y[:1], num_classes=work.num_classes)
    first = functools.partial(fj.models.initial_params, model_of(work.network), data=train)
    params: Any = jax.eval_shape(first, jax.random.key(0))
    numbers = trees.num_parameters(params) * (8 if is_text(work.network) else 4)
    return 4 * (numbers + work.batch_size * math.prod(x.shape[1:]))


if __name__ == "__main__":
    tyro.cli(main)
