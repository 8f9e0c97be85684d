"""Factories: a mechanism from what a field `mechanism` holds, its coefficients and options.

name        its factory of `fairjax.mechanisms.REGISTRY`
function    itself
Mechanism   the factory that made it; without one it takes no coefficients
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fairjax import checks
from fairjax.experiments import objects
from fairjax.mechanisms import REGISTRY, Mechanism

ANY_NUMBER = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)

check = objects.name_or(
    REGISTRY, Mechanism, "a Mechanism, or a function that makes one", or_function=True
)


def factory_of(mechanism: Any) -> Callable[..., Mechanism]:
    """Returns what makes a mechanism from coefficients and options."""
    if isinstance(mechanism, Mechanism):
        return mechanism.factory or (lambda: mechanism)
    return REGISTRY[mechanism] if isinstance(mechanism, str) else mechanism


def takes(mechanism: Any) -> Mapping[str, inspect.Parameter]:
    """Returns what the factory of a mechanism takes, by name.

    Examples:
      >>> list(takes("qffl")), list(takes("fedavg"))
      (['q'], [])
    """
    try:
        return inspect.signature(factory_of(mechanism)).parameters
    except ValueError:  # Python knows no signature of some types of its own
        return {}


def make(mechanism: Any, coefficients: Mapping[str, Any], options: Mapping[str, Any]) -> Mechanism:
    """Returns a mechanism.

    Args:
      mechanism: a name, a function or a `Mechanism`.
      coefficients: those that are fields of an experiment, where they are given.
      options: what else its factory is given.

    Raises:
      ValueError: the factory does not take one of them, or needs one more, or makes no mechanism.

    Examples:
      >>> make("cgsv", {"beta": 2.0}, {"mask": "leaf"}).name
      'cgsv'
    """
    if isinstance(mechanism, Mechanism) and not coefficients and not options:
        return mechanism
    name, known = objects.label("mechanism", mechanism), takes(mechanism)
    for argument in (*coefficients, *options):
        if argument not in known:
            raise ValueError(
                f"The mechanism {name!r} does not take `{argument}`. It takes: "
                f"{', '.join(known) or 'nothing'}.{_hint(mechanism)}"
            )
    given = {**coefficients, **options}
    missing = [
        argument
        for argument, parameter in known.items()
        if parameter.default is parameter.empty
        and parameter.kind not in ANY_NUMBER
        and argument not in given
    ]
    if missing:
        raise ValueError(
            f"`options` must hold what the function {name!r} needs to make a mechanism, "
            f"got no {', '.join(missing)}."
        )
    made = factory_of(mechanism)(**given)
    if not isinstance(made, Mechanism):
        raise ValueError(
            "`mechanism` must be a function that makes a Mechanism, got "
            f"{checks.shown(mechanism)}, which makes {checks.shown(made)}."
        )
    return made


def _hint(mechanism: Any) -> str:
    """Returns what to do about a coefficient that a `Mechanism` holds already."""
    if not isinstance(mechanism, Mechanism) or mechanism.factory:
        return ""
    return (
        " It is an object that holds its coefficients already: give `mechanism` the function "
        "that makes it from them instead."
    )
