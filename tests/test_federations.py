"""Federations: values that share programs; what they refuse, and what they warn of."""

import dataclasses
import gc
import inspect
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fairjax as fj
from fairjax.mechanisms import Plan
from fairjax.simulation import DATA, UPLOADS, Behaviour, loop, memory, progress


@pytest.fixture(scope="module")
def data():
    train, test = fj.data.load("digits")
    train, test = train.take(np.arange(40)), test.take(np.arange(20))
    return fj.data.power_law(train, num_agents=3, seed=0), test


def federation(shards, **options):
    given = {
        "model": fj.models.logistic(shards.data),
        "mechanism": fj.mechanisms.cgsv(),
        "optimizer": optax.sgd(0.1),
    }
    return fj.federation(**{**given, **options})


@pytest.mark.slow
def test_federations_made_of_the_same_are_equal_and_share_a_program(data):
    shards, test = data
    traces = []

    def made():
        model = fj.models.logistic(shards.data)

        def apply(params, x, key=None):
            if key is not None:
                traces.append(1)
            return model.apply(params, x, key)

        return federation(shards, model=model._replace(apply=apply))

    first, second = made(), made()
    assert first == second
    assert len({first, second}) == 1
    run = [fj.run(jax.random.key(0), one, shards, test, num_rounds=1)[1] for one in (first, second)]
    jax.tree.map(np.testing.assert_array_equal, *run)
    # A model that was traced remembers it, and differs from a new one.
    assert first != made()


@pytest.mark.parametrize("agents_at_once", [None, 2])
def test_models_that_equal_the_servers_are_evaluated_once(data, agents_at_once):
    shards, test = data
    counted = []

    def right(outputs, y):
        jax.debug.callback(counted.append, 1)
        return (outputs.argmax(1) == y).mean()

    task = fj.tasks.Task(optax.softmax_cross_entropy_with_integer_labels, {"right": right})
    one = federation(shards, task=task, agents_at_once=agents_at_once)
    params = [
        fj.models.initial_params(one.training.model, jax.random.key(seed), test)
        for seed in (0, 1, 0, 0)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    found = one.evaluate(stacked, test)
    jax.effects_barrier()
    if agents_at_once is None:
        assert len(counted) == 2
    alone = [one.evaluate(jax.tree.map(lambda leaf: leaf[None], own), test)[0] for own in params]
    plain = one.evaluate(jax.tree.map(np.asarray, stacked), test)
    np.testing.assert_array_equal(found, plain)
    np.testing.assert_array_equal(found, alone)
    assert found[0] != found[1]


def holding(value):
    """A model that holds a value."""

    def apply(params, x, key=None):
        return x.reshape(len(x), -1)[:, :10] * params + 0 * len(str(value))

    return fj.models.Model(lambda key: jnp.ones(10), apply)


CHANGES = [
    {"mechanism": fj.mechanisms.cgsv(gamma=0.4)},
    {"mechanism": fj.mechanisms.fedavg()},
    {"optimizer": optax.sgd(0.2)},
    {"optimizer": optax.sgd, "learning_rate": 0.1},
    {"optimizer": optax.sgd, "learning_rate": lambda count: 0.1 * 0.9**count},
    {"local_epochs": 2},
    {"batch_size": 16},
    {"decay_per": "epoch"},
    {"local_steps": "last_batch"},
    {"agents_at_once": 2},
    {"schedule_counts": "steps"},
    {"behaviours": [Behaviour(0, "sign_flip")]},
    {"behaviours": [Behaviour(1, "sign_flip")]},
    {"behaviours": [Behaviour(1, "sign_flip", 2.0)]},
    {"mesh": fj.devices.mesh(1)},
    {"model": holding(1)},
    {"model": holding(2)},
]


def test_federations_that_differ_in_anything_are_different(data):
    shards, _ = data
    made = [federation(shards, **one) for one in [{}, *CHANGES]]
    again = [federation(shards, **one) for one in [{}, *CHANGES]]
    assert made == again
    assert len(set(made)) == len(made)


def test_a_federation_without_a_fingerprint_is_equal_to_itself_alone(data):
    generator = (one for one in ())
    first, second = (federation(data[0], model=holding(generator)) for _ in range(2))
    assert first.fingerprint is None
    assert first == first
    assert first != second


@pytest.mark.slow
def test_nothing_holds_a_federation_whose_program_is_forgotten(data):
    shards, test = data
    one = federation(shards, model=holding(3))
    fj.run(jax.random.key(0), one, shards, test, num_rounds=1)
    jax.jit(one.step)(one.init(jax.random.key(0), shards), shards)
    reference = weakref.ref(one)
    del one
    loop._compile_play.cache_clear()
    memory._compute_needs.cache_clear()
    gc.collect()
    assert reference() is None


def test_a_bounded_number_of_programs_is_kept():
    assert loop._compile_play.cache_info().maxsize == loop.PROGRAMS <= 16


@pytest.mark.parametrize("most", [0, 10**9])
def test_caches_are_cleared_where_programs_take_up_the_memory_maps(monkeypatch, most):
    cleared = []
    monkeypatch.setattr(memory, "MOST_MAPS", most)
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(1))
    memory.spare_maps()
    assert len(cleared) == (most == 0)


def test_a_federation_is_shown_in_one_line(data):
    assert repr(federation(data[0])) == (
        "Federation(mechanism='cgsv', local_epochs=1, batch_size=32, behaviours=0, devices=1)"
    )


@pytest.mark.parametrize("name", sorted(DATA))
def test_what_agents_do_to_their_data_is_refused_with_what_does_it(data, name):
    behaviours = [Behaviour(agent=0, name="sign_flip"), Behaviour(agent=1, name=name)]
    with pytest.raises(ValueError, match=rf"got '{name}'.*fairjax.simulation.change_data\(shards"):
        federation(data[0], behaviours=behaviours)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"sign_flip": 1},
            "`behaviours` must be a list of Behaviour.*`fairjax.simulation.assign`",
        ),
        ("sign_flip", "`behaviours` must be a list"),
        (Behaviour(0, "sign_flip"), "`behaviours` must be a list"),
        (3, "`behaviours` must be a list"),
        (None, "`behaviours` must be a list"),
        ([(0, "sign_flip")], "`behaviours` must be a list"),
        ([Behaviour(0, "sign_flp")], "Did you mean 'sign_flip'"),
        ([Behaviour(-1, "sign_flip")], "`agent of sign_flip` .*at least 0, got -1"),
        ([Behaviour(1.5, "sign_flip")], "`agent of sign_flip`"),
        ([Behaviour("a", "sign_flip")], "`agent of sign_flip`"),
        ([Behaviour(0, "rescale", -1.0)], "`strength of rescale`.*-1.0"),
        ([Behaviour(0, "rescale", "a")], "`strength of rescale`"),
        ([Behaviour(0, "rescale", float("nan"))], "`strength of rescale`"),
    ],
)
def test_behaviours_of_the_wrong_kind_are_named(data, wrong, message):
    with pytest.raises(ValueError, match=message):
        federation(data[0], behaviours=wrong)


def test_a_behaviour_of_an_agent_that_is_not_there_is_named(data):
    shards, test = data
    one = federation(shards, behaviours=[Behaviour(3, "sign_flip")])
    with pytest.raises(ValueError, match="`behaviours` must name agents 0 to 2, got sign_flip"):
        fj.run(jax.random.key(0), one, shards, test, num_rounds=1)


NOT_KEYS = [0, None, "key", 1.5, jnp.zeros(2), jnp.zeros(3, jnp.uint32)]


@pytest.mark.parametrize("key", NOT_KEYS, ids=str)
def test_what_is_no_key_is_named(data, key):
    shards, test = data
    one = federation(shards)
    with pytest.raises(ValueError, match=r"`key` must be one PRNG key such as jax.random.key\(0\)"):
        one.init(key, shards)
    with pytest.raises(ValueError, match="`key` must be one PRNG key"):
        fj.run(key, one, shards, test, num_rounds=1)


def test_several_keys_are_no_key_and_an_old_one_is_as_good_as_a_new_one(data):
    shards, _ = data
    one = federation(shards)
    with pytest.raises(ValueError, match=r"`key` must be one PRNG key .* array of \(3,\)"):
        one.init(jax.random.split(jax.random.key(0), 3), shards)
    new = one.init(jax.random.key(7), shards)
    for key in (jax.random.PRNGKey(7), np.asarray(jax.random.PRNGKey(7))):
        old = one.init(key, shards)
        jax.tree.map(np.testing.assert_array_equal, old.server, new.server)
        assert old.key == new.key


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"federation": "cgsv"}, "`federation` must be a Federation, .*`fairjax.federation`"),
        ({"federation": fj.mechanisms.cgsv()}, "`federation` must be a Federation"),
        ({"federation": None}, "`federation` must be a Federation"),
        ({"shards": None}, "`shards` must be a Shards"),
        ({"test": 3}, "`test` must be a Dataset"),
        ({"num_rounds": 10**12}, "`num_rounds` must be at most 2,147,483,646"),
        ({"num_rounds": "3"}, "`num_rounds`.*'3'"),
        ({"num_rounds": True}, "`num_rounds`"),
        ({"eval_every": 10**12}, "`eval_every` must be at most"),
        ({"eval_every": 0.5}, "`eval_every`"),
        ({"params": "x"}, "`params` must have the model's shapes"),
        ({"params": 3}, "`params` must have the model's shapes"),
        (
            {"params": {"head": {"bias": np.zeros(10), "kernel": np.full((64, 10), np.nan)}}},
            "`params` must be finite, got 640",
        ),
    ],
)
def test_what_a_run_does_not_take_is_named(data, wrong, message):
    shards, test = data
    given = {"federation": federation(shards), "shards": shards, "test": test, "num_rounds": 1}
    with pytest.raises(ValueError, match=message):
        fj.run(jax.random.key(0), **{**given, **wrong})


def test_a_run_within_a_compiled_function_is_refused_with_what_to_call(data):
    shards, test = data
    one = federation(shards)
    with pytest.raises(ValueError, match=r"`key` and `params` must be .* scan `federation.step`"):
        jax.jit(lambda key: fj.run(key, one, shards, test, num_rounds=1))(jax.random.key(0))


def test_what_a_step_does_not_take_is_named(data):
    shards, test = data
    one = federation(shards)
    state = one.init(jax.random.key(0), shards)
    with pytest.raises(ValueError, match="`state` must be a State, as `federation.init"):
        one.step(shards, state)
    with pytest.raises(ValueError, match="`shards` must be a Shards"):
        one.step(state, test)
    with pytest.raises(ValueError, match="`data` must be a Dataset"):
        one.evaluate(state.agents, shards)
    with pytest.raises(ValueError, match="`num_rounds`.*got -1"):
        one.init(jax.random.key(0), shards, num_rounds=-1)


def test_an_optimizer_that_needs_more_than_gradients_is_refused_before_the_first_round(data):
    with pytest.raises(ValueError, match="`optimizer` must compute its step from gradients"):
        federation(data[0], optimizer=optax.lbfgs()).init(jax.random.key(0), data[0])


def test_a_schedule_within_the_optimizer_is_warned_about(data):
    shards, _ = data
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 100))
    with pytest.warns(UserWarning, match="counts each agent's own local steps"):
        federation(shards, optimizer=optimizer).init(jax.random.key(0), shards)
    told = federation(shards, optimizer=optimizer, schedule_counts="rounds")
    told.init(jax.random.key(0), shards)
    with pytest.raises(ValueError, match="Unknown schedule_counts 'round'. Did you mean 'rounds'"):
        federation(shards, schedule_counts="round")


def stopping(count):
    """A learning rate that is zero from the third round on."""
    return jnp.where(count < 2, 0.1, 0.0)


def first_two():
    """A mechanism by which agent 2 never takes part."""

    def plan(state, context):
        return Plan(participants=jnp.arange(3) < 2)

    return fj.mechanisms.fedavg()._replace(plan=plan)


def test_agents_that_a_plan_leaves_out_upload_nothing_whatever_their_behaviour(data):
    shards, _ = data
    dishonest = [Behaviour(0, "broken_nan"), Behaviour(2, "broken_nan")]
    one = federation(shards, mechanism=first_two(), behaviours=dishonest)
    _, record = one.step(one.init(jax.random.key(0), shards), shards)
    assert record.excluded.tolist() == [True, False, False]
    assert record.participants.tolist() == [True, True, False]
    assert not any(leaf[2].any() for leaf in jax.tree.leaves(record.uploads))


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (lambda s, c: None, "a `fairjax.mechanisms.Plan`, got None"),
        (lambda s, c: (True,), "a `fairjax.mechanisms.Plan`, got .True,."),
        (lambda s, c: Plan(jnp.ones(3)), r"`participants` of booleans .* got float32\[3\]"),
        (lambda s, c: Plan(jnp.ones(4, bool)), r"of shape \(3,\), got bool\[4\]"),
        (lambda s, c: Plan(start=c.server), "`start` of shapes"),
        (lambda s, c: Plan(frozen=True), "`frozen` only where agents train adapters"),
        (lambda: Plan(), "`plan` must take state, context, in this order"),
    ],
)
def test_a_plan_that_breaks_the_protocol_is_named(data, plan, words):
    shards, _ = data

    def play():
        mechanism = fj.mechanisms.Mechanism(*fj.mechanisms.fedavg()[:2], plan)
        one = federation(shards, mechanism=mechanism)
        jax.eval_shape(one.step, one.init(jax.random.key(0), shards), shards)

    with pytest.raises(ValueError, match=words):
        play()


def test_a_list_says_who_takes_part(data):
    shards, _ = data
    mechanism = fj.mechanisms.fedavg()._replace(plan=lambda s, c: Plan([True, False, True]))
    one = federation(shards, mechanism=mechanism)
    _, record = one.step(one.init(jax.random.key(0), shards), shards)
    assert record.participants.tolist() == [True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("num_rounds", [4, 60])
def test_an_honest_update_of_zeros_is_warned_about_once_by_agent_and_round(data, num_rounds):
    shards, test = data
    one = federation(shards, optimizer=optax.sgd, learning_rate=stopping)
    with pytest.warns(UserWarning, match="exactly zero") as caught:
        fj.run(jax.random.key(0), one, shards, test, num_rounds=num_rounds, eval_every=100)
    (warning,) = caught
    text = "Agent 0 trained honestly in round 2 and its update was exactly zero"
    assert str(warning.message).startswith(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "num_rounds"),
    [
        # The round after the last only gives the accuracies of trained models.
        ({"optimizer": optax.sgd, "learning_rate": stopping}, 2),
        ({"behaviours": [Behaviour(0, "free_rider_zero")]}, 3),
        ({"mechanism": first_two()}, 3),
    ],
)
def test_other_uploads_of_zeros_are_not_warned_about(data, options, num_rounds):
    shards, test = data
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fj.run(
            jax.random.key(0), federation(shards, **options), shards, test, num_rounds=num_rounds
        )


@pytest.mark.slow
def test_the_first_honest_agent_is_named_where_a_free_rider_uploads_nothing(data):
    shards, test = data
    options = {"optimizer": optax.sgd, "learning_rate": stopping}
    one = federation(shards, behaviours=[Behaviour(0, "free_rider_zero")], **options)
    with pytest.warns(UserWarning, match="Agent 1 trained honestly in round 2"):
        fj.run(jax.random.key(0), one, shards, test, num_rounds=3)


@pytest.mark.slow
def test_an_experiment_warns_of_a_learning_rate_that_has_become_too_small():
    experiment = fj.Experiment(
        num_agents=2, rounds=3, model="logistic", samples_per_agent=20, learning_rate=0.1,
        learning_rate_decay=1e-30, mechanism="standalone",
    )  # fmt: skip
    with pytest.warns(UserWarning, match="Agent 0 trained honestly in round 1"):
        experiment.run()


def test_a_decay_that_leaves_nothing_of_the_learning_rate_is_warned_of_before_the_run(monkeypatch):
    monkeypatch.setattr(fj.Experiment, "_go_on", lambda *_: None)
    with pytest.warns(UserWarning, match=r"=0.977 leaves 5e-31 of .* after 3000 rounds"):
        fj.Experiment(dataset="mnist", rounds=3000).run()
    fj.Experiment(rounds=3000).run()


def test_an_experiment_does_all_of_what_its_agents_are_told():
    told = {"label_flip": 1, "sign_flip": 1}
    experiment = fj.Experiment(num_agents=3, model="logistic", behaviours=told)
    shards, _ = experiment.make_shards()
    assert [one.name for one in experiment.federation(shards).behaviours] == ["sign_flip"]
    honest, _ = dataclasses.replace(experiment, behaviours=()).make_shards()
    assert len(shards.data) > len(honest.data)


@pytest.mark.parametrize("name", [*DATA, *UPLOADS])
def test_a_behaviour_without_a_strength_has_that_of_its_name(name):
    (drawn,) = fj.simulation.behaviours.assign({name: 1}, num_agents=1)
    assert drawn.strength == fj.simulation.behaviours.strength_of(name)
    assert Behaviour(0, name).strength is None


@pytest.mark.parametrize(
    "kind",
    [fj.State, fj.Record, fj.History, fj.Federation, fj.mechanisms.Context, progress.Progress],
)
def test_every_field_is_explained(kind):
    names = getattr(kind, "_fields", None) or [one.name for one in dataclasses.fields(kind)]
    for name in names:
        assert f"\n  {name}: " in f"{inspect.getdoc(kind)}", name


def test_data_are_no_shards(data):
    shards, _ = data
    with pytest.raises(ValueError, match="`shards` must be a Shards"):
        federation(shards).init(jax.random.key(0), shards.data)
