"""Contributions: what an upload is worth.

`cosine.py` judges uploads by their cosine with the aggregate, `models.py` by the
models that coalitions would have made; `coalitions.py` turns the utilities of all
coalitions into values of agents.
"""

from fairjax.contributions.coalitions import banzhaf, leave_one_out, shapley
from fairjax.contributions.cosine import (
    Estimate,
    cosine,
    cosine_shapley,
    mean_field_cosine_shapley,
    sampled_cosine_shapley,
)
from fairjax.contributions.models import gtg_shapley, model_utilities

__all__ = [
    "Estimate",
    "banzhaf",
    "cosine",
    "cosine_shapley",
    "gtg_shapley",
    "leave_one_out",
    "mean_field_cosine_shapley",
    "model_utilities",
    "sampled_cosine_shapley",
    "shapley",
]
