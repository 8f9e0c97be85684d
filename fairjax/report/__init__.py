"""Report: one self-contained HTML page of a run, or of a comparison of mechanisms.

result, records -> sentences, tables, figures -> report.html
"""

from fairjax.report.comparison import write_comparison
from fairjax.report.over_seeds import write_over_seeds
from fairjax.report.run import write_run

__all__ = ["write_comparison", "write_over_seeds", "write_run"]
