"""Programs: how compiled functions are cached, and take large arrays they capture as arguments.

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


class Aside:
    """A value passed through a cache without being part of its key: all compare equal."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Aside)

    def __hash__(self) -> int:
        return 0


class WithCaptured:
    """A compiled function that takes large arrays that it captures as arguments.

    Args:
      function: the function.
      donate_argnums: as in `jax.jit`.
    """

    def __init__(self, function: Callable[..., Any], donate_argnums: tuple[int, ...] = ()) -> None:
        self._of = functools.cache(functools.partial(_capture, function, donate_argnums))

    def __call__(self, *arguments: Any) -> Any:
        """Returns what the function returns."""
        program, captured = self._of(*shapes(arguments), _settings())
        return program(captured, *arguments)


def _capture(
    function: Callable[..., Any],
    donate_argnums: tuple[int, ...],
    structure: Any,
    shapes: tuple[Any, ...],
    settings: tuple[Any, ...],
) -> tuple[Callable[..., Any], list[Any]]:
    """Returns a program of captured arrays and arguments of these shapes, and those arrays."""
    del settings  # other settings need a new trace
    closed, out = jax.make_jaxpr(function, return_shape=True)(*structure.unflatten(shapes))
    large = [const for const in closed.consts if _is_large(const)]

    def run(captured: list[Any], *arguments: Any) -> Any:
        given = iter(captured)
        consts = [next(given) if _is_large(const) else const for const in closed.consts]
        play = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))
        return jax.tree.unflatten(jax.tree.structure(out), play(*jax.tree.leaves(arguments)))

    return jax.jit(run, donate_argnums=tuple(place + 1 for place in donate_argnums)), large


def _settings() -> tuple[Any, ...]:
    """Returns JAX's settings in this thread, of which some change what is traced."""
    return tuple(getattr(jax.config, name, None) for name in jax.config.values)


def shapes(tree: Any) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    """Returns the structure and the shapes of a pytree in a hashable form."""
    leaves, structure = jax.tree.flatten(tree)
    found = [jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
    return structure, tuple(found)


def _is_large(const: Any) -> bool:
    return getattr(const, "nbytes", 0) >= LARGE
