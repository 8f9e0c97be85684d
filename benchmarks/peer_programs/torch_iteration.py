"""PyTorch's player of the authors' iteration: train, judge, pay, and evaluate all models."""

import json
import os
import sys

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch_network import DEVICE, Network, shard, train, wait
from torch_server_step import State, server_step, top_k_per_agent
from work import IterationWork, ServerWork, Turns

BATCH = 100  # images evaluated at once; 1000 took longer


def main() -> None:
    work, turns = IterationWork(**json.loads(sys.argv[1])), Turns()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(work.seed)
    drawn = [shard(work, agent) for agent in range(work.num_agents)]
    shards = [(x.to(DEVICE), y.to(DEVICE)) for x, y in drawn]
    x, y = (torch.from_numpy(part).to(DEVICE) for part in work.images_evaluated())
    x = x.movedim(3, 1).contiguous()
    network = Network().to(DEVICE)
    first = parameters_to_vector(network.parameters()).detach()
    server = first.clone()
    paying = ServerWork(
        work.num_agents, len(first), alpha=work.alpha, beta=work.beta, gamma=work.gamma
    )
    importance = torch.zeros(work.num_agents, device=DEVICE)
    state = State(top_k_per_agent, first.repeat(work.num_agents, 1), importance)
    for _ in range(work.rounds + 1):
        turns.begin()
        uploads, local_steps = [], 0
        for own, (images, labels) in zip(state.agents, shards, strict=True):
            vector_to_parameters(own.clone(), network.parameters())
            local_steps += train(network, images, labels, work)
            uploads.append(parameters_to_vector(network.parameters()).detach() - own)
        state, aggregate = server_step(state, torch.stack(uploads), paying)
        server += aggregate
        judged = [evaluate(network, model, x, y) for model in (*state.agents, server)]
        wait()
        turns.end()
        turns.answer(local_steps=local_steps, loss=judged[-1][0], accuracy=judged[-1][1])


@torch.no_grad()
def evaluate(network: Network, model: Tensor, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Returns the loss and the accuracy of a model, given as a vector of its parameters."""
    vector_to_parameters(model.clone(), network.parameters())
    loss, right = 0.0, 0
    for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        logits = network(images)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(1) == labels).sum())
    return loss / len(y), right / len(y)


if __name__ == "__main__":
    main()
