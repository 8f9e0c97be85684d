"""What dishonest agents do, who they are, and whether they are found."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fairjax as fj
from fairjax import simulation
from fairjax.simulation import Behaviour, Memory, behaviours

N = 4


def updates(seed=0):
    rng = np.random.default_rng(seed)
    return {"a": jnp.asarray(rng.normal(size=(N, 3, 2)), jnp.float32)}


def uploads(name, strength, round=0, others=()):
    memory = Memory(updates(1), {"a": jnp.full((3, 2), 7.0)}, {"a": jnp.full((N, 3, 2), 5.0)})
    chosen = (Behaviour(0, name, strength), *others)
    found = simulation.change_uploads(jax.random.key(0), updates(), memory, round, chosen)
    np.testing.assert_array_equal(found["a"][N - 1], updates()["a"][N - 1])
    return np.asarray(found["a"]), np.asarray(updates()["a"])


def test_dishonest_uploads_are_what_their_names_say():
    assert (uploads("free_rider_zero", 0.0)[0][0] == 0).all()
    noise = uploads("free_rider_noise", 0.5)[0][0]
    assert np.abs(noise).max() <= 0.5
    assert np.unique(noise).size == noise.size
    np.testing.assert_array_equal(uploads("free_rider_stale", 0.0, 3)[0][0], updates(1)["a"][0])
    np.testing.assert_array_equal(uploads("free_rider_stale", 0.0, 1)[0][0], updates(1)["a"][0])
    np.testing.assert_array_equal(uploads("free_rider_stale", 0.0)[0][0], updates()["a"][0])
    np.testing.assert_array_equal(uploads("free_rider_oracle", 0.0)[0][0], 7)
    np.testing.assert_array_equal(uploads("free_rider_copy", 0.0)[0][0], 5)
    np.testing.assert_array_equal(uploads("idle", 0.0, 4)[0][0], updates()["a"][0])
    assert (uploads("idle", 0.0, 5)[0][0] == 0).all()
    found, honest = uploads("sign_flip", 2.0)
    np.testing.assert_array_equal(found[0], -2 * honest[0])
    found, honest = uploads("rescale", 10.0)
    np.testing.assert_array_equal(found[0], 10 * honest[0])
    assert np.isnan(uploads("broken_nan", 0.0)[0][0]).all()
    assert np.isinf(uploads("broken_inf", 0.0)[0][0]).all()


def test_colluders_upload_what_the_first_of_them_does():
    others = (Behaviour(2, "collude"),)
    found, honest = uploads("collude", 0.0, others=others)
    np.testing.assert_array_equal(found[0], honest[0])
    np.testing.assert_array_equal(found[2], honest[0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("label_flip", [8, 2, 9, 0, 9]), ("label_flip_1_7", [7, 1, 0, 9, 0])],
)
def test_flipped_labels_are_rows_of_the_agents_own(name, expected):
    data = fj.data.Dataset(x=np.arange(5), y=[1, 7, 0, 9, 0], num_classes=10)
    shards = fj.data.Shards.from_indices(data, [[0, 1, 2, 3, 4], [0, 1, 2]])
    changed = simulation.change_data(shards, [Behaviour(0, name, 1.0)])
    assert changed.data.y[changed.rows(0)].tolist() == expected
    assert changed.data.y[changed.rows(1)].tolist() == [1, 7, 0]
    np.testing.assert_array_equal(changed.data.x[changed.rows(0)], data.x)


def test_noisy_data_follow_their_strength():
    data = fj.data.Dataset(x=np.zeros((500, 2)), y=np.arange(500) % 10, num_classes=10)
    shards = fj.data.Shards.from_indices(data, [range(500)])
    noisy = simulation.change_data(shards, [Behaviour(0, "feature_noise", 2.0)])
    assert noisy.data.x[noisy.rows(0)].std() == pytest.approx(2, rel=0.1)
    labels = simulation.change_data(shards, [Behaviour(0, "label_noise", 0.5)])
    assert (labels.data.y[labels.rows(0)] != data.y).mean() == pytest.approx(0.45, abs=0.07)


def test_who_is_dishonest_follows_from_the_seed_and_counts():
    counts = {"sign_flip": 2, "label_noise": (1, 0.3)}
    first, again, other = (behaviours.assign(counts, num_agents=9, seed=s) for s in (0, 0, 1))
    assert first == again != other
    names = behaviours.names(first, 9)
    assert (names.count("sign_flip"), names.count("label_noise")) == (2, 1)
    assert (first[2].name, first[2].strength) == ("label_noise", 0.3)
    with pytest.raises(ValueError, match="name agents 0 to 8, got sign_flip of 9"):
        simulation.change_data(
            fj.data.uniform(fj.data.load("digits")[0], num_agents=9), [Behaviour(9, "sign_flip")]
        )


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"sign_flop": 1}, "Did you mean 'sign_flip'"),
        ({"sign_flip": -1}, r"`behaviours\['sign_flip'\]`.*-1"),
        ({"sign_flip": 6}, "at most num_agents=5 agents, got 6"),
        ({"label_noise": (1, 1.5)}, "strength of label_noise"),
    ],
)
def test_a_bad_behaviour_is_named_with_its_rule(counts, message):
    with pytest.raises(ValueError, match=message):
        fj.Experiment(behaviours=counts)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("sign_flip", "`behaviours` must map names to numbers"),
        ([("sign_flip", 1)], "`behaviours` must map names to numbers"),
        (None, "`behaviours` must map names to numbers.*got None"),
        ({3: 1}, "Unknown behaviour 3"),
        ({"honest": 1}, "Unknown behaviour 'honest'"),
        ({"sign_flip": "1"}, r"`behaviours\['sign_flip'\]` must be a whole number.*'1'"),
        ({"sign_flip": True}, "must be a whole number.*True"),
        ({"sign_flip": 10**6}, "at most num_agents=4 agents"),
        ({"sign_flip": (1, 2.0, 3)}, "a pair .number, strength., got .1, 2.0, 3."),
        ({"sign_flip": ()}, "a pair .number, strength."),
        ({"sign_flip": (1, "a")}, "strength of sign_flip"),
        ({"rescale": (1, np.nan)}, "strength of rescale"),
        ({"rescale": (1, -1)}, "strength of rescale"),
        ({"rescale": (1, 1e300)}, "strength of rescale.*1e.300"),
        ({"rescale": (1, 10**400)}, "strength of rescale"),
        ({"broken_nan": (1, 2.0)}, "`broken_nan` takes no strength, got 2.0"),
    ],
)
def test_wrong_kinds_of_counts_are_named(counts, message):
    with pytest.raises(ValueError, match=message):
        behaviours.assign(counts, num_agents=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_agents": 10**9}, "`num_agents`.*at most 1,000,000"),
        ({"num_agents": 2.0}, "`num_agents`"),
        ({"num_agents": 4, "seed": 2**64}, "`seed`.*at most 9,223,372,036,854,775,807"),
        ({"num_agents": 4, "seed": -1}, "`seed`"),
    ],
)
def test_huge_numbers_are_refused_before_anything_is_drawn(options, message):
    with pytest.raises(ValueError, match=message):
        behaviours.assign({"sign_flip": 1}, **options)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (None, "`behaviours` must be a list of Behaviour"),
        ({"sign_flip": 1}, "`behaviours` must be a list of Behaviour"),
        ("sign_flip", "`behaviours` must be a list of Behaviour"),
        (Behaviour(0, "sign_flip"), "`behaviours` must be a list of Behaviour"),
        ([(0, "sign_flip", 1.0)], "`behaviours` must be a list of Behaviour"),
        ([Behaviour(0, "label_flop")], "Did you mean 'label_flip'"),
        ([Behaviour(-1, "sign_flip")], "agent of sign_flip.*-1"),
        ([Behaviour(1.0, "sign_flip")], "agent of sign_flip.*1.0"),
        ([Behaviour("1", "sign_flip")], "agent of sign_flip.*'1'"),
        ([Behaviour(N, "label_flip")], "name agents 0 to 3, got label_flip of 4"),
        ([Behaviour(0, "label_flip", 1.5)], "strength of label_flip.*1.5"),
        ([Behaviour(0, "rescale", 1e39)], "strength of rescale"),
        (
            [Behaviour(0, "label_flip"), Behaviour(0, "rescale")],
            "must name an agent once, got agent 0 as label_flip and as rescale",
        ),
    ],
)
def test_a_list_of_behaviours_is_checked_wherever_it_goes(chosen, message):
    train = fj.data.Dataset(x=np.ones((8, 2)), y=np.arange(8) % 2, num_classes=2)
    shards = fj.data.uniform(train, num_agents=N)
    memory = Memory(updates(), {"a": jnp.zeros((3, 2))}, updates())
    for call in (
        lambda: behaviours.names(chosen, N),
        lambda: simulation.change_data(shards, chosen),
        lambda: simulation.change_uploads(jax.random.key(0), updates(), memory, 0, chosen),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_what_holds_no_shards_cannot_be_changed():
    train = fj.data.Dataset(x=np.ones((8, 2)), y=np.arange(8) % 2, num_classes=2)
    with pytest.raises(ValueError, match="`shards` must be a Shards"):
        simulation.change_data(train, [Behaviour(0, "label_flip")])
    with pytest.raises(ValueError, match="`seed`"):
        simulation.change_data(fj.data.uniform(train, num_agents=2), [], seed=-1)
    shards = fj.data.uniform(train, num_agents=2)
    with pytest.raises(ValueError, match="feature_noise.*float32 holds, got 3e.38"):
        simulation.change_data(shards, [Behaviour(0, "feature_noise", 3e38)])
    with pytest.raises(ValueError, match="`memory` must be a Memory"):
        simulation.change_uploads(jax.random.key(0), updates(), None, 0, [])


@pytest.mark.parametrize("name", ["collude", "free_rider_copy", "free_rider_oracle"])
def test_what_is_copied_may_be_as_long_as_float32_holds(name):
    long = {"a": jnp.full((N, 3, 2), 2e38)}
    memory = Memory(long, {"a": long["a"][0]}, long)
    chosen = [Behaviour(0, "collude"), Behaviour(1, name, 0.0)]
    found = simulation.change_uploads(jax.random.key(0), long, memory, 0, chosen)
    np.testing.assert_array_equal(found["a"], long["a"])
    short = jax.tree.map(lambda leaf: leaf / 1e10, memory)
    chosen = [Behaviour(0, "collude"), Behaviour(1, name, 0.5)]
    found = simulation.change_uploads(jax.random.key(0), short.first, short, 0, chosen)
    noise = np.asarray(found["a"][1], np.float64) - 2e28
    assert 0.2 < noise.std() / 2e28 < 1


def test_noise_may_be_as_large_as_float32_holds():
    found, _ = uploads("free_rider_noise", 3e38)
    assert np.isfinite(found).all()
    assert np.abs(found[0]).max() > 1e37


def test_one_colluder_is_as_good_as_honest():
    found, honest = uploads("collude", 0.5)
    np.testing.assert_array_equal(found, honest)


@pytest.mark.slow
def test_free_riders_are_found_recorded_and_paid_little(tmp_path):
    experiment = fj.Experiment(
        num_agents=10, split="uniform", rounds=20, behaviours={"free_rider_noise": 2}
    )
    result = experiment.run(tmp_path)
    assert result.behaviours.count("free_rider_noise") == 2
    assert result.detection_auc == 1
    dishonest = np.array(result.behaviours) != "honest"
    fractions = result.history.fractions[-1]
    assert fractions[dishonest].max() < fractions.mean() / 5
    again = fj.load_run(tmp_path)
    assert again.behaviours == result.behaviours
    assert again.experiment == result.experiment


@pytest.mark.slow
def test_broken_uploads_are_excluded_and_standalone_models_are_not_harmed():
    result = fj.Experiment(num_agents=3, rounds=2, behaviours={"broken_nan": 1}).run()
    dishonest = np.array(result.behaviours) == "broken_nan"
    np.testing.assert_array_equal(result.history.excluded, np.stack([dishonest] * 2))
    assert np.isfinite(result.standalone_accuracies).all()


def test_every_agent_and_every_leaf_has_noise_of_its_own():
    zeros = {"a": jnp.zeros((2, 3)), "b": jnp.zeros((2, 3))}
    memory = Memory(zeros, jax.tree.map(lambda leaf: leaf[0], zeros), zeros)
    chosen = [Behaviour(0, "free_rider_noise", 1.0), Behaviour(1, "free_rider_noise", 1.0)]
    found = simulation.change_uploads(jax.random.key(0), zeros, memory, 0, chosen)
    assert np.unique(np.stack([found["a"], found["b"]])).size == 12


def test_held_out_data_stay_where_agents_change_theirs():
    data = fj.data.Dataset(x=np.zeros((4, 2)), y=[0, 1, 0, 1], num_classes=2)
    shards = fj.data.Shards.from_indices(data, [[0, 1], [2]])
    held_out = dataclasses.replace(shards, validation=data)
    changed = simulation.change_data(held_out, [Behaviour(0, "label_flip")])
    assert changed.validation is data
