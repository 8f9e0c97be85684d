"""Trials: plays every manipulation of an audit, by one agent after the other.

The honest run and all manipulations of uploads, by all agents and with all seeds, are one program.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fairjax import data, models
from fairjax.data import Dataset, Shards
from fairjax.experiments.description import EACH
from fairjax.experiments.experiment import Experiment
from fairjax.experiments.playing import Watcher
from fairjax.experiments.points import play_points
from fairjax.simulation import DATA, UPLOADS, Behaviour, change_data, follows_length

STRETCHES = (1.5, 2.0, 3.0, 10.0)  # factors of `stretch`
HONEST_KIND = "rescale"
HONEST = {"which": 0, "agent": 0, "strength": 1.0}  # its update times one
# One colluder alone is honest.
MANIPULATIONS = (*(name for name in UPLOADS if name != "collude"), "stretch", *DATA, "sybil")


class Trial(NamedTuple):
    """One manipulation by one agent."""

    manipulation: str
    strength: float
    agent: int
    accuracies: np.ndarray  # [S, N] of the models that agents were paid in the end
    importance: np.ndarray  # [S, N] in the end; a sybil's is the sum of its two


class Plays(NamedTuple):
    """The runs of an audit."""

    on: list[Experiment]  # one for each seed
    agents: Sequence[int]
    shards: list[Shards]  # one for each seed
    test: Dataset
    watch: Watcher | None

    def change_uploads(self, names: Sequence[str]) -> tuple[Trial, list[Trial]]:
        """Returns the honest trial, and those of manipulations of uploads: one program."""
        told = [
            (name, name if name in UPLOADS else HONEST_KIND, strength, agent)
            for name in names
            if name in UPLOADS or name == "stretch"
            for strength in (STRETCHES if name == "stretch" else (UPLOADS[name].strength,))
            for agent in self.agents
        ]
        kinds = tuple(dict.fromkeys([HONEST_KIND, *(kind for _, kind, *_ in told)]))
        given = [
            {"which": kinds.index(kind), "agent": agent, "strength": strength}
            for _, kind, strength, agent in told
        ]
        found = self._play(self.on, [HONEST, *given], data.stacked(self.shards), kinds)
        trials = [
            Trial(name, strength, agent, *(values[:, number] for values in found))
            for number, (name, _, strength, agent) in enumerate(told, 1)
        ]
        return Trial("honest", 0.0, 0, *(values[:, 0] for values in found)), trials

    def change_data(self, name: str) -> Iterator[Trial]:
        """Yields the trials of agents that train on changed data."""
        for agent in self.agents:
            changed = [
                change_data(shards, [Behaviour(agent, name)], one.seed)
                for one, shards in zip(self.on, self.shards, strict=True)
            ]
            found = self._play(self.on, [HONEST], data.stacked(changed))
            yield Trial(name, DATA[name].strength, agent, *(values[:, 0] for values in found))

    def split_in_two(self) -> Iterator[Trial]:
        """Yields the trials of agents that take part as two, each with half of the data.

        The agent keeps the model that is better on the test data. It does not see these, so its
        gain is overstated: beside a choice at random, by half the difference of both models.
        """
        on = [_with_one_more(one) for one in self.on]
        sign = -1 if on[0].shown.lower_is_better else 1
        for agent in self.agents:
            halves = data.stacked([_halve(shards, agent) for shards in self.shards])
            accuracies, importance = (values[:, 0] for values in self._play(on, [HONEST], halves))
            better = sign * np.fmax(sign * accuracies[:, agent], sign * accuracies[:, -1])
            accuracies[:, agent] = better
            importance[:, agent] += importance[:, -1]
            yield Trial("sybil", 2.0, agent, accuracies[:, :-1], importance[:, :-1])

    def _play(
        self,
        on: list[Experiment],
        manipulated: list[dict[str, Any]],
        shards: Shards,
        kinds: tuple[str, ...] = (HONEST_KIND,),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns final accuracies and importance `[S, K, N]` of K manipulations."""
        history = play_points(
            on, manipulated, shards, self.test, None, self.watch, manipulations=kinds
        )
        shape = (len(on), len(manipulated), -1)
        last = (history.accuracies[:, -1], history.importance[:, -1])
        accuracies, importance = (np.array(values).reshape(shape) for values in last)
        return accuracies, importance


def _with_one_more(one: Experiment) -> Experiment:
    """Returns the experiment with one more agent, and with the same task and model.

    The agent is present if all are.
    """
    num_agents, present = one.num_agents + 1, one.participation
    present = num_agents if present == one.num_agents else present
    fields: dict[str, Any] = {"num_agents": num_agents, "participation": present}
    if one.shards is not None:
        fields |= {"shards": None, "task": one.make_task(), "metric": None}
        if models.looks_at_data(one.model):
            fields["model"] = one.model_of_data
    return dataclasses.replace(one, **fields)


def _halve(shards: Shards, agent: int) -> Shards:
    """Returns shards with one more agent, which has every second example of an agent."""
    rows = [shards.rows(number) for number in range(shards.num_agents)]
    rows, own = [*rows[:agent], rows[agent][::2], *rows[agent + 1 :]], rows[agent]
    halved = Shards.from_indices(shards.data, [*rows, own[1::2]])
    return dataclasses.replace(halved, validation=shards.validation)


def _takes_one_more(experiment: Experiment, shards: Shards) -> bool:
    """Says whether an experiment's mechanism judges and pays N + 1 agents."""
    halved = _halve(shards, 0)
    try:
        follows_length(_with_one_more(experiment).federation(halved), halved)
    except Exception:  # noqa: BLE001, a user's mechanism can raise anything
        return False
    return True


def why_not(name: str, experiment: Experiment, shards: Sequence[Shards]) -> str:
    """Returns what a manipulation needs and an experiment lacks; an empty text if nothing."""
    examples = shards[0].data
    num_classes = examples.num_classes
    if name == "sybil":
        given = {field: getattr(experiment, field) for field in (*EACH, "participation", "ranks")}
        single = [field for field, value in given.items() if np.ndim(value)]
        if single:
            return f"one value of `{single[0]}` for all agents"
        if experiment.params is not None and experiment.lora_rank is None:
            return "no given `params`"
        if any(int(np.min(one.sizes)) < 2 for one in shards):
            return "two examples of every agent"
        return "a mechanism that takes one more agent" * (
            not _takes_one_more(experiment, shards[0])
        )
    if name == "feature_noise":
        known = examples.vocabulary_size is not None or examples.x.dtype == np.float32
        return "examples of floats or tokens" * (not known)
    if name == "label_flip_1_7":
        return "eight classes or more" * (num_classes is None or num_classes < 8)
    return "classes" * (num_classes is None and name.startswith("label"))
