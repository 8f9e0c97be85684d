"""Four Flower nodes, simulated and judged by fairjax; the history is written to a numpy file.

`python flower_simulation.py FILE`. Every node takes one step of gradient descent on all of its
examples. The test plays the same data, model, first parameters and rate in fairjax. Clients are
plain JAX and do not need fairjax.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import fairjax as fj

NUM_AGENTS, NUM_ROUNDS, LEARNING_RATE = 4, 3, 0.1


def federation_data():
    """Returns shards, test data and the model's first parameters."""
    train, test = fj.data.load("digits")
    shards = fj.data.power_law(train, num_agents=NUM_AGENTS, seed=0)
    kernel = np.random.default_rng(0).normal(size=(64, 10)) / 8
    return shards, test, {"bias": np.zeros(10, np.float32), "kernel": kernel.astype(np.float32)}


def logits(params, x, key=None):
    return x.reshape(len(x), -1) @ params["kernel"] + params["bias"]


def loss(params, x, y):
    """Returns the mean cross entropy."""
    own = jnp.take_along_axis(jax.nn.log_softmax(logits(params, x)), y[:, None], axis=1)
    return -own.mean()


def client_app(data):
    """Returns a client that holds the examples of its partition."""
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message, context):
        agent = int(context.node_config["partition-id"])
        params = {name: array.numpy() for name, array in message.content["arrays"].items()}
        slopes = jax.grad(loss)(params, *data[agent])
        trained = {k: Array(np.asarray(params[k] - LEARNING_RATE * slopes[k])) for k in params}
        metrics = MetricRecord({"num-examples": len(data[agent][1]), "partition-id": agent})
        content = RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def main():
    from flwr.app import Array, ArrayRecord
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    from fairjax.bridges.flower import CGSV

    class Remembering(CGSV):
        """Remembers which node holds which shard."""

        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            self.shard_of = {
                reply.metadata.src_node_id: reply.content["metrics"]["partition-id"]
                for reply in replies
            }
            return super().aggregate_train(server_round, replies)

    shards, _, first = federation_data()
    rows = [own[:size] for own, size in zip(shards.indices, shards.sizes, strict=True)]
    data = [(shards.data.x[own], shards.data.y[own]) for own in rows]
    app = ServerApp()
    strategy = Remembering(num_agents=NUM_AGENTS, fraction_evaluate=0.0)
    results = []

    @app.main()
    def play(grid, context):
        arrays = ArrayRecord({name: Array(leaf) for name, leaf in first.items()})
        results.append(strategy.start(grid, arrays, num_rounds=NUM_ROUNDS))

    run_simulation(
        server_app=app,
        client_app=client_app(data),
        num_supernodes=NUM_AGENTS,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    order = np.argsort([strategy.shard_of[node] for node in strategy.node_ids])
    history = strategy.history._replace(rounds=None)._asdict()
    judged = {name: rows[:, order] for name, rows in history.items() if rows is not None}
    agents = {f"agents/{name}": leaf[order] for name, leaf in strategy.agents.items()}
    server = {f"server/{name}": array.numpy() for name, array in results[0].arrays.items()}
    np.savez(sys.argv[1], **judged, **agents, **server)


if __name__ == "__main__":
    main()
