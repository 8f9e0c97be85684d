"""Mechanisms: one contract for all, and tests of each one's own rule."""

import functools
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seen
import twin
from scipy import stats

import fairjax as fj
from fairjax import trees
from fairjax.mechanisms import REGISTRY, Context, Outcome, base
from fairjax.mechanisms.alone import performance_of
from fairjax.mechanisms.base import checked_answer
from fairjax.mechanisms.fair_yet_equal import _add_round, _p_value
from fairjax.mechanisms.iafl import _round_up
from fairjax.mechanisms.lengths import length_at
from fairjax.mechanisms.reputable import drop_low
from fairjax.mechanisms.tensors import largest_of_tensors

N = 5
every_mechanism = pytest.mark.parametrize("name", sorted(REGISTRY))
JUDGING = (
    "accounts", "cffl", "cgsv", "cgsv_released", "eci", "fedave", "fedfaim", "nested",
    "proportional", "rr", "shapfed",
)  # fmt: skip
DRAWING = ("iafl", "fair_yet_equal")
ARGUMENTS = {"shapfed": {}, "cffl": {"threshold": 0.0}}


def updates(seed=0, num_agents=N):
    rng = np.random.default_rng(seed)
    head = {
        "kernel": jnp.asarray(rng.normal(size=(num_agents, 6, 4)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=(num_agents, 4)), jnp.float32),
    }
    return {"head": head, "scale": jnp.asarray(rng.normal(size=num_agents), jnp.float32)}


def first_params():
    """The first parameters of an agent."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), updates())


def utility(params):
    """An accuracy that is smooth in the parameters, so that every update changes it."""
    return 0.5 + 0.4 * jnp.tanh(params["head"]["kernel"].sum() / 10)


def context(num_agents=N, sizes=None, **fields):
    sizes = jnp.arange(1, num_agents + 1) * 10 if sizes is None else sizes
    given = {
        "shard_classes": jnp.ones_like(sizes),
        "num_rounds": 60,
        "key": jax.random.key(7),
        "learning_rate": 0.1,
        "server": first_params(),
        "agents": fj.trees.broadcast(num_agents, first_params()),
        "head": "head",
        "losses": lambda: sizes / sizes.sum(),
        "utility": utility,
        "held_out_loss": lambda params: 1 - utility(params),
        "example_losses": seen.example_losses,
        "units": seen.units(first_params()),
    }
    return Context(shard_sizes=sizes, **{**given, **fields})


def flat(tree):
    return np.concatenate([np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(tree)], 1)


@functools.cache
def compiled(name, arguments):
    """A mechanism, and its update compiled once for all tests."""
    mechanism = REGISTRY[name](**{**ARGUMENTS.get(name, {}), **dict(arguments)})

    @jax.jit
    def update(rows, state, sizes, number, key):
        one = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), rows)
        held = {"server": one, "agents": fj.trees.broadcast(len(sizes), one)}
        held["units"] = seen.units(one)
        known = context(len(sizes), sizes, round=number, key=key, **held)
        return checked_answer(mechanism.update(rows, state, known), rows, state, name)

    return mechanism, update


def play(name, rows, rounds=1, sizes=None, **arguments):
    lists = any(np.ndim(value) for value in arguments.values())  # not hashable
    make = compiled.__wrapped__ if lists else compiled
    mechanism, update = make(name, tuple(arguments.items()))
    num_agents = len(jax.tree.leaves(rows)[0])
    sizes = jnp.arange(1, num_agents + 1) * 10 if sizes is None else sizes
    one = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), rows)
    state = seen.begin(mechanism, num_agents, one, sizes / 100)
    for number in range(rounds):
        key = jax.random.fold_in(jax.random.key(7), number)
        outcome, state = update(rows, state, sizes, number, key)
    return outcome


@every_mechanism
def test_a_mechanism_answers_with_the_shapes_of_the_protocol(name):
    outcome = play(name, updates())  # where they are checked
    assert isinstance(outcome, Outcome)
    for number in (outcome.contributions, outcome.importance, outcome.fractions):
        assert number.dtype == jnp.float32


@pytest.mark.slow
def test_a_live_mask_pays_unequal_fractions_unequally():
    rows = {"moves": jax.random.normal(jax.random.key(0), (3, 10)), "frozen": jnp.zeros((3, 990))}
    context = Context(shard_sizes=jnp.array([1, 3, 6]))
    for mask, equal in (("model", True), ("live", False)):
        mechanism = REGISTRY["cgsv"](mask=mask, alpha=0.5)
        outcome, _ = mechanism.update(rows, mechanism.init(3), context)
        counts = (outcome.rewards["moves"] != 0).sum(1)
        assert (len(set(counts.tolist())) == 1) == equal
        expected = jnp.where(mask == "live", jnp.floor(outcome.fractions * 10), 10)
        np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("name", ["gamma", "learning_rate"])
@pytest.mark.parametrize("value", [1e300, 1e-46])
def test_a_coefficient_that_float32_does_not_hold_is_refused_by_its_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be at (most|least) .*float32"):
        fj.Experiment(**{name: value})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        ("cosine", [0.5, 0.25, 0]),
        ("cosine:2", [2, 1, 0]),
        ("cosine:2:0.5", [2, 1.25, 0.5]),
        (0.3, [0.3, 0.3, 0.3]),
        (optax.linear_schedule(1.0, 0.0, 40), [1, 0.25, 0]),
    ],
)
def test_uploads_have_the_length_of_the_round(gamma, expected):
    mechanism, rows = fj.mechanisms.cgsv(gamma=gamma), updates()
    for round, length in zip((0, 30, 60), expected, strict=True):
        outcome, _ = mechanism.update(rows, mechanism.init(N), context(round=round))
        uploads = fj.trees.with_length(rows, length) if length else rows
        shares = context().shares * (length > 0)
        expected = flat(fj.trees.broadcast(1, fj.trees.weighted_sum(shares, uploads)))
        found = flat(fj.trees.broadcast(1, outcome.aggregate))
        np.testing.assert_allclose(found, expected, atol=1e-6)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("cgsv_released", "eci", "fedave")]


@pytest.mark.parametrize("name", ["cgsv", "rr", *SLOW])
def test_the_median_is_of_the_lengths_of_uploads_that_are_not_zero(name):
    scale = 1e-4
    lengths = scale * jnp.array([8.0, 1.0, 0.0, 3.0, jnp.nan])
    rows = fj.trees.scaled(lengths, fj.trees.with_length(updates(), 1.0))
    found, expected = (
        REGISTRY[name](gamma=gamma).update(rows, REGISTRY[name]().init(N), context())[0]
        for gamma in ("median", 3 * scale)
    )
    for one, other in zip(flat(found.rewards), flat(expected.rewards), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * scale)
    with pytest.raises(ValueError, match="`updates` must be the uploads"):
        fj.mechanisms.length_at("median", context())


@pytest.mark.parametrize("gamma", ["cos", "cosine:0", "cosine:1:-1", "cosine:a", "cosine:1:1:1"])
def test_a_length_that_is_the_name_of_no_shape_is_refused(gamma):
    with pytest.raises(
        ValueError, match="`gamma` must be a number above 0, a function of the round"
    ):
        fj.Experiment(gamma=gamma)


@every_mechanism
def test_a_mechanism_gives_the_same_bits_twice(name):
    first, again = play(name, updates(), rounds=3), play(name, updates(), rounds=3)
    jax.tree.map(np.testing.assert_array_equal, first, again)


@pytest.mark.parametrize("name", sorted(set(REGISTRY) - set(DRAWING)))
def test_permuting_agents_permutes_the_outcome(name):
    order = np.array([3, 0, 4, 1, 2])
    rows, sizes = updates(), context().shard_sizes
    straight = play(name, rows, rounds=3, sizes=sizes)
    permuted = play(name, jax.tree.map(lambda x: x[order], rows), rounds=3, sizes=sizes[order])
    np.testing.assert_allclose(flat(permuted.rewards), flat(straight.rewards)[order], atol=1e-5)
    for field in ("contributions", "importance", "fractions"):
        expected = np.asarray(getattr(straight, field))[order]
        np.testing.assert_allclose(getattr(permuted, field), expected, atol=1e-5)


@every_mechanism
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_broken_update_is_as_good_as_none(name, broken):
    rows = updates()
    none = jax.tree.map(lambda leaf: leaf.at[2].set(0), rows)
    damaged = {**rows, "scale": rows["scale"].at[2].set(broken)}
    expected, found = play(name, none, rounds=3), play(name, damaged, rounds=3)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert np.isfinite(flat(found.rewards)).all()


@pytest.mark.slow
@every_mechanism
@pytest.mark.parametrize("num_agents", [1, 2])
def test_a_mechanism_works_for_one_and_two_agents(name, num_agents):
    assert np.isfinite(flat(play(name, updates(0, num_agents), rounds=2).rewards)).all()


@every_mechanism
def test_a_mechanism_is_one_file_with_one_factory_of_keyword_arguments(name):
    factory = REGISTRY[name]
    assert factory.__name__ == name
    assert Path(inspect.getfile(inspect.unwrap(factory))).stem == name
    kinds = {parameter.kind for parameter in inspect.signature(factory).parameters.values()}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY}
    assert "Examples:" in factory.__doc__


@pytest.mark.slow
@pytest.mark.parametrize("name", JUDGING)
def test_importance_sums_to_one_and_the_first_earns_everything(name):
    outcome = play(name, updates(), rounds=4, sizes=jnp.full(N, 10))
    assert outcome.importance.sum() == pytest.approx(1, abs=1e-6)
    assert outcome.fractions[outcome.importance.argmax()] == 1


@pytest.mark.parametrize("name", ["fedavg", "standalone", "dw", "qffl"])
def test_a_mechanism_that_does_not_judge_says_so(name):
    outcome = play(name, updates())
    assert np.isnan(outcome.contributions).all()
    assert np.isnan(outcome.importance).all()


def test_cgsv_equals_its_formulas_over_three_rounds():
    mechanism, known = fj.mechanisms.cgsv(alpha=0.9, beta=1.5, gamma=0.3), context()
    state, before = mechanism.init(N), None
    shares = np.asarray(known.shares)
    for seed in range(3):
        rows = updates(seed)
        outcome, state = mechanism.update(rows, state, known)
        aggregate = flat(jax.tree.map(lambda leaf: leaf[None], outcome.aggregate))[0]
        found = (aggregate, flat(outcome.rewards))
        expected = twin.cgsv_round(flat(rows), before, shares, 0.9, 1.5, 0.3)
        for mine, theirs in zip((*found, *outcome[2:]), expected, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5)
        before = expected[3]


@pytest.mark.slow
@pytest.mark.parametrize("contribution", ["shapley", "mean_field"])
def test_cgsv_judges_by_the_contribution_asked_for(contribution):
    outcome = play("cgsv", updates(), contribution=contribution)
    function = {"shapley": "cosine_shapley", "mean_field": "mean_field_cosine_shapley"}
    uploads = fj.trees.with_length(updates(), 0.5)
    expected = getattr(fj.contributions, function[contribution])(uploads, context().shares)
    np.testing.assert_allclose(outcome.contributions, expected, atol=1e-6)


@pytest.mark.slow
def test_cgsv_with_one_mask_per_leaf_keeps_the_share_of_every_leaf():
    outcome = play("cgsv", updates(), mask="leaf")
    for leaf in jax.tree.leaves(outcome.rewards):
        size = np.size(leaf[0])
        kept = np.floor(np.asarray(outcome.fractions) * np.float32(size))
        np.testing.assert_array_equal((leaf != 0).reshape(N, -1).sum(1), kept)


def test_boundless_altruism_pays_everybody_the_aggregate():
    outcome = play("cgsv", updates(), beta=1e7)
    everybody = fj.trees.broadcast(N, outcome.aggregate)
    jax.tree.map(np.testing.assert_array_equal, outcome.rewards, everybody)


def test_proportional_pays_by_its_formula():
    """All uploads point roughly the same way, so that the formula holds unchanged."""
    rows = {"all": jnp.array([[1.0, 2.0, 0.0], [2.0, 1.0, 0.1], [2.0, 2.0, 1.0], [0.3, 0.0, 0.0]])}
    outcome = play("proportional", rows, beta=0.5, longest=1e9)
    importance, matrix = np.asarray(outcome.importance), np.asarray(rows["all"])
    for agent, reward in enumerate(np.asarray(outcome.rewards["all"])):
        access = np.minimum(1, importance[agent] / importance) ** 2
        expected = (access * importance) @ matrix
        np.testing.assert_allclose(reward, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(outcome.aggregate["all"], importance @ matrix, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_proportional_pays_the_more_important_no_worse_whatever_the_uploads(seed):
    outcome = play("proportional", updates(seed), beta=0.3)
    aggregate = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(outcome.aggregate)])
    paid = flat(outcome.rewards)[np.argsort(outcome.importance)]
    distances = np.linalg.norm(aggregate - paid, axis=1)
    cosines = paid @ aggregate / np.linalg.norm(paid, axis=1) / np.linalg.norm(aggregate)
    assert (np.diff(distances) <= 1e-3 * np.linalg.norm(aggregate)).all()
    assert (np.diff(cosines) >= -1e-4).all()
    np.testing.assert_allclose(paid[-1], aggregate, atol=1e-5)


@pytest.mark.slow
def test_proportional_with_boundless_altruism_pays_everybody_the_aggregate():
    outcome = play("proportional", updates(), beta=1e7)
    everybody = fj.trees.broadcast(N, outcome.aggregate)
    np.testing.assert_allclose(flat(outcome.rewards), flat(everybody), atol=1e-5)
    np.testing.assert_allclose(outcome.fractions, 1, atol=1e-5)


@pytest.mark.slow
def test_proportional_pays_next_to_nothing_for_nothing():
    rows = jax.tree.map(lambda leaf: jnp.abs(leaf).at[1].set(0), updates())
    outcome = play("proportional", rows, rounds=5, contribution="shapley")
    assert outcome.contributions[1] == pytest.approx(0, abs=1e-6)
    assert outcome.contributions.sum() == pytest.approx(1, abs=1e-5)
    most = outcome.importance.argmax()
    lengths = np.linalg.norm(flat(outcome.rewards), axis=1)
    assert outcome.fractions[1] < 0.05
    assert lengths[1] < 0.01 * lengths[most]


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_proportional_does_not_depend_on_the_unit_of_parameters(scale):
    rows = updates()
    plain = play("proportional", rows)
    other = play("proportional", jax.tree.map(lambda leaf: leaf * jnp.float32(scale), rows))
    np.testing.assert_allclose(other.importance, plain.importance, atol=1e-5)
    np.testing.assert_allclose(flat(other.rewards) / scale, flat(plain.rewards), atol=1e-5)


def test_proportional_cuts_uploads_that_are_much_longer_than_others():
    rows = jax.tree.map(jnp.abs, updates())
    longer = jax.tree.map(lambda leaf: leaf.at[0].multiply(100), rows)
    longest = jax.tree.map(lambda leaf: leaf.at[0].multiply(1e6), rows)
    one, other = play("proportional", longer), play("proportional", longest)
    np.testing.assert_allclose(flat(one.rewards), flat(other.rewards), atol=1e-5)


def test_released_masks_keep_ties_and_never_the_smallest_entry():
    tensor = jnp.array([3.0, -3.0, 2.0, 2.0, 1.0])
    kept = (largest_of_tensors(tensor, jnp.array([0.0, 0.2, 0.6, 1.0])) != 0).astype(int)
    assert kept.tolist() == [[0] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    whole = largest_of_tensors(jnp.array([0.5]), jnp.array([0.0, 1.0]))
    assert whole.tolist() == [[0.5], [0.5]]


@pytest.mark.slow
def test_the_released_program_is_reproduced_step_by_step():
    """The expected values come from the authors' program; the file holds its settings."""
    saved = np.load(Path(__file__).parent / "released_power_law.npz")
    rounds, epochs, rate, decay, gamma, alpha, beta = map(float, saved["settings"])
    x, y = _digits()
    data = fj.data.Dataset(x=x, y=y, num_classes=10)
    rows = np.split(saved["indices"], np.cumsum(saved["sizes"])[:-1])
    shards = fj.data.Shards.from_indices(data, rows)
    first = {name: jnp.asarray(saved[f"init_{name}"]) for name in ("w1", "b1", "w2", "b2")}

    def apply(params, x, key=None):
        return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]

    federation = fj.federation(
        model=fj.models.Model(init=lambda key: first, apply=apply),
        mechanism=fj.mechanisms.cgsv_released(alpha=alpha, beta=beta, gamma=gamma),
        optimizer=optax.sgd,
        learning_rate=optax.exponential_decay(rate, 1, decay),
        local_epochs=int(epochs),
        batch_size=int(saved["sizes"].max()),
    )
    state, history = fj.run(
        jax.random.key(0), federation, shards, data, num_rounds=int(rounds), params=first
    )
    for name in ("contributions", "importance", "fractions"):
        np.testing.assert_allclose(getattr(history, name), saved[name], atol=1e-5)
    differing = 0
    for name in first:
        differing += (np.abs(state.agents[name] - saved[f"final_{name}"]) > 1e-4).sum()
        differing += (np.abs(state.server[name] - saved[f"server_{name}"]) > 1e-4).sum()
    assert differing <= 20


def _digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -0.1}, "`alpha`.*alpha=-0.1"),
        ({"alpha": 1.1}, "`alpha`"),
        ({"beta": 0}, "`beta` must be a finite number above 0, got beta=0"),
        ({"gamma": -1.0}, "`gamma`"),
        ({"gamma": float("nan")}, "`gamma`"),
        ({"contribution": "cosin"}, "Did you mean 'cosine'"),
        ({"mask": "layer"}, "Unknown mask 'layer'. .*Known: leaf, live, model"),
    ],
)
def test_a_bad_argument_is_named_with_its_rule(arguments, message):
    with pytest.raises(ValueError, match=message):
        fj.mechanisms.cgsv(**arguments)


def test_exact_contributions_of_too_many_agents_are_refused_before_compiling():
    with pytest.raises(ValueError, match="at most 25 agents"):
        play("cgsv", updates(0, 26), contribution="shapley")


def test_an_outcome_of_another_shape_is_refused_by_name():
    outcome = play("fedavg", updates())
    wrong = outcome._replace(importance=jnp.zeros(N + 1))
    for answer, message in (
        ((wrong, ()), r"'mine' must return `importance` of shapes \(5,\), got \(6,\)"),
        (
            (outcome, 1.0),
            r"'mine' must return a state of the kind that `init` gives, \(\), got f",
        ),
        (outcome, r"'mine' must return \(Outcome, state\), got \("),
        ((None, ()), r"'mine' must return \(Outcome, state\), got \(NoneType, tuple\)"),
    ):
        with pytest.raises(ValueError, match=message):
            checked_answer(answer, updates(), (), "mine")


def played(name, rounds=10, **arguments):
    """A short run on digits; `sizes` of shards may be equal or not."""
    train, test = fj.data.load("digits")
    rest, validation = fj.data.hold_out(train)
    split = arguments.pop("split", fj.data.power_law)
    shards = split(rest, num_agents=4, seed=0, samples_per_agent=40)
    shards = fj.data.Shards(shards.data, shards.indices, shards.sizes, validation)
    federation = fj.federation(
        model=(fj.models.mlp if name in ("fedrac", "fedsac") else fj.models.logistic)(train),
        mechanism=REGISTRY[name](**arguments),
        optimizer=optax.sgd,
        learning_rate=0.5,
    )
    return fj.run(jax.random.key(0), federation, shards, test, num_rounds=rounds)


@pytest.mark.slow
@every_mechanism
def test_a_mechanism_trains_a_federation(name):
    state, history = played(name, rounds=3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.agents, state.server)))
    assert np.isfinite(history.accuracies).all()
    assert history.accuracies[-1].max() > 0.2


@pytest.mark.slow
def test_qffl_without_a_power_is_fedavg_with_equal_weights():
    uniform = fj.data.uniform  # equal shards have equal weights
    fair, _ = played("qffl", q=0.0, split=uniform)
    average, _ = played("fedavg", split=uniform)
    for one, other in zip(*map(jax.tree.leaves, (fair.server, average.server)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_a_bounded_qffl_learns_under_adam():
    options = dict(num_agents=3, rounds=10, mechanism="qffl", seed=1)
    bounded = fj.Experiment(**options)
    assert dict(bounded.resolved().options) == {"smoothness": "bounded"}
    published = fj.Experiment(**options, options={"smoothness": "learning_rate"})
    accuracies = [one.run().accuracies[0] for one in (bounded, published)]
    assert accuracies[0] > 0.8 > 0.5 > accuracies[1]
    assert not fj.Experiment(mechanism="qffl", optimizer="sgd").resolved().options


def test_qffl_equals_its_formula():
    rows, seen = flat(updates()), context()
    losses, rate, q = np.asarray(seen.losses()) + 1e-10, 0.1, 0.5
    gradients = -rows / rate
    steps = q * losses ** (q - 1) * np.square(gradients).sum(1) + losses**q / rate
    expected = -(losses**q @ gradients) / steps.sum()
    found = play("qffl", updates(), q=q).aggregate
    np.testing.assert_allclose(flat(jax.tree.map(lambda x: x[None], found))[0], expected, atol=1e-5)


@pytest.mark.slow
def test_data_weights_with_equal_shards_are_fedavg():
    weighed, _ = played("dw", split=fj.data.uniform)
    average, _ = played("fedavg", split=fj.data.uniform)
    jax.tree.map(np.testing.assert_array_equal, weighed.agents, average.agents)


def test_coalition_utilities_of_the_contribution_index_equal_a_plain_loop():
    rows, seen = updates(), context()
    table = fj.contributions.model_utilities(utility, seen.server, rows, seen.shard_sizes)
    sizes = np.asarray(seen.shard_sizes, np.float64)
    for index in range(2**N):
        members = [agent for agent in range(N) if index >> agent & 1]
        change = sum(
            sizes[i] / sizes[members].sum() * np.asarray(rows["head"]["kernel"][i]) for i in members
        )
        expected = 0.5 + 0.4 * np.tanh(np.sum(change) / 10)
        assert table[index] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_sampled_contribution_indices_agree_with_enumerated_ones():
    rows, seen = updates(), context()
    exact = fj.contributions.shapley(
        fj.contributions.model_utilities(utility, seen.server, rows, seen.shard_sizes)
    )
    sampled = fj.contributions.gtg_shapley(
        jax.random.key(0), utility, seen.server, rows, seen.shard_sizes,
        num_permutations=400, tolerance=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(sampled.sum(), exact.sum(), atol=1e-5)
    np.testing.assert_allclose(sampled, exact, atol=0.02)


@pytest.mark.slow
def test_reputation_drops_agents_for_good_and_never_all_of_them():
    rows = jax.tree.map(lambda leaf: leaf.at[0].set(-3 * leaf[1:].mean(0)), updates())
    early, late = play("rr", rows, rounds=10), play("rr", rows, rounds=12)
    assert early.importance[0] <= early.importance.min()
    assert late.importance[0] == 0
    np.testing.assert_allclose(flat(late.rewards)[0], flat(rows)[0], rtol=1e-6)
    assert late.importance.sum() == pytest.approx(1, abs=1e-6)
    strict = play("rr", updates(), rounds=12, threshold=1.0)
    assert (strict.importance > 0).sum() >= 1


def test_cffl_downloads_are_without_what_the_agent_uploaded():
    rows = updates()
    outcome = play("cffl", rows, theta=1.0, clip=1e9, sizes=jnp.full(N, 10))
    leader = int(outcome.fractions.argmax())
    assert outcome.fractions[leader] == 1
    np.testing.assert_allclose(flat(outcome.rewards)[leader], flat(rows).sum(0), rtol=1e-4)


def test_iafl_pays_the_richest_with_everybodys_mean_and_the_poorest_with_its_own():
    outcome = play("iafl", updates(), performance=[0.0, 0.2, 0.5, 0.5, 1.0])
    rows = flat(updates())
    np.testing.assert_allclose(flat(outcome.rewards)[0], rows[0], rtol=1e-6)
    np.testing.assert_allclose(flat(outcome.rewards)[4], rows.mean(0), atol=1e-6)


def test_shapfed_mixes_the_servers_model_and_ones_own():
    outcome = play("shapfed", updates())
    weights, rows = np.asarray(outcome.importance), flat(updates())
    server = weights @ rows
    share = (weights / weights.max())[:, None]
    np.testing.assert_allclose(
        flat(outcome.rewards), share * server + (1 - share) * rows, atol=1e-5
    )


@pytest.mark.parametrize("spread", [0.003, 0.1])
def test_hotellings_p_does_not_cancel_where_contributions_hardly_vary(spread):
    rng, num, rounds = np.random.default_rng(0), 5, 20
    mechanism = REGISTRY["fair_yet_equal"]()
    state, rows = mechanism.init(num), []
    shared = rng.normal(size=(rounds, 1))
    psi = 0.9 + spread * (0.99**0.5 * shared + 0.1 * rng.normal(size=(rounds, num)))
    known = Context(shard_sizes=jnp.ones(num), num_rounds=1000)
    for row in psi.astype(np.float32):
        state = _add_round(state, jnp.asarray(row), known, 1.0)
        rows.append(row.astype(np.float64))
    rows = np.array(rows)
    change = rows.mean(0) - rows[:-15].mean(0)
    statistic = rounds * change @ np.linalg.solve(np.cov(rows.T), change)
    ratio = (rounds - num) / (num * (rounds - 1)) * statistic
    expected = stats.f.sf(ratio, num, rounds - num)
    assert _p_value(state) == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
def test_fair_yet_equal_explores_with_all_and_then_draws_few():
    state, history = played("fair_yet_equal", rounds=30, temperature=20.0)
    part = history.fractions == 1
    assert part[:10].all()
    assert (part[10:].sum(1) == round(0.4 * 4)).all()
    assert len(np.unique(np.asarray(state.agents["head"]["bias"]), axis=0)) > 1
    drawn, best = part[10:].sum(0), history.importance[-1].argmax()
    assert drawn[best] == drawn.max()


def test_a_need_that_the_context_does_not_meet_is_named():
    for name, field in [("qffl", "learning_rate"), ("eci", "utility"), ("shapfed", "head")]:
        mechanism = REGISTRY[name]()
        with pytest.raises(ValueError, match=f"'{name}' needs `{field}`"):
            mechanism.update(
                updates(), seen.begin(mechanism, N, first_params()), context(**{field: None})
            )


def test_fair_yet_equal_draws_someone_present_whatever_its_probability():
    """Those present have probabilities that vanish beside that of an absent agent."""
    mechanism = REGISTRY["fair_yet_equal"]()
    state = mechanism.init(3)._replace(
        num_rounds=jnp.asarray(1), total=jnp.array([1.0, 0.0, 0.0]), settled=jnp.asarray(True)
    )
    context = Context(
        shard_sizes=jnp.array([10, 10, 10]), num_rounds=30, key=jax.random.key(0),
        present=jnp.array([False, True, True]), agents=jnp.zeros((3, 2)), server=jnp.zeros(2),
    )  # fmt: skip
    assert mechanism.plan(state, context).participants.sum() == 1
    outcome, _ = mechanism.update(jnp.ones((3, 2)), state, context)
    assert outcome.aggregate.tolist() == [1, 1]


@pytest.mark.parametrize(
    "right", [[20, 20, 19, 19, 19, 19, 18, 18], [18, 19, 19, 16, 17, 16, 15, 16]]
)
def test_eci_takes_no_rounding_error_for_a_contribution(right):
    """Agent 0 changes nothing and the others do harm: nobody is worth anything."""
    table = jnp.array(right) / 40
    context = Context(
        shard_sizes=jnp.array([1, 1, 1]), server=jnp.zeros(3),
        utility=lambda w: table[(w > 0) @ jnp.array([1, 2, 4])],
    )  # fmt: skip
    outcome, _ = REGISTRY["eci"](alpha=0.0).update(jnp.eye(3), jnp.zeros(3), context)
    np.testing.assert_allclose(outcome.importance, 1 / 3, atol=1e-6)


def test_cffl_earns_nobody_outside_the_set_a_fraction():
    context = Context(
        shard_sizes=jnp.array([10, 10, 20]), present=jnp.array([1, 1, 0], bool),
        server=jnp.zeros(2), utility=lambda w: 0.5 + 0 * w[0], num_rounds=4, round=1,
    )  # fmt: skip
    state = jnp.array([0.0, 0.0, 1.0]), jnp.array([False, False, True])
    updates = jnp.array([[1.0, 1], [1, 1], [0, 0]])
    outcome, _ = REGISTRY["cffl"]().update(updates, state, context)
    assert outcome.fractions.tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32, jnp.bfloat16])
def test_utilities_of_any_kind_are_taken_of_those_present(dtype):
    rows = jnp.arange(6.0).reshape(3, 2)
    present = jnp.array([True, False, True])
    found = base.map_present(lambda row: row.sum().astype(dtype), rows, present)
    assert found.tolist() == [1, 0, 9]


def test_agents_without_data_share_equally_where_nobody_present_has_any():
    context = Context(shard_sizes=jnp.array([0, 10]), present=jnp.array([True, False]))
    np.testing.assert_array_equal(context.shares, [1, 0])
    outcome, _ = fj.mechanisms.fedavg().update(jnp.ones((2, 3)), (), context)
    np.testing.assert_array_equal(outcome.aggregate, [1, 1, 1])


@pytest.mark.slow
def test_qffl_follows_its_formula_where_agents_have_their_own_learning_rates():
    updates, rates = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), np.array([0.1, 0.2, 0.05])
    losses, q = np.array([1.0, 0.5, 2.0]), 1.5
    given = {"learning_rate": jnp.asarray(rates), "losses": lambda: jnp.asarray(losses)}
    context = Context(shard_sizes=jnp.ones(3), **given)
    g = -updates / rates[:, None]
    lengths = q * losses ** (q - 1) * np.square(g).sum(1) + losses**q / rates
    step = -(losses[:, None] ** q * g).sum(0) / lengths.sum()
    outcome, _ = fj.mechanisms.qffl(q=q).update(jnp.asarray(updates, jnp.float32), (), context)
    np.testing.assert_allclose(outcome.aggregate, step, rtol=1e-5)


def play_cffl(scores, present, **options):
    """Returns the reputations and outcomes of rounds with given scores on held-out data."""
    mechanism, found = fj.mechanisms.cffl(theta=1.0, clip=9.0, **options), []
    state = mechanism.init(len(scores[0]))
    for number, (own, there) in enumerate(zip(scores, present, strict=True)):
        updates = jnp.asarray(np.diag(own), jnp.float32)  # agent i's upload has its score
        context = Context(
            shard_sizes=jnp.ones(len(own)), present=there, round=number, num_rounds=len(scores),
            server=jnp.zeros(len(own)), utility=lambda params: params.sum(),
        )  # fmt: skip
        outcome, state = mechanism.update(updates, state, context)
        found.append((state[0], outcome))
    return found


@pytest.mark.slow
def test_cffl_gives_an_agent_that_scores_nothing_its_first_part_once():
    everybody, two = jnp.ones(3, bool), jnp.array([True, False, True])
    rounds = play_cffl([[0.5, 0.5, 0.0]] * 5, [everybody, two, everybody, two, two], threshold=0)
    for reputation, _ in rounds:
        assert reputation.sum() <= 1 + 1e-6


def test_cffl_counts_a_negative_score_as_nothing():
    ((reputation, outcome),) = play_cffl([[-0.02, 0.01, 0.0101]], [None], threshold=0)
    assert reputation[0] == 0
    assert outcome.fractions[0] == 0
    np.testing.assert_allclose(outcome.contributions, [-0.02, 0.01, 0.0101], rtol=1e-5)


@pytest.mark.slow
def test_fedfaim_pays_nothing_to_an_agent_that_failed_where_others_are_absent():
    mechanism = fj.mechanisms.fedfaim()
    state = mechanism.init(3)
    given = [
        ([[30.0, 1.0], [-10.0, 1.0], [0.0, -5.0]], [True, True, True]),
        ([[0.0, 0.0], [1.0, 1.0], [0.0, -5.0]], [False, True, True]),
    ]
    for updates, there in given:
        context = Context(
            shard_sizes=jnp.ones(3), present=jnp.asarray(there), server=jnp.zeros(2),
            held_out_loss=lambda params: -params[1],
        )  # fmt: skip
        outcome, state = mechanism.update(jnp.asarray(updates), state, context)
    np.testing.assert_array_equal(outcome.fractions, [0, 0, 0])
    np.testing.assert_array_equal(outcome.rewards, np.zeros((3, 2)))


@pytest.mark.slow
def test_shapfed_weighs_a_newcomer_as_others_began():
    num_agents = 12
    layers = np.zeros((num_agents, 2, 3), np.float32)
    layers[:-1, 0], layers[-1, 1] = 1, 1  # the last agent is orthogonal to the others
    head = {"kernel": jnp.asarray(layers), "bias": jnp.zeros((num_agents, 3))}
    zeros = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}
    mechanism = fj.mechanisms.shapfed()
    state = mechanism.init(num_agents)
    for newcomer in (False, True):
        there = (np.arange(num_agents) < num_agents - 1) | newcomer
        context = Context(
            shard_sizes=jnp.ones(num_agents), present=jnp.asarray(there), head="head",
            server={"head": zeros}, agents={"head": jax.tree.map(jnp.zeros_like, head)},
        )  # fmt: skip
        uploads = trees.scaled(jnp.asarray(there, float), head)
        outcome, state = mechanism.update({"head": uploads}, state, context)
    equal = 1 / np.sqrt((num_agents - 1) ** 2 + 1)  # the cosine with a sum of equal weights
    np.testing.assert_allclose(outcome.contributions[-1], equal, rtol=1e-4)


def test_qffl_leaves_out_an_agent_whose_learning_rate_is_zero():
    given = {"losses": lambda: jnp.array([1.0, 2.0]), "shard_sizes": jnp.array([30, 10])}
    context = Context(learning_rate=jnp.array([0.0, 0.1]), **given)
    updates = jnp.array([[0.0, 0.0], [0.0, 4.0]])
    outcome, _ = fj.mechanisms.qffl(q=0.0).update(updates, (), context)
    np.testing.assert_allclose(outcome.aggregate, [0, 4])
    context = Context(learning_rate=jnp.array(0.0), **given)  # it has decayed for all
    outcome, _ = fj.mechanisms.qffl(q=0.0).update(updates, (), context)
    assert np.isfinite(outcome.aggregate).all()


@pytest.mark.slow
def test_eci_judges_those_present_as_if_they_were_all():
    context = Context(
        shard_sizes=jnp.full(4, 10), present=jnp.array([True, True, False, False]),
        server=jnp.zeros(2), utility=lambda w: -w.sum(),
    )  # fmt: skip
    outcome, _ = REGISTRY["eci"]().update(jnp.ones((4, 2)), jnp.full(4, 0.25), context)
    np.testing.assert_allclose(outcome.contributions, [0.5, 0.5, 0, 0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("q", [5.0, 10.0])
def test_the_bound_of_qffl_is_the_median_of_all_whatever_the_power(q):
    losses = np.array([1e-4, 1.0, 1.2])  # the first to the power of 10 is 0 in float32
    context = Context(shard_sizes=jnp.ones(3), learning_rate=1e-3, losses=lambda: jnp.array(losses))
    outcome, _ = fj.mechanisms.qffl(q=q, smoothness="bounded").update(jnp.eye(3), (), context)
    bound, powers = np.median(2 * losses), losses**q
    weights = powers / (powers + q * powers / losses * bound).sum()
    np.testing.assert_allclose(outcome.aggregate, weights, rtol=1e-4, atol=1e-12)


@pytest.mark.slow
def test_agents_without_data_that_explore_share_equally():
    context = Context(
        shard_sizes=jnp.array([0, 10]), present=jnp.array([True, False]), key=jax.random.key(0)
    )
    mechanism = fj.mechanisms.fair_yet_equal()
    outcome, _ = mechanism.update(jnp.ones((2, 2)), mechanism.init(2), context)
    assert outcome.aggregate.tolist() == [1, 1]


@pytest.mark.slow
def test_the_strictest_threshold_keeps_equal_agents():
    mechanism = fj.mechanisms.rr(threshold=1.0, warmup=0)
    play = jax.jit(mechanism.update)
    state, rng = mechanism.init(5), np.random.default_rng(0)
    for number in range(20):
        present = jnp.asarray(rng.uniform(size=5) < 0.6).at[0].set(True)
        context = Context(shard_sizes=jnp.full(5, 10), round=jnp.array(number), present=present)
        _, state = play(jnp.ones((5, 4)), state, context)
    assert state[1].all()


@pytest.mark.slow
@pytest.mark.parametrize("largest", [600, 1000])
def test_iafl_counts_whole_shares_of_many_agents_exactly(largest):
    sizes = np.arange(1, largest + 1)
    exact = -(-sizes * largest // largest)  # ceil(g_i (N - 1)) of N - 1 = `largest`
    fractions = jnp.asarray(sizes, jnp.float32) / largest
    np.testing.assert_array_equal(_round_up(fractions * largest), exact)
    np.testing.assert_array_equal(_round_up(jnp.array([0.0, 2e-6, 2.5, 3.0])), [0, 1, 3, 3])


@pytest.mark.slow
def test_cffl_by_hand_over_two_rounds():
    """Reputation is .8 of what it was and .2 of the share of scores, steeper in later rounds."""
    scores = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    reputation = np.zeros(3)
    found = play_cffl(scores.tolist(), [None, None], threshold=0)
    for number, (share, (mine, outcome)) in enumerate(zip(scores, found, strict=True)):
        mixed = 0.8 * reputation + 0.2 * share
        reputation = np.sinh(5 * (1 + number / 2) * mixed)
        reputation /= reputation.sum()
        np.testing.assert_allclose(mine, reputation, rtol=1e-4)
        np.testing.assert_allclose(outcome.fractions, reputation / reputation.max(), rtol=1e-4)
    # Agent 0 is paid two entries of three: what it did not receive of its own, it keeps.
    fraction = found[0][1].fractions[1]
    assert np.floor(fraction * 3) == 1
    np.testing.assert_allclose(found[0][1].rewards[1], [0.6, 0.3, 0], rtol=1e-6)


@pytest.mark.slow
def test_cgsv_judges_by_the_mean_field_among_those_present():
    rows = jnp.array([[3.0, 1.0], [0.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    present = jnp.array([True, False, True, False])
    context = Context(shard_sizes=jnp.array([10, 20, 30, 40]), present=present)
    mechanism = REGISTRY["cgsv"](contribution="mean_field")
    update = jax.jit(lambda rows: mechanism.update(rows, mechanism.init(4), context))
    judged = update(rows)[0].contributions
    units = rows[::2] / jnp.linalg.norm(rows[::2], axis=1, keepdims=True)
    expected = twin.mean_field(units, [0.25, 0.75])
    np.testing.assert_allclose(judged, [expected[0], 0, expected[1], 0], atol=1e-6)


@pytest.mark.slow
def test_the_released_program_hardly_rescales_an_update_that_is_next_to_nothing():
    """It divides by the length plus 1e-7: here half of the update times 1e7."""
    updates, context = jnp.array([[3e-20, 4e-20]]), Context(shard_sizes=jnp.array([10]))
    outcome, _ = REGISTRY["cgsv_released"](gamma=0.5).update(updates, jnp.zeros(1), context)
    np.testing.assert_allclose(outcome.aggregate, [1.5e-13, 2e-13], rtol=1e-5)


def test_a_length_ends_where_the_run_ends():
    for number, expected in ((0, 1.0), (5, 0.75), (10, 0.5), (14, 0.5)):
        context = Context(shard_sizes=jnp.ones(1), round=number, num_rounds=10)
        assert length_at("cosine:1:0.5", context) == pytest.approx(expected, abs=1e-6)


def exploration(num_agents, **fields):
    """A state of `fair_yet_equal`, and its factory's mechanism."""
    mechanism = REGISTRY["fair_yet_equal"](share=0.5)
    return mechanism, mechanism.init(num_agents)._replace(**fields)


@pytest.mark.slow
def test_exploration_ends_after_a_third_of_the_rounds_and_its_numbers_stand_still():
    _, state = exploration(2)
    known = Context(shard_sizes=jnp.ones(2), num_rounds=6)
    add_round, settled = jax.jit(lambda state, psi: _add_round(state, psi, known, 1.0)), []
    for number in range(3):
        before, state = state, add_round(state, jnp.array([0.5, number]))
        settled.append(bool(state.settled))
    assert settled == [False, True, True]
    jax.tree.map(np.testing.assert_array_equal, state, before)
    assert state.total.tolist() == [1, 1]


def test_a_share_of_those_present_is_drawn():
    mechanism, state = exploration(6, settled=jnp.asarray(True))
    present = jnp.array([True, True, False, False, False, False])
    context = Context(
        shard_sizes=jnp.ones(6), key=jax.random.key(0), present=present,
        agents=jnp.zeros((6, 2)), server=jnp.zeros(2),
    )  # fmt: skip
    assert mechanism.plan(state, context).participants.sum() == 1


@pytest.mark.slow
def test_who_was_never_there_counts_as_the_mean_of_those_present():
    """Agent 1 was there in the round before; agents 2 and 3 have not been there so far."""
    state = {"num_rounds": jnp.asarray(1), "total": jnp.array([0.5, 0.25, 0.0, 0.0])}
    mechanism, state = exploration(4, seen=jnp.array([True, True, False, False]), **state)
    context = Context(
        shard_sizes=jnp.ones(4), key=jax.random.key(0), num_rounds=9,
        present=jnp.array([True, False, True, False]),
    )  # fmt: skip
    updates = jnp.array([[1.0, 0], [0, 0], [0, 1], [0, 0]])
    outcome, after = mechanism.update(updates, state, context)
    cosine = np.sqrt(0.5)  # of either with the sum of both
    expected = [cosine, 0.25, cosine, cosine]
    np.testing.assert_allclose(outcome.contributions, expected, rtol=1e-6)
    np.testing.assert_allclose(after.total, np.add(state.total, expected), rtol=1e-6)
    assert after.seen.tolist() == [True, True, True, False]


@pytest.mark.parametrize("rounds", [17, 40])
def test_hotellings_p_is_that_of_the_distribution_f(rounds):
    rng, num = np.random.default_rng(3), 2
    psi = rng.normal(size=(rounds, num))
    mean, squares = psi.mean(0), (psi - psi.mean(0)).T @ (psi - psi.mean(0))
    _, state = exploration(
        num, num_rounds=jnp.asarray(rounds), total=jnp.asarray(psi.sum(0)),
        squares=jnp.asarray(squares), recent=jnp.asarray(psi[-15:]),
    )  # fmt: skip
    change = mean - psi[:-15].mean(0)
    statistic = rounds * change @ np.linalg.solve(np.cov(psi.T), change)
    ratio = (rounds - num) / (num * (rounds - 1)) * statistic
    expected = stats.f.sf(ratio, num, rounds - num) if rounds > 16 else 0
    assert _p_value(state) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_iafl_draws_only_from_those_present_and_counts_only_them():
    present = jnp.arange(12) % 6 == 0  # agents 0 and 6
    sizes = jnp.where(present, 10, 1000)
    context = Context(shard_sizes=sizes, present=present, key=jax.random.key(0))
    outcome, _ = REGISTRY["iafl"]().update(jnp.eye(12), (), context)
    both = np.asarray(present) / 2
    np.testing.assert_allclose(outcome.rewards[0], both)
    np.testing.assert_allclose(outcome.rewards[6], both)


@pytest.mark.slow
def test_iafl_equalises_by_kappa_and_rounds_no_whole_number_up():
    """Who reaches (7/12)^2 of the best receives 7 of 12 updates, in float32 7.0000005 of them."""
    mechanism = REGISTRY["iafl"](kappa=0.5, performance=[(7 / 12) ** 2] * 12 + [1.0])
    context = Context(shard_sizes=jnp.ones(13), key=jax.random.key(0))
    outcome, _ = mechanism.update(jnp.eye(13), mechanism.init(13), context)
    np.testing.assert_allclose(outcome.fractions, [7 / 12] * 12 + [1], rtol=1e-6)
    assert (outcome.rewards > 0).sum(1).tolist() == [8] * 12 + [13]  # and its own


def test_a_bounded_qffl_has_the_median_of_the_smoothness_of_agents():
    updates, losses = np.array([[1.0, 0.0], [0.0, 2.0], [2.0, 2.0]]), np.array([1.0, 0.5, 3.0])
    smoothness = np.median(2 * losses / np.square(updates).sum(1))
    for rate, bound in ((0.1, smoothness), (10.0, 0.1)):  # never above that of the learning rate
        context = Context(
            shard_sizes=jnp.ones(3), learning_rate=rate, losses=lambda: jnp.asarray(losses)
        )
        mechanism = REGISTRY["qffl"](q=1.5, smoothness="bounded")
        outcome, _ = mechanism.update(jnp.asarray(updates), (), context)
        g = -bound * updates
        lengths = 1.5 * losses**0.5 * np.square(g).sum(1) + bound * losses**1.5
        np.testing.assert_allclose(outcome.aggregate, -(losses**1.5 @ g) / lengths.sum(), rtol=1e-5)


@pytest.mark.slow
def test_rr_drops_nobody_before_the_warmup_ends_and_then_pays_nothing():
    """With alpha = 1 reputation stays as it is: agent 2 has less than a third of a third."""
    updates = {"many": jnp.array([[1.0, 3.0], [1.0, 1.0], [1.0, 2.0]]), "one": jnp.ones(3)}
    mechanism = REGISTRY["rr"](alpha=1.0, warmup=4, gamma=9.0)
    for number, leaves in ((3, False), (4, True)):
        context = Context(shard_sizes=jnp.ones(3), round=number, num_rounds=9)
        state = jnp.array([0.5, 0.45, 0.05]), jnp.ones(3, bool)
        outcome, (after, reputable) = mechanism.update(updates, state, context)
        assert reputable.tolist() == [True, True, not leaves]
        assert bool(after[2] == 0) == leaves
        paid = jax.tree.map(jnp.subtract, outcome.rewards, updates)
        np.testing.assert_allclose(paid["many"][0], [0, 2.05], atol=1e-6)
        np.testing.assert_allclose(paid["many"][2], [0, 0 if leaves else 2.05], atol=1e-6)
        np.testing.assert_allclose(paid["one"], [1, 1, 0 if leaves else 1], atol=1e-6)


def test_the_threshold_is_a_share_of_the_mean_of_those_that_are_left():
    """Of three that are left, a third of their mean is 1/9; agent 3 has left before."""
    after, reputable = jnp.array([0.5, 0.4, 0.1, 0.0]), jnp.array([True, True, True, False])
    found, left = drop_low(after, reputable, None, 1 / 3)
    assert left.tolist() == [True, True, False, False]
    np.testing.assert_allclose(found, [5 / 9, 4 / 9, 0, 0], rtol=1e-6)
    kept, left = drop_low(after, reputable, None, 0.29)
    assert left.tolist() == reputable.tolist()
    np.testing.assert_allclose(kept, after, rtol=1e-6)


def test_an_agent_that_was_judged_below_nothing_joins_rr_with_nothing():
    updates = jnp.array([[4.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])
    context = Context(shard_sizes=jnp.ones(3), present=jnp.ones(3, bool))
    state = jnp.array([1 / 3, 0, 0]), jnp.ones(3, bool)
    mechanism = REGISTRY["rr"](alpha=0.5, gamma=9.0)
    outcome, (after, _) = mechanism.update(updates, state, context)
    np.testing.assert_allclose(outcome.contributions, [1, 1, -1], rtol=1e-6)
    # The first parts of (1, 1, 0) are halves: memory (2, 3, 0) / 5, and half of (1, 1, -1).
    np.testing.assert_allclose(after, [0.7 / 1.5, 0.8 / 1.5, 0], atol=1e-5)


def test_who_joins_is_weighted_by_its_share_of_data():
    context = Context(shard_sizes=jnp.array([10, 30, 60]), present=jnp.array([True, True, False]))
    found = base.first_round_shares(jnp.array([0.2, 0.0, 0.5]), context)
    np.testing.assert_allclose(found, [0.4, 0.6, 0], rtol=1e-6)


def test_who_reaches_nothing_that_is_defined_alone_counts_as_the_worst():
    reached = jnp.array([0.5, jnp.nan, 0.25])
    found = performance_of("held_out", 3, lambda on: reached)
    np.testing.assert_array_equal(found, [0.5, 0.25, 0.25])


@pytest.mark.parametrize("name", ["fedavg", "fedit", "ffa_lora", "flora", "qffl", "zero_padding"])
def test_one_common_model_is_paid_to_all_in_full(name):
    outcome = play(name, updates())
    np.testing.assert_array_equal(outcome.fractions, 1)
