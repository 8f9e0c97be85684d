"""Programs: compiled functions that take the large arrays they capture as arguments.

An array that a function captures becomes a constant of its program: the compiler reads all of it,
and holds it once more. A frozen network has a hundred megabytes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

LARGE = 2**20  # bytes


def jit_with_captured(
    function: Callable[..., Any], donate_argnums: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """Returns a compiled function; arrays of a megabyte and more that it captures are arguments.

    Args:
      function: a function of pytrees of arrays.
      donate_argnums: as in `jax.jit`.
    """

    @functools.cache
    def compile_for(structure: Any, shapes: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        closed, out = jax.make_jaxpr(function, return_shape=True)(*structure.unflatten(shapes))
        large = [const for const in closed.consts if _is_large(const)]

        def run(captured: list[Any], *arguments: Any) -> Any:
            given = iter(captured)
            consts = [next(given) if _is_large(const) else const for const in closed.consts]
            play = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))
            return jax.tree.unflatten(jax.tree.structure(out), play(*jax.tree.leaves(arguments)))

        donated = tuple(place + 1 for place in donate_argnums)
        return jax.jit(run, donate_argnums=donated), large

    def call(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple(
            jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves
        )
        program, captured = compile_for(structure, shapes)
        return program(captured, *arguments)

    return call


def _is_large(const: Any) -> bool:
    return getattr(const, "nbytes", 0) >= LARGE
