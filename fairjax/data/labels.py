"""Labels: classes, names of classes, or numbers, as arrays.

classes   whole numbers 0 to C - 1    int32 [n]
names     "cat", "dog"                int32 [n], the places of their names
numbers   to predict, or 0 and 1      float32 [n] or [n, K]
"""

from typing import Any

import numpy as np

from fairjax import checks
from fairjax.data.arrays import as_array, first_not_number, is_floating, is_whole


def converted(
    y: Any, num_examples: int, num_classes: int | None, class_names: tuple[str, ...] | None
) -> np.ndarray:
    """Returns `y` as int32 classes `[n]`, or as float32 numbers `[n]` or `[n, K]`.

    Raises:
      ValueError: `y` has another length or shape, or does not hold what it should.
    """
    if are_names(y):
        return _from_names(as_array("`y`", y), num_examples, class_names)
    if num_classes is not None:
        return _as_classes(y, num_examples, num_classes)
    return _as_numbers(y, num_examples)


def names(given: Any) -> tuple[str, ...]:
    """Returns names of classes, at least two and all different, or raises."""
    found = ()
    # The order of a set changes from process to process.
    if checks.is_listing(given) and not isinstance(given, set | frozenset):
        entries = [one.item() if hasattr(one, "item") else one for one in given]
        if all(isinstance(one, str | bytes | int) for one in entries):
            found = tuple(_as_text(one, "class_names") for one in entries)
    if len(found) < 2 or len(set(found)) < len(found):
        raise ValueError(
            "`class_names` must hold at least two different names, one for each class, in a list "
            f"of texts or whole numbers, got {checks.shown(given)}."
        )
    return found


def are_names(y: Any) -> bool:
    """Says whether labels are texts; raises if only some are, as where names are missing."""
    if as_array("`y`", y).dtype.kind not in "UST":
        return False
    for one in np.asarray(y, object).flat:
        if not isinstance(one, str | bytes):
            raise ValueError(f"`y` must hold only names of classes, got {one!r:.40} among them.")
    return True


def found(y: Any) -> tuple[str, ...]:
    """Returns the sorted names of classes that occur, at least two."""
    texts = sorted({_as_text(one, "y") for one in np.asarray(y).flat})
    if len(texts) < 2:
        raise ValueError(
            f"`class_names` must be given where `y` lacks some of them, got y with only {texts}."
        )
    return names(texts)


def _as_text(value: Any, name: str) -> str:
    """Returns text, of which bytes are UTF-8."""
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise ValueError(f"`{name}` must hold text, or bytes in UTF-8, got {value!r}.") from error


def _from_names(
    array: np.ndarray, num_examples: int, class_names: tuple[str, ...] | None
) -> np.ndarray:
    known = {name: place for place, name in enumerate(class_names or ())}
    if array.ndim != 1:
        raise ValueError(f"`y` must be one-dimensional, got shape {array.shape}.")
    _check_length(array, num_examples)
    texts = [_as_text(one, "y") for one in array.tolist()]
    unknown = sorted(set(texts) - set(known))
    if unknown:
        raise ValueError(f"`y` must hold names of `class_names` {list(known)}, got {unknown[0]!r}.")
    return np.array([known[name] for name in texts], np.int32)


def _as_numbers(y: Any, num_examples: int) -> np.ndarray:
    """Returns `y` as finite float32 numbers `[n]` or `[n, K]`."""
    array = as_array("`y`", y)
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"`y` must have the shape [n] or [n, K], got {array.shape}.")
    _check_length(array, num_examples)
    if array.ndim == 1 and (array.dtype == bool or is_whole(array.dtype)):
        raise ValueError(
            "`num_classes` must be given for classes. If `y` holds numbers to predict instead, "
            f"pass y.astype(float); got {array.dtype}{[*array.shape]} without `num_classes`."
        )
    if not (array.dtype == bool or is_whole(array.dtype) or is_floating(array.dtype)):
        raise ValueError(f"`y` must be numbers, got {first_not_number(array)}.")
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    checks.finite("y", numbers)
    return numbers


def _check_length(array: np.ndarray, num_examples: int) -> None:
    if len(array) != num_examples:
        raise ValueError(f"`x` and `y` must be equally long, got {num_examples} and {len(array)}.")


def _as_classes(y: Any, num_examples: int, num_classes: int) -> np.ndarray:
    """Returns `y` as an int32 array of `num_examples` labels in [0, num_classes)."""
    array = as_array("`y`", y)
    if array.ndim != 1:
        hint = _shape_hint(array, num_examples, "y.to_numpy()" if hasattr(y, "columns") else "y")
        raise ValueError(f"`y` must be one-dimensional, got shape {array.shape}.{hint}")
    _check_length(array, num_examples)
    if not (array.dtype == bool or is_whole(array.dtype) or is_floating(array.dtype)):
        raise ValueError(f"`y` must be whole numbers, got {first_not_number(array)}.")
    if array.dtype.kind not in "iub":
        array = array.astype(np.float64)
    wrong = ~((array >= 0) & (array < num_classes) & (array == np.floor(array)))
    if wrong.any():
        from_one = array.min() == 1 and array.max() == num_classes
        raise ValueError(
            f"`y` must hold whole numbers in [0, {num_classes}), got {array[wrong][0]} "
            f"in row {wrong.argmax()}.{' Classes count from 0: pass y - 1.' if from_one else ''}"
        )
    return array.astype(np.int32, copy=False)


def _shape_hint(y: np.ndarray, num_examples: int, name: str) -> str:
    """Returns advice on labels that are not `[n]`, or an empty string."""
    if y.size == num_examples:
        return f" Pass {name}.ravel()."
    if y.ndim != 2 or not ((y == 0) | (y == 1)).all():
        return ""
    if (y.sum(1) == 1).all():
        return f" Pass {name}.argmax(1) for one-hot labels."
    return (
        " Every example must have exactly one class, but some have several or none (multi-hot). "
        "Leave out `num_classes` for several labels."
    )
