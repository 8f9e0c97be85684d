"""Sub-models: a reward is a network without some of its hidden units.

A hidden unit is made by the weights and the bias that lead to it, and taken by the weights that
lead from it. Without the unit all of these are zero, and so is their gradient if the activation of
zero is zero, as with relu and tanh.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fairjax.types import Array, Params, PerAgent, Stacked

ALWAYS = -1  # in place of a unit: entries that every sub-model holds


class Units(NamedTuple):
    """The hidden units of a network, and which entries of its parameters belong to them.

    Attributes:
      num: U, the number of hidden units.
      makes: for every leaf of the parameters, an int32 array that broadcasts to it: the unit that
        an entry leads to, or -1 if it leads to an output.
      takes: the same: the unit that an entry leads from, or -1 if it leads from an input.
    """

    num: int
    makes: Params
    takes: Params


def entries_held(units: Units, held: Array) -> Stacked:
    """Returns which entries agents hold whose sub-models have some hidden units.

    An entry is held with both of its units.

    Args:
      units: the units of the network.
      held: `[N, U]` booleans.

    Returns:
      Booleans, leaves `[N, ...]`, which broadcast to the stacked parameters.

    Examples:
      >>> units = Units(2, {"in": jnp.array([[0, 1]]), "out": jnp.array([[-1]])},
      ...               {"in": jnp.array([[-1]]), "out": jnp.array([[0], [1]])})
      >>> masks = entries_held(units, jnp.array([[True, False]]))
      >>> print(masks["in"].astype(int), masks["out"].ravel().astype(int))
      [[[1 0]]] [1 0]
    """
    known = jnp.pad(held, ((0, 0), (0, 1)), constant_values=True)  # the last: ALWAYS

    def of_leaf(makes: Array, takes: Array) -> Array:
        return known[:, jnp.asarray(makes)] & known[:, jnp.asarray(takes)]

    return jax.tree.map(of_leaf, units.makes, units.takes)


def submodels(params: Params, units: Units, held: Array) -> Stacked:
    """Returns a network without the hidden units that agents do not hold, leaves `[N, ...]`."""
    masks = entries_held(units, held)
    return jax.tree.map(lambda mask, leaf: jnp.where(mask, leaf, 0), masks, params)


def mean_of_holders(updates: Stacked, holders: Stacked) -> Params:
    """Returns for every entry the mean over those who hold it, 0 where nobody does.

    Args:
      updates: leaves `[N, ...]`.
      holders: booleans that broadcast to the updates.
    """

    def mean(leaf: Array, held: Array) -> Array:
        held = jnp.broadcast_to(held, leaf.shape)
        total = jnp.where(held, leaf, 0).sum(0)
        return total / jnp.maximum(held.sum(0), 1).astype(leaf.dtype)

    return jax.tree.map(mean, updates, holders)


def nested_units(order: Array, counts: PerAgent) -> Array:
    """Returns `[N, U]` booleans: agent i holds the first `counts[i]` units of an order `[U]`.

    Examples:
      >>> print(nested_units(jnp.array([2, 0, 1]), jnp.array([1, 2])).astype(int))
      [[0 0 1]
       [1 0 1]]
    """
    places = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=order.dtype))
    return places < counts[:, None]
