"""Contributions: what an upload is worth.

`cosine.py` judges uploads by their cosine with the aggregate, `coalitions.py`
turns the utilities of all coalitions into values of agents.
"""

from fairjax.contributions.coalitions import banzhaf, leave_one_out, shapley
from fairjax.contributions.cosine import (
    Estimate,
    cosine,
    cosine_shapley,
    mean_field_cosine_shapley,
    sampled_cosine_shapley,
)

__all__ = [
    "Estimate",
    "banzhaf",
    "cosine",
    "cosine_shapley",
    "leave_one_out",
    "mean_field_cosine_shapley",
    "sampled_cosine_shapley",
    "shapley",
]
