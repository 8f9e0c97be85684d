"""Tasks: losses and metrics.

base       `Task`: a loss, metrics, and which of them is the main one
measures   the metrics, as compiled functions of a whole test set
shown      how a metric is written
named      classification, class_weighted, regression, multi_label
"""

from fairjax.tasks.base import METRICS, Task
from fairjax.tasks.measures import confusion
from fairjax.tasks.named import (
    CLASSIFICATION,
    METRICS_OF,
    TASKS,
    as_task,
    class_weighted,
    classification,
    multi_label,
    regression,
)
from fairjax.tasks.shown import Shown

__all__ = [
    "CLASSIFICATION", "METRICS", "METRICS_OF", "TASKS", "Shown", "Task",
    "as_task", "class_weighted", "classification", "confusion", "multi_label", "regression",
]  # fmt: skip
