"""Programs: functions that are compiled ahead, and take large arrays they capture as arguments.

An array that a function captures becomes a constant of its program: the compiler reads all of it,
and holds it once more. A frozen network has a hundred megabytes.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

LARGE = 2**20  # bytes


class Program:
    """A compiled function of pytrees of arrays, as `jax.jit` returns it.

    Args:
      function: the function.
      donate_argnums: as in `jax.jit`.
    """

    def __init__(self, function: Callable[..., Any], donate_argnums: tuple[int, ...] = ()) -> None:
        self.jitted = jax.jit(function, donate_argnums=donate_argnums)
        self._ahead: Any = None
        self._settings: Any = None

    def ahead(self, *arguments: Any) -> Callable[[], None]:
        """Returns what compiles the function for arguments of these types, in any thread.

        It is traced here, by JAX's settings in this thread, and only called by the same settings.
        """
        settings = _settings()
        if settings == self._settings:
            return lambda: None
        lowered = self.jitted.lower(*arguments)

        def compile() -> None:
            self._ahead, self._settings = lowered.compile(), settings

        return compile

    def __call__(self, *arguments: Any) -> Any:
        """Returns what the function returns."""
        if self._settings is not None and self._settings == _settings():
            with contextlib.suppress(TypeError, ValueError):  # arguments of other types
                return self._ahead(*arguments)
        return self.jitted(*arguments)


class WithCaptured:
    """A `Program` of which the arrays that it captures, of a megabyte and more, are arguments."""

    def __init__(self, function: Callable[..., Any], donate_argnums: tuple[int, ...] = ()) -> None:
        self._of = functools.cache(functools.partial(_capture, function, donate_argnums))

    def ahead(self, *arguments: Any) -> Callable[[], None]:
        """As `Program.ahead`."""
        program, captured = self._of(*_types(arguments), _settings())
        return program.ahead(captured, *arguments)

    def __call__(self, *arguments: Any) -> Any:
        """As `Program.__call__`."""
        program, captured = self._of(*_types(arguments), _settings())
        return program(captured, *arguments)


@contextlib.contextmanager
def meanwhile(function: Callable[[], Any]) -> Iterator[None]:
    """Runs a function in a thread beside the block, and waits for it; its errors are dropped.

    For work that would be done after the block, such as compiling and importing.
    """

    def run() -> None:
        with contextlib.suppress(Exception):  # it is raised again where the work is needed
            function()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _capture(
    function: Callable[..., Any],
    donate_argnums: tuple[int, ...],
    structure: Any,
    shapes: tuple[Any, ...],
    settings: tuple[Any, ...],
) -> tuple[Program, list[Any]]:
    """Returns a program of captured arrays and arguments of these shapes, and those arrays."""
    del settings  # by others the function is traced anew
    closed, out = jax.make_jaxpr(function, return_shape=True)(*structure.unflatten(shapes))
    large = [const for const in closed.consts if _is_large(const)]

    def run(captured: list[Any], *arguments: Any) -> Any:
        given = iter(captured)
        consts = [next(given) if _is_large(const) else const for const in closed.consts]
        play = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))
        return jax.tree.unflatten(jax.tree.structure(out), play(*jax.tree.leaves(arguments)))

    return Program(run, tuple(place + 1 for place in donate_argnums)), large


def _settings() -> tuple[Any, ...]:
    """Returns JAX's settings in this thread, of which some change what is traced."""
    return tuple(getattr(jax.config, name, None) for name in jax.config.values)


def _types(arguments: Any) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    leaves, structure = jax.tree.flatten(arguments)
    shapes = [jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
    return structure, tuple(shapes)


def _is_large(const: Any) -> bool:
    return getattr(const, "nbytes", 0) >= LARGE
