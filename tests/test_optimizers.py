"""Optimizers: schedules count rounds or steps as asked; errors name what does not fit."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fairjax as fj
from fairjax.simulation import as_key
from fairjax.simulation.optimizers import (
    by_rounds,
    check_optimizer,
    hold_counts,
    holds_keys,
    with_own_keys,
)

PARAMS = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
SIZES = (1, 4, 9)


def halving(count):
    return 0.5**count


def counting(scheduled):
    """An optimizer that adds what a schedule says for every local step."""
    ones = optax.stateless(lambda gradient, params: jax.tree.map(jnp.ones_like, gradient))
    return optax.chain(ones, scheduled)


SCHEDULED = {
    "scale_by_schedule": optax.scale_by_schedule(halving),
    "inject_hyperparams": optax.inject_hyperparams(optax.scale)(halving),
    "masked": optax.masked(optax.scale_by_schedule(halving), lambda params: True),
    "partition": optax.partition({"a": optax.scale_by_schedule(halving)}, lambda params: "a"),
    "apply_if_finite": optax.apply_if_finite(optax.scale_by_schedule(halving), 5),
}


def updates(optimizer, rounds, **options):
    data = fj.data.Dataset(x=np.eye(14), y=np.arange(14) % 2, num_classes=2)
    rows = np.split(np.arange(14), np.cumsum(SIZES)[:-1])
    shards = fj.data.Shards.from_indices(data, rows)
    model = fj.models.Model(
        lambda key: jnp.zeros(()), lambda params, x, key=None: x[:, :2] + 0 * params
    )
    federation = fj.federation(
        model=model, mechanism=fj.mechanisms.standalone(), optimizer=optimizer,
        batch_size=2, local_epochs=2, **options,
    )  # fmt: skip
    state = federation.init(jax.random.key(0), shards)
    step = jax.jit(federation.step)
    found = []
    for _ in range(rounds):
        state, record = step(state, shards)
        found.append(np.asarray(record.updates))
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULED)
def test_a_schedule_that_counts_rounds_is_the_same_for_all_agents(name):
    found = updates(counting(SCHEDULED[name]), rounds=3, schedule_counts="rounds")
    num_steps = 2 * np.ceil(np.array(SIZES) / 2)
    expected = np.array([num_steps * 0.5**round for round in range(3)])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_schedule_that_counts_epochs_moves_with_them():
    optimizer = counting(SCHEDULED["scale_by_schedule"])
    found = updates(optimizer, rounds=2, schedule_counts="rounds", decay_per="epoch")
    num_steps = np.ceil(np.array(SIZES) / 2)
    np.testing.assert_allclose(found, [num_steps * 1.5, num_steps * 0.375], rtol=1e-6)


def test_a_schedule_that_counts_steps_is_sooner_through_for_agents_with_more_data():
    found = updates(counting(SCHEDULED["scale_by_schedule"]), rounds=2, schedule_counts="steps")
    num_steps = (2 * np.ceil(np.array(SIZES) / 2)).astype(int)
    sums = [[halving(np.arange(r * n, (r + 1) * n)).sum() for n in num_steps] for r in range(2)]
    np.testing.assert_allclose(found, sums, rtol=1e-6)
    assert found[1].argmin() == 2


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_schedule_that_was_not_told_what_to_count_is_warned_about(name):
    with pytest.warns(UserWarning, match='own local steps.*schedule_counts="rounds"'):
        check_optimizer(SCHEDULED[name], jnp.ones(3), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_optimizer(SCHEDULED[name], jnp.ones(3), "steps")
        check_optimizer(SCHEDULED[name], jnp.ones(3), "rounds")


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.1),
        optax.adam(0.1),
        optax.inject_hyperparams(optax.sgd)(0.1),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
        optax.contrib.schedule_free_sgd(0.1),
        optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
    ],
)
def test_an_optimizer_without_a_schedule_is_not_warned_about_and_cannot_count_rounds(optimizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_optimizer(optimizer, PARAMS, None)
    with pytest.raises(ValueError, match='`schedule_counts` must be None or "steps"'):
        check_optimizer(optimizer, PARAMS, "rounds")


def test_counts_that_are_no_schedules_move_on():
    optimizer = optax.adamw(halving, weight_decay=halving)
    state = hold_counts(optimizer.init(PARAMS), 7)
    counts = [int(count) for count in jax.tree.leaves(state) if count.dtype == jnp.int32]
    assert counts == [0, 7, 7]  # Adam's moments, weight decay, learning rate


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.lbfgs(),
        optax.polyak_sgd(),
        optax.contrib.momo(),
        optax.contrib.sophia(0.1),
        optax.contrib.reduce_on_plateau(),
        optax.scale_by_backtracking_linesearch(3),
        optax.lookahead(optax.sgd(0.1), 5, 0.5),
        optax.masked(optax.sgd(0.1), {"other": True}),
        optax.GradientTransformation(lambda params: 3, lambda gradient: gradient),
    ],
)
def test_an_optimizer_that_needs_more_than_gradients_is_named(optimizer):
    with pytest.raises(ValueError, match="`optimizer` must compute its step from gradients"):
        check_optimizer(optimizer, PARAMS, None)


def test_an_optimizer_that_changes_shapes_is_named():
    wide = optax.GradientTransformation(
        lambda params: (), lambda gradient, state, params: (jnp.ones((2, 3)), state)
    )
    with pytest.raises(ValueError, match="`optimizer` must keep the parameters' shapes"):
        check_optimizer(wide, jnp.ones(3), None)


RATES = [0.3, 0.2, 0.1]


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (lambda count: 0.1 if count < 3 else 0.01, r"jnp.where\(count < 10"),
        (lambda count: RATES[count], r"jnp.array\(rates\)\[count\]"),
        (lambda count: np.array(RATES)[count], r"jnp.array\(rates\)\[count\]"),
        (lambda count: 0.1 * sum(range(count)), "`range`"),
        (lambda count: float(count), "`float`"),
        (lambda count: max(0.1 - 0.01 * count, 0.0), "jnp.where"),
        (lambda: 0.1, "a function that fails.*TypeError"),
        (lambda count: {}["a"], "a function that fails.*KeyError"),
        (lambda count: jnp.ones((3, 1)), "must return one number"),
        (lambda count: None, "must return one number"),
        (lambda count: "0.1", "`learning_rate`"),
        (lambda count: -0.1, r"`learning_rate\(0\)` must be .* at least 0, got .*-0.1"),
        (lambda count: jnp.nan, r"`learning_rate\(0\)`"),
        ("0.1", "`learning_rate`.*'0.1'"),
        ([[0.1]], r"`learning_rate`.*\[\[0.1\]\]"),
        (0, "`learning_rate` must be .* above 0"),
        (float("nan"), "`learning_rate`"),
        (True, "`learning_rate`"),
    ],
)
def test_a_learning_rate_that_is_none_is_named(rate, message):
    with pytest.raises(ValueError, match=message):
        by_rounds(optax.sgd, rate)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda rate: 3, "to an optax optimizer, such as optax.sgd, got .*which returns 3"),
        (lambda: optax.sgd(0.1), "which is not known while"),
        (lambda rate: optax.sgd(0.1 if rate > 1 else 1), "which is not known while"),
        (optax.multi_transform, "which is not known while"),
        ("sgd", "`optimizer` must be a function .*got optimizer='sgd'"),
    ],
)
def test_a_factory_of_optimizers_that_is_none_is_named(optimizer, message):
    with pytest.raises(ValueError, match=message):
        by_rounds(optimizer, lambda count: 0.1 * count)


@pytest.mark.slow
@pytest.mark.parametrize("reset", [False, True])
def test_agents_draw_noise_of_their_own(reset):
    train, test = fj.data.load("digits")
    shards = fj.data.uniform(train, num_agents=3, seed=0)
    federation = fj.federation(
        model=fj.models.logistic(train),
        mechanism=fj.mechanisms.cgsv(gamma=1.0),
        optimizer=optax.chain(optax.set_to_zero(), optax.add_noise(1.0, 0.0, 0)),
        reset_optimizers=reset,
    )
    _, history = fj.run(jax.random.key(0), federation, shards, test, num_rounds=2)
    assert (history.contributions < 0.7).all()  # three independent draws have cosines of .58
    assert (history.contributions > 0.4).all()
    assert not np.array_equal(*history.contributions)


def test_keys_of_both_kinds_are_found_whatever_their_names():
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        for state in (key, {"rng": key}, (key, jnp.zeros(2))):
            assert holds_keys(state)
            first, second = (with_own_keys(state, jax.random.key(seed)) for seed in (1, 2))
            data = [jax.random.key_data(jax.tree.leaves(one)[0]) for one in (first, second)]
            assert not np.array_equal(*data)
    assert not holds_keys(optax.adam(0.1).init(jnp.zeros(2)))
    assert not holds_keys({"count": 0, "rate": 0.1})


@pytest.mark.slow
def test_a_server_optimizer_draws_other_noise_in_every_run():
    train, test = fj.data.load("digits")
    shards = fj.data.uniform(train, num_agents=2, seed=0)
    model = fj.models.logistic(train)
    federation = fj.federation(
        model=model,
        mechanism=fj.mechanisms.fedavg(),
        optimizer=optax.sgd(1e-12),
        server_optimizer=optax.chain(optax.set_to_zero(), optax.add_noise(1.0, 0.0, 0)),
    )
    params = fj.simulation.first_params(jax.random.key(0), model, train)
    servers = [
        fj.run(jax.random.key(s), federation, shards, test, num_rounds=1, params=params)[0].server
        for s in (0, 1)
    ]
    for one, other in zip(*map(jax.tree.leaves, servers), strict=True):
        assert not np.allclose(one, other)


@pytest.mark.slow
def test_noise_of_optimizers_does_not_depend_on_who_is_drawn_together_either():
    keys = jax.random.split(jax.random.key(0), 3)
    state = {"key": jax.random.key(1, impl="rbg")}
    own = jax.vmap(lambda key: with_own_keys(state, key))(keys)["key"]
    alone = with_own_keys(state, keys[1])["key"]
    assert jax.random.key_impl(alone) == "threefry2x32"
    assert own[1] == alone
    of_rbg = jax.random.split(jax.random.key(2, impl="rbg"), 3)
    assert jax.vmap(as_key)(of_rbg)[1] == as_key(of_rbg[1])
