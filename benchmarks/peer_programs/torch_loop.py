"""PyTorch's player of FedAvg: agents in a plain loop, all cores for each of them."""

import contextlib
import json
import os
import sys
import time

import torch
from torch import Tensor
from torch_network import DEVICE, Network, mean_loss, network_of, shard, train, wait
from work import Turns, Work


def main() -> None:
    work, turns = Work(**json.loads(sys.argv[1])), Turns()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(work.seed)
    drawn = [shard(work, agent) for agent in range(work.num_agents)]
    shards = [(x.to(DEVICE), y.to(DEVICE)) for x, y in drawn]
    memory_format = fastest_format(work, *shards[0])
    shards = [(x.to(memory_format=memory_format), y) for x, y in shards]
    server, agent = (network_of(work).to(memory_format=memory_format) for _ in range(2))
    local_steps = 0
    with contextlib.suppress(EOFError):  # no turn will come
        while True:
            if turns.begin() == "evaluation":
                server.eval()
                right = sum(count_right(server, *shard) for shard in shards)
            else:
                server.train()
                local_steps, right = play_round(server, agent, shards, work), 0
            wait()
            turns.end()
            turns.answer(local_steps=local_steps, right=right, loss=mean_loss(server, *shards[0]))


@torch.no_grad()
def count_right(network: Network, x: Tensor, y: Tensor) -> int:
    """Returns how many examples a network gets right; 100 at once, since 1000 took longer."""
    parts = zip(x.split(100), y.split(100), strict=True)
    return sum(int((network(part).argmax(1) == labels).sum()) for part, labels in parts)


def play_round(
    server: Network, agent: Network, shards: list[tuple[Tensor, Tensor]], work: Work
) -> int:
    """Replaces the server's parameters by the mean of what agents train from them."""
    total = [torch.zeros_like(parameter) for parameter in server.parameters()]
    local_steps = 0
    for x, y in shards:
        agent.load_state_dict(server.state_dict())
        local_steps += train(agent, x, y, work)
        for summed, parameter in zip(total, agent.parameters(), strict=True):
            summed.add_(parameter.detach(), alpha=1 / work.num_agents)
    with torch.no_grad():
        for parameter, mean in zip(server.parameters(), total, strict=True):
            parameter.copy_(mean)
    return local_steps


def fastest_format(work: Work, x: Tensor, y: Tensor) -> torch.memory_format:
    """Returns the memory format in which one agent's local epochs take the least time."""
    seconds = {}
    if x.ndim < 4:
        return torch.contiguous_format
    for memory_format in (torch.contiguous_format, torch.channels_last):
        network = network_of(work).to(memory_format=memory_format)
        converted = x.to(memory_format=memory_format)
        train(network, converted[: work.batch_size], y[: work.batch_size], work)
        wait()
        start = time.perf_counter()
        train(network, converted, y, work)
        wait()
        seconds[memory_format] = time.perf_counter() - start
    return min(seconds, key=seconds.get)


if __name__ == "__main__":
    main()
