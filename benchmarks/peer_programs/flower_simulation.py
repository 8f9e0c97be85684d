"""Flower's player of FedAvg: its simulation engine, by default with one Ray actor per core."""

import json
import sys

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch_network import Network, mean_loss, shard, train
from work import Turns, Work


def main() -> None:
    work, turns = Work(**json.loads(sys.argv[1])), Turns()
    run_simulation(
        server_app=server_app(work, turns),
        client_app=client_app(work),
        num_supernodes=work.num_agents,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


def client_app(work: Work) -> ClientApp:
    """Returns the app of an agent, which trains when the server's parameters arrive."""
    app = ClientApp()

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        network = Network()
        network.load_state_dict(message.content["arrays"].to_torch_state_dict())
        x, y = shard(work, int(context.node_config["partition-id"]))
        local_steps = train(network, x, y, work)
        metrics = MetricRecord({"num-examples": len(x), "local-steps": local_steps})
        arrays = ArrayRecord(network.state_dict())
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app


def server_app(work: Work, turns: Turns) -> ServerApp:
    """Returns a server that ends a turn after every round, and begins the next when told to."""
    app = ServerApp()
    strategy = TurnTaking(work, turns)

    @app.main()
    def play(grid: Grid, context: Context) -> None:
        torch.manual_seed(work.seed)
        arrays = ArrayRecord(Network().state_dict())
        strategy.start(grid, arrays, num_rounds=work.rounds + 1, evaluate_fn=strategy.take_turns)

    return app


class TurnTaking(FedAvg):
    """Federated averaging of all agents; it waits between rounds, when Flower would evaluate."""

    def __init__(self, work: Work, turns: Turns):
        everybody = work.num_agents
        super().__init__(
            fraction_evaluate=0.0, min_train_nodes=everybody, min_available_nodes=everybody
        )
        self._work, self._turns = work, turns
        self._local_steps = 0

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        errors = [reply.error.reason for reply in replies if reply.has_error()]
        if errors:
            raise RuntimeError(f"{len(errors)} agents failed, the first with: {errors[0]}")
        self._local_steps = sum(reply.content["metrics"]["local-steps"] for reply in replies)
        return super().aggregate_train(server_round, replies)

    def take_turns(self, server_round: int, arrays: ArrayRecord) -> None:
        if server_round > 0:
            self._turns.end()
            network = Network()
            network.load_state_dict(arrays.to_torch_state_dict())
            loss = mean_loss(network, *shard(self._work, 0))
            self._turns.answer(local_steps=self._local_steps, loss=loss)
        if server_round <= self._work.rounds:
            self._turns.begin()


if __name__ == "__main__":
    main()
