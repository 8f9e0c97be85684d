"""Objects: values that a field may hold in place of a name.

    dataset    a pair (train, test)       mechanism  a `Mechanism`, or a function that makes one
    shards     `Shards`                   optimizer  of optax, or a function of the learning rate
    model      a `Model`                  server_optimizer  of optax
    task       a `Task`                   params     first parameters

An object is shown by its label. Records keep a fingerprint of its contents, not the object.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optax

from fairjax import checks
from fairjax.data import Dataset
from fairjax.experiments import references
from fairjax.fingerprint import ByContents, fingerprint
from fairjax.mechanisms import Mechanism
from fairjax.models import Model

FIELDS = (
    "dataset", "shards", "model", "task", "mechanism", "optimizer", "server_optimizer", "params",
)  # fmt: skip
OWN = {"dataset": "own data", "shards": "own shards", "params": "own parameters"}
PAIR = (
    "a name of `fairjax.data.load`, or a pair (train, test) of what "
    "`fairjax.data.Dataset(x=..., y=..., num_classes=...)` makes"
)
DIGITS = 12  # digits of a fingerprint that are shown


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Contents(ByContents):
    """A value that equals those with the same contents, as a pytree of arrays does not."""

    value: Any

    def __init__(self, value: Any):
        # `dataclasses.replace` gives back what an experiment made.
        object.__setattr__(self, "value", value.value if isinstance(value, Contents) else value)


def is_object(value: Any) -> bool:
    """Says whether a field of `FIELDS` holds an object."""
    return value is not None and not isinstance(value, str)


def label(name: str, value: Any) -> str:
    """Returns the text that is shown for a field: its name, or the label of its object.

    Examples:
      >>> label("optimizer", "adam"), label("optimizer", optax.adamw)
      ('adam', 'adamw')
    """
    if not is_object(value):
        return str(value)
    if name == "dataset" and (reference := references.reference_of(value)):
        return references.name_in_file(reference)
    if isinstance(value, Mechanism):
        return value.name
    if name in OWN:
        return OWN[name]
    if isinstance(value, optax.GradientTransformation):
        function: Any = value.update
    else:
        function = value.apply if isinstance(value, Model) else value
    return getattr(function, "__qualname__", type(function).__name__).partition(".<locals>")[0]


def recorded(name: str, value: Any) -> Any:
    """Returns a field as JSON: a name unchanged, an object as label and fingerprint.

    Raises:
      ValueError: a part of the object has no fingerprint; the message says which part, and why.
    """
    if not is_object(value):
        return value
    kept = {"object": label(name, value), "fingerprint": fingerprint(value, name)}
    reference = references.reference_of(value)
    return kept if reference is None else {**kept, "from": reference}


def without_place(value: Any) -> Any:
    """Returns a field read from JSON without the file of an object, which may move."""
    if not is_recorded(value):
        return value
    return {name: entry for name, entry in value.items() if name != "from"}


def same(left: Any, right: Any) -> bool:
    """Says whether two fields read from JSON are equal; an object's file may have moved."""
    return without_place(left) == without_place(right)


def found_again(name: str, value: Mapping[str, Any]) -> str | None:
    """Returns the reference of a recorded object, if its file still holds the same object."""
    if "from" not in value:
        return None
    try:
        found = references.resolve(name, value["from"])
        return value["from"] if same(recorded(name, found), value) else None
    except ValueError:  # the file is gone, or cannot be imported
        return None


def is_recorded(value: Any) -> bool:
    """Says whether a value read from JSON stands for an object."""
    return isinstance(value, Mapping) and value.keys() - {"from"} == {"object", "fingerprint"}


def shown(value: Any) -> str:
    """Returns readable text for a field read from JSON.

    Examples:
      >>> shown({"object": "Net", "fingerprint": "0123456789abcdef"})
      'Net (an object, fingerprint 0123456789ab)'
    """
    if is_recorded(value):
        kind = f"from {value['from']}" if "from" in value else "an object"
        return f"{value['object']} ({kind}, fingerprint {value['fingerprint'][:DIGITS]})"
    if isinstance(value, list) and value and isinstance(value[0], list):
        return f"a table of {len(value)} rounds"
    return repr(value)


def name_or(
    names: Iterable[str], kind: type, made_by: str, *, or_function: bool = False
) -> Callable[[str, Any], None]:
    """Returns a check that a field is a name or an object; its attribute `names` lists the names.

    Args:
      names: names that the field may hold.
      kind: class of objects that the field may hold.
      made_by: how such an object is made, for the message.
      or_function: whether the field may also hold a function that makes such an object.
    """

    def check(name: str, value: Any) -> None:
        if isinstance(value, str):
            checks.choice(name, value, names)
        elif not isinstance(value, kind) and not (or_function and callable(value)):
            raise ValueError(
                f"`{name}` must be one of {', '.join(sorted(names))}, or {made_by}, "
                f"got {checks.shown(value)}."
            )

    check.names = tuple(names)  # pyright: ignore[reportFunctionMemberAccess]
    return check


def check_dataset(name: str, value: Any) -> None:
    """Raises unless a field is a name, or a pair of training and test data of the same kind."""
    if isinstance(value, str):
        return
    is_pair = isinstance(value, tuple) and len(value) == 2
    if not is_pair or not all(isinstance(part, Dataset) for part in value):
        raise ValueError(f"`{name}` must be {PAIR}, got {checks.shown(value)}.")
    train, test = value
    train.check_alike(f"{name}[1]", test)


def check_left_out(description: Any) -> None:
    """Raises if a description gives a field that an object in another field sets already."""
    if description.shards is not None:
        _leave_out(description, "shards", split="power_law", samples_per_agent=None)
    rate = description.server_learning_rate
    if description.server_optimizer is None and rate is not None:
        raise ValueError(
            "`server_learning_rate` must be left out without a `server_optimizer`, "
            f"got server_learning_rate={rate!r}."
        )
    if is_object(description.server_optimizer):
        _leave_out(description, "server_optimizer", server_learning_rate=None)
    if isinstance(description.optimizer, optax.GradientTransformation):
        hint = " To choose it here, give a function of the learning rate, such as optax.adamw."
        rates = {"learning_rate": None, "learning_rate_decay": None}
        _leave_out(description, "optimizer", hint, **rates)


def _leave_out(description: Any, by: str, hint: str = "", **defaults: Any) -> None:
    """Raises if a field is given although the object in the field `by` sets it."""
    for name, default in defaults.items():
        value = getattr(description, name)
        if value != default:
            raise ValueError(
                f"`{name}` must be left out where `{by}` is an object, which sets it already, "
                f"got {name}={value!r}.{hint}"
            )
