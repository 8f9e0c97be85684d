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

_INT32 = np.iinfo(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled examples for classification.

    NaN and infinity in `x` are accepted on purpose: agents with broken data are among
    what is simulated.

    Args:
      x: `[n, ...]` examples. Floating numbers are kept as float32. Whole numbers are
        kept as int32, for they are tokens: divide the bytes of an image yourself.
      y: `[n]` whole numbers in [0, num_classes), kept as int32.
      num_classes: C, how many classes there are, at least 2; not all need occur.
      vocabulary_size: how many tokens there are, at least 2, where `x` is tokens: whole
        numbers in [0, vocabulary_size), 0 for padding. None: `x` is something else.

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
        """Checks and converts what is known; traced arrays pass as they are."""
        checks.count("num_classes", self.num_classes, least=2)
        object.__setattr__(self, "num_classes", int(self.num_classes))
        if self.vocabulary_size is not None:
            checks.count("vocabulary_size", self.vocabulary_size, least=2)
            object.__setattr__(self, "vocabulary_size", int(self.vocabulary_size))
        if checks.is_known((self.x, self.y)):
            x = _features(self.x)
            _check_tokens(x, self.vocabulary_size)
            object.__setattr__(self, "x", x)
            object.__setattr__(self, "y", _labels(self.y, len(x), self.num_classes))

    def __len__(self) -> int:
        """Returns n, the number of examples."""
        return self.x.shape[0]

    def take(self, rows: Any) -> "Dataset":
        """Returns the examples in `rows`, in that order, on the host.

        Args:
          rows: `[k]` whole numbers in [0, n), at least one; a row may occur twice.

        Returns:
          A dataset of k examples, of the same classes and tokens.

        Raises:
          ValueError: there are no rows, or one is not a whole number in [0, n).

        Examples:
          >>> data = Dataset(x=[[0.5], [1.5], [2.5]], y=[0, 1, 1], num_classes=2)
          >>> print(data.take([2, 0]).x.ravel())
          [2.5 0.5]
        """
        rows = row_numbers("rows", rows, len(self))
        x, y = np.asarray(self.x)[rows], np.asarray(self.y)[rows]
        return dataclasses.replace(self, x=x, y=y)


def hold_out(dataset: Dataset, fraction: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Splits a dataset in two, each class in the same proportion as far as possible.

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
    checks.above("fraction", fraction, 0)
    checks.count("seed", seed, least=0)
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


def row_numbers(name: str, rows: Any, num_rows: int) -> np.ndarray:
    """Returns `rows` as int32 `[k]`, k >= 1, or raises with `name` where they are not rows."""
    rows = np.asarray(rows)
    if rows.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {rows.shape}.")
    if rows.size == 0:
        raise ValueError(f"{name} must hold at least one row number, got none.")
    if rows.dtype.kind not in "iu":
        hint = " Pass np.flatnonzero(mask) for a mask." if rows.dtype.kind == "b" else ""
        raise ValueError(f"{name} must be whole numbers, got dtype {rows.dtype}.{hint}")
    wrong = rows[(rows < 0) | (rows >= num_rows)]
    if wrong.size:
        raise ValueError(f"{name} must be in [0, {num_rows}), got row {wrong[0]}.")
    return rows.astype(np.int32)


def _features(x: Any) -> np.ndarray:
    """Returns `x` as a float32 or int32 array of at least one example."""
    x = np.asarray(x)
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"`x` must hold at least one example, got shape {x.shape}.")
    if x.dtype.kind in "iub":
        if x.min() < _INT32.min or x.max() > _INT32.max:
            raise ValueError(f"`x` must fit int32 where it is whole numbers, got {x.max()}.")
        return x.astype(np.int32, copy=False)
    # jax's bfloat16 and other short floats are of no kind that numpy knows.
    if x.dtype.kind != "f" and not jax.numpy.issubdtype(x.dtype, np.floating):
        raise ValueError(f"`x` must be numbers, got dtype {x.dtype}.")
    # What is too large for float32 becomes infinite, and that is accepted.
    with np.errstate(over="ignore"):
        return x.astype(np.float32, copy=False)


def _check_tokens(x: np.ndarray, vocabulary_size: int | None) -> None:
    if vocabulary_size is None:
        return
    if x.dtype != np.int32:
        raise ValueError(f"`x` must be whole numbers where it is tokens, got dtype {x.dtype}.")
    wrong = x[(x < 0) | (x >= vocabulary_size)]
    if wrong.size:
        raise ValueError(
            f"`x` must hold tokens in [0, vocabulary_size={vocabulary_size}), got {wrong[0]}."
        )


def _labels(y: Any, num_examples: int, num_classes: int) -> np.ndarray:
    """Returns `y` as an int32 array of `num_examples` labels in [0, num_classes)."""
    y = np.asarray(y)
    if y.ndim != 1:
        hint = " Pass y.argmax(1) for one-hot labels." if y.ndim == 2 else ""
        raise ValueError(f"`y` must be one-dimensional, got shape {y.shape}.{hint}")
    if len(y) != num_examples:
        raise ValueError(f"`x` and `y` must be equally long, got {num_examples} and {len(y)}.")
    if y.dtype.kind not in "iubf":
        raise ValueError(f"`y` must be whole numbers, got dtype {y.dtype}.")
    whole = np.isfinite(y) & (y == np.floor(y)) if y.dtype.kind == "f" else np.ones(y.shape, bool)
    wrong = ~whole | (y < 0) | (y >= num_classes)
    if wrong.any():
        raise ValueError(
            f"`y` must hold whole numbers in [0, {num_classes}), got {y[wrong][0]} "
            f"in row {wrong.argmax()}."
        )
    return y.astype(np.int32, copy=False)


def _flatten(dataset: Dataset) -> tuple[tuple[tuple[Any, Any], ...], tuple[int, int | None]]:
    key = jax.tree_util.GetAttrKey
    static = (dataset.num_classes, dataset.vocabulary_size)
    return ((key("x"), dataset.x), (key("y"), dataset.y)), static


def _unflatten(static: tuple[int, int | None], leaves: Any) -> Dataset:
    # JAX rebuilds pytrees from tracers, shapes and placeholders. Those are not a user's
    # data, so the checks of `__init__` are passed by; `register_dataclass` would run them.
    dataset = object.__new__(Dataset)
    names = ("x", "y", "num_classes", "vocabulary_size")
    for name, value in zip(names, (*leaves, *static), strict=True):
        object.__setattr__(dataset, name, value)
    return dataset


jax.tree_util.register_pytree_with_keys(Dataset, _flatten, _unflatten)
