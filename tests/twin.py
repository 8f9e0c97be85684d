"""A slow twin of fairjax in plain numpy, float64, written from the formulas: the oracle."""

import itertools
import math

import numpy as np


def coalition_cosines(updates, weights=None):
    """Returns {coalition: nu} for every coalition, by summing models."""
    updates = np.asarray(updates, np.float64)
    num_agents = len(updates)
    weights = np.ones(num_agents) if weights is None else np.asarray(weights, np.float64)
    weighted = weights[:, None] * updates
    everybody = weighted.sum(0)
    utilities = {}
    for size in range(num_agents + 1):
        for coalition in itertools.combinations(range(num_agents), size):
            update = weighted[list(coalition)].sum(0)
            length = np.linalg.norm(update) * np.linalg.norm(everybody)
            utilities[coalition] = update @ everybody / length if length > 0 else 0.0
    return utilities


def shapley(utilities, num_agents):
    """Returns the Shapley values of a game given as {coalition: utility}."""
    values = np.zeros(num_agents)
    for agent in range(num_agents):
        for coalition, utility in utilities.items():
            if agent not in coalition:
                joined = tuple(sorted((*coalition, agent)))
                size = len(coalition)
                weight = (
                    math.factorial(size)
                    * math.factorial(num_agents - 1 - size)
                    / math.factorial(num_agents)
                )
                values[agent] += weight * (utilities[joined] - utility)
    return values


def cosine_shapley(updates, weights=None):
    return shapley(coalition_cosines(updates, weights), len(updates))


def cosine(updates, weights=None):
    updates = np.asarray(updates, np.float64)
    weights = np.ones(len(updates)) if weights is None else np.asarray(weights, np.float64)
    aggregate = weights @ updates
    lengths = np.linalg.norm(updates, axis=1) * np.linalg.norm(aggregate)
    return np.array(
        [u @ aggregate / n if n > 0 else 0.0 for u, n in zip(updates, lengths, strict=True)]
    )


def mean_field(updates, weights=None):
    """Returns the mean-field estimate, with a plain sum over the other agents."""
    updates = np.asarray(updates, np.float64)
    weights = np.ones(len(updates)) if weights is None else np.asarray(weights, np.float64)
    rows = weights[:, None] * updates
    everybody, others = rows.sum(0), max(len(rows) - 1, 1)

    def cosine_of(inner, square):
        lengths = math.sqrt(square) * np.linalg.norm(everybody) if square > 0 else 0
        return np.clip(inner / lengths, -1, 1) if lengths > 0 else 0.0

    values = np.zeros(len(rows))
    for agent, own in enumerate(rows):
        rest = np.delete(rows, agent, 0)
        total, squares = rest.sum(0), np.square(rest).sum()
        for k in range(len(rows)):
            share, pairs = k / others, k * (k - 1) / max(others * (others - 1), 1)
            inner = share * (total @ everybody)
            square = (share - pairs) * squares + pairs * (total @ total)
            joined = square + 2 * share * (own @ total) + own @ own
            gain = cosine_of(inner + own @ everybody, joined) - cosine_of(inner, square)
            values[agent] += gain / len(rows)
    return values


def importance(previous, contributions, alpha, floor=None):
    num_agents = len(previous)
    floor = 1e-3 * min(1, 10 / num_agents) if floor is None else floor
    mixed = alpha * np.asarray(previous) + (1 - alpha) * np.asarray(contributions)
    mixed = np.maximum(mixed, floor)
    return mixed / mixed.sum()


def reward_fractions(importance, beta):
    earned = np.tanh(beta * np.asarray(importance))
    return earned / earned.max()


def sparsify(aggregate, fraction):
    """Keeps the floor(fraction * D) largest magnitudes, the first ones where they tie."""
    aggregate = np.asarray(aggregate)
    kept = int(np.floor(np.float32(fraction) * np.float32(aggregate.size)))
    order = np.argsort(-np.abs(aggregate), kind="stable")
    reward = np.zeros_like(aggregate)
    reward[order[:kept]] = aggregate[order[:kept]]
    return reward


def cgsv_round(updates, importance_before, shares, alpha, beta, gamma):
    """One round of CGSV: returns (aggregate, rewards, contributions, importance, fractions).

    `importance_before` is None in the first round, where the weights are `shares`.
    """
    updates = np.asarray(updates, np.float64)
    updates = np.where(np.isfinite(updates).all(1, keepdims=True), updates, 0)
    lengths = np.linalg.norm(updates, axis=1, keepdims=True)
    uploads = np.divide(gamma * updates, lengths, out=np.zeros_like(updates), where=lengths > 0)
    weights = shares if importance_before is None else importance_before
    before = np.zeros(len(updates)) if importance_before is None else importance_before
    aggregate = weights @ uploads
    contributions = cosine(uploads, weights)
    after = importance(before, contributions, alpha)
    fractions = reward_fractions(after, beta)
    rewards = np.stack([sparsify(aggregate, fraction) for fraction in fractions])
    return aggregate, rewards, contributions, after, fractions


KINDS = ("gaussian", "common", "clusters", "reversed")


def uploads(kind, num_agents, num_parameters, seed):
    """Draws uploads of one of four kinds, from honest and alike to a quarter reversed."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(num_agents, num_parameters))
    if kind == "gaussian":
        return noise
    if kind == "common":
        rows = rng.normal(size=num_parameters) * rng.uniform(size=(num_agents, 1)) + noise
    elif kind == "clusters":
        centres = rng.normal(size=(3, num_parameters))[rng.integers(3, size=num_agents)]
        rows = centres * np.linspace(0, 1, num_agents)[:, None] + 0.3 * noise
    else:
        signs = np.where(np.arange(num_agents) < num_agents // 4, -1, 1)[:, None]
        rows = signs * rng.normal(size=num_parameters) + noise
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
