"""One contract for every mechanism, and what is particular to each."""

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twin

import fairjax as fj
from fairjax.mechanisms import REGISTRY, Context, Outcome

N = 5
every_mechanism = pytest.mark.parametrize("name", sorted(REGISTRY))
JUDGING = ("cgsv", "cgsv_released")


def updates(seed=0, num_agents=N):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.normal(size=(num_agents, 6, 4)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=(num_agents, 4)), jnp.float32),
    }


def context(num_agents=N, **fields):
    return Context(shard_sizes=jnp.arange(1, num_agents + 1) * 10, **fields)


def flat(tree):
    return np.concatenate([np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(tree)], 1)


def play(name, rows, rounds=1, sizes=None, **arguments):
    mechanism = REGISTRY[name](**arguments)
    state = mechanism.init(len(jax.tree.leaves(rows)[0]))
    seen = context(len(jax.tree.leaves(rows)[0])) if sizes is None else Context(sizes)
    for number in range(rounds):
        outcome, state = jax.jit(mechanism.update)(rows, state, seen._replace(round=number))
    return outcome


@every_mechanism
def test_a_mechanism_answers_with_the_shapes_of_the_protocol(name):
    outcome = play(name, updates())
    assert isinstance(outcome, Outcome)
    fj.mechanisms.base.check_outcome(outcome, updates())
    for number in (outcome.contributions, outcome.importance, outcome.fractions):
        assert number.dtype == jnp.float32


@every_mechanism
def test_a_mechanism_gives_the_same_bits_twice(name):
    first, again = play(name, updates(), rounds=3), play(name, updates(), rounds=3)
    jax.tree.map(np.testing.assert_array_equal, first, again)


@every_mechanism
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
    none = {"kernel": rows["kernel"].at[2].set(0), "bias": rows["bias"].at[2].set(0)}
    damaged = {**rows, "kernel": rows["kernel"].at[2, 1, 1].set(broken)}
    expected, found = play(name, none, rounds=3), play(name, damaged, rounds=3)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert np.isfinite(flat(found.rewards)).all()


@every_mechanism
@pytest.mark.parametrize("num_agents", [1, 2])
def test_a_mechanism_works_for_one_and_two_agents(name, num_agents):
    assert np.isfinite(flat(play(name, updates(0, num_agents), rounds=2).rewards)).all()


@every_mechanism
def test_a_mechanism_is_one_file_with_one_factory_of_keyword_arguments(name):
    factory = REGISTRY[name]
    assert factory.__name__ == name
    assert Path(inspect.getfile(factory)).stem == name
    kinds = {parameter.kind for parameter in inspect.signature(factory).parameters.values()}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY}
    assert "Examples:" in factory.__doc__


@pytest.mark.parametrize("name", JUDGING)
def test_importance_sums_to_one_and_the_first_earns_everything(name):
    outcome = play(name, updates(), rounds=4)
    assert outcome.importance.sum() == pytest.approx(1, abs=1e-6)
    assert outcome.fractions[outcome.importance.argmax()] == 1


@pytest.mark.parametrize("name", ["fedavg", "standalone"])
def test_a_mechanism_that_does_not_judge_says_so(name):
    outcome = play(name, updates())
    assert np.isnan(outcome.contributions).all()
    assert np.isnan(outcome.importance).all()


def test_cgsv_equals_its_formulas_over_three_rounds():
    mechanism, seen = fj.mechanisms.cgsv(alpha=0.9, beta=1.5, gamma=0.3), context()
    state, before = mechanism.init(N), None
    shares = np.asarray(seen.shares)
    for seed in range(3):
        rows = updates(seed)
        outcome, state = mechanism.update(rows, state, seen)
        found = (flat({k: v[None] for k, v in outcome.aggregate.items()})[0], flat(outcome.rewards))
        expected = twin.cgsv_round(flat(rows), before, shares, 0.9, 1.5, 0.3)
        for mine, theirs in zip((*found, *outcome[2:]), expected, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5)
        before = expected[3]


@pytest.mark.parametrize("contribution", ["shapley", "mean_field"])
def test_cgsv_judges_by_the_contribution_asked_for(contribution):
    outcome = play("cgsv", updates(), contribution=contribution)
    function = {"shapley": "cosine_shapley", "mean_field": "mean_field_cosine_shapley"}
    uploads = fj.trees.with_length(updates(), 0.5)
    expected = getattr(fj.contributions, function[contribution])(uploads, context().shares)
    np.testing.assert_allclose(outcome.contributions, expected, atol=1e-6)


def test_cgsv_with_one_mask_per_leaf_keeps_the_share_of_every_leaf():
    outcome = play("cgsv", updates(), mask="leaf")
    for leaf in jax.tree.leaves(outcome.rewards):
        size = leaf[0].size
        kept = np.floor(np.asarray(outcome.fractions) * np.float32(size))
        np.testing.assert_array_equal((leaf != 0).reshape(N, -1).sum(1), kept)


def test_boundless_altruism_pays_everybody_the_aggregate():
    outcome = play("cgsv", updates(), beta=1e7)
    for name, leaf in outcome.rewards.items():
        np.testing.assert_array_equal(leaf, np.broadcast_to(outcome.aggregate[name], leaf.shape))


def test_released_masks_keep_ties_and_never_the_smallest_entry():
    sparsify = fj.mechanisms.cgsv_released.__globals__["_largest_of_tensor"]
    tensor = jnp.array([3.0, -3.0, 2.0, 2.0, 1.0])
    kept = (sparsify(tensor, jnp.array([0.0, 0.2, 0.6, 1.0])) != 0).astype(int)
    assert kept.tolist() == [[0] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    assert sparsify(jnp.array([0.5]), jnp.array([0.0, 1.0])).tolist() == [[0.5], [0.5]]


def test_the_released_program_is_reproduced_step_by_step():
    """Held against what the authors' program computes; see the file's own settings."""
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
        ({"mask": "layer"}, "Unknown mask 'layer'. .*Known: leaf, model"),
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
    with pytest.raises(ValueError, match="`importance` must have shapes"):
        fj.mechanisms.base.check_outcome(wrong, updates())
