"""FedJAX's player of FedAvg: its own algorithm with its "jit" backend, and a Haiku network."""

import json
import sys
from typing import Any

import haiku as hk
import jax

# FedJAX's last release calls functions that JAX has removed since.
jax.tree_map = jax.tree.map

import fedjax  # noqa: E402
from fedjax.algorithms import fed_avg  # noqa: E402
from work import Turns, Work  # noqa: E402


def main() -> None:
    work, turns = Work(**json.loads(sys.argv[1])), Turns()
    fedjax.set_for_each_client_backend("jit")
    agents = range(work.num_agents)
    shards = [client_dataset(work, agent) for agent in agents]
    batches = fedjax.ShuffleRepeatBatchHParams(work.batch_size, num_epochs=work.local_epochs)
    model = fedjax.create_model_from_haiku(
        hk.transform(network), sample_batch=shards[0][:1].all_examples(), train_loss=losses
    )
    algorithm = fed_avg.federated_averaging(
        fedjax.model_grad(model),
        client_optimizer=fedjax.optimizers.sgd(work.learning_rate),
        server_optimizer=fedjax.optimizers.sgd(1.0),
        client_batch_hparams=batches,
    )
    local_steps = sum(1 for shard in shards for _ in shard.shuffle_repeat_batch(batches))
    state = algorithm.init(model.init(jax.random.key(work.seed)))
    for number in range(work.rounds + 1):
        keys = jax.random.split(jax.random.key(number), work.num_agents)
        turns.begin()
        state, _ = algorithm.apply(
            state, list(zip(range(work.num_agents), shards, keys, strict=True))
        )
        jax.block_until_ready(state.params)
        turns.end()
        everything = shards[0].all_examples()
        loss = losses(everything, model.apply_for_eval(state.params, everything)).mean()
        turns.answer(local_steps=local_steps, loss=float(loss))


def client_dataset(work: Work, agent: int) -> fedjax.ClientDataset:
    x, y = work.shard(agent)
    return fedjax.ClientDataset({"x": x, "y": y})


def network(batch: dict[str, Any]) -> jax.Array:
    """The paper's MNIST network, from a batch to its logits."""
    x = batch["x"]
    for channels, window in ((64, 3), (16, 7)):
        x = hk.Conv2D(channels, window, padding="VALID")(x)
        x = jax.nn.tanh(hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), padding="VALID")(x))
    x = jax.nn.tanh(hk.Linear(200)(hk.Flatten()(x)))
    return hk.Linear(10)(x)


def losses(batch: dict[str, Any], logits: jax.Array) -> jax.Array:
    """Returns the cross entropy of each example."""
    return fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], logits)


if __name__ == "__main__":
    main()
