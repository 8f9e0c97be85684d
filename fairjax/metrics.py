"""Metrics: how fair a result is, and whether it found the dishonest agents.

fairness            Pearson's correlation of standalone and final accuracies over agents,
                    with its confidence interval
rank fairness       Kendall's tau of the same
shortfall           by how much an agent ends below what it reaches alone
collaboration gain  mean and spread over agents of final less standalone accuracies
detection AUC       the chance that an honest agent's importance exceeds a dishonest one's

Correlation alone flatters: a rule that starves one agent scores about 1, and standalone
training scores exactly 1. So the other measures stand beside it.
"""

from statistics import NormalDist

import numpy as np

from fairjax import checks
from fairjax.types import PerAgent


def fairness(standalone_accuracies: PerAgent, final_accuracies: PerAgent) -> float:
    """Returns the correlation of standalone and final accuracies over agents.

    Args:
      standalone_accuracies: `[N]` accuracies of models trained on the agent's own data only.
      final_accuracies: `[N]` accuracies of the models that agents were paid.

    Returns:
      Pearson's correlation in [-1, 1]; nan where `why_undefined` gives a reason. It is
      noise where standalone accuracies are nearly equal, as in a uniform split.

    Raises:
      ValueError: the shapes are not both `[N]`.

    References:
      Xu et al., NeurIPS 2021, section on experiments.

    Examples:
      >>> round(fairness(np.array([0.5, 0.7, 0.9]), np.array([0.8, 0.9, 0.92])), 3)
      0.933
    """
    if why_undefined(standalone_accuracies, final_accuracies):
        return float("nan")
    standalone, final = map(_centred, _check_pair(standalone_accuracies, final_accuracies))
    correlation = standalone @ final / np.sqrt((standalone @ standalone) * (final @ final))
    return float(np.clip(correlation, -1, 1))


def fairness_interval(
    standalone_accuracies: PerAgent, final_accuracies: PerAgent
) -> tuple[float, float]:
    """Returns the 95% confidence interval of `fairness`.

    The interval is over agents: it says how the correlation could differ for other agents
    drawn like these. It uses Fisher's transformation, which assumes that accuracies are
    roughly normal. It says nothing about other seeds, and it is wide for few agents.

    Args:
      standalone_accuracies: as in `fairness`.
      final_accuracies: as in `fairness`.

    Returns:
      `(low, high)` in [-1, 1]; both nan for fewer than four agents, and where
      `why_undefined` gives a reason.

    Raises:
      ValueError: the shapes are not both `[N]`.

    Examples:
      >>> alone, final = np.array([0.5, 0.7, 0.8, 0.9]), np.array([0.8, 0.9, 0.88, 0.92])
      >>> low, high = fairness_interval(alone, final)
      >>> print(f"{low:.2f} to {high:.2f}")
      -0.41 to 1.00
    """
    if why_undefined(standalone_accuracies, final_accuracies) or len(final_accuracies) < 4:
        return float("nan"), float("nan")
    half = NormalDist().inv_cdf(0.975) / np.sqrt(len(final_accuracies) - 3)
    with np.errstate(divide="ignore"):  # of a correlation of 1
        middle = np.arctanh(fairness(standalone_accuracies, final_accuracies))
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))


def rank_fairness(standalone_accuracies: PerAgent, final_accuracies: PerAgent) -> float:
    """Returns how well final accuracies keep the order of standalone ones: Kendall's tau-b.

    Every pair of agents counts the same, so one agent far below the others cannot decide it,
    as it decides `fairness`.

    Args:
      standalone_accuracies: as in `fairness`.
      final_accuracies: as in `fairness`.

    Returns:
      A number in [-1, 1]; nan where `why_undefined` gives a reason.

    Raises:
      ValueError: the shapes are not both `[N]`.

    References:
      Kendall, The treatment of ties in ranking problems, Biometrika 1945.

    Examples:
      >>> alone, final = np.array([0.1, 0.7, 0.8, 0.9]), np.array([0.2, 0.92, 0.91, 0.9])
      >>> round(fairness(alone, final), 2), round(rank_fairness(alone, final), 2)
      (0.97, 0.0)
    """
    if why_undefined(standalone_accuracies, final_accuracies):
        return float("nan")
    standalone, final = pair = _check_pair(standalone_accuracies, final_accuracies)
    agreeing = sum(
        np.sign(standalone - own) @ np.sign(final - paid)
        for own, paid in zip(standalone, final, strict=True)
    )
    ordered = [
        len(values) ** 2 - (np.unique(values, return_counts=True)[1] ** 2).sum() for values in pair
    ]
    return float(agreeing / np.sqrt(float(ordered[0]) * float(ordered[1])))


def shortfall(standalone_accuracies: PerAgent, final_accuracies: PerAgent) -> np.ndarray:
    """Returns `[N]` by how much each agent ends below what it reaches alone; 0 where it does not.

    An agent with a shortfall would not have joined.

    Args:
      standalone_accuracies: as in `fairness`; negate both for a metric that is better when it
        is lower.
      final_accuracies: as in `fairness`.

    Returns:
      Numbers of at least 0, in the unit of the accuracies; nan where one is not known.

    Raises:
      ValueError: the shapes are not both `[N]`.

    Examples:
      >>> print(shortfall(np.array([0.5, 0.9]), np.array([0.8, 0.875])))
      [0.    0.025]
    """
    return np.maximum(-_gains(standalone_accuracies, final_accuracies), 0) + 0.0  # never -0.0


def collaboration_gain(
    standalone_accuracies: PerAgent, final_accuracies: PerAgent
) -> tuple[float, float]:
    """Returns what collaboration gains agents, and how unequally.

    Args:
      standalone_accuracies: as in `shortfall`.
      final_accuracies: as in `shortfall`.

    Returns:
      Mean and standard deviation over agents of final less standalone accuracies.

    Raises:
      ValueError: the shapes are not both `[N]`, or there is no agent.

    References:
      Tastan et al., CYCle, arXiv 2501.12344.

    Examples:
      >>> mean, spread = collaboration_gain(np.array([0.5, 0.9]), np.array([0.8, 0.9]))
      >>> print(f"{mean:.2f} {spread:.2f}")
      0.15 0.15
    """
    gains = _gains(standalone_accuracies, final_accuracies)
    if not len(gains):
        raise ValueError("`final_accuracies` must hold at least one agent, got none.")
    with np.errstate(invalid="ignore"):  # a model that diverged has an infinite error
        return float(gains.mean()), float(gains.std())


def why_undefined(standalone_accuracies: PerAgent, final_accuracies: PerAgent) -> str:
    """Returns the reason why fairness is undefined, or an empty string where it is defined.

    Examples:
      >>> why_undefined(np.array([0.5, 0.7]), np.array([0.9, 0.9]))
      'all final accuracies are equal'
    """
    standalone, final = _check_pair(standalone_accuracies, final_accuracies)
    if len(final) < 2:
        return "there are fewer than two agents"
    for name, values in {"standalone": standalone, "final": final}.items():
        if not np.isfinite(values).all():
            return f"some {name} accuracies are not known"
        # Equal up to rounding: a correlation of the differences would be noise.
        if np.ptp(values) <= 1e-12 * np.abs(values).max():
            return f"all {name} accuracies are equal"
    return ""


def detection_auc(importance: PerAgent, honest: PerAgent) -> float:
    """Returns the area under the ROC curve of importance as a test of honesty.

    Args:
      importance: `[N]` importance coefficients.
      honest: `[N]` booleans: whether the agent was honest.

    Returns:
      A number in [0, 1]; nan where all agents are honest, where none is, or where
      the mechanism does not judge.

    Raises:
      ValueError: `importance` and `honest` are not numbers and booleans of the same
        shape `[N]`.

    Examples:
      >>> detection_auc(np.array([0.1, 0.4, 0.5]), np.array([False, True, True]))
      1.0
    """
    rule = "a boolean per agent [N]"
    flags = checks.numbers("honest", honest, rule, num_axes=1)
    importance = _as_per_agent("importance", importance)
    checks.shape("importance", importance, flags.shape)
    if not np.isin(flags, (0, 1)).all():
        raise ValueError(f"`honest` must hold {rule}, got honest={honest!r:.100}.")
    honest = flags.astype(bool)
    if honest.all() or not honest.any() or not np.isfinite(importance).all():
        return float("nan")
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(honest, importance))


def _gains(standalone_accuracies: PerAgent, final_accuracies: PerAgent) -> np.ndarray:
    """Returns `[N]` final less standalone accuracies; nan where both are infinite."""
    standalone, final = _check_pair(standalone_accuracies, final_accuracies)
    with np.errstate(invalid="ignore"):
        return final - standalone


def _centred(values: np.ndarray) -> np.ndarray:
    """Returns values less their mean, in a unit in which their squares are finite."""
    apart = values - values.mean()
    return apart / np.abs(apart).max()


def _check_pair(standalone: PerAgent, final: PerAgent) -> tuple[np.ndarray, np.ndarray]:
    """Returns both accuracies as arrays `[N]`, or raises if they do not match."""
    pair = (
        _as_per_agent("standalone_accuracies", standalone),
        _as_per_agent("final_accuracies", final),
    )
    if len(pair[0]) != len(pair[1]):
        shapes = [values.shape for values in pair]
        raise ValueError(
            "`standalone_accuracies` and `final_accuracies` must have the same shape [N], "
            f"got shapes {shapes}."
        )
    return pair


def _as_per_agent(name: str, values: PerAgent) -> np.ndarray:
    return checks.numbers(name, values, "a number per agent [N]", num_axes=1).astype(np.float64)
