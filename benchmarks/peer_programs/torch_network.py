"""The paper's networks and an agent's local epochs in PyTorch, for all peers that use them."""

import functools

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from work import HIDDEN, IMAGES, NUM_WORDS, Work

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


class CifarNetwork(Network):
    """conv 3-16 k5, conv 16-32 k5, dense 120, 84 and 10, with relu; 121,182 parameters."""

    def __init__(self):
        nn.Module.__init__(self)
        self.first = nn.Conv2d(3, 16, 5)
        self.second = nn.Conv2d(16, 32, 5)
        self.dense = nn.Sequential(
            nn.Linear(800, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.first(x), 2))
        x = F.relu(F.max_pool2d(self.second(x), 2))
        return self.dense(x.flatten(1))


class TextNetwork(Network):
    """Embeddings of 300 numbers, three branches of 128 windows of three words, dropout, dense 2."""

    def __init__(self):
        nn.Module.__init__(self)
        self.embedding = nn.Embedding(NUM_WORDS, 300)
        self.branches = nn.ModuleList(nn.Conv1d(300, 128, 3) for _ in range(3))
        self.head = nn.Linear(384, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x).movedim(2, 1)
        x = torch.cat([F.relu(branch(x).amax(2)) for branch in self.branches], 1)
        return self.head(F.dropout(x, 0.5, self.training))


class Perceptron(Network):
    """Dense layers with relu between them, of the given widths."""

    def __init__(self, *widths: int):
        nn.Module.__init__(self)
        self.layers = nn.ModuleList(map(nn.Linear, widths, widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def network_of(work: Work) -> Network:
    """Returns a new network of the kind that the work asks for."""
    size = IMAGES["mlp"][0]
    makers = {
        "mnist_cnn": Network,
        "cifar_cnn": CifarNetwork,
        "text_cnn": TextNetwork,
        "mlp": functools.partial(Perceptron, size, HIDDEN, 10),
        "logistic": functools.partial(Perceptron, size, 10),
    }
    return makers[work.network]().to(DEVICE)


# Flower's workers receive no data: they make their own, and keep it for later rounds.
@functools.cache
def shard(work: Work, agent: int) -> tuple[Tensor, Tensor]:
    """Returns an agent's images `[M, C, 32, 32]`, or rows `[M, ...]`, and labels `[M]`."""
    x, y = (torch.from_numpy(part) for part in work.shard(agent))
    return (x.movedim(3, 1).contiguous() if x.ndim == 4 else x), y


def train(network: Network, x: Tensor, y: Tensor, work: Work) -> int:
    """Trains a network for the local epochs of a round, and returns how many steps it took."""
    if work.network == "text_cnn":
        optimizer = torch.optim.Adam(network.parameters(), lr=work.learning_rate, fused=True)
    else:
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
