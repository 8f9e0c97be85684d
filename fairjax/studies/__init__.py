"""Studies: the paper's tables and figures, and questions of ours, each from one command."""

from fairjax.studies import approximation, grid
from fairjax.studies.base import Cell, Report, Study, conduct

STUDIES = {
    "fairness": grid.FAIRNESS,
    "performance": grid.PERFORMANCE,
    "approximation": approximation.APPROXIMATION,
}

__all__ = ["STUDIES", "Cell", "Report", "Study", "conduct"]
