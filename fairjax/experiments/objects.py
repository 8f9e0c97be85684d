"""Objects: what a field may hold in place of a name.

    dataset    a pair (train, test)       mechanism  a `Mechanism`, or a function that makes one
    shards     `Shards`                   optimizer  optax's, or a function of the learning rate
    model      a `Model`

People read an object's label. Records keep the fingerprint of its contents, not the object.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optax

from fairjax import checks
from fairjax.data import Dataset
from fairjax.fingerprint import fingerprint
from fairjax.mechanisms import Mechanism

FIELDS = ("dataset", "shards", "model", "mechanism", "optimizer")
PAIR = (
    "a name of `fairjax.data.load`, or a pair (train, test) of what "
    "`fairjax.data.Dataset(x=..., y=..., num_classes=...)` makes"
)
DIGITS = 12  # of a fingerprint, that people are shown


def is_object(value: Any) -> bool:
    """Says whether a field of `FIELDS` holds an object."""
    return value is not None and not isinstance(value, str)


def label(name: str, value: Any) -> str:
    """Returns what people are told that a field holds.

    Examples:
      >>> label("optimizer", "adam"), label("optimizer", optax.adamw)
      ('adam', 'adamw')
    """
    if not is_object(value):
        return str(value)
    if isinstance(value, Mechanism):
        return value.name
    if name in ("dataset", "shards"):
        return {"dataset": "own data", "shards": "own shards"}[name]
    if isinstance(value, optax.GradientTransformation):
        function: Any = value.update
    else:
        function = getattr(value, "apply", value)
    return getattr(function, "__qualname__", type(function).__name__).partition(".<locals>")[0]


def recorded(name: str, value: Any) -> Any:
    """Returns what JSON keeps of a field: a name as it is; of an object, label and fingerprint.

    Raises:
      ValueError: a part of the object has no fingerprint; the message says where, and why.
    """
    if not is_object(value):
        return value
    return {"object": label(name, value), "fingerprint": fingerprint(value, name)}


def is_recorded(value: Any) -> bool:
    """Says whether JSON keeps an object here."""
    return isinstance(value, Mapping) and value.keys() == {"object", "fingerprint"}


def shown(value: Any) -> str:
    """Returns what JSON keeps of a field, for people.

    Examples:
      >>> shown({"object": "Net", "fingerprint": "0123456789abcdef"})
      'Net (an object, fingerprint 0123456789ab)'
    """
    if is_recorded(value):
        return f"{value['object']} (an object, fingerprint {value['fingerprint'][:DIGITS]})"
    return repr(value)


def name_or(
    names: Iterable[str], kind: type, made_by: str, *, or_function: bool = False
) -> Callable[[str, Any], None]:
    """Returns the check of a field that is a name or an object; `names` of it are the names.

    Args:
      names: that the field may be.
      kind: of the object.
      made_by: what makes such an object, for the message.
      or_function: a function that makes such an object may stand for it.
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
    """Raises unless a field is a name, or training and test data that fit each other."""
    if isinstance(value, str):
        return
    is_pair = isinstance(value, tuple) and len(value) == 2
    if not is_pair or not all(isinstance(part, Dataset) for part in value):
        raise ValueError(f"`{name}` must be {PAIR}, got {checks.shown(value)}.")
    train, test = value
    train.check_alike(f"{name}[1]", test)


def leave_out(described: Any, by: str, hint: str = "", **defaults: Any) -> None:
    """Raises where a field is given that an object in the field `by` says already."""
    for name, default in defaults.items():
        value = getattr(described, name)
        if value != default:
            raise ValueError(
                f"`{name}` must be left out where `{by}` is an object, which says it already, "
                f"got {name}={value!r}.{hint}"
            )
