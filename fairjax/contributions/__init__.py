"""Contributions: what an upload is worth.

`cosine.py` judges uploads by their cosine with the aggregate, with the inner products of
`gram.py`; `sampling.py` does so for more agents than can be enumerated. `models.py` scores the
models that coalitions would have made, and `recorded.py` does so for every round of a run.
`coalitions.py` turns the utilities of all coalitions into values.
Mechanisms call `measure`, which never reads a list in a model's parameters as a list of agents.
"""

from fairjax.contributions.coalitions import banzhaf, check_table, leave_one_out, shapley
from fairjax.contributions.cosine import (
    MEASURES,
    cosine,
    cosine_shapley,
    mean_field_cosine_shapley,
    measure,
)
from fairjax.contributions.gram import checked, coalition_cosines, cosine_game, products_of
from fairjax.contributions.models import gtg_shapley, model_utilities
from fairjax.contributions.recorded import (
    federated_shapley,
    multi_round_shapley,
    recorded_utilities,
)
from fairjax.contributions.sampling import (
    Estimate,
    gram_cosine_shapley,
    sampled_cosine_shapley,
)

__all__ = [
    "MEASURES",
    "Estimate",
    "banzhaf",
    "check_table",
    "checked",
    "coalition_cosines",
    "cosine",
    "cosine_game",
    "cosine_shapley",
    "federated_shapley",
    "gram_cosine_shapley",
    "gtg_shapley",
    "leave_one_out",
    "mean_field_cosine_shapley",
    "measure",
    "model_utilities",
    "multi_round_shapley",
    "products_of",
    "recorded_utilities",
    "sampled_cosine_shapley",
    "shapley",
]
