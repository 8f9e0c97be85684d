"""Cosine contributions in float64 numpy, and how far float32 may be from them.

    l_i = |r_i u_i|      C_ij = cos(u_i, u_j)      G_ij = l_i l_j C_ij

`twin.py` sums models. Here everything follows from C and l. Rounding to float32 is a small change
of C, so its effect on the answer can be measured.
"""

import functools
import math

import numpy as np

ROUNDING = 2.0**-22  # error of a cosine of two uploads in float32
NOTHING = 1e-13  # error of a square in float64, where the exact one is 0


def cosines_and_lengths(updates, weights=None):
    """Returns C [N, N] and l [N] in units of the largest; broken rows count as zero."""
    updates = np.asarray(updates, np.float64)
    updates = np.where(np.isfinite(updates).all(1, keepdims=True), updates, 0)
    lengths = np.linalg.norm(updates, axis=1)
    units = updates / np.where(lengths > 0, lengths, 1)[:, None]
    weighted = lengths * (1 if weights is None else np.asarray(weights, np.float64))
    return units @ units.T, weighted / (weighted.max() or 1)


def ratio(inner, squares, scale, rounding):
    """Returns inner / sqrt(squares), and 0 where the square is a rounding error of the scale."""
    there = squares > rounding * scale
    return np.divide(inner, np.sqrt(np.where(there, squares, 1)), where=there, out=0 * inner)


def cosine(cosines, lengths, rounding=NOTHING):
    gram = np.outer(lengths, lengths) * cosines
    return ratio(cosines @ lengths, np.full(len(gram), gram.sum()), np.trace(gram), rounding)


def cosine_shapley(cosines, lengths, rounding=NOTHING):
    gram = np.outer(lengths, lengths) * cosines
    num_agents = len(gram)
    members = np.arange(2**num_agents)[:, None] >> np.arange(num_agents) & 1  # [2^N, N]
    squares = ((members @ gram) * members).sum(1)
    inner = ratio(members @ gram.sum(1), 0 * squares + gram.sum(), np.trace(gram), rounding)
    utilities = ratio(inner, squares, members @ np.diag(gram), rounding)
    sizes = members.sum(1)
    shares = np.array([1 / (num_agents * math.comb(num_agents - 1, k)) for k in range(num_agents)])
    values = []
    for agent in range(num_agents):
        without = np.flatnonzero(members[:, agent] == 0)
        gains = utilities[without + 2**agent] - utilities[without]
        values.append(shares[sizes[without]] @ gains)
    return np.array(values)


def mean_field(cosines, lengths, rounding=NOTHING):
    """The gain of agent i in the ratio of means over k other agents, averaged over k."""
    gram = np.outer(lengths, lengths) * cosines
    num_agents = len(gram)
    k = np.arange(num_agents)
    share = k / max(num_agents - 1, 1)
    pair_share = k * (k - 1) / max((num_agents - 1) * (num_agents - 2), 1)
    values = []
    for agent in range(num_agents):
        others = np.delete(k, agent)
        among = gram[np.ix_(others, others)]
        inner, own = share * gram[others].sum(), share * np.trace(among)
        square = own + pair_share * (among.sum() - np.trace(among))
        joined = square + 2 * share * gram[agent, others].sum() + gram[agent, agent]
        before = ratio(inner, square, own, rounding)
        after = ratio(inner + gram[agent].sum(), joined, own + gram[agent, agent], rounding)
        values.append((after - before).mean())
    return ratio(np.array(values), np.full(num_agents, gram.sum()), np.trace(gram), rounding)


def with_tolerance(measure, updates, weights=None):
    """Returns the values of a measure above, and the largest error that float32 may make."""
    cosines, lengths = cosines_and_lengths(updates, weights)
    expected = measure(cosines, lengths)
    rounded = functools.partial(measure, rounding=8 * len(lengths) * ROUNDING)
    rng = np.random.default_rng(0)
    spread = 0.0
    for _ in range(6):
        noise = ROUNDING * rng.normal(size=cosines.shape)
        changed = np.where(cosines != 0, cosines + noise + noise.T, 0)
        spread = max(spread, np.abs(rounded(changed, lengths) - expected).max())
    return expected, 1e-5 + 6 * spread
