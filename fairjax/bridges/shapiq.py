"""shapiq: its methods ask for coalitions, and fairjax computes their utilities.

    utility_game   nu(S) is looked up in a table [2**N]
    cosine_game    nu(S) = cos(u_S, u_N), from one Gram matrix

shapiq centres games: a game returns nu(S) - nu(nobody), and nu(nobody) is its
`normalization_value`. Shapley and Banzhaf values do not depend on it. Needs shapiq:
`pip install '.[shapiq]'` in a checkout.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from fairjax.contributions import check_table, checked, coalition_cosines, products_of
from fairjax.types import PerAgent, PerCoalition, Stacked

try:
    import shapiq  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(
        "`fairjax.bridges.shapiq` needs shapiq: `pip install '.[shapiq]'` in a checkout of fairjax"
    ) from error


class AgentGame(shapiq.Game):
    """A shapiq game of agents; made by `utility_game` or `cosine_game`."""

    def __init__(self, num_agents: int, utility: Callable[[np.ndarray], Any]) -> None:
        self._utility = utility
        nobody = np.zeros((1, num_agents), bool)
        super().__init__(num_agents, normalization_value=float(utility(nobody)[0]))

    def value_function(self, coalitions: np.ndarray) -> np.ndarray:
        """Returns the utilities `[B]` of coalitions `[B, N]` of zeros and ones."""
        return np.asarray(self._utility(coalitions), float)


def utility_game(utilities: PerCoalition) -> AgentGame:
    """Returns the game of a table of utilities, for example from `model_utilities`.

    Args:
      utilities: `[2**N]`; bit i of the index says whether agent i is in the coalition.

    Raises:
      ValueError: the length is not a power of two above 1, or an entry is not finite.

    Examples:
      >>> game = utility_game([1.0, 2.0, 3.0, 5.0])
      >>> game([(), (0,), (1,), (0, 1)]), game.normalization_value
      (array([0., 1., 2., 4.]), 1.0)
    """
    table = np.asarray(utilities, float)
    check_table(table)
    num_agents = (len(table) - 1).bit_length()
    return AgentGame(num_agents, lambda coalitions: table[coalitions @ 2 ** np.arange(num_agents)])


def cosine_game(updates: Stacked, weights: PerAgent | None = None) -> AgentGame:
    """Returns the game whose Shapley values are `fairjax.contributions.cosine_shapley`.

    Costs one Gram matrix, O(N^2 D), and O(N^2) per coalition, so shapiq's samplers work with
    any number of agents.

    Args:
      updates: leaves `[N, ...]`.
      weights: `[N]` importance coefficients r, not negative; None: equal.

    Raises:
      ValueError: shapes disagree, or weights are negative or not finite.

    Examples:
      >>> from shapiq.game_theory import ExactComputer
      >>> game = cosine_game(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
      >>> values = ExactComputer(game)("SV", 1)
      >>> print(values.get_n_order_values(1).round(3))
      [0.399 0.399 0.202]
    """
    products = products_of(*checked(updates, weights), with_gram=True)

    def utility(coalitions: np.ndarray) -> np.ndarray:
        # Samplers ask for varying numbers of coalitions. Padding keeps the compiled programs few.
        length = 1 << (len(coalitions) - 1).bit_length()
        padded = np.pad(coalitions, ((0, length - len(coalitions)), (0, 0)))
        return np.asarray(coalition_cosines(products, padded))[: len(coalitions)]

    return AgentGame(len(products.weights), utility)
