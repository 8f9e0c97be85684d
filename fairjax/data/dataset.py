"""Datasets: labelled examples as two arrays, checked once and then only indexed.

    x  [n, ...]  float32 features, or int32 tokens
    y  [n]       int32 labels, 0 to C - 1

A dataset is a pytree with the leaves `x` and `y`, so it is passed to compiled functions
as an argument. In shapes, n is the number of examples and C the number of classes.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from fairjax import checks
from fairjax.data.apportion import apportion
from fairjax.data.arrays import (
    as_array,
    described,
    first_not_number,
    is_floating,
    is_known,
    is_whole,
    row_numbers,
)

MADE_BY = "`fairjax.data.Dataset(x=..., y=..., num_classes=...)`"
MOST_CLASSES = 2**24  # class counts are tables with one number per class
MOST_SEED = 2**63 - 1  # the largest seed that `jax.random.key` takes
_INT32 = np.iinfo(np.int32)


def register_unchecked(kind: type, leaves: tuple[str, ...], static: tuple[str, ...] = ()) -> None:
    """Makes a dataclass a pytree that JAX rebuilds without its `__init__`.

    JAX rebuilds pytrees from tracers, shapes and placeholders, with more axes or fewer. These
    are not a user's data, so they must skip the checks, which `register_dataclass` would run.
    """
    keys = tuple(map(jax.tree_util.GetAttrKey, leaves))

    def flatten(value: Any) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]:
        found = tuple((key, getattr(value, key.name)) for key in keys)
        return found, tuple(getattr(value, name) for name in static)

    def unflatten(constants: tuple[Any, ...], values: Any) -> Any:
        made = object.__new__(kind)
        for name, value in zip((*leaves, *static), (*values, *constants), strict=True):
            object.__setattr__(made, name, value)
        return made

    jax.tree_util.register_pytree_with_keys(kind, flatten, unflatten)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled examples for classification.

    NaN and infinity in `x` are accepted on purpose, so that agents with broken data can
    be simulated.

    Args:
      x: `[n, ...]` examples. Floating numbers are stored as float32. Whole numbers are
        stored as int32, since they count as tokens: divide the bytes of an image yourself.
      y: `[n]` whole numbers in [0, num_classes), stored as int32.
      num_classes: C, the number of classes, at least 2; not all need occur.
      vocabulary_size: the number of tokens, at least 2, if `x` holds tokens: whole
        numbers in [0, vocabulary_size), 0 for padding. None: `x` holds no tokens.

    Raises:
      ValueError: there are no examples, `x` and `y` differ in length, `x` is not
        numeric, `num_classes` or `vocabulary_size` is below 2, or a label or token is
        not a whole number in range.

    Examples:
      >>> data = Dataset(x=[[0.5], [1.5], [2.5]], y=[0, 1, 1], num_classes=2)
      >>> len(data), data.x.dtype.name, data.y.dtype.name
      (3, 'float32', 'int32')
    """

    x: Any  # [n, ...]
    y: Any  # [n]
    num_classes: int
    vocabulary_size: int | None = None

    def __post_init__(self):
        """Checks and converts known arrays; traced arrays pass unchanged."""
        checks.count("num_classes", self.num_classes, least=2, most=MOST_CLASSES)
        object.__setattr__(self, "num_classes", int(self.num_classes))
        if self.vocabulary_size is not None:
            checks.count("vocabulary_size", self.vocabulary_size, least=2, most=_INT32.max)
            object.__setattr__(self, "vocabulary_size", int(self.vocabulary_size))
        if is_known(self.x) and is_known(self.y):
            x = _convert_features(self.x)
            _check_tokens(x, self.vocabulary_size)
            object.__setattr__(self, "x", x)
            object.__setattr__(self, "y", _convert_labels(self.y, len(x), self.num_classes))

    def __repr__(self) -> str:
        """Returns one line with shapes and dtypes, without the numbers."""
        tokens = self.vocabulary_size
        more = "" if tokens is None else f", vocabulary_size={tokens}"
        x, y = described(self.x), described(self.y)
        return f"Dataset(x={x}, y={y}, num_classes={self.num_classes}{more})"

    def __len__(self) -> int:
        """Returns n, the number of examples."""
        return self.x.shape[0]

    def take(self, rows: Any) -> "Dataset":
        """Returns the examples in `rows`, in that order, on the host.

        Args:
          rows: `[k]` whole numbers in [0, n), at least one; a row may occur twice.

        Returns:
          A dataset of k examples with the same classes and tokens.

        Raises:
          ValueError: there are no rows, or one is not a whole number in [0, n).

        Examples:
          >>> data = Dataset(x=[[0.5], [1.5], [2.5]], y=[0, 1, 1], num_classes=2)
          >>> print(data.take([2, 0]).x.ravel())
          [2.5 0.5]
        """
        rows = row_numbers("`rows`", rows, len(self))
        x, y = np.asarray(self.x)[rows], np.asarray(self.y)[rows]
        return dataclasses.replace(self, x=x, y=y)

    def check_alike(self, name: str, data: "Dataset") -> None:
        """Raises unless `data` can test models of this dataset: its shape, kind and classes."""
        for what, found, wanted in (
            ("examples of shape", data.x.shape[1:], self.x.shape[1:]),
            ("number of classes", data.num_classes, self.num_classes),
            ("`vocabulary_size`", data.vocabulary_size, self.vocabulary_size),
        ):
            if found != wanted:
                raise ValueError(f"`{name}` must have the agents' {what} {wanted}, got {found}.")
        if is_floating(data.x.dtype) != is_floating(self.x.dtype):
            raise ValueError(
                f"`{name}` must have the agents' examples of dtype {self.x.dtype}, got "
                f"{data.x.dtype}. Convert both in the same way, x / 255 for the bytes of images."
            )


def hold_out(dataset: Dataset, fraction: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Splits a dataset in two, with each class in the same proportion as far as possible.

    Args:
      dataset: at least two examples.
      fraction: the share to hold out, above 0 and below 1.
      seed: a whole number, not negative; the same seed holds out the same rows.

    Returns:
      `(rest, held_out)`, both in the order of `dataset`. `held_out` has
      `round(fraction * n)` examples, though never none and never all.

    Raises:
      ValueError: there are fewer than two examples, or an option is out of range.

    Examples:
      >>> data = Dataset(x=np.ones((40, 2)), y=np.arange(40) % 4, num_classes=4)
      >>> rest, held_out = hold_out(data, fraction=0.2)
      >>> len(rest), np.bincount(held_out.y).tolist()
      (32, [2, 2, 2, 2])
    """
    checks.kind("dataset", dataset, Dataset, MADE_BY)
    checks.above("fraction", fraction, 0)
    checks.count("seed", seed, least=0, most=MOST_SEED)
    if fraction >= 1:
        raise ValueError(f"`fraction` must be below 1, got fraction={fraction!r}.")
    if len(dataset) < 2:
        raise ValueError(f"`dataset` must have at least 2 examples to split, got {len(dataset)}.")
    rng = np.random.default_rng(seed)
    labels = np.asarray(dataset.y)
    held = np.clip(round(fraction * len(dataset)), 1, len(dataset) - 1)
    sizes = apportion(held, np.bincount(labels, minlength=dataset.num_classes))
    chosen = np.zeros(len(dataset), dtype=bool)
    for label, size in enumerate(sizes):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:size]] = True
    return dataset.take(np.flatnonzero(~chosen)), dataset.take(np.flatnonzero(chosen))


def _convert_features(x: Any) -> np.ndarray:
    """Returns `x` as a float32 or int32 array of at least one example."""
    array = as_array("`x`", x)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"`x` must hold at least one example, got shape {array.shape}.")
    if is_whole(array.dtype):
        low, high = int(array.min()), int(array.max())
        if low < _INT32.min or high > _INT32.max:
            wrong = high if high > _INT32.max else low
            raise ValueError(f"`x` must fit int32 if it holds whole numbers, got {wrong}.")
        return array.astype(np.int32, copy=False)
    if array.dtype != bool and not is_floating(array.dtype):
        found = first_not_number(array, getattr(x, "columns", None))
        raise ValueError(f"`x` must be numbers, got {found}.")
    # A number that is too large for float32 becomes infinite, which is accepted.
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _check_tokens(x: np.ndarray, vocabulary_size: int | None) -> None:
    if vocabulary_size is None:
        return
    if x.dtype != np.int32:
        raise ValueError(f"`x` must be whole numbers if it holds tokens, got dtype {x.dtype}.")
    wrong = x[(x < 0) | (x >= vocabulary_size)]
    if wrong.size:
        raise ValueError(
            f"`x` must hold tokens in [0, vocabulary_size={vocabulary_size}), got {wrong[0]}."
        )


def _convert_labels(y: Any, num_examples: int, num_classes: int) -> np.ndarray:
    """Returns `y` as an int32 array of `num_examples` labels in [0, num_classes)."""
    array = as_array("`y`", y)
    if array.ndim != 1:
        hint = _shape_hint(array, num_examples, "y.to_numpy()" if hasattr(y, "columns") else "y")
        raise ValueError(f"`y` must be one-dimensional, got shape {array.shape}.{hint}")
    if len(array) != num_examples:
        raise ValueError(f"`x` and `y` must be equally long, got {num_examples} and {len(array)}.")
    if array.dtype.kind in "US":
        raise ValueError(
            f"`y` must be whole numbers, got dtype {array.dtype}, such as "
            f"{array.tolist()[0]!r:.40}. `names, y = np.unique(y, return_inverse=True)` numbers "
            "the classes: do so once, for training and test labels together."
        )
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
    return " Every example must have exactly one class, but some have several or none (multi-hot)."


register_unchecked(Dataset, leaves=("x", "y"), static=("num_classes", "vocabulary_size"))
