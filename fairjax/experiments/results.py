"""Results: the history and final state of an experiment, and figures computed from them."""

import dataclasses
from typing import Any

import jax
import numpy as np

from fairjax import checks, metrics, tasks, trees
from fairjax.simulation import HONEST, History, State, outputs
from fairjax.tasks import Shown
from fairjax.types import Params

ONLY_PRESENT = ("contributions", "fractions")  # fields of a history that are nan for the absent


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The outcome of an experiment.

    Accuracies are the experiment's main metric, if that is another one.

    Attributes:
      experiment: the `Experiment`, as `resolved()` gives it.
      history: one row per round.
      state: the final state, with agents' and server's parameters; None if the run is part of a
        sweep, or its last checkpoint is missing.
      shard_sizes: `[N]` examples.
      standalone_accuracies: `[N]` test accuracies without sharing, with the same shards,
        seeds and number of local epochs.
      behaviours: `[N]` names of behaviours; "honest" for agents without one.
    """

    experiment: Any
    history: History
    state: State | None
    shard_sizes: np.ndarray
    standalone_accuracies: np.ndarray
    behaviours: tuple[str, ...]

    def __repr__(self) -> str:
        """Returns the main fields of the experiment, and the final figures."""
        shared = ("dataset", "mechanism", "num_agents", "rounds", "seed")
        accuracies = np.array2string(self.accuracies, precision=3, threshold=10, edgeitems=2)
        figures = f"fairness={self.fairness:.3f}, accuracies={accuracies}"
        values = {name: getattr(self.experiment, name) for name in shared}
        values |= {name: self.experiment.label(name) for name in ("dataset", "mechanism")}
        main_fields = (f"{name}={value!r}" for name, value in values.items())
        return f"Result({', '.join(main_fields)}, {figures})"

    @property
    def accuracies(self) -> np.ndarray:
        """`[N]` test accuracies of the models that agents received in the last round."""
        return self.history.accuracies[-1]

    def other_metrics(self) -> list[tuple[Shown, np.ndarray]]:
        """Returns the last round's metrics `[N]` besides the main one, and how they are written."""
        metrics = self.history.metrics or {}
        others = sorted(name for name in metrics if name != self.experiment.shown.name)
        return [(Shown.named(name), metrics[name][-1]) for name in others]

    @property
    def trained_accuracies(self) -> np.ndarray:
        """`[N]` test accuracies of the same models after one more round's local epochs."""
        return self.history.trained_accuracies[-1]

    @property
    def fairness(self) -> float:
        """Pearson's correlation of standalone and final accuracies; see `fairness_note`."""
        return metrics.fairness(self.standalone_accuracies, self.accuracies)

    @property
    def fairness_interval(self) -> tuple[float, float]:
        """The 95% interval of `fairness` over agents; nan for fewer than four, or if undefined."""
        return metrics.fairness_interval(self.standalone_accuracies, self.accuracies)

    @property
    def trained_fairness(self) -> float:
        """Fairness of `trained_accuracies`, which papers report where all agents get one model."""
        return metrics.fairness(self.standalone_accuracies, self.trained_accuracies)

    @property
    def rank_fairness(self) -> float:
        """Kendall's tau of standalone and final accuracies; nan where `fairness` is."""
        return metrics.rank_fairness(self.standalone_accuracies, self.accuracies)

    @property
    def shortfall(self) -> np.ndarray:
        """`[N]` by how much agents end worse than alone, in the main metric; 0: they do not."""
        return metrics.shortfall(*self._higher_is_better())

    @property
    def collaboration_gain(self) -> tuple[float, float]:
        """Mean and standard deviation over agents of how much better they end than alone."""
        return metrics.collaboration_gain(*self._higher_is_better())

    @property
    def fairness_note(self) -> str:
        """The reason why `fairness` is nan, or an empty string."""
        note = metrics.why_undefined(self.standalone_accuracies, self.accuracies)
        return note if self.experiment.shown.in_percent else note.replace("accuracies", "values")

    @property
    def honest_fairness(self) -> float:
        """Fairness over honest agents only; nan if it is undefined."""
        honest = self._honest
        return metrics.fairness(self.standalone_accuracies[honest], self.accuracies[honest])

    @property
    def detection_auc(self) -> float:
        """ROC AUC of the last importance for honesty; nan if all agents are honest, or none."""
        return metrics.detection_auc(self.history.importance[-1], self._honest)

    @property
    def participants(self) -> np.ndarray:
        """`[T, N]` booleans: who trained and uploaded in each round."""
        present = self.history.participants
        return np.ones(self.history.excluded.shape, bool) if present is None else present

    @property
    def communication(self) -> dict[str, np.ndarray]:
        """Means over rounds `[N]` of what agents communicate; empty unless they train adapters.

        "uploaded" and "received" are in numbers; "uploaded_share" and "received_share" are shares
        of the whole network, which agents communicate if they train all of its parameters.
        """
        if self.history.network is None:
            return {}
        names = ("uploaded", "received")
        found = {name: np.mean(getattr(self.history, name), 0) for name in names}
        network = self.history.network[-1]
        return {**found, **{f"{name}_share": values / network for name, values in found.items()}}

    def latest(self, name: str) -> np.ndarray:
        """Returns `[N]` contributions or fractions in the last round of each agent.

        That is the last round of the run, or the last one in which the agent took part; nan for an
        agent that never did.

        Args:
          name: "contributions" or "fractions".

        Raises:
          ValueError: `name` is neither.
        """
        checks.choice("name", name, ONLY_PRESENT)
        values, present = getattr(self.history, name), self.participants
        last = len(present) - 1 - present[::-1].argmax(0)
        return np.where(present.any(0), values[last, np.arange(values.shape[1])], np.nan)

    def agent(self, number: int) -> Params:
        """Returns the parameters of the model that an agent was paid in the end.

        The model that takes them is `result.experiment.make_model(train)`: its
        `apply(result.agent(2), x)` gives outputs for other examples. Agents that train adapters
        hold only the changes of a frozen network.

        Args:
          number: the agent, in [0, N).

        Raises:
          ValueError: there is no such agent, or the result has no final state, as a sweep's.
        """
        checks.count("number", number, least=0, most=len(self.shard_sizes) - 1)
        if self.state is None:
            raise ValueError(
                "`agent` needs the final state, which this result does not have: that of a sweep "
                "is not kept, and that of a run is in its last checkpoint."
            )
        return trees.row(self.state.agents, number)

    def statistics(self, number: int) -> Any:
        """Returns the statistics of an agent's network, such as those of BatchNorm; None: none.

        Args:
          number: the agent, in [0, N).

        Raises:
          ValueError: there is no such agent, or the result has no final state, as a sweep's.
        """
        self.agent(number)
        state: Any = self.state
        return trees.row(state.statistics, number)

    def confusion(self, number: int) -> np.ndarray:
        """Returns `[C, C]` counts of test examples by class (row) and an agent's answer (column).

        Args:
          number: the agent, in [0, N).

        Raises:
          ValueError: there is no such agent, the result has no final state, or no classes.
        """
        self.agent(number)  # raises if there is no such agent or state
        return self._count_answers()[number]

    def class_accuracies(self) -> np.ndarray:
        """Returns `[N, C]` test accuracies of the final models by class; nan without examples.

        Raises:
          ValueError: the result has no final state, or no classes.
        """
        self.agent(0)  # raises without a state
        counts = self._count_answers()
        sizes = counts.sum(2)
        right = np.diagonal(counts, axis1=1, axis2=2)
        return np.where(sizes > 0, right / np.maximum(sizes, 1), np.nan)

    def _count_answers(self) -> np.ndarray:
        """Returns the agents' confusion matrices `[N, C, C]`."""
        state: Any = self.state
        shards, test = self.experiment.kept_shards()
        test.classes_for("A confusion matrix")
        model = self.experiment.make_model(shards.data)

        def count(own: Any) -> Any:
            params, statistics = own
            return tasks.confusion(outputs(model, params, test, statistics), test.y)

        own = state.agents, state.statistics
        return np.asarray(jax.jit(lambda own: jax.lax.map(count, own))(own))

    def _higher_is_better(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns standalone and final accuracies; negated if the metric is better when lower."""
        sign = -1 if self.experiment.shown.lower_is_better else 1
        return sign * self.standalone_accuracies, sign * self.accuracies

    @property
    def _honest(self) -> np.ndarray:
        return np.array([name == HONEST for name in self.behaviours])

    def figures(self) -> dict[str, float]:
        """Returns the final figures by name, a row of a table.

        Accuracies are in percent: best, mean and worst of the agents; mean and spread over agents
        of the gain over standalone; the largest shortfall. Metrics besides the main one have their
        mean.
        """
        shown = self.experiment.shown
        figures = {
            "fairness": self.fairness,
            "fairness_trained": self.trained_fairness,
            "rank_fairness": self.rank_fairness,
        }
        ends = zip(("best", "mean", "worst"), shown.ends(self.accuracies), strict=True)
        figures |= {f"{end}_{shown.column}": float(shown.scaled(value)) for end, value in ends}
        mean, spread = self.collaboration_gain
        changes = {"gain": mean, "gain_spread": spread, "shortfall": self.shortfall.max()}
        figures |= {
            f"{name}_{shown.column}": float(shown.scaled(value)) for name, value in changes.items()
        }
        for one, values in self.other_metrics():
            figures[f"mean_{one.name}{'_%' * one.in_percent}"] = float(one.scaled(values.mean()))
        if set(self.behaviours) != {HONEST}:
            figures["detection_auc"] = self.detection_auc
        return figures

    def summary(self) -> dict[str, Any]:
        """Returns the final figures as JSON."""
        per_round = self.history._replace(servers=None, updates=None)
        last = jax.tree.map(lambda row: row[-1].tolist(), per_round)
        return {
            "fairness": self.fairness,
            "fairness_interval": list(self.fairness_interval),
            "fairness_note": self.fairness_note,
            "rank_fairness": self.rank_fairness,
            "shortfall": self.shortfall.tolist(),
            "collaboration_gain": list(self.collaboration_gain),
            "trained_fairness": self.trained_fairness,
            "honest_fairness": self.honest_fairness,
            "shard_sizes": self.shard_sizes.tolist(),
            "standalone_accuracies": self.standalone_accuracies.tolist(),
            "behaviours": list(self.behaviours),
            "detection_auc": self.detection_auc,
            "rounds_present": self.participants.sum(0).tolist(),
            "rounds_excluded": self.history.excluded.sum(0).tolist(),
            **{f"mean_{name}": one.tolist() for name, one in self.communication.items()},
            **{name: value for name, value in last._asdict().items() if value is not None},
        }
