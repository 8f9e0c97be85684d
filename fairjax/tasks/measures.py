"""Measures: metrics of a model's outputs over a whole test set, as compiled functions.

    accuracy            share of the examples whose greatest output is that of their class
    balanced accuracy   mean over classes of the share of their examples that is right
    macro F1            mean over classes of 2 TP / (2 TP + FP + FN)
    AUC                 chance that a positive example scores above a negative one; ties half
    average precision   mean over positive examples of the precision at their score
    log loss            mean of -log p(y)
    MSE, MAE, R2        of numbers; means over the columns of `[M, K]`

Labels are classes `[M]`, several labels `[M, K]` of 0 and 1, or numbers `[M]` or `[M, K]`. All
agree with scikit-learn's functions, which `tests/test_tasks.py` compares; the log loss of several
labels is the mean of theirs, an AUC that is undefined for a class is left out, and scores that hold
nan, which scikit-learn refuses, give nan.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fairjax.types import Array, Scalar

BLOCK = 256  # sums of blocks, and then of these, round less than one long sum


def accuracy(outputs: Array, y: Array) -> Scalar:
    """Returns the share of examples that are right.

    An example with several labels is right if all are.

    Examples:
      >>> print(accuracy(jnp.array([[2.0, 1.0], [0.0, 3.0]]), jnp.array([0, 0])))
      0.5
    """
    right = outputs.argmax(-1) == y if y.ndim == 1 else ((like(outputs, y) > 0) == y).all(-1)
    return right.sum() / len(y)


def balanced_accuracy(outputs: Array, y: Array) -> Scalar:
    """Returns the mean over classes of the share that is right.

    Classes that do not occur in `y [M]` do not count.

    Examples:
      >>> print(balanced_accuracy(jnp.array([[2.0, 1.0]] * 4), jnp.array([0, 0, 0, 1])))
      0.5
    """
    table = confusion(outputs, y)
    sizes = table.sum(1)
    return _mean(jnp.diagonal(table) / jnp.maximum(sizes, 1), sizes > 0)


def macro_f1(outputs: Array, y: Array) -> Scalar:
    """Returns the mean F1 over classes.

    Classes that occur neither in `y [M]` nor among predictions do not count. For several labels
    `[M, K]` it is the mean over all K; one that neither occurs nor is predicted counts 0.

    Examples:
      >>> print(macro_f1(jnp.array([[2.0, 1.0], [0.0, 3.0]]), jnp.array([0, 1])))
      1.0
    """
    if y.ndim == 1:
        table = confusion(outputs, y)
        true, real, found = jnp.diagonal(table), table.sum(1), table.sum(0)
        counted = real + found > 0
    else:
        positive = like(outputs, y) > 0
        true, real, found = (positive * y).sum(0), y.sum(0), positive.sum(0)
        counted = jnp.ones(y.shape[1], bool)
    return _mean(2 * true / jnp.maximum(real + found, 1), counted)


def auc(outputs: Array, y: Array) -> Scalar:
    """Returns the area under the ROC curve.

    With two classes, the second is the positive one; with more, it is the mean over classes, each
    against all others; with several labels, the mean over them. Classes and labels for which `y`
    has no or only such examples are left out; nan if all are.

    Examples:
      >>> print(auc(jnp.array([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]]), jnp.array([0, 1, 0])))
      1.0
    """

    def one(scores: Array, positive: Array) -> Scalar:
        order = jnp.sort(scores)
        negatives = jnp.append(0, jnp.cumsum(~positive[jnp.argsort(scores)]))
        below, up_to = (
            negatives[jnp.searchsorted(order, scores, side=side)] for side in ("left", "right")
        )
        won = (below + (up_to - below) / 2) / jnp.maximum(negatives[-1], 1)
        return _mean(won, positive)

    values, positive = _over_labels(one, outputs, y)
    return _mean(values, positive.any(0) & ~positive.all(0), empty=jnp.nan)


def average_precision(outputs: Array, y: Array) -> Scalar:
    """Returns the mean precision at the scores of positive examples.

    Several classes or labels count as in `auc`, except that one without examples counts 0.

    Examples:
      >>> print(average_precision(jnp.array([[0.0, 1.0], [0.0, 3.0]]), jnp.array([1, 0])))
      0.5
    """

    def one(scores: Array, positive: Array) -> Scalar:
        order = jnp.sort(scores)
        before = jnp.append(0, jnp.cumsum(positive[jnp.argsort(scores)]))
        first = jnp.searchsorted(order, scores, side="left")  # all from here score as much or more
        precision = (before[-1] - before[first]) / (len(scores) - first)
        return _mean(precision, positive)

    return _mean(_over_labels(one, outputs, y)[0])


def log_loss(outputs: Array, y: Array) -> Scalar:
    """Returns the mean cross entropy.

    Examples:
      >>> print(log_loss(jnp.zeros((3, 2)), jnp.array([0, 1, 1])).round(4))
      0.6931
    """
    return _mean(cross_entropy(outputs, y))


def mse(outputs: Array, y: Array) -> Scalar:
    """Returns the mean squared error.

    Examples:
      >>> print(mse(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])))
      2.0
    """
    return _mean((like(outputs, y) - y) ** 2)


def mae(outputs: Array, y: Array) -> Scalar:
    """Returns the mean absolute error.

    Examples:
      >>> print(mae(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])))
      1.0
    """
    return _mean(abs(like(outputs, y) - y))


def r2(outputs: Array, y: Array) -> Scalar:
    """Returns the share of the variance that is explained.

    For several columns `[M, K]` it is their mean. A column without variance counts 1 if it is met
    exactly, else 0.

    Examples:
      >>> print(r2(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 2.0, 3.0])))
      1.0
    """
    errors = ((like(outputs, y) - y) ** 2).reshape(len(y), -1)
    columns = y.reshape(len(y), -1)
    columns = columns - columns[0]  # a column without variance is exactly zero then
    means = jax.vmap(_mean, in_axes=1)(columns)
    left = jax.vmap(_sum, in_axes=1)(errors)
    spread = jax.vmap(_sum, in_axes=1)((columns - means) ** 2)
    explained = 1 - left / jnp.where(spread > 0, spread, 1)
    return jnp.where(spread > 0, explained, left == 0).mean()


def cross_entropy(outputs: Array, y: Array) -> Array:
    """Returns the cross entropies `[B]` of classes; of several labels, the mean over them."""
    if y.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y)
    return optax.sigmoid_binary_cross_entropy(like(outputs, y), y).mean(-1)


def confusion(outputs: Array, y: Array) -> Array:
    """Returns `[C, C]` counts: of examples of a class (row), those taken for a class (column)."""
    num_classes = outputs.shape[-1]
    return jnp.zeros((num_classes, num_classes), jnp.int32).at[y, outputs.argmax(-1)].add(1)


def like(outputs: Array, y: Array) -> Array:
    """Returns outputs in the shape of the numbers `y`: `[B, 1]` outputs meet `[B]` numbers.

    Raises:
      ValueError: there are more or fewer outputs than numbers.
    """
    if outputs.size != y.size:
        raise ValueError(f"outputs of shape {outputs.shape} do not match y of shape {y.shape}")
    return outputs.reshape(y.shape)


def _over_labels(
    one: Callable[[Array, Array], Scalar], outputs: Array, y: Array
) -> tuple[Array, Array]:
    """Returns `one(scores [M], positive [M])` for K classes or labels, and positives `[M, K]`."""
    if y.ndim == 1 and outputs.shape[-1] == 2:
        scores, positive = outputs[:, 1:] - outputs[:, :1], (y == 1)[:, None]
    elif y.ndim == 1:
        scores = _log_odds(outputs)
        positive = y[:, None] == jnp.arange(outputs.shape[-1])
    else:
        scores, positive = like(outputs, y), y > 0
    values = jax.vmap(one, in_axes=1)(scores, positive)
    return jnp.where(jnp.isnan(scores).any(0), jnp.nan, values), positive


def _log_odds(outputs: Array) -> Array:
    """Returns log p / (1 - p) of classes `[M, C]`, which order examples as the p of softmax do."""
    outputs = outputs - outputs.max(-1, keepdims=True)  # so that equal outputs tie exactly
    is_greatest = outputs.argmax(-1, keepdims=True) == jnp.arange(outputs.shape[-1])
    total = jax.nn.logsumexp(outputs, axis=-1, keepdims=True)
    others = total + jnp.log1p(-jnp.exp(jnp.where(is_greatest, -jnp.inf, outputs - total)))
    # 1 - p of the greatest class would lose all its digits where p is nearly 1.
    without = jax.nn.logsumexp(jnp.where(is_greatest, -jnp.inf, outputs), axis=-1, keepdims=True)
    return outputs - jnp.where(is_greatest, without, others)


def _sum(values: Array, counted: Array | bool = True) -> Scalar:
    values = jnp.where(counted, values, 0).ravel()
    return jnp.pad(values, (0, -len(values) % BLOCK)).reshape(-1, BLOCK).sum(1).sum()


def _mean(values: Array, counted: Array | None = None, empty: float = 0.0) -> Scalar:
    """Returns the mean of the entries that are counted; `empty` if none is."""
    if counted is None:
        return _sum(values) / values.size
    number = counted.sum()
    return jnp.where(number > 0, _sum(values, counted) / jnp.maximum(number, 1), empty)
