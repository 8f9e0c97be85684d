"""Inputs: users' values become arrays, or raise an error that says what to pass.

    numbers   an array of any library, or nested lists   ->  a floating array
    weights   one number per agent, or nothing           ->  a floating array [N]
    stacked   a pytree [N, ...], or a list of N pytrees  ->  a pytree [N, ...]

A list of pytrees can mean agents or layers. If both are possible, an error is raised.
"""

import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from fairjax import checks
from fairjax.lowrank import is_low_rank, with_one_rank
from fairjax.types import Array, Params, PerAgent, Stacked


def as_numbers(name: str, value: Any, *, booleans: bool = False) -> Array:
    """Returns a JAX array of real floating numbers; integers become float32.

    Args:
      name: the argument's name, for errors.
      value: an array of any library, or nested lists of numbers.
      booleans: whether booleans are accepted, as zeros and ones.

    Raises:
      ValueError: `value` is not an array of real numbers.
    """
    value = as_floating(name, value, booleans=booleans)
    if value.dtype.itemsize > 8:
        value = value.astype(np.float64)
    with np.errstate(over="ignore"):  # numbers that float32 cannot hold become infinite
        return jnp.asarray(value)


def as_floating(name: str, value: Any, *, booleans: bool = False) -> Array | np.ndarray:
    """Returns the same as `as_numbers`, but leaves numpy arrays in numpy with all 64 bits."""
    value = _as_array(name, value)
    whole = jnp.issubdtype(value.dtype, jnp.integer) or (booleans and value.dtype == bool)
    one_byte = jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize == 1
    if whole or one_byte:  # JAX wraps 64-bit integers, and promotes no floats of 8 bits
        value = value.astype(np.float32)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"`{name}` must hold arrays of numbers that are real, got dtype {value.dtype}."
        )
    return value


def as_booleans(name: str, value: Any) -> Array:
    """Returns a JAX array of booleans.

    Raises:
      ValueError: `value` is not an array of booleans.
    """
    value = _as_array(name, value)
    if value.dtype != np.bool_:
        raise ValueError(f"`{name}` must hold booleans, got {value.dtype}: {value!s:.100}.")
    return jnp.asarray(value)


def as_weights(weights: Any, shape: tuple[int, ...]) -> PerAgent:
    """Returns weights of a given shape as floating numbers; None: ones.

    Traced weights that are negative or not finite count as 0.

    Raises:
      ValueError: the shape differs, or known weights are negative or not finite.
    """
    if weights is None:
        return jnp.ones(shape)
    weights = _widen_to_float32(as_numbers("weights", weights, booleans=True))
    checks.shape("weights", weights, shape)
    checks.finite("weights", weights)
    checks.not_negative("weights", weights)
    return jnp.where((weights > 0) & jnp.isfinite(weights), weights, 0)


def as_stacked(name: str, tree: Any, entries: str = "agents") -> Stacked:
    """Returns `tree` with real floating leaves `[N, ...]`, or raises.

    Half-precision and integer leaves become float32. Nested lists of numbers are arrays. A
    list or tuple of agents' pytrees is stacked where it cannot mean layers.

    Args:
      name: the argument's name, for errors.
      tree: the user's value.
      entries: what the leading axis counts, for errors.

    Raises:
      ValueError: there are no agents or no parameters, a leaf lacks the leading axis, leaves
        disagree about the number of agents or are not numbers, or a list can mean both agents
        and layers.
    """
    leaves, structure = _flatten(_stack_entries(name, tree, entries))
    arrays = [_widen_to_float32(as_numbers(name, leaf)) for leaf in leaves]
    sizes = sorted({array.shape[0] for array in arrays if array.ndim})
    shapes = f"{[array.shape for array in arrays]!r:.200}"
    if len(sizes) != 1 or not all(array.ndim for array in arrays):
        raise ValueError(
            f"`{name}` must be an array [N, ...], a pytree of them with one N, or a list of "
            f"{entries} that have the same names and shapes, got leaves of shapes {shapes}."
        )
    if sizes[0] == 0 or sum(array.size for array in arrays) == 0:
        raise ValueError(
            f"`{name}` must hold at least one agent (on the leading axis) and one "
            f"parameter, got leaves of shapes {shapes}."
        )
    stacked = structure.unflatten(arrays)
    check_factors(name, stacked, num_axes=3)
    return stacked


def check_factors(name: str, tree: Any, num_axes: int = 2) -> None:
    """Raises unless both factors of every `LowRank` node fit each other.

    Args:
      name: the argument's name, for errors.
      tree: a pytree.
      num_axes: how many axes a factor has at least.
    """
    for node in filter(is_low_rank, jax.tree.leaves(tree, is_leaf=is_low_rank)):
        b, a = np.shape(node.b), np.shape(node.a)
        if len(b) < num_axes or b[:-2] != a[:-2] or b[-1] != a[-2] or b[-1] == 0:
            first = "N, ..., " if num_axes > 2 else "..., "
            raise ValueError(
                f"`{name}` must hold `LowRank` nodes with b [{first}m, r] and a [{first}r, n], "
                f"r at least 1, got b of shape {b} and a of shape {a}."
            )


def as_changes(name: str, tree: Any, params: Params) -> Stacked:
    """Returns changes of `params` as leaves `[N, ...]`; a list of N pytrees is stacked.

    Raises:
      ValueError: `tree` does not hold changes of `params`, or as in `as_stacked`.
    """
    wanted = jax.tree.structure(params)
    if is_sequence(tree) and len(tree) and _flatten(tree)[1] != wanted:
        agents = [_flatten(agent) for agent in with_one_rank(tree)]
        if all(structure == wanted for _, structure in agents):
            columns = zip(*(leaves for leaves, _ in agents), strict=True)
            tree = wanted.unflatten([_stack(name, column) for column in columns])
    changes = as_stacked(name, {"params": tree})["params"]  # its lists are layers
    shapes = jax.tree.map(jnp.shape, params)
    found = jax.tree.map(lambda leaf: leaf.shape[1:], changes, is_leaf=is_low_rank)
    if shapes != found:
        raise ValueError(f"`{name}` must be changes of `params`, {shapes}, got {found} per agent.")
    return changes


def as_params(name: str, tree: Any) -> Params:
    """Returns a pytree of real floating arrays without the agent axis.

    Raises:
      ValueError: there are no arrays, or leaves are not numbers.
    """
    leaves, structure = _flatten(tree)
    if not leaves:
        raise ValueError(f"`{name}` must hold at least one array, got {tree!r:.100}.")
    params = structure.unflatten([as_numbers(name, leaf) for leaf in leaves])
    check_factors(name, params)
    if not sum(leaf.size for leaf in jax.tree.leaves(params)):
        raise ValueError(f"`{name}` must hold at least one entry, got none.")
    return params


def is_sequence(tree: Any) -> bool:
    """Says whether `tree` is a list or a tuple without names."""
    return isinstance(tree, list | tuple) and not hasattr(tree, "_fields")


def _as_array(name: str, value: Any) -> Array | np.ndarray:
    if isinstance(value, jax.Array):
        _check_mesh(name, value)
        return value
    if isinstance(value, Mapping) and not isinstance(value, dict):  # numpy would take its names
        raise ValueError(
            f"`{name}` must hold arrays of numbers in dicts, got {type(value).__name__}: pass "
            "`dict(...)` of it."
        )
    if _is_sparse(value) or isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"`{name}` must hold whole arrays, got {type(value).__name__}.")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # lists of unequal lengths, ...
        raise ValueError(
            f"`{name}` must hold arrays of numbers, got {type(value).__name__}: {error}"
        ) from error
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_mesh(name: str, array: Array) -> None:
    """Raises if an array is spread over an axis of a mesh that JAX tracks in types."""
    sharding = jax.typeof(array).sharding
    kinds = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True))
    over = jax.tree.leaves(tuple(sharding.spec))
    if any(kinds.get(axis) is AxisType.Explicit for axis in over):
        raise ValueError(
            f"`{name}` must be spread over a mesh with axes of the type Auto, got Explicit. Make "
            "it by `jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * "
            "len(names))`."
        )


def _stack_entries(name: str, tree: Any, words: str) -> Any:
    """Stacks a list of pytrees with the same structure and shapes; returns others unchanged.

    `LowRank` nodes may differ in rank.

    Raises if all leaves of such a list have the same leading size, since the entries can then
    be agents or layers.
    """
    if not is_sequence(tree) or _holds_numbers(tree):
        return tree
    entries = [_flatten(entry) for entry in with_one_rank(tree)]
    if any(structure != entries[0][1] for _, structure in entries):
        return tree
    arrays = [[as_numbers(name, leaf) for leaf in leaves] for leaves, _ in entries]
    shapes = [[array.shape for array in row] for row in arrays]
    if not tree or not shapes[0] or any(row != shapes[0] for row in shapes):
        return tree
    leading = {shape[:1] for shape in shapes[0]}
    if len(leading) == 1 and () not in leading:
        stack = f"jax.tree.map(lambda *rows: jnp.stack(rows), *{name})"
        if all(isinstance(entry, jax.Array | np.ndarray) for entry in tree):
            stack = f"jnp.stack({name})"
        raise ValueError(
            f"`{name}` must not be a {type(tree).__name__} of {len(tree)} equal entries, which "
            f"can be {words} and can be layers. Stack {words}: `{stack}`. Name layers in a dict: "
            f"`{{'layers': {name}}}`. Entries have leaves of shapes {shapes[0]!r:.100}."
        )
    columns = zip(*arrays, strict=True)
    return entries[0][1].unflatten([jnp.stack(column) for column in columns])


def _stack(name: str, rows: Any) -> Array:
    arrays = [as_numbers(name, row) for row in rows]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        raise ValueError(f"`{name}` must hold agents of equal shapes, got {shapes!r:.200}.")
    return jnp.stack(arrays)


def _flatten(tree: Any) -> tuple[list[Any], Any]:
    """Returns leaves and structure; nested lists of numbers are leaves."""
    return jax.tree.flatten(tree, is_leaf=lambda node: _holds_numbers(node) or _is_sparse(node))


def _is_sparse(node: Any) -> bool:
    """Says whether `node` is one of JAX's sparse arrays, which flatten to indices and numbers."""
    return type(node).__module__.startswith("jax.experimental.sparse")


def _holds_numbers(node: Any) -> bool:
    """Says whether `node` is a number, or a list of such nodes."""
    if is_sequence(node):
        return bool(node) and all(map(_holds_numbers, node))
    return isinstance(node, numbers.Number | np.number | np.bool_)


def _widen_to_float32(array: Array) -> Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
