"""pfl-research's player of FedAvg: its algorithm and simulated backend, all agents in a cohort."""

import json
import os
import sys

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor
from torch_network import Network, mean_loss, shard
from work import Turns, Work


class CountingNetwork(Network):
    """The network with the methods that pfl needs; it counts its local steps."""

    local_steps = 0

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.local_steps += torch.is_grad_enabled()
        return super().loss(x, y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        """Returns the metrics that pfl always measures in its first round."""
        return {"loss": Weighted.from_unweighted(mean_loss(self, x, y))}


class TurnTaking(TrainingProcessCallback):
    """Ends a turn after every round, and begins the next when it is told to."""

    def __init__(self, work: Work):
        self._work, self._turns = work, Turns()
        self._examples = shard(work, 0)

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        self._turns.begin()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self._turns.end()
        network = model.pytorch_model
        local_steps, loss = network.local_steps, mean_loss(network, *self._examples)
        network.local_steps = 0
        self._turns.answer(local_steps=local_steps, loss=loss)
        if central_iteration < self._work.rounds:
            self._turns.begin()
        return False, Metrics()


def main() -> None:
    work = Work(**json.loads(sys.argv[1]))
    turn_taking = TurnTaking(work)
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(work.seed)
    shards = {agent: shard(work, agent) for agent in range(work.num_agents)}
    agents = FederatedDataset.from_slices(shards, MinimizeReuseUserSampler(list(shards)))
    network = CountingNetwork()
    model = PyTorchModel(
        network, torch.optim.SGD, central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0)
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=work.rounds + 1,
            evaluation_frequency=work.rounds + 1,
            train_cohort_size=work.num_agents,
            val_cohort_size=0,
        ),
        SimulatedBackend(agents, agents, postprocessors=[WeightByUser()]),
        model,
        NNTrainHyperParams(
            local_batch_size=work.batch_size,
            local_num_epochs=work.local_epochs,
            local_learning_rate=work.learning_rate,
        ),
        callbacks=[turn_taking],
    )


if __name__ == "__main__":
    main()
