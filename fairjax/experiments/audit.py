"""Audit: what one agent gains by cheating, and what it costs the others.

manipulation   what the agent does: every behaviour; and stretch, the rescaling that gains it most;
               sybil, one agent as two, each with half of the data
trial          a manipulation by one agent, with every seed; the seed's honest run is its pair
gain           final accuracy of the trial less that of the honest run, in points

The module `trials` plays them.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fairjax import checks
from fairjax.experiments import fields
from fairjax.experiments.experiment import Experiment
from fairjax.experiments.playing import WATCHES, Watcher
from fairjax.experiments.trials import MANIPULATIONS, Plays, Trial, why_not
from fairjax.simulation import DATA
from fairjax.tables import Table


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """What cheating pays under one mechanism, made by `fairjax.audit`.

    Attributes:
      experiment: the honest experiment.
      seeds: the seeds.
      honest: the trial in which nobody cheats; its agent counts for nothing.
      trials: all others.
    """

    experiment: Experiment
    seeds: tuple[int, ...]
    honest: Trial
    trials: tuple[Trial, ...]

    def __repr__(self) -> str:
        """Returns the mechanism, and the worst gain and harm."""
        shown = {"mechanism": self.experiment.label("mechanism"), "seeds": self.seeds}
        figures = {name: self.rounded(getattr(self, name)) for name in ("worst_gain", "worst_harm")}
        return fields.written("Audit", shown | figures)

    def rows(self) -> list[dict[str, Any]]:
        """Returns one row per manipulation and agent, means over seeds, as for `pandas.DataFrame`.

        Gains are in points of accuracy, or in the main metric, and positive if better than in the
        honest run. `own_gain_se` is the standard error over seeds. `worst_other` is the gain of the
        other agent that loses most. A gain is -inf where a model diverges only if the agent
        cheats, and nan where it always does. Ranks of importance are from 0, the least; nan where
        the mechanism does not judge.
        """
        rows = [self._summarise_trial(trial) for trial in self.trials]
        best: dict[tuple[str, int], dict[str, Any]] = {}
        for row in rows:  # only `stretch` has several strengths
            place = row["manipulation"], row["agent"]
            if place not in best or _gain(row) > _gain(best[place]):
                best[place] = row
        return list(best.values())

    @np.errstate(invalid="ignore")
    def table(self) -> Table:
        """Returns one row per manipulation, over agents.

        `own_gain` and `others_gain` are means over the agents that cheat in turn; `most` is the
        gain of the one that gains most, with its standard error; `worst_other` is the gain, mostly
        below 0, of the agent that loses most. `rank` is where importance ends, and `honest_rank`
        where it would have ended, on average.
        """
        rows, made = self.rows(), []
        for name in dict.fromkeys(row["manipulation"] for row in rows):
            of_name = [row for row in rows if row["manipulation"] == name]
            most = max(of_name, key=_gain)

            def mean(column: str, of_name: Any = of_name) -> float:
                values = [row[column] for row in of_name if not np.isnan(row[column])]
                return float(np.mean(values)) if values else float("nan")

            made.append(
                {
                    "manipulation": name,
                    "own_gain": self.rounded(mean("own_gain")),
                    "most": self.rounded(most["own_gain"]),
                    "most_se": self.rounded(most["own_gain_se"]),
                    "by_agent": most["agent"],
                    "others_gain": self.rounded(mean("others_gain")),
                    "worst_other": self.rounded(-_largest(-row["worst_other"] for row in of_name)),
                    "rank": round(mean("importance_rank"), 2),
                    "honest_rank": round(mean("honest_rank"), 2),
                }
            )
        return Table(made)

    def rounded(self, gain: float) -> float:
        """Returns a gain with the digits that a table shows, and never -0."""
        return (round(gain, 2) if self.experiment.shown.in_percent else float(f"{gain:.4g}")) + 0.0

    @property
    def worst_gain(self) -> float:
        """What cheating pays at most: the largest mean gain of a cheat, in the unit of `rows`."""
        return _largest(row["own_gain"] for row in self.rows())

    @property
    def worst_harm(self) -> float:
        """What cheating costs at most: the largest mean loss of another agent, or inf."""
        return float(np.maximum(0, _largest(-row["worst_other"] for row in self.rows())))

    @np.errstate(invalid="ignore")  # models that diverged have infinite errors
    def _summarise_trial(self, trial: Trial) -> dict[str, Any]:
        shown, agent = self.experiment.shown, trial.agent
        sign = -1 if shown.lower_is_better else 1
        # In double precision, equal accuracies differ by exactly 0.
        pair = (np.asarray(one.accuracies, np.float64) for one in (trial, self.honest))
        gains = sign * shown.scaled(np.subtract(*pair))
        own, others = gains[:, agent], np.delete(gains, agent, axis=1)
        error = own.std(ddof=1) / np.sqrt(len(own)) if len(own) > 1 else np.nan
        alone = others.shape[1] == 0
        return {
            "manipulation": trial.manipulation,
            "strength": trial.strength,
            "agent": agent,
            "own_gain": float(own.mean()),
            "own_gain_se": float(error),
            "others_gain": np.nan if alone else float(others.mean()),
            "worst_other": np.nan if alone else float(others.mean(0).min()),
            "importance_rank": _mean_rank(trial.importance, agent),
            "honest_rank": _mean_rank(self.honest.importance, agent),
        }


def audit(
    experiment: Experiment,
    manipulations: Sequence[str] | None = None,
    agents: Sequence[int] | None = None,
    seeds: Sequence[int] = range(5),
    *,
    watch: Watcher | None = None,
) -> Audit:
    """Lets agents cheat in turn, one at a time, and compares each run with the honest one.

    Args:
      experiment: the honest experiment; its `eval_every` and `record_updates` do not count.
      manipulations: names: behaviours that `fairjax list` explains, but for "collude", which
        takes two; "stretch" and "sybil"; None: all that fit the data.
      agents: the agents that cheat in turn; None: every agent.
      seeds: different seeds.
      watch: as in `Experiment.run`.

    Returns:
      An `Audit`.

    Raises:
      ValueError: a name is unknown, an agent does not exist, a list is empty or has an entry twice,
        the experiment has dishonest agents, or a manipulation does not fit it: label_flip and
        label_noise need classes, label_flip_1_7 eight of them, feature_noise floats or tokens;
        sybil needs two examples of every agent, a mechanism that takes one more agent, and
        neither numbers of single agents nor given `params`, but below adapters.

    Examples:
      >>> experiment = Experiment(num_agents=2, rounds=1, model="logistic", mechanism="fedavg")
      >>> result = audit(experiment, ["sign_flip", "stretch"], agents=[1], seeds=[0, 1])
      >>> [(row["manipulation"], row["agent"]) for row in result.rows()]
      [('sign_flip', 1), ('stretch', 1)]
    """
    checks.kind("experiment", experiment, Experiment, "`fairjax.Experiment(num_agents=5)`")
    checks.function("watch", watch, WATCHES, optional=True)
    if experiment.behaviours:
        raise ValueError(
            "`experiment` must have honest agents only, got behaviours="
            f"{dict(experiment.behaviours)!r:.100}."
        )
    base = dataclasses.replace(experiment, eval_every=experiment.rounds, record_updates=False)
    seeds = fields.different_seeds(seeds)
    num_agents = base.num_agents
    agents = fields.different(
        "agents",
        range(num_agents) if agents is None else agents,
        "numbers of agents",
        lambda agent: checks.count("agents", agent, least=0, most=num_agents - 1),
    )
    on = [dataclasses.replace(base, seed=seed) for seed in seeds]
    loaded = on[0].load()
    shards = [one.make_shards(loaded)[0] for one in on]
    if manipulations is None:
        names = tuple(name for name in MANIPULATIONS if not why_not(name, base, shards))
    else:
        names = fields.different(
            "manipulations", manipulations, "names",
            lambda name: checks.choice("manipulation", name, MANIPULATIONS),
        )  # fmt: skip
        for name in names:
            if needed := why_not(name, base, shards):
                raise ValueError(
                    f"`manipulations` must fit the experiment, got {name!r}, which needs {needed}."
                )
    plays = Plays(on, agents, shards, on[0].make_shards(loaded)[1], watch)
    honest, trials = plays.change_uploads(names)
    for name in names:
        if name in DATA:
            trials += plays.change_data(name)
        elif name == "sybil":
            trials += plays.split_in_two()
    return Audit(on[0].resolved(), tuple(seeds), honest, tuple(trials))


def _gain(row: Mapping[str, Any]) -> float:
    """Returns what a cheat gains, by which rows are compared; an unknown gain is the least."""
    return float(np.nan_to_num(row["own_gain"], nan=-np.inf))


def _largest(values: Iterable[float]) -> float:
    """Returns the largest of the values that are known; nan if none is."""
    return max((value for value in values if not np.isnan(value)), default=float("nan"))


def _mean_rank(importance: np.ndarray, agent: int) -> float:
    """Returns the mean over seeds of an agent's rank among importance `[S, N]`, from 0."""
    from scipy import stats  # slow to import, and only an audit needs it

    if not np.isfinite(importance).all():
        return float("nan")
    return float(np.mean(stats.rankdata(importance, axis=1)[:, agent])) - 1
