"""Fingerprints: equal for equal contents in every process; values without one are refused."""

import collections
import ctypes
import dataclasses
import enum
import functools
import importlib
import os
import re
import subprocess
import sys
import threading
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import fairjax as fj
from fairjax.fingerprint import fingerprint

SCALE = 2.0


class Pair(NamedTuple):
    a: object
    b: object


class Other(NamedTuple):
    a: object
    b: object


@dataclasses.dataclass(frozen=True)
class Settings:
    width: int = 3
    names: list = dataclasses.field(default_factory=list)


class Net(nn.Module):
    width: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(self.width)(x)))


class Plain:
    def __init__(self, scale):
        self.scale = scale

    def apply(self, x):
        return self.scale * x


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n != 0 and even(n - 1)


def adder(number, *, by=1):
    def add(x, more=by):
        return x + number + more

    return add


def class_with(method):
    return type("Made", (), {"apply": method})


DATA = fj.data.Dataset(x=np.ones((4, 3)), y=[0, 1, 0, 1], num_classes=2)
# Every call makes a new value; the values of two entries differ.
VALUES = [
    lambda: None, lambda: True, lambda: 1, lambda: 1.0, lambda: 1j, lambda: "1", lambda: b"1",
    lambda: 0.0, lambda: -0.0, lambda: float("nan"), lambda: ..., lambda: (), lambda: [],
    lambda: (1,), lambda: [1], lambda: {1}, lambda: frozenset({1}), lambda: {"a": 1},
    lambda: {"a": 2}, lambda: {1: "a"}, lambda: [1, (2, 3)], lambda: [(1, 2), 3],
    lambda: {"a": {"b": [1]}}, lambda: Pair(1, 2), lambda: Pair(2, 1), lambda: Other(1, 2),
    lambda: Settings(), lambda: Settings(4), lambda: Settings(names=["a"]), lambda: Settings,
    lambda: np.float32(1), lambda: np.float64(1), lambda: np.ones(3), lambda: np.ones((3, 1)),
    lambda: np.ones(3, np.float32), lambda: np.array(["a", 1], object), lambda: jnp.ones(3),
    lambda: jnp.asarray(1.0), lambda: jnp.asarray(np.float32(1)), lambda: jnp.ones(3, jnp.bfloat16),
    lambda: np.dtype("f4"), lambda: jnp.float32, lambda: jnp.bfloat16, lambda: jax.random.key(0),
    lambda: jax.random.key(1), lambda: jax.random.PRNGKey(0), lambda: fj.devices.mesh(1),
    lambda: np, lambda: print, lambda: len, lambda: [].append, lambda: [1].append, lambda: jnp.sin,
    lambda: adder(1), lambda: adder(2), lambda: adder(1, by=2), lambda: adder(np.ones(2)),
    lambda: (lambda x: x + 1), lambda: (lambda x: x + 2), lambda: (lambda x: x - 1),
    lambda: (lambda x: SCALE * x), lambda: (lambda y: SCALE * y), lambda: even, lambda: odd,
    lambda: jax.jit(adder(1)), lambda: jax.jit(adder(2)), lambda: functools.partial(adder, 1),
    lambda: functools.partial(adder, 2), lambda: functools.partial(adder, number=1),
    lambda: Plain(1), lambda: Plain(2), lambda: Plain(1).apply, lambda: Plain(2).apply,
    lambda: class_with(lambda self: 1), lambda: class_with(lambda self: 2),
    lambda: Net(), lambda: Net(4), lambda: nn.Dense(3), lambda: optax.sgd(0.1),
    lambda: optax.sgd(0.2), lambda: optax.adam(optax.exponential_decay(0.1, 1, 0.9)),
    lambda: optax.adam(optax.exponential_decay(0.1, 1, 0.8)), lambda: optax.lbfgs(),
    lambda: optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.1, 0, 9)),
    lambda: fj.models.from_flax(lambda rngs: nnx.Linear(3, 2, rngs=rngs)),
    lambda: fj.models.from_flax(lambda rngs: nnx.Linear(3, 4, rngs=rngs)),
    lambda: fj.models.logistic(DATA), lambda: fj.models.mlp(DATA),
    lambda: fj.models.mlp(DATA, (8,)), lambda: DATA, lambda: DATA.take([0, 1]),
    lambda: fj.mechanisms.cgsv(gamma=0.1),
    lambda: fj.simulation.Behaviour(1, "sign_flip"), lambda: fj.Experiment(), lambda: range(3),
    *fj.mechanisms.REGISTRY.values(),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(VALUES)))
def test_what_is_made_again_has_the_same_fingerprint(number):
    make = VALUES[number]
    assert fingerprint(make()) == fingerprint(make())


def test_no_two_values_have_the_same_fingerprint():
    digests = [fingerprint(make()) for make in VALUES]
    twice = [number for number, one in enumerate(digests) if digests.index(one) != number]
    assert twice == []


def test_the_order_of_sets_and_mappings_does_not_count():
    words = [f"word{number}" for number in range(50)]
    assert fingerprint(set(words)) == fingerprint(set(reversed(words)))
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


class Lenient(dict):
    __getattr__ = dict.get


@dataclasses.dataclass
class Derived:
    factor: dataclasses.InitVar[int]

    def __post_init__(self, factor):
        self.double = 2 * factor

    @functools.cached_property
    def slow(self):
        return self.double + 1


def with_attribute(kind, number):
    made = type("Made", (kind,), {})()
    made.scale = number
    return made


def class_of(**entries):
    return type("Made", (), entries)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: class_of(_scale=n),
        lambda n: class_of(base=1, __init_subclass__=classmethod(lambda cls: n)),
        lambda n: type("Sub", (class_of(_scale=n),), {}),
        lambda n: type("Net", (nn.Module,), {"_scale": n}),
        lambda n: type("Net", (nnx.Module,), {"_scale": jnp.asarray(n)}),
        lambda n: enum.Enum("Weight", {"HEAVY": n}),
        lambda n: enum.Enum("Weight", {"HEAVY": n}).HEAVY,
        lambda n: class_of(by=functools.partialmethod(adder, by=n)),
        lambda n: type("Meta", (type,), {"scale": n})("Made", (), {}),
        lambda n: Lenient(scale=n),
        lambda n: Derived(n),
        lambda n: collections.defaultdict(lambda: n),
        lambda n: with_attribute(list, n),
        lambda n: with_attribute(dict, n),
        lambda n: class_of(by=functools.cached_property(lambda self: n)),
        lambda n: re.compile(str(n)),
        lambda n: collections.OrderedDict([("a", 1), ("b", 2)][:: 1 if n == 1 else -1]),
        lambda n: (
            {"first": adder(1), "second": adder(2)}
            if n == 1
            else {"second": adder(2), "first": adder(1)}
        ),
    ],
)
def test_what_a_class_or_a_dict_of_functions_holds_counts(make):
    assert fingerprint(make(1)) == fingerprint(make(1))
    assert fingerprint(make(1)) != fingerprint(make(2))


def test_globals_of_a_wrapper_and_imports_in_a_function_count(monkeypatch, tmp_path):
    @functools.wraps(optax.l2_loss)
    def loss(x):
        return SCALE * x

    def importing(x):
        from helper_of_a_test import STEP

        return STEP * x

    def missing(x):
        import module_that_is_not_there

        return module_that_is_not_there.f(x)

    helper = types.ModuleType("helper_of_a_test")
    helper.STEP, helper.OTHER = 1.0, 1.0
    monkeypatch.setitem(sys.modules, "helper_of_a_test", helper)
    before = [fingerprint(one) for one in (loss, importing, missing)]
    helper.OTHER = 2.0
    assert [fingerprint(one) for one in (loss, importing, missing)] == before
    helper.STEP = 2.0
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    after = [fingerprint(one) for one in (loss, importing, missing)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]


def test_what_was_cached_does_not_count():
    class Slow:
        @functools.cached_property
        def value(self):
            return 3

    for one, name in ((Slow(), "value"), (Derived(1), "slow")):
        before = fingerprint(one)
        assert getattr(one, name) == 3
        assert fingerprint(one) == before
    module = Net()
    before = fingerprint(module)
    module.init(jax.random.key(0), jnp.ones((1, 2)))
    assert fingerprint(module) == before


def test_relative_imports_in_a_function_are_followed(tmp_path, monkeypatch):
    folder = tmp_path / "package_of_a_test"
    (folder / "inner").mkdir(parents=True)
    lines = ["from . import helper", "from .statistics import F", "from ..helper import F"]
    for place in (folder, folder / "inner"):
        (place / "__init__.py").write_text("")
        for name in ("helper", "statistics"):
            (place / f"{name}.py").write_text("F = 1.0")
    code = "".join(f"def f{n}(x):\n    {line}\n    return x\n" for n, line in enumerate(lines))
    (folder / "inner" / "net.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    net = importlib.import_module("package_of_a_test.inner.net")
    functions = [net.f0, net.f1, net.f2]
    before = list(map(fingerprint, functions))
    for number, name in enumerate(("inner.helper", "inner.statistics", "helper")):
        module = importlib.import_module(f"package_of_a_test.{name}")
        module.F = 2.0
        assert [fingerprint(functions[number]) == before[number]] == [name == "inner.helper"]


def test_an_installed_package_that_a_function_imports_is_not_imported_before(monkeypatch):
    asked = []

    def of_package(x):
        import tensorflow_datasets.core

        return tensorflow_datasets.core, x

    def of_nobody(x):
        import module_that_is_not_there

        return module_that_is_not_there, x

    def note(name, package):
        asked.append(name)
        raise ImportError(name)

    monkeypatch.setattr("fairjax.definitions.importlib.import_module", note)
    fingerprint([of_package, of_nobody])
    assert asked == ["module_that_is_not_there"]


def test_a_schedule_that_was_called_has_the_same_fingerprint():
    schedule = optax.cosine_decay_schedule(0.1, 100)
    before = fingerprint(optax.sgd(schedule))
    schedule(0)
    assert fingerprint(optax.sgd(schedule)) == before
    assert fingerprint(optax.sgd(optax.cosine_decay_schedule(0.1, 50))) != before


def test_a_changed_global_changes_who_names_it(monkeypatch):
    before = fingerprint(VALUES[0]), fingerprint(adder), fingerprint(lambda x: SCALE * x)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    after = fingerprint(VALUES[0]), fingerprint(adder), fingerprint(lambda x: SCALE * x)
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, True, False]


def test_what_holds_itself_has_a_fingerprint():
    def chain():
        inner = [1]
        outer = {"a": inner, "b": 2}
        inner.append(outer)
        return outer

    assert fingerprint(chain()) == fingerprint(chain())
    assert fingerprint(chain()) != fingerprint({"a": [1], "b": 2})


def test_a_shared_and_a_copied_part_are_the_same():
    part = [1, 2]
    assert fingerprint((part, part)) == fingerprint(([1, 2], [1, 2]))


SOURCE = """
import sys
import jax, numpy as np, optax
from flax import linen as nn
import fairjax as fj
from fairjax.fingerprint import fingerprint

class Net(nn.Module):
    hidden: tuple = (3, 4)
    kinds = frozenset({"relu", "tanh", "gelu"})

    @nn.compact
    def __call__(self, x):
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x)) if "relu" in {"relu", "tanh", "selu"} else x
        return nn.Dense(2)(x)

federation = fj.federation(
    model=fj.models.from_flax(Net()), mechanism=fj.mechanisms.cgsv(), optimizer=optax.adam,
    learning_rate=optax.exponential_decay(0.1, 1, 0.9),
    behaviours=[fj.simulation.behaviours.Behaviour(0, "sign_flip")], mesh=fj.devices.mesh(1),
)
print(fingerprint([federation, {"a", "b", "c"}, jax.random.key(0), np.arange(3), sys]))
"""


def test_every_process_finds_the_same_fingerprint(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)

    def run(seed):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(
            [sys.executable, path], env=environment, stdout=subprocess.PIPE, text=True
        )

    digests = [process.communicate()[0] for process in [run("1"), run("2")]]
    assert len(digests[0].strip()) == 64
    assert digests[0] == digests[1]


class Stubborn:
    def __reduce_ex__(self, protocol):
        raise RuntimeError("not now")


def closing_over(value):
    return lambda params: value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (threading.Lock(), "`federation` must have a fingerprint, got lock: .*cannot pickle"),
        ([(one for one in ())], r"`federation\[0\]` must .* got generator"),
        ({"a": [0, threading.Lock()]}, r"`federation\['a'\]\[1\]` must .* got lock"),
        (closing_over(threading.Lock()), r"`federation.<closure value>` must .* got lock"),
        (
            Pair(1, fj.models.Model(closing_over(threading.Lock()), print)),
            "`federation.b.init.<closure value>`",
        ),
        (functools.partial(print, threading.Lock()), r"`federation.args\[0\]`"),
        (Settings(names=[threading.Lock()]), r"`federation.names\[0\]`"),
        ([ctypes.pointer(ctypes.c_int(0))], r"`federation\[0\]` must .* contents cannot be read"),
        ([Stubborn()], r"`federation\[0\]` must .* cannot be read \(not now\)"),
        (
            functools.reduce(lambda inner, _: [inner], range(2000), []),
            "`federation` must be nested less, got .*list",
        ),
    ],
)
def test_what_has_no_fingerprint_is_named_with_its_place(value, message):
    with pytest.raises(ValueError, match=message):
        fingerprint(value, "federation")


def test_an_open_file_and_a_traced_value_have_no_fingerprint(tmp_path):
    with open(tmp_path / "file", "w") as file, pytest.raises(ValueError, match=r"`v\[0\]`.*TextIO"):
        fingerprint([file], "v")

    def traced(gamma):
        rule = r"`m.update.<closure update>.<closure gamma>` .* while a function is"
        with pytest.raises(ValueError, match=rule):
            fingerprint(fj.mechanisms.cgsv(gamma=gamma), "m")
        return gamma

    jax.eval_shape(traced, 1.0)
