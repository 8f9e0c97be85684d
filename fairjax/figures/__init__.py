"""Figures draw results and compute nothing. Each answers one question and returns its axes.

partition         who holds which data?
accuracy          how good are the agents' models, round by round?
contributions     what is every upload worth, round by round?
importance        who matters, round by round?
reward_fractions  who is paid how much, round by round?
fairness          does the agent that is better alone receive the better model?
comparison        which mechanism pays fairly, and at which price?
over_seeds        the same over several seeds
audit             what does cheating pay, and what does it cost others?

Figures are as wide as one column of a two-column paper, or wider with text beside them. An agent
has the same colour in all of them. With more than twenty agents, three are drawn as lines and a
band shows all. Axes of yours are given as `ax`; make them with `layout="constrained"`, which leaves
room for legends below, and replace a title by `ax.set_title("...", loc="left")`.
"""

from fairjax.figures.audits import audit
from fairjax.figures.ends import comparison, fairness, over_seeds, partition
from fairjax.figures.rounds import accuracy, contributions, importance, reward_fractions
from fairjax.figures.style import (
    ASIDE,
    COLUMN,
    check_results,
    correlation_axis,
    draw_correlation,
    draw_spread,
    name_lines,
    name_series,
    styled,
    svg,
    write,
)

__all__ = [
    "ASIDE",
    "COLUMN",
    "accuracy",
    "audit",
    "check_results",
    "comparison",
    "contributions",
    "correlation_axis",
    "draw_correlation",
    "draw_spread",
    "fairness",
    "importance",
    "name_lines",
    "name_series",
    "over_seeds",
    "partition",
    "reward_fractions",
    "styled",
    "svg",
    "write",
]
