"""What every mechanism does with short floats, huge uploads, and arguments of the wrong kind."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seen
from test_mechanisms import (
    ARGUMENTS,
    N,
    context,
    every_mechanism,
    first_params,
    flat,
    play,
    updates,
)  # fmt: skip

import fairjax as fj
from fairjax import rowwise
from fairjax.mechanisms import REGISTRY, Context
from fairjax.simulation import Behaviour

TINY = np.random.default_rng(0).normal(size=(36, 5)).astype(np.float32)


@functools.cache
def stepped(name, dtype=jnp.float32, rounds=2, behaviours=(), compiled=True):
    """The state before and after rounds of three agents on tiny data, and the records."""
    data = fj.data.Dataset(x=TINY, y=np.arange(36) % 3, num_classes=3)
    train, validation = data.take(np.arange(27)), data.take(np.arange(27, 36))
    shards = fj.data.Shards.from_indices(train, [range(6), range(6, 15), range(15, 27)])
    shards = dataclasses.replace(shards, validation=validation)

    def init(key):
        return {"head": {"kernel": jnp.full((5, 3), 0.1, dtype), "bias": jnp.zeros(3, dtype)}}

    def apply(params, x, key=None):
        return x @ params["head"]["kernel"] + params["head"]["bias"]

    federation = fj.federation(
        model=fj.models.Model(init, apply, head="head", units=seen.units),
        mechanism=REGISTRY[name](),
        optimizer=optax.sgd,
        learning_rate=0.5,
        behaviours=behaviours,
    )
    state = before = federation.init(jax.random.key(0), shards, num_rounds=rounds)
    step = (
        jax.jit(federation.step) if compiled else functools.partial(jax.eval_shape, federation.step)
    )
    records = []
    for _ in range(rounds):
        state, record = step(state, shards)
        records.append(record)
    return before, state, records


def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "near"),
    [
        *((name, "bfloat16", 0.1) for name in sorted(REGISTRY)),
        *((name, "float16", 0.01) for name in ("cgsv", "iafl", "shapfed")),
    ],
)
def test_short_floats_stay_and_end_near_float32(name, dtype, near):
    _, expected, (*_, wide) = stepped(name)
    before, state, (*_, short) = stepped(name, jnp.dtype(dtype))
    assert kinds(state) == kinds(before)
    for one, other in zip(*map(flat, (state.agents, expected.agents)), strict=True):
        np.testing.assert_allclose(one.astype(np.float32), other, atol=near)
    np.testing.assert_allclose(short.contributions, wide.contributions, atol=near)
    np.testing.assert_allclose(short.importance, wide.importance, atol=near)


@pytest.mark.slow
@every_mechanism
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_round_keeps_every_dtype_where_64_bits_are_allowed(name, dtype):
    with jax.enable_x64(True):
        before, state, [record] = stepped(name, jnp.dtype(dtype), rounds=1, compiled=False)
    assert kinds(state) == kinds(before)
    judged = (record.contributions, record.importance, record.fractions)
    assert {number.dtype for number in judged} == {jnp.dtype("float64")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, {}) for name in sorted(REGISTRY)),
        ("cgsv", {"mask": "leaf"}),
        ("cgsv", {"mask": "rank"}),
    ],
)
def test_a_leaf_without_entries_changes_nothing(name, arguments):
    without = play(name, updates(), **arguments)
    rows = {**updates(), "with_no_entry": jnp.zeros((N, 2, 0))}  # the last by its name
    found = play(name, rows, **arguments)
    assert found.rewards.pop("with_no_entry").shape == (N, 2, 0)
    found.aggregate.pop("with_no_entry")
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), found, without)


def test_lengths_of_short_floats_are_summed_in_float32():
    rows = {"w": jnp.full((2, 100_000), 2.0, jnp.float16)}  # float16 ends at 65,504
    np.testing.assert_allclose(fj.trees.squared_norms(rows), 400_000)
    np.testing.assert_allclose(fj.trees.gram(rows), 400_000)
    assert fj.trees.squared_norms(rows).dtype == jnp.float32


@pytest.mark.slow
@every_mechanism
def test_a_huge_upload_ends_no_run_and_one_that_cannot_be_added_is_excluded(name):
    behaviours = (Behaviour(0, "rescale", 3e38), Behaviour(1, "rescale", 1e30))
    _, state, (first, second) = stepped(name, behaviours=behaviours)
    largest = np.abs(flat(first.updates)[0]).max()
    assert 3.4e38 / 24 < 3e38 * largest < 3.4e38  # finite, but too large to be added
    assert first.excluded.tolist() == [True, False, False]
    assert not flat(first.uploads)[0].any()
    assert not (first.broken | second.broken)
    assert np.isfinite(flat(state.agents)).all()
    bounded = {
        "cgsv", "cgsv_released", "cffl", "eci", "fedave", "fedfaim", "qffl", "rr", "standalone",
    }  # fmt: skip
    assert (np.abs(flat(state.agents)[2]).max() < 10) == (name in bounded)
    assert name in bounded or "ruins the model" in " ".join(REGISTRY[name].__doc__.split())


@pytest.mark.parametrize(
    ("rows", "held", "expected"),
    [
        ([2.1e37, -2.2e37], 0.0, [True, False]),  # two agents: largest / 16
        ([np.nan, -np.inf], 0.0, [False, False]),
        ([2.1e37, 0.0], -4.2e37, [True, True]),
        ([1.0, 0.0], -4.3e37, [False, False]),
        ([2.1e37, 1.0], np.inf, [True, True]),  # a parameter that is lost already does not count
        (np.float16([4000, 4200]), np.float16(0), [True, False]),
    ],
)
def test_rows_can_be_added_up_to_an_eighth_of_the_largest_number(rows, held, expected):
    stacked = {"w": jnp.asarray(rows, getattr(rows, "dtype", jnp.float32))[:, None]}
    found = rowwise.addable_rows(stacked, {"w": jnp.asarray(held, stacked["w"].dtype)})
    assert found.tolist() == expected


@pytest.mark.parametrize("q", [0.0, 0.1, 1e3, 1e30])
@pytest.mark.parametrize("factor", [1.0, 1e25])
def test_qffl_stays_finite_where_a_power_or_a_squared_length_overflows(q, factor):
    rows = jax.tree.map(lambda leaf: leaf.at[0].multiply(factor), updates())
    losses = context()._replace(losses=lambda: 1e3 * jnp.arange(N))
    outcome, _ = REGISTRY["qffl"](q=q).update(rows, (), losses)
    assert np.isfinite(flat(outcome.rewards)).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shard_sizes": None}, "`shard_sizes` must hold a number of examples per agent"),
        ({"shard_sizes": "many"}, "`shard_sizes` must hold .*got shard_sizes='many'"),
        ({"shard_sizes": [1, [2]]}, "`shard_sizes`"),
        ({"shard_sizes": [0] * N}, "not all zero"),
        ({"shard_sizes": [-1, 2, 2, 2, 2]}, "`shard_sizes`.*from 0"),
        ({"shard_sizes": [2**31] * N}, "`shard_sizes`"),
        ({"shard_sizes": [np.nan] * N}, "`shard_sizes`"),
        ({"shard_sizes": [1, 2]}, r"with N = 2 as in `shard_sizes`, got \[\(5, "),
        ({"shard_classes": "two"}, "`shard_classes`"),
        ({"round": -1}, "`round`"),
        ({"num_rounds": "ten"}, "`num_rounds`"),
        ({"learning_rate": "fast"}, "`learning_rate`"),
        ({"key": 3}, "`key`.*as `jax.random.key"),
        ({"head": 3}, "`head`"),
        ({"losses": jnp.ones(N)}, r"`losses` must be a function, losses\(\)"),
        ({"utility": 0.5}, "`utility` must be a function"),
        ({"server": {"w": jnp.zeros(2)}}, "`server` must have the updates' shapes"),
        ({"agents": {"w": jnp.zeros((N, 2))}}, "`agents` must have the updates' shapes"),
    ],
)
@pytest.mark.parametrize("name", ["fedavg", "cgsv", "shapfed"])
def test_a_context_that_does_not_fit_is_told_by_field(name, fields, message):
    mechanism = REGISTRY[name]()
    with pytest.raises(ValueError, match=message):
        mechanism.update(
            updates(), seen.begin(mechanism, N, first_params()), context()._replace(**fields)
        )


@every_mechanism
@pytest.mark.parametrize("wrong", [None, "updates", 3, jnp.ones(()), [], jnp.ones((N, 2)) * 1j,
                                   [jnp.ones(3)] * N, jnp.ones((N + 1, 3))])  # fmt: skip
def test_updates_that_are_none_are_refused(name, wrong):
    mechanism = REGISTRY[name](**ARGUMENTS.get(name, {}))
    with pytest.raises(ValueError, match="`updates` must be an array"):
        mechanism.update(wrong, seen.begin(mechanism, N, first_params()), context())


def test_a_state_or_context_of_another_kind_is_refused():
    mechanism = REGISTRY["cgsv"]()
    for state in (None, (), "state", jnp.zeros(N + 1)):
        with pytest.raises(ValueError, match="`state` must be what `init`"):
            mechanism.update(updates(), state, context())
    with pytest.raises(ValueError, match="`context` must be a Context"):
        mechanism.update(updates(), seen.begin(mechanism, N, first_params()), None)
    for functions in ((3, len), (len, None), (len, len, "plan")):
        with pytest.raises(ValueError, match="must be a function|must take"):
            fj.mechanisms.Mechanism(*functions)


def test_updates_may_be_whole_numbers_and_shard_sizes_a_list():
    rows, seen = np.array([[4, 0], [0, 4]]), Context(shard_sizes=[30, 10])
    outcome, _ = REGISTRY["fedavg"]().update(rows, (), seen)
    np.testing.assert_array_equal(outcome.aggregate, [3, 1])


WRONG = (None, True, "0.5", b"x", 1j, [0.5], (1, 2), {}, np.ones(2), np.array("x"), object(), len,
         float("nan"), float("inf"))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name in sorted(REGISTRY)
        for argument in inspect.signature(REGISTRY[name]).parameters
        if argument != "performance"
    ],
)
def test_a_coefficient_of_the_wrong_kind_is_named(name, argument):
    for value in WRONG:
        if argument == "gamma" and value is len:
            continue  # a function of the round
        with pytest.raises(ValueError, match=argument):
            REGISTRY[name](**{argument: value})


@pytest.mark.parametrize(
    "performance",
    [True, 3, [], [[0.5]], {0.5}, [0.0, 0.0], [-0.1, 0.5], [np.nan], ["a"], [1, [2]], 1j],
)
def test_a_performance_that_is_no_number_per_agent_is_refused(performance):
    with pytest.raises(ValueError, match="`performance` must hold a number per agent"):
        REGISTRY["iafl"](performance=performance)


def test_performance_may_be_in_any_unit():
    numbers = [0.0, 0.2, 0.5, 0.5, 1.0]
    small, large = (play("iafl", updates(), performance=np.array(numbers) * s) for s in (1, 1e300))
    np.testing.assert_allclose(flat(small.rewards), flat(large.rewards))


def test_an_output_layer_that_shapfed_cannot_judge_is_named():
    mechanism, rows = REGISTRY["shapfed"](), updates()
    for head in ("nope", "scale"):
        with pytest.raises(ValueError, match=f"'shapfed' needs an output layer '{head}'"):
            mechanism.update(rows, seen.begin(mechanism, N, first_params()), context(head=head))


@pytest.mark.parametrize("name", ["shard_classes", "learning_rate"])
def test_numbers_of_other_agents_are_refused(name):
    context = Context(shard_sizes=np.ones(2), **{name: np.ones(1)})
    with pytest.raises(ValueError, match=f"`{name}` must have shape"):
        fj.mechanisms.fedavg().update(np.ones((2, 3)), (), context)


@pytest.mark.slow
def test_an_agent_that_was_never_there_counts_as_the_mean_of_those_present():
    mechanism = fj.mechanisms.fair_yet_equal()
    state, updates = mechanism.init(3), np.array([[1.0, 0], [1.0, 0], [0, 1.0]])
    for present in ([1, 1, 0], [1, 0, 0], [0, 1, 0]):
        context = Context(
            shard_sizes=np.ones(3), present=np.array(present, bool), num_rounds=30,
            server=np.zeros(2), agents=np.zeros((3, 2)),
        )  # fmt: skip
        outcome, state = mechanism.update(updates * np.array(present)[:, None], state, context)
        of_all = (outcome.contributions * np.array(present)).sum() / sum(present)
        assert outcome.contributions[2] == pytest.approx(of_all)


def averaging(change):
    """Returns FedAvg whose `update` first does something else with what it is given."""
    mean = fj.mechanisms.fedavg()

    def init(num_agents):
        return {"t": jnp.zeros(())}

    def update(updates, state, context):
        before = change(updates, state, context)
        outcome, _ = mean.update(updates, (), context)
        return outcome, before

    return fj.mechanisms.Mechanism(init, update)


OWN = fj.Experiment(
    dataset="blobs", num_agents=3, rounds=2, model="logistic", gamma=1.0, learning_rate_decay=0.99
)


@pytest.mark.slow
def test_a_mechanism_may_change_the_containers_that_it_is_given():
    def change(updates, state, context):
        for own in (context.agents, context.server):
            own["head"] = jax.tree.map(lambda leaf: leaf + 1, own["head"])
        state["t"] = state["t"] + 1
        return state

    mechanisms = averaging(change), averaging(lambda updates, state, context: state)
    found, wanted = (OWN.with_mechanism(one).run() for one in mechanisms)
    np.testing.assert_array_equal(found.accuracies, wanted.accuracies)
    assert found.state.mechanism["t"] == OWN.rounds

    def add(updates, state, context):
        state["last"] = context.shares
        return state

    with pytest.raises(ValueError, match="must return a state of the kind that `init` gives"):
        OWN.with_mechanism(averaging(add)).run()


@pytest.mark.slow
def test_a_mechanisms_mistake_leaves_no_folder(tmp_path):
    wrong = averaging(lambda updates, state, context: jnp.zeros(7))
    with pytest.raises(ValueError, match="must return a state of the kind that `init` gives"):
        OWN.with_mechanism(wrong).run(tmp_path / "out")
    right = averaging(lambda updates, state, context: state)
    assert OWN.with_mechanism(right).run(tmp_path / "out").state is not None


@pytest.mark.slow
def test_starts_have_the_dtype_of_parameters():
    mean = fj.mechanisms.fedavg()

    def started(dtype):
        plan = lambda state, context: fj.mechanisms.Plan(  # noqa: E731
            start=jax.tree.map(lambda leaf: leaf.astype(dtype), context.agents)
        )
        return OWN.with_mechanism(fj.mechanisms.Mechanism(mean.init, mean.update, plan))

    values = started(jnp.bfloat16).run().state.server["head"]["kernel"]
    assert not np.array_equal(values, values.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="`start` of floating numbers, got int32"):
        started(jnp.int32).run()


def test_mechanisms_of_partials_and_objects_have_names():
    mean = fj.mechanisms.fedavg()

    class Update:
        def __call__(self, updates, state, context):
            return mean.update(updates, state, context)

    def mine(weight, updates, state, context):
        return mean.update(updates, state, context)

    for update, name in ((Update(), "Update"), (functools.partial(mine, 2), "mine")):
        assert fj.mechanisms.Mechanism(mean.init, update).name == name


@pytest.mark.slow
def test_a_mechanism_of_ones_own_may_have_a_server_optimizer():
    mean = fj.mechanisms.fedavg()
    plain = fj.mechanisms.Mechanism(mean.init, mean.update)
    with pytest.raises(ValueError, match="plan=fairjax.mechanisms.start_at_server"):
        dataclasses.replace(OWN.with_mechanism(plain), server_optimizer="fedadam").run()
    marked = plain._replace(plan=fj.mechanisms.start_at_server("mean"))
    found = dataclasses.replace(OWN.with_mechanism(marked), server_optimizer="fedadam").run()
    assert np.isfinite(found.accuracies).all()


def test_what_python_cannot_do_in_a_mechanism_is_said(capsys):
    mean = fj.mechanisms.fedavg()

    def update(updates, state, context):
        if context.shares.sum() > 2:
            raise AssertionError
        return mean.update(updates, state, context)

    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        OWN.with_mechanism(fj.mechanisms.Mechanism(mean.init, update)).run()
    assert "take jax.numpy.where or jax.lax.cond" in caught.value.__notes__[0]
    words = fj.mechanisms.Mechanism(lambda num_agents: {"name": "x"}, mean.update)
    with pytest.raises(ValueError, match="`init` must return arrays"):
        OWN.with_mechanism(words).run()


@pytest.mark.slow
def test_a_plan_with_starts_that_are_not_finite_is_blamed():
    mean = fj.mechanisms.fedavg()

    def plan(state, context):
        spoilt = jax.tree.map(lambda leaf: leaf.at[1].mul(jnp.nan), context.agents)
        return fj.mechanisms.Plan(start=spoilt)

    broken = fj.mechanisms.Mechanism(mean.init, mean.update, plan)
    with pytest.raises(ValueError, match="and plan finite starts, got NaN .* in round 0"):
        OWN.with_mechanism(broken).run()
