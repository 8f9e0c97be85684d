"""Fingerprints: digests of the contents of values, the same in every process.

    number, text, bytes        kind and contents
    array                      kind, dtype, shape and contents; a PRNG key: its data
    tuple, dict, dataclass     kind, and the fingerprints of its parts
    function                   code, constants, defaults, closure, and the globals that it uses
    class                      name, bases, methods and constants
    of an installed package    only the name of a class, module or function

Two values with the same fingerprint compute the same. Addresses, Python's hashes, and the order of
sets, of attributes and of dicts of arrays and numbers do not matter. Other objects are read as by
pickle; what pickle refuses has no fingerprint.
"""

import collections
import copyreg
import dataclasses
import enum
import functools
import hashlib
import pickle
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fairjax.definitions import (
    Part,
    describe_code,
    get_own,
    is_known_by_name,
    parts_of_class,
    parts_of_function,
)

_ATOMS = (types.NoneType, bool, int, float, complex, str, bytes, types.EllipsisType)
_BUILTINS = (
    types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType,
    types.MethodWrapperType, types.ClassMethodDescriptorType, types.GetSetDescriptorType,
    types.MemberDescriptorType, np.ufunc,
)  # fmt: skip

_NOT_PICKLED = (TypeError, ValueError, AttributeError, RuntimeError, pickle.PickleError)


def fingerprint(value: Any, name: str = "value") -> str:
    """Returns the hexadecimal digest of a value's contents.

    Args:
      value: any value that holds no traced value and no open file.
      name: its name in messages.

    Raises:
      ValueError: a part of the value has no fingerprint; the message says which part, and why.

    Examples:
      >>> scale = 2.0
      >>> fingerprint(lambda x: scale * x) == fingerprint(lambda x: scale * x)
      True
    """
    try:
        return _Reader().digest(name, value).hex()
    except RecursionError as error:
        raise ValueError(f"`{name}` must be nested less, got {type(value)}: {error}.") from error


class ByContents:
    """Objects that are equal if their fingerprints are; without one, only to themselves."""

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """The digest of the contents; None if a part has no fingerprint."""
        try:
            return fingerprint(self)
        except ValueError:
            return None

    def __eq__(self, other: object) -> bool:
        if self.fingerprint is None or not isinstance(other, ByContents):
            return self is other
        return self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return id(self) if self.fingerprint is None else hash(self.fingerprint)


class _Reader:
    """Computes the digests of a value and of all its parts, each once."""

    def __init__(self) -> None:
        self.done: dict[int, tuple[Any, bytes]] = {}  # by id; a stored value keeps its id
        self.open: list[int] = []  # ids of values that are being read, outermost first
        self.path: list[str] = []

    def digest(self, where: str, value: Any) -> bytes:
        """Returns the digest of a value that is at a place `where` in its owner."""
        if type(value) in _ATOMS:
            return _hash(type(value).__name__, repr(value))
        if id(value) in self.done:
            return self.done[id(value)][1]
        if id(value) in self.open:
            return _hash("outer", str(len(self.open) - self.open.index(id(value))))
        self.open.append(id(value))
        self.path.append(where)
        kind, parts = self.describe(value)
        found = [_hash(name) + self.digest(name, part) for name, part in parts]
        if _has_no_order(value):
            found.sort()
        self.path.pop()
        self.open.pop()
        self.done[id(value)] = (value, _hash(kind, *found))
        return self.done[id(value)][1]

    def describe(self, value: Any) -> tuple[str | bytes, Iterable[Part]]:
        """Returns a text or digest for the kind of a value, and its parts."""
        kind = type(value)
        if isinstance(value, jax.core.Tracer):
            raise self.refusal(value, "it has no value while a function is being compiled")
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            return self.describe_array(value)
        if isinstance(value, np.dtype):
            return f"dtype {value}", ()
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}", ()
        if isinstance(value, types.CodeType):
            return describe_code(value)
        if isinstance(value, _BUILTINS):
            return _describe_builtin(value)
        if isinstance(value, jax.sharding.Mesh):
            return f"mesh {value.axis_names} {value.axis_types}", [("devices", value.devices)]
        if isinstance(value, jax.Device):
            return f"device {value.platform} {value.device_kind} {value.id}", ()
        if is_known_by_name(value):
            return f"{value.__module__} {value.__qualname__}", ()
        if isinstance(value, enum.Enum):
            return f"enum {value.name}", [("class", kind), (".value", value.value)]
        if isinstance(value, type):
            return f"class {value.__qualname__}", parts_of_class(value)
        if isinstance(value, types.FunctionType):
            return f"function {value.__qualname__}", parts_of_function(value)
        if "__wrapped__" in getattr(value, "__dict__", {}):  # by `jax.jit`, for example
            return "wrapped", [("type", kind), ("__wrapped__", value.__wrapped__), *get_own(value)]
        if isinstance(value, set | frozenset):
            return "set", [("type", kind), *(("{}", entry) for entry in value)]
        if isinstance(value, tuple | list):
            names = getattr(value, "_fields", None)
            places = [f".{name}" for name in names] if names else _places(value)
            return "items", [("type", kind), *zip(places, value, strict=True), *get_own(value)]
        if isinstance(value, Mapping):
            default = (".default_factory", getattr(value, "default_factory", None))
            return "mapping", [
                ("type", kind),
                *map(_entry, value.items()),
                default,
                *get_own(value),
            ]
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            own = [part for part in get_own(value) if _is_set_by_user(value, part[0][1:], names)]
            return "dataclass", [("type", kind), *_attributes(value, names), *own]
        return self.describe_object(value)

    def describe_array(self, value: Any) -> tuple[str | bytes, Iterable[Part]]:
        """Returns an array as a digest of its kind and contents, without parts if possible."""
        if isinstance(value, jax.Array):
            if not value.is_fully_addressable:
                raise self.refusal(value, "other processes hold a part of it")
            if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
                kind = f"keys {jax.random.key_impl(value)}"
                return kind, [("data", jax.random.key_data(value))]
            kind = f"jax {'weak' if value.weak_type else 'strong'}"
        else:
            kind = type(value).__name__
        array = np.asarray(value)
        head = f"{kind} {array.dtype} {array.shape}"
        if array.dtype.hasobject:
            return head, list(zip(_places(array.ravel()), array.ravel(), strict=True))
        return _hash(head, array.tobytes()), ()

    def describe_object(self, value: Any) -> tuple[str | bytes, Iterable[Part]]:
        """Returns the parts of an object as pickle would store them."""
        kind = type(value)
        if isinstance(value, types.MethodType):
            return "method", [("", value.__func__), (".__self__", value.__self__)]
        if isinstance(value, functools.partial | functools.partialmethod):
            held = (value.func, value.args, sorted(value.keywords.items()))
            names = (".func", ".args", ".keywords")
            return type(value).__name__, zip(names, held, strict=True)
        if isinstance(value, property | functools.cached_property | staticmethod | classmethod):
            names = ("fget", "fset", "fdel", "func", "__func__")
            return type(value).__name__, _attributes(value, names)
        try:
            reduce = copyreg.dispatch_table.get(kind)
            stored = reduce(value) if reduce else value.__reduce_ex__(4)
        except _NOT_PICKLED as error:
            raise self.refusal(value, f"its contents cannot be read ({error})") from error
        if isinstance(stored, str):
            return f"{type(value).__module__} {stored}", ()
        names = ("<made by>", "", "", "<items>", "<entries>", "<set by>")
        held = [list(part) if isinstance(part, Iterator) else part for part in stored]
        if len(held) > 2 and isinstance(held[2], dict):  # attributes
            kept = [item for item in held[2].items() if not _is_cached(value, item[0])]
            held[2] = dict(sorted(kept, key=lambda item: str(item[0]))) or None
        return "object", zip(names, held, strict=False)

    def refusal(self, value: Any, why: str) -> ValueError:
        """Returns the error for a value without a fingerprint."""
        path = "".join(self.path)
        return ValueError(f"`{path}` must have a fingerprint, got {type(value).__name__}: {why}.")


def _hash(*parts: str | bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()


def _has_no_order(value: Any) -> bool:
    """Says whether a value is a set, or a mapping of arrays and plain values.

    JAX sorts such mappings by their names. One of functions may be gone through in its order.
    """
    if not isinstance(value, Mapping) or isinstance(value, collections.OrderedDict):
        return isinstance(value, set | frozenset)
    return _holds_only_data(value, frozenset())


def _holds_only_data(value: Any, above: frozenset[int]) -> bool:
    """Says whether a value is an array or a plain value, or holds only such; `above` are owners."""
    if isinstance(value, Mapping | list | tuple):
        entries = value.values() if isinstance(value, Mapping) else value
        above |= {id(value)}
        return all(id(one) in above or _holds_only_data(one, above) for one in entries)
    return isinstance(value, (np.ndarray, jax.Array, *_ATOMS))


def _is_cached(value: Any, name: Any) -> bool:
    """Says whether an attribute was computed by a `cached_property` when it was asked for."""
    cached = getattr(type(value), name, None) if isinstance(name, str) else None
    return isinstance(cached, functools.cached_property)


def _is_set_by_user(value: Any, name: str, fields: Sequence[str]) -> bool:
    """Says whether an attribute of a dataclass is no field, and none that Flax adds."""
    if name in fields or _is_cached(value, name):
        return False
    of_flax = any(base.__module__.startswith("flax.") for base in type(value).__mro__)
    return not (of_flax and (name.startswith("_") or name == "scope"))


def _attributes(value: Any, names: Iterable[str]) -> list[Part]:
    return [(f".{name}", getattr(value, name)) for name in names if hasattr(value, name)]


def _places(entries: Any) -> list[str]:
    return [f"[{place}]" for place in range(len(entries))]


def _entry(item: tuple[Any, Any]) -> Part:
    """Returns an entry of a mapping at its key; if the key is no plain value, with the key."""
    key, entry = item
    return (f"[{key!r}]", entry) if type(key) in _ATOMS else (f"[{type(key).__name__}]", item)


def _describe_builtin(value: Any) -> tuple[str, list[Part]]:
    owner = getattr(value, "__self__", None)
    name = getattr(value, "__qualname__", value.__name__)
    name = f"builtin {getattr(value, '__module__', None)} {name}"
    return name, [] if isinstance(owner, types.ModuleType) else [(".__self__", owner)]
