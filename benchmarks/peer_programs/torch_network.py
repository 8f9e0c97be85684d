"""The paper's MNIST network and an agent's local epochs in PyTorch, for all peers that use it."""

import functools

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from work import Work

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Network(nn.Module):
    """conv 1-64 k3, conv 64-16 k7, dense 200 and 10, with tanh; 104,242 parameters."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 64, 3)
        self.second = nn.Conv2d(64, 16, 7)
        self.hidden = nn.Linear(256, 200)
        self.head = nn.Linear(200, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(F.max_pool2d(self.first(x), 2))
        x = torch.tanh(F.max_pool2d(self.second(x), 2))
        return self.head(torch.tanh(self.hidden(x.flatten(1))))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self(x), y)


# Flower's workers receive no data: they make their own, and keep it for later rounds.
@functools.cache
def shard(work: Work, agent: int) -> tuple[Tensor, Tensor]:
    """Returns an agent's images `[M, 1, 32, 32]` and labels `[M]`."""
    x, y = work.shard(agent)
    return torch.from_numpy(x).movedim(3, 1).contiguous(), torch.from_numpy(y)


def train(network: Network, x: Tensor, y: Tensor, work: Work) -> int:
    """Trains a network for the local epochs of a round, and returns how many steps it took."""
    optimizer = torch.optim.SGD(network.parameters(), lr=work.learning_rate)
    local_steps = 0
    for _ in range(work.local_epochs):
        for rows in torch.randperm(len(x), device=x.device).split(work.batch_size):
            optimizer.zero_grad()
            network.loss(x[rows], y[rows]).backward()
            optimizer.step()
            local_steps += 1
    return local_steps


def wait() -> None:
    """Waits until the device has finished."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def mean_loss(network: Network, x: Tensor, y: Tensor) -> float:
    return network.loss(x, y).item()
