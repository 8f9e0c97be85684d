"""Task: what agents train for, and how their models are measured.

loss      (outputs [B, ...], y [B, ...]) -> [B]       local training minimises its mean
metrics   (outputs [M, ...], y [M, ...]) -> number    over a whole test set
main      the metric that fairness, figures and `utility` are about
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import checks
from fairjax.data import Dataset
from fairjax.fingerprint import ByContents
from fairjax.tasks import measures
from fairjax.types import Array, Scalar

METRICS: Mapping[str, Callable[[Array, Array], Scalar]] = {
    name: getattr(measures, name)
    for name in (
        "accuracy", "balanced_accuracy", "macro_f1", "auc", "average_precision", "log_loss",
        "mse", "mae", "r2",
    )
}  # fmt: skip
NUMBERS = ("mse", "mae", "r2")  # the metrics of numbers; others are of classes or labels
# Columns of records, as `fairjax.experiments.tracking` writes them.
COLUMNS = (
    "round", "agent", "contribution", "importance", "fraction", "participates", "excluded",
)  # fmt: skip
STARTS, ENDS = ("server_", "trained_"), ("_std", "_num", "_undefined")  # of columns of a metric
RANKING = ("auc", "average_precision")  # the metrics that need examples with and without a label
LOWER = ("log_loss", "mse", "mae")  # the metrics that are better when they are lower
SHARES = ("accuracy", "balanced_accuracy", "macro_f1")  # the metrics that are shown in percent
_MISFITS = (TypeError, ValueError, AttributeError, LookupError, AssertionError)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Task(ByContents):
    """A loss and metrics.

    Args:
      loss: maps outputs `[B, ...]` and targets `y [B, ...]` to a loss for each example `[B]`; it is
        differentiated and compiled.
      metrics: names of `METRICS`; or a mapping from names to functions of outputs `[M, ...]` and
        targets `y [M, ...]` over a whole test set that return one number, and are compiled.
      main: the metric that fairness, figures and `utility` are about; None: the first.
      lower_is_better: those of your own metrics that are better when they are lower. It is known
        for the metrics of `METRICS`.

    Attributes:
      loss: as given.
      metrics: names and functions, in order.
      main: the main metric's name.
      lower_is_better: all metrics that are better when they are lower.

    Raises:
      ValueError: an argument has the wrong kind, or a name is not known.

    Examples:
      >>> import optax
      >>> def within_one(outputs, y):
      ...     return (abs(outputs.squeeze(-1) - y) <= 1).mean()
      >>> task = Task(lambda outputs, y: optax.huber_loss(outputs.squeeze(-1), y),
      ...             {"within_one": within_one, "mae": METRICS["mae"]})
      >>> task
      Task(main='within_one', metrics=['within_one', 'mae'], lower_is_better=['mae'])
    """

    loss: Callable[[Array, Array], Array]
    metrics: Any
    main: Any = None
    lower_is_better: Any = ()

    def __post_init__(self):
        checks.function("loss", self.loss, "loss(outputs [B, ...], y [B, ...]) -> [B]")
        metrics = _as_pairs(self.metrics)
        names = [name for name, _ in metrics]
        main = names[0] if self.main is None else self.main
        checks.choice("metric", main, names)
        own = self.lower_is_better
        own = (own,) if isinstance(own, str) else own
        if not checks.is_listing(own):
            raise ValueError(
                f"`lower_is_better` must be names of metrics, got {checks.shown(own)}."
            )
        own = tuple(own)
        for name in own:
            checks.choice("metric of lower_is_better", name, names)
        lower = [name for name, one in metrics if name in own or one in map(METRICS.get, LOWER)]
        values = {"metrics": metrics, "main": main, "lower_is_better": tuple(lower)}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return (
            f"Task(main={self.main!r}, metrics={list(self.names)}, "
            f"lower_is_better={list(self.lower_is_better)})"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the metrics."""
        return tuple(name for name, _ in self.metrics)

    @property
    def sign(self) -> int:
        """1 where a higher main metric is better, else -1."""
        return -1 if self.main in self.lower_is_better else 1

    def about(self, metric: str | None) -> "Task":
        """Returns the task with another main metric; None: this task.

        A metric of `METRICS` need not be among the task's own.

        Raises:
          ValueError: the name is not known.

        Examples:
          >>> import optax
          >>> Task(optax.squared_error, ["r2", "mse"]).about("mse").sign
          -1
        """
        if metric is None:
            return self
        metrics = dict(self.metrics)
        checks.choice("metric", metric, {**METRICS, **metrics})
        metrics.setdefault(metric, METRICS.get(metric))
        return dataclasses.replace(self, metrics=metrics, main=metric)

    def check(
        self, apply: Callable[..., Any], params: Any, data: Dataset, statistics: Any = None
    ) -> None:
        """Raises unless loss and metrics take the outputs of a model for a data set.

        Args:
          apply: maps parameters, `x [B, ...]` and statistics to outputs.
          params: the model's parameters.
          data: the data set.
          statistics: the model's statistics, if it has any.

        Raises:
          ValueError: they do not. The message names the loss or the metric, and the shapes.
        """
        for name, one in self.metrics:
            if METRICS.get(name) is one and (name in NUMBERS) != (data.num_classes is None):
                if name not in NUMBERS and _are_labels(data.y):
                    continue
                kind = "numbers" if name in NUMBERS else "classes, or labels [n, K] of 0 and 1"
                raise ValueError(f"The metric {name!r} needs {kind} as `y`, got {data}.")
        outputs = jax.eval_shape(apply, params, data.x[:2], statistics)
        if outputs.shape[0] != len(data.x[:2]):
            raise ValueError(
                f"`model.apply` must return outputs [B, ...], one for each of B={len(data.x[:2])} "
                f"examples, got {outputs.dtype}{[*outputs.shape]}."
            )
        y = jax.ShapeDtypeStruct((outputs.shape[0], *data.y.shape[1:]), data.y.dtype)
        given = f"outputs of shape {outputs.shape} and y of shape {y.shape}"
        rules = {"loss": (self.loss, y.shape[:1], "a floating number for each example")}
        rules |= {
            f"metric {name!r}": (one, (), "one floating number") for name, one in self.metrics
        }
        for name, (function, shape, rule) in rules.items():
            try:
                answer = jax.eval_shape(function, outputs, y)
            except _MISFITS as error:
                raise ValueError(
                    f"The task's {name} does not take {given}: {type(error).__name__}: "
                    f"{error!s:.300}"
                ) from error
            dtype = getattr(answer, "dtype", jnp.dtype(bool))
            if getattr(answer, "shape", None) != shape or not jnp.issubdtype(dtype, jnp.floating):
                is_array = hasattr(answer, "shape")
                found = f"{dtype}{[*answer.shape]}" if is_array else type(answer).__name__
                raise ValueError(
                    f"The task's {name} must return {rule}, of shape {shape}, for {given}, "
                    f"got {found}."
                )
        self._warn_of_mixed(outputs, data.y)

    def _warn_of_mixed(self, outputs: Any, y: Any) -> None:
        """Warns if the loss of an example depends on other examples, as where shapes broadcast."""
        ours = (getattr(self.loss, "__module__", None) or "").startswith("fairjax.")
        if ours or not checks.is_known(y) or len(y) < 2:
            return
        y = np.asarray(y)
        others = (y != y[0]).reshape(len(y), -1).any(1)
        try:
            with jax.debug_nans(False), jax.ensure_compile_time_eval():
                shape, other = (4, *outputs.shape[1:]), int(others.argmax())
                drawn = jax.random.normal(jax.random.key(0), shape, outputs.dtype)
                y = jnp.asarray(y[[0, other, other, 0]])
                together = self.loss(drawn, y)
                ones = [slice(place, place + 1) for place in range(4)]
                single = jnp.concatenate([self.loss(drawn[one], y[one]) for one in ones])
                apart = jnp.abs(together - single) - 0.01 * jnp.abs(single)
                worst = int(jnp.argmax(jnp.where(jnp.isnan(apart), -jnp.inf, apart)))
                mixed = bool(apart[worst] > 0.01)
                alone, beside = float(single[worst]), float(together[worst])
        except (*_MISFITS, ArithmeticError):  # it takes no single example, and fails in training
            return
        if mixed:
            warnings.warn(
                f"The task's loss of an example depends on the other examples of its batch: it is "
                f"{alone:.4g} alone and {beside:.4g} beside others. "
                f"Likely outputs {[*shape]} and y {[*y.shape]} are broadcast.",
                stacklevel=3,
            )

    def check_test(self, name: str, data: Dataset) -> None:
        """Raises if test data give a main metric that ranks examples nothing to rank.

        Args:
          name: the argument's name.
          data: the test data.

        Raises:
          ValueError: every class or label has all examples, or none.
        """
        if not checks.is_known(data.y):
            return
        y = np.asarray(data.y)
        of_labels = [one for one in self.names if one in METRICS and one not in NUMBERS]
        if data.num_classes is None and of_labels and not _are_labels(y):
            raise ValueError(
                f"`{name}` must hold labels [n, K] of 0 and 1 for the metric {of_labels[0]!r}, "
                f"got {data}."
            )
        if not self.can_rank(data):
            raise ValueError(
                f"`{name}` must hold examples with and without a class for the metric "
                f"{self.main!r}, got {len(y)} examples of one kind."
            )

    def can_rank(self, data: Dataset) -> bool:
        """Says whether data give the main metric something to rank, or it ranks nothing."""
        if self.main not in RANKING:
            return True
        y = np.asarray(data.y)
        positive = y > 0 if y.ndim == 2 else y[:, None] == np.unique(y)
        return bool((positive.any(0) & ~positive.all(0)).any())


def _as_pairs(metrics: Any) -> tuple[tuple[str, Any], ...]:
    """Returns names and functions of metrics, or raises."""
    if isinstance(metrics, tuple) and metrics and all(isinstance(one, tuple) for one in metrics):
        metrics = dict(metrics)  # `dataclasses.replace` gives back what a task holds
    if isinstance(metrics, str):
        metrics = (metrics,)
    if not isinstance(metrics, Mapping):
        if not checks.is_listing(metrics):
            raise ValueError(
                "`metrics` must be names, or a mapping from names to functions, "
                f"got {checks.shown(metrics)}."
            )
        names = tuple(metrics)
        for name in names:
            checks.choice("metric", name, METRICS)
        metrics = {name: METRICS[name] for name in names}
    if not metrics:
        raise ValueError("`metrics` must hold at least one metric, got none.")
    for name, function in metrics.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(
                f"`metrics` must have names of letters, digits and _, got {checks.shown(name)}."
            )
        checks.function(f"metrics[{name!r}]", function, "metric(outputs, y) -> one number")
        if METRICS.get(name, function) is not function or name in COLUMNS:
            raise ValueError(
                f"`metrics` must not give the name {name!r} to another function: fairjax uses it."
            )
        of_other = [
            other
            for other in metrics
            if name in [start + other for start in STARTS] + [other + end for end in ENDS]
            or name.startswith(f"{other}_vs_")
        ]
        if of_other:
            raise ValueError(
                f"`metrics` must not have the name {name!r} beside {of_other[0]!r}: a table has a "
                "column of that name for it."
            )
    return tuple(metrics.items())


def _are_labels(y: Any) -> bool:
    """Says whether `y` is a table of 0 and 1, or is traced."""
    return y.ndim == 2 and (not checks.is_known(y) or bool(np.isin(np.asarray(y), (0, 1)).all()))
