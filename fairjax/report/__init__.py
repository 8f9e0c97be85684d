"""Report: one self-contained HTML page of a run, of a comparison of mechanisms, or of an audit.

result, records -> sentences, tables, figures -> report.html
"""

from fairjax.report.audit import write_audit
from fairjax.report.comparison import write_comparison
from fairjax.report.over_seeds import write_over_seeds
from fairjax.report.run import write_run

__all__ = ["write_audit", "write_comparison", "write_over_seeds", "write_run"]
