"""Named tasks: functions of the training data that make a task.

classification   cross entropy                            accuracy
class_weighted   cross entropy times a class's weight     balanced accuracy
regression       squared error                            R2
multi_label      mean binary cross entropy over labels    average precision

The last column is the main metric; `Experiment(metric=...)` chooses another.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fairjax import checks
from fairjax.data import Dataset
from fairjax.tasks import measures
from fairjax.tasks.base import Task
from fairjax.types import Array

# The metrics of each task; the first is the main one.
METRICS_OF: Mapping[str, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "class_weighted": ("balanced_accuracy", "accuracy", "macro_f1", "auc", "average_precision"),
    "regression": ("r2", "mse", "mae"),
    "multi_label": ("average_precision", "auc", "macro_f1", "accuracy"),
}
LARGE_TARGETS = 10.0  # mean or standard deviation of targets above which a warning is due
CLASSIFICATION = Task(measures.cross_entropy, METRICS_OF["classification"])


def classification(train: Dataset) -> Task:
    """Returns the task of classes: cross entropy and accuracy.

    Raises:
      ValueError: `train` has no classes.

    Examples:
      >>> train = Dataset(x=[[0.5], [1.5]], y=[0, 1], num_classes=2)
      >>> classification(train)
      Task(main='accuracy', metrics=['accuracy'], lower_is_better=[])
    """
    _check_classes("classification", train)
    return CLASSIFICATION


def class_weighted(train: Dataset, weights: Sequence[float] | None = None) -> Task:
    """Returns the task of classes of which rare ones count more.

    Args:
      train: the training data.
      weights: `[C]` weights of classes, not negative and not all zero; None: n / (C n_c), with the
        n_c examples of class c among the training data of all agents.

    Raises:
      ValueError: `train` has no classes, or `weights` are not as described.

    Examples:
      >>> train = Dataset(x=[[0.5], [1.5], [2.5], [3.5]], y=[0, 0, 0, 1], num_classes=2)
      >>> task = class_weighted(train)
      >>> print(task.loss(jnp.zeros((2, 2)), jnp.array([0, 1])).round(3), task.main)
      [0.462 1.386] balanced_accuracy
    """
    _check_classes("class_weighted", train)
    num_classes: Any = train.num_classes
    if weights is None:
        sizes = np.bincount(np.asarray(train.y), minlength=num_classes)
        weights = (len(train) / (len(sizes) * np.maximum(sizes, 1))).tolist()
    array = checks.amounts("weights", weights, num_classes, f"weights of the {num_classes} classes")
    with np.errstate(over="ignore"):
        of_class = array.astype(np.float32)
    checks.finite("weights", of_class)

    def loss(outputs: Array, y: Array) -> Array:
        return jnp.asarray(of_class)[y] * measures.cross_entropy(outputs, y)

    return Task(loss, METRICS_OF["class_weighted"])


def regression(train: Dataset) -> Task:
    """Returns the task of numbers: squared error, R2, MSE and MAE.

    Networks start near 0, so standardise `y`, and the columns of `x`: targets of mean 150 take
    hundreds of steps until their mean is learnt. Large targets cause a warning.

    Raises:
      ValueError: `train` has classes instead of numbers.

    Examples:
      >>> regression(Dataset(x=[[0.5], [1.5]], y=[0.1, 2.5]))
      Task(main='r2', metrics=['r2', 'mse', 'mae'], lower_is_better=['mse', 'mae'])
    """
    _check_numbers("regression", train)
    if checks.is_known(train.y):
        y = np.asarray(train.y, np.float64).reshape(len(train), -1)
        mean, std = np.abs(y.mean(0)).max(), y.std(0).max()
        if max(mean, std) > LARGE_TARGETS:
            warnings.warn(
                f"`y` has mean {mean:.3g} and standard deviation {std:.3g}, but networks start "
                "near 0. Standardise `y`, and the columns of `x`.",
                stacklevel=2,
            )
    return Task(_squared_error, METRICS_OF["regression"])


def multi_label(train: Dataset) -> Task:
    """Returns the task of several labels, 0 or 1, for each example.

    Raises:
      ValueError: `y` of `train` is not a table `[n, K]` of 0 and 1.

    Examples:
      >>> task = multi_label(Dataset(x=[[0.5], [1.5]], y=[[0, 1], [1, 1]]))
      >>> task.names
      ('average_precision', 'auc', 'macro_f1', 'accuracy')
    """
    _check_numbers("multi_label", train)
    y = train.y
    if np.ndim(y) != 2 or (checks.is_known(y) and not np.isin(np.asarray(y), (0, 1)).all()):
        raise ValueError(
            "The task multi_label needs `y` as a table [n, K] of 0 and 1, one column for each "
            f"label, got {y.dtype}{[*y.shape]}."
        )
    return Task(measures.cross_entropy, METRICS_OF["multi_label"])


TASKS: Mapping[str, Callable[[Dataset], Task]] = {
    task.__name__: task for task in (classification, class_weighted, regression, multi_label)
}


def as_task(given: Any, train: Dataset, metric: str | None = None) -> Task:
    """Returns the task of a name, or a `Task`, with a chosen main metric.

    Args:
      given: a name of `TASKS`, a function of the training data that makes a task, or a `Task`.
      train: the training data.
      metric: the main metric; None: the task's own.

    Raises:
      ValueError: a name is not known, or the task does not fit the data.

    Examples:
      >>> as_task("regression", Dataset(x=[[0.5], [1.5]], y=[0.1, 2.5]), "mae").main
      'mae'
    """
    if isinstance(given, str):
        checks.choice("task", given, TASKS)
        given = TASKS[given]
    made = given
    if not isinstance(given, Task):
        try:
            made = given(train)
        except Exception as error:
            if given in TASKS.values():
                raise
            raise ValueError(
                "`task` must be a function of the training data that makes a Task, got "
                f"{checks.shown(given)}, which fails: {type(error).__name__}: {error}"
            ) from error
    checks.kind("task", made, Task, "`fairjax.tasks.Task(loss, metrics)`")
    return made.about(metric)


def _squared_error(outputs: Array, y: Array) -> Array:
    errors = (measures.like(outputs, y) - y) ** 2
    return errors if errors.ndim == 1 else errors.mean(tuple(range(1, errors.ndim)))


def _check_classes(task: str, train: Dataset) -> None:
    checks.kind("train", train, Dataset, "`fairjax.data.load`")
    if train.num_classes is None:
        raise ValueError(
            f"The task {task} needs classes, got {train}. Take the task regression or multi_label, "
            "or give the data set `num_classes`."
        )


def _check_numbers(task: str, train: Dataset) -> None:
    checks.kind("train", train, Dataset, "`fairjax.data.load`")
    if train.num_classes is not None:
        raise ValueError(
            f"The task {task} needs numbers as `y`, got {train}. Leave out the data set's "
            "`num_classes`, or take the task classification."
        )
