"""Datasets: labelled examples as two arrays, checked once and then only indexed.

    x  [n, ...]  float32 features, or int32 tokens
    y  [n]       int32 classes, 0 to C - 1; or float32 numbers [n] or [n, K]

A dataset is a pytree with the leaves `x` and `y`, so it is passed to compiled functions
as an argument. In shapes, n is the number of examples and C the number of classes.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from fairjax import checks
from fairjax.data import labels
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
STATIC = ("num_classes", "vocabulary_size", "class_names")
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
    """Labelled examples, with classes or with numbers to predict.

    NaN and infinity in `x` are accepted on purpose, so that agents with broken data can
    be simulated.

    Args:
      x: `[n, ...]` examples. Floating numbers are stored as float32. Whole numbers are
        stored as int32, since they count as tokens: divide the bytes of an image yourself.
      y: with classes, `[n]` whole numbers in [0, num_classes), stored as int32, or names of
        classes; without, `[n]` or `[n, K]` finite numbers, stored as float32: those to predict,
        or 0 and 1 for each of K labels.
      num_classes: C, the number of classes, at least 2; not all need occur. None: `y` holds
        numbers, or `class_names` or the names in `y` say it.
      vocabulary_size: the number of tokens, at least 2, if `x` holds tokens: whole
        numbers in [0, vocabulary_size), 0 for padding. None: `x` holds no tokens.
      class_names: `[C]` names of classes, in the order of their numbers. None: the sorted names
        in `y`, if it holds names; then all of them must occur.

    Raises:
      ValueError: there are no examples, `x` and `y` differ in length, `x` is not
        numeric, `num_classes` or `vocabulary_size` is below 2, a label or token is not a
        whole number in range, or a number to predict is not finite.

    Examples:
      >>> data = Dataset(x=[[0.5], [1.5], [2.5]], y=[0, 1, 1], num_classes=2)
      >>> len(data), data.x.dtype.name, data.y.dtype.name
      (3, 'float32', 'int32')
      >>> Dataset(x=[[0.5], [1.5]], y=["dog", "cat"])
      Dataset(x=float32[2, 1], y=int32[2], num_classes=2, class_names=('cat', 'dog'))
      >>> Dataset(x=[[0.5], [1.5]], y=[0.1, 2.5])
      Dataset(x=float32[2, 1], y=float32[2])
    """

    x: Any  # [n, ...]
    y: Any  # [n] or [n, K]
    num_classes: int | None = None
    vocabulary_size: int | None = None
    class_names: Any = None

    def __post_init__(self):
        """Checks and converts known arrays; traced arrays pass unchanged."""
        if self.class_names is not None:
            object.__setattr__(self, "class_names", labels.names(self.class_names))
        elif is_known(self.y) and labels.are_names(self.y):
            object.__setattr__(self, "class_names", labels.found(self.y))
        if self.class_names is not None:
            if self.num_classes not in (None, len(self.class_names)):
                raise ValueError(
                    f"`num_classes` must be the number of `class_names`, {len(self.class_names)}, "
                    f"or be left out, got num_classes={checks.shown(self.num_classes)}. Give "
                    "`class_names`, such as those of the training data, if `y` lacks some."
                )
            object.__setattr__(self, "num_classes", len(self.class_names))
        if self.num_classes is not None:
            checks.count("num_classes", self.num_classes, least=2, most=MOST_CLASSES)
            object.__setattr__(self, "num_classes", int(self.num_classes))
        if self.vocabulary_size is not None:
            checks.count("vocabulary_size", self.vocabulary_size, least=2, most=_INT32.max)
            object.__setattr__(self, "vocabulary_size", int(self.vocabulary_size))
        if is_known(self.x) and is_known(self.y):
            x = _convert_features(self.x)
            _check_tokens(x, self.vocabulary_size)
            object.__setattr__(self, "x", x)
            y = labels.converted(self.y, len(x), self.num_classes, self.class_names)
            object.__setattr__(self, "y", y)

    def __repr__(self) -> str:
        """Returns one line with shapes and dtypes, without the numbers."""
        given = {name: getattr(self, name) for name in STATIC}
        more = "".join(f", {name}={one!r}" for name, one in given.items() if one is not None)
        return f"Dataset(x={described(self.x)}, y={described(self.y)}{more})"

    def __len__(self) -> int:
        """Returns n, the number of examples."""
        return self.x.shape[0]

    @property
    def num_outputs(self) -> int:
        """The number of outputs of a model: C classes, K columns of `y`, or one number."""
        return self.num_classes or math.prod(self.y.shape[1:])

    def classes_for(self, what: str) -> int:
        """Returns C, the number of classes, which `what` needs.

        Raises:
          ValueError: the data set has no classes.
        """
        if self.num_classes is None:
            raise ValueError(f"{what} needs classes, got {self}, whose `y` holds numbers.")
        return self.num_classes

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
            ("`class_names`", data.class_names, self.class_names),
            ("`y` of shape", data.y.shape[1:], self.y.shape[1:]),
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

    Without classes, the held-out rows are drawn at random.

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
    classes = np.zeros(len(dataset), int) if dataset.num_classes is None else np.asarray(dataset.y)
    held = np.clip(round(fraction * len(dataset)), 1, len(dataset) - 1)
    sizes = apportion(held, np.bincount(classes, minlength=dataset.num_classes or 1))
    chosen = np.zeros(len(dataset), dtype=bool)
    for label, size in enumerate(sizes):
        chosen[rng.permutation(np.flatnonzero(classes == label))[:size]] = True
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


register_unchecked(Dataset, leaves=("x", "y"), static=STATIC)
