"""Accounts and nested: their rules against slow twins in numpy, loop by loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fairjax as fj
from fairjax.mechanisms import Context
from fairjax.mechanisms.accounts import _mix, _observe, _verified_products

N, D = 5, 40
SIZES = np.arange(1, N + 1) * 10


def rounds_of_uploads(seed, num_rounds=4):
    """Uploads `[T, N, D]` around a common direction, better and longer with the agent's number."""
    random = np.random.default_rng(seed)
    common = random.normal(size=D)
    quality = np.linspace(0.3, 1.5, N)[:, None]
    noise = random.normal(size=(num_rounds, N, D))
    lengths = random.uniform(0.5, 2, size=(num_rounds, N, 1))
    return ((quality * common + noise) * lengths).astype(np.float32)


def shortened(row, length):
    norm = np.linalg.norm(row)
    return row * min(1, length / norm) if norm > 0 else row


class Twin:
    """The rule of `accounts`, as its first lines state it, for agents that are all present."""

    def __init__(self):
        self.given, self.agreement, self.gates = (np.zeros((N, N)) for _ in range(3))
        self.weight, self.unit, self.last = 0.0, 0.0, np.zeros(D)

    def play(self, uploads, beta=0.03):
        """Returns importance `[N]` and rewards `[N, D]` after a round."""
        rows = [row.astype(np.float64) for row in uploads]
        for i, row in enumerate(rows):
            lengths = np.linalg.norm(row) * np.linalg.norm(self.last)
            copied = max(0, row @ self.last / lengths) if lengths else 0
            rows[i] = row * (1 - copied**2 > 0.1)
        known = [np.linalg.norm(row) for row in uploads if row.any()]
        rows = [shortened(row, 1.5 * np.median(known)) for row in rows]
        norms = np.array([np.linalg.norm(row) for row in rows])
        median = np.median(norms[norms > 0])
        self.unit = self.unit or median
        cosines = np.zeros((N, N))
        for i in range(N):
            for j in range(N):
                if norms[i] and norms[j]:
                    cosines[i, j] = rows[i] @ rows[j] / norms[i] / norms[j]
        square = (median / self.unit) ** 2
        self.agreement = 0.99 * self.agreement + square * cosines
        self.weight = 0.99 * self.weight + square
        agreement = np.maximum(self.agreement / self.weight, 0)
        quality = np.full(N, 0.5)
        for _ in range(60):
            found = np.zeros(N)
            for i in range(N):
                others = [j for j in range(N) if j != i]
                below = sum(quality[j] ** 2 for j in others)
                found[i] = sum(agreement[i, j] * quality[j] for j in others) / below if below else 0
            quality = np.clip(quality / 2 + found / 2, 0, 0.99)
        ratios = quality**2 / (1 - quality**2)
        supported = np.sqrt(ratios / np.median(ratios[ratios > 1e-6]))
        verified = np.minimum(norms, 1.2 * median * supported) / self.unit
        self.given = 0.99 * self.given + 0.01 * cosines * np.outer(verified, verified)
        self.gates = 0.8 * self.gates + 0.2 * cosines
        taken = np.maximum(self.given, 0) * (1 - np.eye(N))
        totals = taken.sum(1)
        for i, total in enumerate(totals):
            taken[i] *= min(1, 1.5 * np.median(totals[totals > 0]) / total) if total else 1
        values, vectors = np.linalg.eig(taken.T)
        standing = np.abs(np.real(vectors[:, np.argmax(np.real(values))]))
        importance = (standing / standing.sum()) ** 1.75
        importance = np.maximum(importance / importance.sum(), 1e-3)
        importance /= importance.sum()
        shares = np.zeros((N, N))
        for i in range(N):
            others = [k for k in range(N) if k != i]
            for j in range(N):
                earned = min(1, importance[i] / importance[j]) ** (1 / 1.75)
                opened = 1.0
                if i != j:
                    most = max(self.given[i, k] for k in others)
                    nearest = 0.25 * max(self.gates[i, k] for k in others)
                    account = np.clip(self.given[i, j] / most, 0, 1) if most > 0 else 0
                    gate = np.clip(self.gates[i, j] / nearest, 0, 1) if nearest > 0 else 0
                    opened = account**2 * gate * (importance[j] > 1.5e-3)
                    opened *= max(0, 1 - 1e-3 / importance[i])
                part = (1 - beta) * earned**4.375 + beta * earned
                shares[i, j] = opened * importance[j] * part
            shares[i] /= shares[i].sum()
        self.last = sum(r * row for r, row in zip(importance, rows, strict=True) if r > 1.5e-3)
        return importance, shares @ np.array(rows)


@pytest.mark.parametrize("seed", range(3))
def test_accounts_equal_their_formulas_over_four_rounds(seed):
    mechanism, twin = fj.mechanisms.accounts(), Twin()
    state = mechanism.init(N, jnp.zeros(D))
    update = jax.jit(mechanism.update)
    for uploads in rounds_of_uploads(seed):
        uploads[0] = -uploads[1] if seed == 1 else uploads[0]
        uploads[2] *= 100 if seed == 2 else 1
        outcome, state = update(jnp.asarray(uploads), state, Context(shard_sizes=SIZES))
        importance, rewards = twin.play(uploads)
        np.testing.assert_allclose(outcome.importance, importance, atol=2e-4)
        np.testing.assert_allclose(outcome.rewards, rewards, atol=2e-3 * np.abs(rewards).max())


def honest_with(cheat, num_rounds=12):
    """The outcome after rounds in which agent 2 uploads `cheat(u, last, key)`, and that upload."""
    mechanism = fj.mechanisms.accounts()
    state, last = mechanism.init(N, jnp.zeros(D)), jnp.zeros(D)
    update, key = jax.jit(mechanism.update), jax.random.key(3)
    for number, uploads in enumerate(jnp.asarray(rounds_of_uploads(0, num_rounds))):
        own = cheat(uploads[2], last, jax.random.fold_in(key, number))
        outcome, state = update(uploads.at[2].set(own), state, Context(shard_sizes=SIZES))
        last = outcome.aggregate
    return outcome, own


@pytest.mark.parametrize(
    "cheat",
    [
        lambda own, last, key: jnp.zeros(D),
        lambda own, last, key: 100 * jax.random.normal(key, (D,)),
        lambda own, last, key: -own,
        lambda own, last, key: jnp.where(last.any(), last, own),
    ],
    ids=["zero", "noise", "reversed", "copied"],
)
def test_who_gives_nothing_ends_last_and_is_paid_its_own_upload(cheat):
    outcome, own = honest_with(cheat, num_rounds=40)
    assert outcome.importance.argmin() == 2
    reward = outcome.rewards[2]
    along = (reward @ own) / jnp.maximum(own @ own, 1e-9) * own
    np.testing.assert_allclose(reward, along, atol=1e-3)


def test_a_stretched_upload_gains_little():
    plain, stretched = (
        honest_with(lambda own, last, key, factor=factor: factor * own)[0].importance[2]
        for factor in (1, 10)
    )
    assert plain < stretched < 1.5 * plain


def test_under_nested_an_agent_that_holds_the_servers_model_is_not_behind():
    server = np.random.default_rng(0).normal(size=D).astype(np.float32)
    rounded = server * np.where(np.arange(D) % 2, 1 + 1.2e-7, 1 - 1.2e-7).astype(np.float32)
    assert (rounded != server).any()
    mechanism, judged = fj.mechanisms.nested(alpha=0.5), []
    uploads = jnp.asarray(next(iter(rounds_of_uploads(1, 3))))
    for own in (server, rounded):
        agents = jnp.tile(own, (N, 1))
        context = Context(shard_sizes=SIZES, server=jnp.asarray(server), agents=agents)
        outcome, _ = mechanism.update(uploads, mechanism.init(N, jnp.zeros(D)), context)
        judged.append(outcome.contributions)
    np.testing.assert_array_equal(*judged)


@pytest.mark.parametrize("catch_up", ["removed", "kept"])
def test_nested_pays_parts_of_the_servers_model_since_the_start(catch_up):
    random = np.random.default_rng(0)
    first = random.normal(size=D).astype(np.float32)
    mechanism = fj.mechanisms.nested(alpha=0.5, catch_up=catch_up)
    state, server = mechanism.init(N, jnp.asarray(first)), first.astype(np.float64)
    agents, importance = np.repeat(first[None], N, 0).astype(np.float64), np.zeros(N)
    weights = SIZES / SIZES.sum()
    for uploads in rounds_of_uploads(1, 3):
        context = Context(shard_sizes=SIZES, server=jnp.float32(server), agents=jnp.float32(agents))
        outcome, state = mechanism.update(jnp.asarray(uploads), state, context)
        judged = uploads.astype(np.float64)
        for i in range(N):
            behind = server - agents[i]
            if catch_up == "removed" and np.linalg.norm(behind) > 1e-6:
                ahead = behind / np.linalg.norm(behind)
                judged[i] -= max(0, judged[i] @ ahead) * ahead
        total = weights @ judged
        cosines = judged @ total / np.linalg.norm(judged, axis=1) / np.linalg.norm(total)
        importance = np.maximum(0.5 * importance + 0.5 * cosines, 1e-3)
        importance /= importance.sum()
        np.testing.assert_allclose(outcome.importance, importance, atol=1e-5)
        server = server + weights @ uploads
        fractions = np.tanh(importance) / np.tanh(importance).max()
        agents = agents + np.asarray(outcome.rewards, np.float64)
        learnt = server - first
        for i in range(N):
            kept = np.argsort(-np.abs(learnt))[: int(np.floor(np.float32(fractions[i]) * D))]
            expected = first.astype(np.float64)
            expected[kept] = server[kept]
            np.testing.assert_allclose(agents[i], expected, atol=1e-4)


def test_a_state_that_depends_on_parameters_needs_them():
    with pytest.raises(ValueError, match=r"`params` must be an agent's first parameters"):
        fj.mechanisms.accounts().init(3)
    assert (fj.mechanisms.cgsv().init(3, jnp.zeros(4)) == 0).all()


def test_pairs_of_an_absent_agent_keep_their_accounts():
    met = jnp.array([[True, True, False], [True, True, False], [False, False, False]])
    old = jnp.arange(9.0).reshape(3, 3)
    mixed = _mix(old, 10.0, 0.5, met)
    np.testing.assert_array_equal(mixed, [[5, 5.5, 2], [6.5, 7, 5], [6, 7, 8]])
    held = fj.mechanisms.accounts().init(3, jnp.zeros(2))
    held = held._replace(agreement=old, weight=old + 1, unit=jnp.asarray(0.5))
    # The median of lengths is twice that of the first round: squares count four times.
    after = _observe(held, jnp.array([1.0, 1.0, 0.0]), jnp.full((3, 3), 0.25), met)
    added = jnp.where(met, 0.99 * old + 1, old)
    np.testing.assert_allclose(after.agreement, added, rtol=1e-6)
    added = jnp.where(met, 0.99 * (old + 1) + 4, old + 1)
    np.testing.assert_allclose(after.weight, added, rtol=1e-6)
    assert after.unit == 0.5


@pytest.mark.slow
def test_an_agent_that_missed_a_round_has_the_standing_of_its_uploads():
    """All agents upload as much, and agree as well, so that all stand alike when all are back."""
    mechanism = fj.mechanisms.accounts()
    uploads = 0.7 * jnp.eye(1, 5) + 0.3 * jnp.eye(4, 5, 1)
    state, update = mechanism.init(4, jnp.zeros(5)), jax.jit(mechanism.update)
    for present in ([1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]):
        given = jnp.asarray(present)[:, None] * uploads
        context = Context(shard_sizes=jnp.ones(4), present=jnp.asarray(present, bool))
        outcome, state = update(given, state, context)
        np.testing.assert_allclose(outcome.importance, 0.25, rtol=1e-4)
    # At the floor of 1/1000 nobody would be paid uploads of others; here 249 of 250 parts are.
    np.testing.assert_allclose(outcome.rewards, jnp.tile(uploads.mean(0), (4, 1)), atol=3e-3)


@pytest.mark.slow
def test_lengths_are_supported_by_the_reliability_of_those_that_have_one():
    """Three agents agree by .25, so their reliability is .5; with the others nobody agrees."""
    held = fj.mechanisms.accounts().init(6, jnp.zeros(2))
    friends = jnp.arange(6) < 3
    agreement = 0.25 * (friends & friends[:, None])
    held = held._replace(agreement=agreement, weight=jnp.ones((6, 6)), unit=jnp.asarray(1.0))
    lengths = jnp.array([1.5, 1.0, 0.5, 1.0, 1.0, 1.0])  # 1.2 times their median is supported
    found = _verified_products(held, lengths, jnp.ones((6, 6)))
    expected = np.array([1.2, 1.0, 0.5, 0, 0, 0])
    np.testing.assert_allclose(found, np.outer(expected, expected), atol=1e-5)
    # A reliability of one would support any length: it ends at .99.
    held = held._replace(agreement=jnp.ones((6, 6)))
    found = _verified_products(held, lengths, jnp.ones((6, 6)))
    expected = np.minimum(lengths, 1.2)
    np.testing.assert_allclose(found, np.outer(expected, expected), rtol=1e-5)
