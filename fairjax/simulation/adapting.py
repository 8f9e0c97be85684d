"""Adapting: what changes in a round if agents train adapters in place of matrices.

    begin     factors drawn afresh, or those that a mechanism's plan gives
    step      the loss of  held + s_i B_i A_i, differentiated by the factors
    end       LowRank(s_i B_i, A_i), an agent's update

Optimizer states begin anew in every round.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fairjax import blocks, trees
from fairjax.lowrank import LowRank, is_low_rank
from fairjax.models import Adapters, changes, joined, with_factors
from fairjax.simulation.each import of_agent
from fairjax.types import Key, Params, PerAgent, Scalar, Stacked

FACTORS = 2**31 - 1  # folded into an agent's key of the round; local epochs fold in less


class Ranked(NamedTuple):
    """The adapters of a model, and the ranks that agents have.

    Attributes:
      adapters: what the model adapts.
      ranks: those of all agents; None: that of the adapters.
    """

    adapters: Adapters
    ranks: tuple[int, ...] | None = None

    @property
    def width(self) -> int:
        """The largest rank of an agent."""
        return self.adapters.rank if self.ranks is None else max(self.ranks)

    def rank(self, agent: Scalar) -> Any:
        """Returns an agent's rank."""
        return self.width if self.ranks is None else of_agent(self.ranks, agent)

    def scale(self, agent: Scalar) -> Any:
        """Returns the factor of an agent's product."""
        return self.adapters.scale(self.rank(agent))

    def draw(self, key: Key, params: Params, agent: Scalar | None = None) -> Params:
        """Returns an agent's first factors of this round; None: those of the largest rank."""
        rank = self.width if agent is None else self.rank(agent)
        return self.adapters.draw(jax.random.fold_in(key, FACTORS), params, self.width, rank)

    def begin(
        self, key: Key, held: Params, agent: Scalar, given: Params | None, frozen: bool
    ) -> tuple[Params, Any]:
        """Returns the variables that an agent trains, and which of them may change, None: all.

        Args:
          key: the agent's key of the round.
          held: its parameters at the round's start.
          agent: its place among all.
          given: its first factors, as a mechanism's `Plan` gives them; None: drawn afresh.
          frozen: whether the first of two given factors stays as it is.
        """
        if given is None:
            variables = self.draw(key, held, agent)
            if self.ranks is None:
                return variables, None
        else:

            def unscale(one: Any) -> Any:
                return LowRank(one.b / self.scale(agent), one.a) if is_low_rank(one) else one

            variables = with_factors(trees.map_leaves(unscale, given), held)
        own = jnp.arange(self.width) < self.rank(agent)
        may = LowRank(own & (not frozen), own[:, None])
        learned = trees.map_leaves(lambda one: may if is_low_rank(one) else True, variables)
        return variables, learned

    def common(self, key: Key, params: Params) -> Params:
        """Returns factors that all agents have in common, scaled as in updates."""
        drawn = self.draw(key, params)
        return trees.map_leaves(
            lambda one: (
                LowRank(self.adapters.scale(self.width) * one.b, one.a)
                if is_low_rank(one)
                else jnp.zeros_like(one)
            ),
            drawn,
        )

    def whole(self, held: Params, variables: Params, agent: Scalar) -> Params:
        """Returns the parameters to compute with."""
        return joined(held, variables, self.scale(agent))

    def updates(self, held: Stacked, variables: Stacked) -> Stacked:
        """Returns what all agents' training changed, with `LowRank` nodes `[N, ...]`."""
        places = jnp.arange(trees.num_agents(held))
        return jax.vmap(lambda own, new, agent: changes(own, new, self.scale(agent)))(
            held, variables, places
        )

    def communicated(
        self, uploads: Stacked, rewards: Stacked, frozen: bool, who: PerAgent
    ) -> dict[str, PerAgent]:
        """Returns how many numbers agents upload and receive; 0 but for `who` `[N]`."""
        counts = {"uploaded": self.num_uploaded(uploads, frozen)}
        counts["received"] = _num_received(rewards, frozen)
        return {name: jnp.where(who, numbers, 0) for name, numbers in counts.items()}

    def num_uploaded(self, updates: Stacked, frozen: bool) -> PerAgent:
        """Returns `[N]` how many numbers agents upload: factors or products, and other leaves."""
        ranks = self.rank(jnp.arange(trees.num_agents(updates)))

        def of_leaf(leaf: Any) -> Any:
            if not is_low_rank(leaf):
                return leaf[0].size
            *_, m, n = leaf.shape
            return jnp.minimum(ranks * (n if frozen else m + n), m * n)

        counted = trees.sum_leaves(of_leaf, updates)
        return jnp.broadcast_to(jnp.asarray(counted, jnp.int32), trees.num_agents(updates))


def with_products(held: Stacked, factors: Stacked) -> Stacked:
    """Returns parameters with the products of factors added, where there are any."""
    return trees.map_leaves(
        lambda one, leaf: leaf + one.dense() if is_low_rank(one) else leaf, factors, held
    )


def only(learned: Any, changed: Params) -> Params:
    """Returns changes with zeros for entries that stay as they are."""
    if learned is None:
        return changed
    return jax.tree.map(lambda may, change: jnp.where(may, change, 0), learned, changed)


def _num_received(rewards: Stacked, frozen: bool) -> PerAgent:
    """Returns `[N]` how many numbers agents receive.

    A product counts by the columns of both factors that are not zero, or only one factor's if the
    other is known to all; or by its entries, if these are fewer. Other leaves count by their
    entries that are not zero.
    """

    def of_leaf(leaf: Any) -> PerAgent:
        if not is_low_rank(leaf):
            return blocks.rows(leaf != 0).sum(1)
        *_, m, n = leaf.shape
        live = ((leaf.b != 0).any(-2) & (leaf.a != 0).any(-1)).reshape(leaf.shape[0], -1)
        return jnp.minimum(live.sum(1) * (n if frozen else m + n), leaf.size // leaf.shape[0])

    return trees.sum_leaves(of_leaf, rewards).astype(jnp.int32)
