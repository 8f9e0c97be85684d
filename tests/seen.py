"""What mechanisms may look at in tests besides updates: hidden units, losses, what is reached."""

import jax
import jax.numpy as jnp

from fairjax.rewards import ALWAYS, Units


def units(params):
    """Takes the last axis of the first leaf for hidden units."""
    leaves, structure = jax.tree.flatten(params)
    none = [jnp.full((1,) * leaf.ndim, ALWAYS) for leaf in leaves]
    num = leaves[0].shape[-1] if leaves[0].ndim else 1
    first = jnp.arange(num).reshape((1,) * (leaves[0].ndim - 1) + (-1,))
    makes = [first if leaves[0].ndim else jnp.zeros((), int), *none[1:]]
    return Units(num, structure.unflatten(makes), structure.unflatten(none))


def begin(mechanism, num_agents, params, reached=None):
    """The first state of a mechanism; alone, agents reach 1/10, 2/10, ... or what is given."""
    if reached is None:
        reached = (jnp.arange(num_agents) + 1) / 10
    return mechanism.init(num_agents, params, units(params), lambda on: reached)


def example_losses(params):
    """Losses of three examples of their own, and of four that are held out, for all agents."""
    sums = sum(leaf.reshape(len(leaf), -1).sum(1) for leaf in jax.tree.leaves(params))
    return tuple(jnp.exp(jnp.outer(jnp.tanh(sums), jnp.arange(1.0, n))) for n in (4, 5))
