"""What an experiment's fields may hold, the errors for other values, and reprs."""

import dataclasses
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fairjax as fj
from fairjax.simulation import behaviours


@pytest.mark.parametrize(
    ("field", "most"),
    [
        ("num_agents", 10**6),
        ("samples_per_agent", 10**7),
        ("rounds", 10**6),
        ("local_epochs", 2**31 - 1),
        ("batch_size", 2**31 - 1),
        ("eval_every", 2**31 - 1),
        ("eval_examples", 2**31 - 1),
        ("agents_at_once", 2**31 - 1),
        ("seed", 2**32 - 1),
    ],
)
def test_a_huge_count_is_refused_with_its_limit(field, most):
    assert getattr(fj.Experiment(**{field: most}), field) == most
    for value in (most + 1, 10**12, 2**64, np.int64(2**62)):
        message = rf"^`{field}` must be at most {most:,}, got {field}="
        with pytest.raises(ValueError, match=message):
            fj.Experiment(**{field: value})


def test_keys_repeat_beyond_the_largest_seed():
    first, beyond = (jax.random.key_data(jax.random.key(seed)) for seed in (0, 2**32))
    assert (first == beyond).all()


def test_a_name_costs_nothing_however_many_agents_there_are(monkeypatch):
    def never(*_):
        raise AssertionError("data were loaded, or agents drawn")

    monkeypatch.setattr(behaviours.np.random, "default_rng", never)
    monkeypatch.setattr(fj.data, "load", never)
    experiment = fj.Experiment(num_agents=10**6, behaviours={"sign_flip": 10**5})
    assert experiment.name.startswith("digits-power_law-1000000-cgsv-")


def test_more_dishonest_agents_than_there_are_are_not_listed():
    with pytest.raises(ValueError, match="at most num_agents=5 agents, got 1000000"):
        fj.Experiment(behaviours={"sign_flip": 10**6})


@pytest.mark.parametrize("change", [fj.Experiment, lambda **f: dataclasses.replace(SMALL, **f)])
def test_a_wrong_name_of_a_field_is_told_the_right_one(change):
    with pytest.raises(ValueError, match="Unknown field 'num_agent'. Did you mean 'num_agents'?"):
        change(num_agent=3)


def test_fields_are_given_by_name_and_shown_by_help():
    with pytest.raises(ValueError, match="must be given its fields by name, as dataset=..., got 3"):
        fj.Experiment(3)
    fields = [field.name for field in dataclasses.fields(fj.Experiment)]
    assert list(inspect.signature(fj.Experiment).parameters) == fields


SMALL = fj.Experiment(num_agents=2, rounds=1)
KINDS = [None, True, 3, 3.5, "3", b"3", [3], {3}, {"a": {"b": len}}, np.arange(3), np.ones((2, 2))]
KINDS += [jnp.arange(2), float("nan"), 1e300, 10**400, 1j, len, object(), "a\nb", "x" * 5000, [[1]]]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(fj.Experiment)])
def test_a_value_of_any_kind_is_taken_or_refused_in_one_short_line(field):
    for value in KINDS:
        said = refusal(**{field: value})
        if said:
            assert field.removesuffix("s") in said
            assert "\n" not in said
            continue
        experiment = fj.Experiment(**{field: value})
        assert hash(experiment) == hash(pickle.loads(pickle.dumps(experiment)))
        if field == "params":  # an object, which is not recorded
            continue
        if not callable(value) or field == "gamma":  # and so are functions
            assert experiment.name == fj.Experiment(**experiment.description()).name


def refusal(**fields):
    try:
        fj.Experiment(**fields)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": 3}, "`dataset` must be a name of `fairjax.data.load`"),
        ({"record_updates": "no"}, "`record_updates` must be True or False, got 'no'"),
        ({"num_agents": "3"}, "`num_agents` must be a whole number of at least 1, got '3'"),
        ({"rounds": np.ones((2, 2))}, r"got array\(\[\[1., 1.\], \[1., 1.\]\]\)\.$"),
        ({"split": "x" * 5000}, r"Unknown split 'x{90,100}\.\.\.\. Known"),
        ({"options": 3}, "`options` must be a mapping of names to values, got 3"),
        ({"options": "mask"}, "`options` must be a mapping of names to values, got 'mask'"),
        ({"options": {3: 4}}, "`options` must be a mapping of names to values"),
        ({"options": {"mask": len}}, "`options` must hold numbers, texts .* got mask=<built-in"),
        ({"options": {"mask": np.arange(2)}}, r"got mask=array\(\[0, 1\]\)"),
        ({"options": [("mask", "leaf"), ("mask", "model")]}, "every name once, got 'mask' twice"),
        ({"options": {"beta": 2.0}}, "`options` must not hold `beta`, which is a field"),
        ({"beta": 1.0, "options": {"beta": 2.0}}, "`options` must not hold `beta`"),
        ({"behaviours": ["sign_flip"]}, "`behaviours` must be a mapping of names to values"),
        ({"behaviours": {"sign_flip": (1, 2, 3)}}, r"a pair .number, strength., got \(1, 2, 3\)"),
        ({"behaviours": {"sign_flip": (1, "x")}}, "`strength of sign_flip` must be .* got .*'x'"),
        ({"mechanism": "fedavg", "options": {"beta": 2.0}}, "does not take `beta`"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_rule(fields, message):
    with pytest.raises(ValueError, match=message):
        fj.Experiment(**fields)


@pytest.mark.parametrize("wrap", [np.float32, np.array, jnp.array])
def test_single_numbers_of_arrays_are_numbers(wrap):
    assert fj.Experiment(beta=wrap(0.5), options={"mask": "leaf"}).beta == 0.5
    assert fj.Experiment(num_agents=np.int16(3), record_updates=np.bool_(False)).num_agents == 3


def test_mappings_are_equal_however_they_are_given():
    one = fj.Experiment(options={"mask": "leaf", "contribution": "shapley"})
    other = fj.Experiment(options=[("mask", "leaf"), ("contribution", "shapley")])
    assert one == other
    assert one.name == other.name


@pytest.mark.parametrize(
    ("experiment", "shown"),
    [
        (fj.Experiment(), "Experiment()"),
        (fj.Experiment(seed=3, beta=np.float64(0.5)), "Experiment(beta=0.5, seed=3)"),
        (
            fj.Experiment(options={"mask": "leaf"}, behaviours={"sign_flip": (1, 2.0)}),
            "Experiment(behaviours={'sign_flip': (1, 2.0)}, options={'mask': 'leaf'})",
        ),
    ],
)
def test_an_experiment_shows_what_is_not_as_by_default(experiment, shown):
    assert repr(experiment) == shown
    assert eval(repr(experiment), vars(fj)) == experiment


def test_a_long_experiment_takes_a_line_per_field():
    experiment = fj.Experiment(seed=3).resolved()
    lines = repr(experiment).splitlines()
    assert lines[0] == "Experiment("
    assert "    seed=3," in lines
    assert eval(repr(experiment), vars(fj)) == experiment


@pytest.mark.parametrize("out", [None, 3, True, b"runs", ["runs"], {}, len, "a\0b", "x" * 300])
@pytest.mark.parametrize(
    "read", [fj.load_run, SMALL.run, lambda out: fj.compare(SMALL, ["fedavg"], out)]
)
def test_what_is_no_path_is_refused_before_anything_else(read, out):
    if out is not None or read is fj.load_run:
        with pytest.raises(ValueError, match="^`out` must be a path such as .{1,125}$"):
            read(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resume": "no"}, "`resume` must be True or False, got 'no'"),
        ({"watch": 3}, "`watch` must be a function or None, watch.*got 3"),
        ({"standalone": SMALL}, "`standalone` must be a Result"),
        ({"mesh": 3}, "`mesh` must be a jax.sharding.Mesh"),
    ],
)
def test_an_argument_of_run_is_checked_before_anything_is_written(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SMALL.run(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()
