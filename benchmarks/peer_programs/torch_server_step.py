"""PyTorch's player of the server step of CGSV; it plays one of two forms.

top-k per agent   as in the authors' program: torch.topk of the magnitudes for every agent
one sort          the magnitudes are sorted once, and every agent has a threshold
"""

import json
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch_network import DEVICE, wait
from work import ServerWork, Turns


class State(NamedTuple):
    """The state of the step from turn to turn."""

    pay: Callable[[Tensor, Tensor, Tensor], None]
    agents: Tensor  # [N, D]
    importance: Tensor  # [N]


def main() -> None:
    work, turns = ServerWork(**json.loads(sys.argv[1])), Turns()
    torch.set_num_threads(os.cpu_count() or 1)
    uploads = torch.from_numpy(work.uploads()).to(DEVICE)
    states = {
        name: State(pay, torch.zeros_like(uploads), torch.zeros(work.num_agents, device=DEVICE))
        for name, pay in (("top-k per agent", top_k_per_agent), ("one sort", one_sort))
    }
    for _ in range(len(states) * (work.rounds + 1)):
        name = turns.begin()
        states[name], _ = server_step(states[name], uploads, work)
        wait()
        turns.end()
        turns.answer(length=states[name].agents[0].norm().item())


def server_step(state: State, uploads: Tensor, work: ServerWork) -> tuple[State, Tensor]:
    """Judges the uploads, pays the agents in place, and returns the aggregate too."""
    lengths = uploads.norm(dim=1)
    equal = torch.full_like(lengths, 1 / work.num_agents)
    weights = state.importance if state.importance.sum() > 0 else equal
    aggregate = (weights * work.gamma / lengths) @ uploads
    cosines = uploads @ aggregate / (lengths * aggregate.norm())
    importance = work.alpha * state.importance + (1 - work.alpha) * cosines
    importance = importance.clamp(min=work.floor)
    importance = importance / importance.sum()
    fractions = torch.tanh(work.beta * importance)
    kept = (fractions / fractions.max() * work.num_parameters).long()
    state.pay(state.agents, aggregate, kept)
    return state._replace(importance=importance), aggregate


def top_k_per_agent(agents: Tensor, aggregate: Tensor, kept: Tensor) -> None:
    magnitudes = aggregate.abs()
    for agent, count in zip(agents, kept.tolist(), strict=True):
        mask = torch.zeros_like(aggregate)
        mask[magnitudes.topk(count).indices] = 1
        agent.add_(aggregate * mask)


def one_sort(agents: Tensor, aggregate: Tensor, kept: Tensor) -> None:
    magnitudes = aggregate.abs()
    ordered = magnitudes.sort(descending=True).values
    for agent, count in zip(agents, kept.tolist(), strict=True):
        agent.add_(aggregate * (magnitudes >= ordered[count - 1]))


if __name__ == "__main__":
    main()
