"""A wrong value of any kind, given to any public function, works or is refused with a sentence.

Every call below is right. A test replaces one argument by a value from `WRONG`: then the function
returns, or raises a ValueError that names an argument. The fast step tries some values of each
function, the slow step many more.
"""

import functools
import inspect
import re
import warnings

import flax.errors
import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from drawn import evaluate

import fairjax as fj

TRIES, ALL_TRIES = 4, 40
MOST_CHARACTERS = 1000  # in a message
RAW = (
    ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, ImportError,
    LookupError, MemoryError, NameError, OSError, RuntimeError, StopIteration, TypeError, Warning,
)  # fmt: skip

CALLS = {  # the required arguments
    "contributions.cosine": {"updates": "np.eye(3)"},
    "contributions.cosine_game": {"updates": "np.eye(3)"},
    "contributions.cosine_shapley": {"updates": "np.eye(3)"},
    "contributions.mean_field_cosine_shapley": {"updates": "np.eye(3)"},
    "contributions.gram_cosine_shapley": {"key": "jax.random.key(0)", "updates": "np.eye(3)"},
    "contributions.sampled_cosine_shapley": {"key": "jax.random.key(0)", "updates": "np.eye(3)"},
    "contributions.shapley": {"utilities": "np.arange(8.0)"},
    "contributions.banzhaf": {"utilities": "np.arange(8.0)"},
    "contributions.leave_one_out": {"utilities": "np.arange(8.0)"},
    "contributions.model_utilities": {
        "utility": "jnp.sum", "params": "np.zeros(3)", "updates": "np.eye(3)",
    },
    "contributions.gtg_shapley": {
        "key": "jax.random.key(0)", "utility": "jnp.sum", "params": "np.zeros(3)",
        "updates": "np.eye(3)",
    },
    "contributions.recorded_utilities": {
        "utility": "jnp.sum", "servers": "np.zeros((2, 3))", "updates": "np.ones((2, 3, 3))",
    },
    "contributions.multi_round_shapley": {
        "utility": "jnp.sum", "servers": "np.zeros((2, 3))", "updates": "np.ones((2, 3, 3))",
    },
    "contributions.federated_shapley": {
        "utility": "jnp.sum", "servers": "np.zeros((2, 3))", "updates": "np.ones((2, 3, 3))",
        "participants": "np.ones((2, 3), bool)",
    },
    "rewards.importance": {"previous": "np.ones(3)", "contributions": "np.ones(3)"},
    "rewards.reward_fractions": {"importance": "np.ones(3)"},
    "rewards.sparsify": {"aggregate": "np.ones(3)", "fractions": "np.ones(3)"},
    "rewards.truncate": {"aggregate": "np.ones((3, 3))", "fractions": "np.ones(3)"},
    **dict.fromkeys(
        (
            "metrics.fairness", "metrics.rank_fairness", "metrics.shortfall",
            "metrics.collaboration_gain", "metrics.fairness_interval", "metrics.why_undefined",
        ),
        {"standalone_accuracies": "np.arange(4.0)", "final_accuracies": "np.arange(4.0)"},
    ),
    "metrics.detection_auc": {"importance": "np.arange(3.0)", "honest": "np.arange(3) > 1"},
    "data.Dataset": {"x": "np.ones((3, 2))", "y": "[0, 1, 2]", "num_classes": "3"},
    "data.Shards": {"data": "train", "indices": "[[0, 1], [2, 3]]", "sizes": "[2, 1]"},
    "data.Shards.from_indices": {"data": "train", "rows": "[[0, 1], [2]]"},
    "data.hold_out": {"dataset": "train"},
    "data.load": {"name": "'digits'"},
    "data.register": {"name": "'of_a_test'", "loader": "lambda: (train, test)"},
    "mechanisms.register": {"name": "'of_a_test'", "factory": "fj.mechanisms.fedavg"},
    "mechanisms.start_at_server": {"mechanism": "'mean'"},
    "data.stacked": {"shards": "[shards, shards]"},
    "data.uniform": {"train": "train", "num_agents": "2"},
    "data.power_law": {"train": "train", "num_agents": "2"},
    "data.class_imbalance": {"train": "train", "num_agents": "2"},
    "data.dirichlet": {"train": "train", "num_agents": "2"},
    "data.mixtures": {"train": "train", "num_agents": "2"},
    "models.mlp": {"train": "train"},
    "models.logistic": {"train": "train"},
    "models.mnist_cnn": {},
    "models.cifar_cnn": {},
    "models.chain": {"layers": "['a', 'head']"},
    "models.lora": {"model": "model", "params": "model.init(jax.random.key(0))"},
    "models.text_cnn": {"vocabulary_size": "20", "num_classes": "2"},
    "models.from_flax": {"module": "flax.linen.Dense(3)"},
    "models.initial_params": {"model": "model", "key": "jax.random.key(0)", "data": "train"},
    "models.save_params": {"path": "'params'", "params": "{'a': np.ones(3)}"},
    "models.load_params": {"path": "'params'"},
    "save_params": {"path": "'params'", "params": "{'a': np.ones(3)}"},
    "load_params": {"path": "'params'"},
    "models.computing_in": {"model": "model", "dtype": "jnp.bfloat16"},
    **{f"mechanisms.{name}": {} for name in fj.mechanisms.REGISTRY},
    "figures.partition": {"shards": "shards"},
    "figures.accuracy": {"result": "result"},
    "figures.contributions": {"result": "result"},
    "figures.importance": {"result": "result"},
    "figures.reward_fractions": {"result": "result"},
    "figures.fairness": {"result": "result"},
    "figures.comparison": {"results": "{'cgsv': result}"},
    "figures.over_seeds": {"comparison": "comparison"},
    "figures.audit": {"audit": "audit"},
    "report.write_audit": {"audit": "audit", "out": "'.'"},
    "report.write_run": {"result": "result", "out": "'.'"},
    "report.write_comparison": {"results": "{'cgsv': result}", "out": "'.'"},
    "report.write_over_seeds": {"comparison": "comparison", "out": "'.'"},
    "figures.svg": {"figure": "plt.gcf()", "prefix": "'a'"},
    "figures.write": {"figure": "plt.gcf()", "path": "'a.png'"},
    "tasks.Task": {"loss": "fj.tasks.METRICS['mse']", "metrics": "['mse']"},
    "tasks.classification": {"train": "train"},
    "tasks.class_weighted": {"train": "train", "weights": "[1] * 10"},
    "tasks.regression": {"train": "fj.data.Dataset(np.ones((2, 1)), [0.5, 1.5])"},
    "tasks.multi_label": {"train": "fj.data.Dataset(np.ones((2, 1)), [[0, 1], [1, 1]])"},
    "devices.mesh": {},
    "devices.start": {},
    "federation": {
        "model": "model", "mechanism": "fj.mechanisms.cgsv()", "optimizer": "optax.sgd(0.1)",
    },
    "run": {
        "key": "jax.random.key(0)", "federation": "federation", "shards": "shards", "test": "test",
        "num_rounds": "1",
    },
    "Experiment": {},
    "sweep": {"experiment": "experiment", "seeds": "[0]"},
    "compare": {"experiment": "experiment", "names": "['standalone']"},
    "load_run": {"out": "'folder'"},
    "audit": {
        "experiment": "experiment", "manipulations": "['idle']", "agents": "[0]", "seeds": "[0]",
    },
}  # fmt: skip

INNER = {  # only called by the package itself
    "contributions.check_table", "contributions.checked", "contributions.coalition_cosines",
    "contributions.measure", "contributions.products_of", "mechanisms.checked_answer",
    "mechanisms.checked_plan", "models.looks_at_data",
    "mechanisms.length_at", "mechanisms.switched", "models.as_model", "devices.by_agent",
    "devices.checked", "devices.everywhere",
    "devices.map_shards", "devices.placed", "figures.check_results", "figures.correlation_axis",
    "figures.draw_correlation", "figures.draw_spread", "figures.name_lines",
    "figures.name_series", "figures.styled", "rewards.entries_held", "rewards.least_importance",
    "rewards.largest_entries", "rewards.mean_of_holders",
    "rewards.nested_units", "rewards.normalised", "rewards.submodels",
    "rewards.recall", "rewards.settle", "rewards.share_of_largest", "models.evaluator",
    "models.initial",
    "tasks.Shown", "tasks.as_task", "tasks.confusion",
    "models.changes", "models.joined", "models.with_factors",
    # These need published weights; tests/test_minilm.py calls them.
    "models.minilm", "models.minilm_tokenizer",
}  # fmt: skip

WRONG = """
None; True; False; 'abc'; ''; b'abc'; -1; 0; 1.5; -0.5; np.nan; np.inf; -np.inf; 1e300; 1e-300
2**31; 2**64; 10**400; 1j; []; (); {}; {'a': 1}; {1: np.ones(3)}; [1, 'a']; [[1], [1, 2]]; [None]
[[]]; ['abc']; [-1.0, 0.5, 2.0]; [1j, 1j, 1j]; [2**64, 0, 0]; ['a', 'b', 'c']; range(3)
{'a', 'b'}; iter([1, 2, 3]); (i for i in 'abc'); object(); int; print; lambda *a, **k: None
lambda x: x; ...; np; slice(3); Path('.'); Fraction(1, 2); Decimal('0.5'); np.float16(0.5)
np.int8(-1); np.bool_(True); np.str_('abc'); np.datetime64('2020-01-01'); np.array(1.0)
np.ones(0); np.ones(2); np.ones(3); np.ones(4); -np.ones(3); np.ones((3, 3)); np.ones((3, 0))
np.ones((2, 2, 2)); np.zeros(3); np.full(3, np.nan); np.full(3, np.inf); np.full(3, 3e38)
np.full((3, 3), 3e38); np.full(8, 3e38); np.full(3, 1e300); np.arange(3) > 1
np.eye(3, dtype=bool); np.array([1j, 2, 3]); np.eye(3) * 1j; np.array(['a', 'b', 'c'])
np.array([None, 1, 2]); np.array([1, 2, 3], object); np.eye(3).astype(object)
np.ma.masked_array([1.0, 2, 3], [0, 1, 0]); np.array(['2020'], 'datetime64[D]'); jnp.ones(3)
jnp.eye(3); jnp.float32(0.5); jnp.bfloat16(0.5); jnp.ones((2, 3), bool); jax.random.key(0)
jax.random.PRNGKey(0); jax.random.split(jax.random.key(0)); jax.ShapeDtypeStruct((3,), float)
[np.ones(3), np.ones(3), np.ones(3)]; [{'a': np.ones(2)}, {'a': np.ones(2)}]
{'a': np.eye(3), 'b': 'c'}; {'a': {}}; {'a': np.ones((3, 2)), 'b': np.ones((2, 2))}
scipy.sparse.eye(3); Frame(np.eye(3)); train; test; shards; model; federation; experiment; result
plt.gcf(); fj; fj.mechanisms.cgsv; fj.mechanisms.cgsv(); optax.sgd; optax.sgd(0.1); optax.lbfgs()
optax.cosine_decay_schedule(0.1, 5); flax.linen.Dense(3); (train, test); {'cgsv': result}
[shards, None]; {'sign_flip': 1}; {'sign_flip': 'a'}; {'rescale': (1, 1e300)}; (('sign_flip', 1),)
(1, 2, 3); (3, -1); (2.0**70,); [fj.simulation.behaviours.Behaviour(1, 'sign_flip', 1.0)]; jnp.sum
lambda w: w.sum() * np.nan
"""


def arguments(name):
    """Returns the names of what a public function takes."""
    function = functools.reduce(getattr, name.split("."), fj)
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind not in kinds]


def wrong_calls(name):
    """Returns calls with one wrong argument each, in a random order that is always the same."""
    calls = []
    for argument in arguments(name):
        for value in WRONG.strip().replace("\n", ";").split(";"):
            given = {**CALLS[name], argument: value.strip()}
            text = ", ".join(f"{key}={text}" for key, text in given.items())
            calls.append(f"fj.{name}({text})" + ".name" * (name == "Experiment"))
    np.random.default_rng([*name.encode()]).shuffle(calls)
    return calls


def complaint(call):
    """Runs a call, and returns what is wrong with how it ended, or nothing."""
    try:
        with warnings.catch_warnings():
            # JAX warns about iterators before we refuse them.
            warnings.simplefilter("ignore", DeprecationWarning)
            answer = evaluate(call)
    except ValueError as error:
        teaches = re.search(r"`\w|Unknown", str(error)) and len(str(error)) < MOST_CHARACTERS
        return "" if teaches else f"{type(error).__name__}: {error}"
    except flax.errors.FlaxError:
        return ""  # the error of a module that was given as a function, and called
    except RAW as error:
        return f"{type(error).__name__}: {error}"
    counts = call.startswith(("fj.contributions.", "fj.rewards."))
    if counts and not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(answer)):
        return f"not finite: {answer}"
    return ""


def test_every_public_function_is_called():
    found = {name for name in fj.__all__ if inspect.isfunction(getattr(fj, name))}
    for room in (one for one in fj.__all__ if inspect.ismodule(getattr(fj, one))):
        for name, function in inspect.getmembers(getattr(fj, room), inspect.isfunction):
            if not name.startswith("_") and function.__module__.startswith(f"fairjax.{room}"):
                found.add(f"{room}.{name}")
    assert found - INNER <= set(CALLS)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("first", "last"), [(0, TRIES), pytest.param(TRIES, ALL_TRIES, marks=pytest.mark.slow)]
)
def test_a_wrong_value_works_or_is_refused(name, first, last, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    complaints = {call: complaint(call) for call in wrong_calls(name)[first:last]}
    plt.close("all")
    listed = [f"{call}\n    {found:.300}" for call, found in complaints.items() if found]
    assert not listed, "\n".join(listed)
