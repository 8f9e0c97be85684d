"""Studies: the paper's tables and figures, and further questions, each from one command."""

from fairjax.studies import (
    adapters,
    altruism,
    approximation,
    cost,
    free_riders,
    grid,
    referee,
    reward_quality,
    when_fair,
)
from fairjax.studies.base import Cell, Report, Study, conduct

STUDIES = {
    "fairness": grid.FAIRNESS,
    "performance": grid.PERFORMANCE,
    "approximation": approximation.APPROXIMATION,
    "altruism": altruism.ALTRUISM,
    "free_riders": free_riders.FREE_RIDERS,
    "time": cost.TIME,
    "rewards": reward_quality.REWARDS,
    "when_fair": when_fair.WHEN_FAIR,
    "referee": referee.REFEREE,
    "adapters": adapters.ADAPTERS,
}

__all__ = ["STUDIES", "Cell", "Report", "Study", "conduct"]
