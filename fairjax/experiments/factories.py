"""Factories: make a mechanism from the field `mechanism`, coefficients and options.

the field holds      its factory is
a name               the function in `fairjax.mechanisms.REGISTRY`
a function           the function itself
a `Mechanism`        the function that made it, if known; otherwise it takes no coefficients
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fairjax import checks
from fairjax.experiments import objects, references
from fairjax.mechanisms import REGISTRY, Mechanism, standalone

ANY_NUMBER = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)

check = objects.name_or(
    REGISTRY, Mechanism, "a Mechanism, or a function that makes one", or_function=True
)


def factory_of(mechanism: Any) -> Callable[..., Mechanism]:
    """Returns the function that makes a mechanism from coefficients and options."""
    if isinstance(mechanism, Mechanism):
        return mechanism.factory or (lambda: mechanism)
    return REGISTRY[mechanism] if isinstance(mechanism, str) else mechanism


def is_standalone(mechanism: Any) -> bool:
    """Says whether a mechanism, given in any way, is the standalone run."""
    made_by = factory_of(mechanism)
    return getattr(made_by, "func", made_by) is standalone


def takes(mechanism: Any) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters that the factory of a mechanism takes, by name.

    Examples:
      >>> list(takes("qffl")), list(takes("fedavg"))
      (['q', 'smoothness'], [])
    """
    try:
        return inspect.signature(factory_of(mechanism)).parameters
    except ValueError:  # some builtin types have no signature
        return {}


def make(mechanism: Any, coefficients: Mapping[str, Any], options: Mapping[str, Any]) -> Mechanism:
    """Returns the mechanism that a factory makes from coefficients and options.

    Args:
      mechanism: a name, a function or a `Mechanism`.
      coefficients: arguments that are fields of an experiment, if they are given.
      options: further arguments of the factory.

    Raises:
      ValueError: the factory does not take an argument, lacks one that it needs, or does not
        return a `Mechanism`.

    Examples:
      >>> make("cgsv", {"beta": 2.0}, {"mask": "leaf"}).name
      'cgsv'
    """
    if isinstance(mechanism, Mechanism) and not coefficients and not options:
        return mechanism
    name, parameters = objects.label("mechanism", mechanism), takes(mechanism)
    known = {argument: one for argument, one in parameters.items() if one.kind not in ANY_NUMBER}
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    for argument in (*coefficients, *options):
        if argument not in known and not takes_any:
            raise ValueError(
                f"The mechanism {name!r} does not take `{argument}`. It takes: "
                f"{', '.join(known) or 'nothing'}.{_hint(mechanism)}"
            )
    given = {**coefficients, **options}
    missing = [
        argument
        for argument, parameter in known.items()
        if parameter.default is parameter.empty and argument not in given
    ]
    if missing:
        raise ValueError(
            f"`options` must hold what the function {name!r} needs to make a mechanism, "
            f"got no {', '.join(missing)}."
        )
    factory = factory_of(mechanism)
    try:
        made = factory(**given)
    except Exception as error:
        if references.reference_of(mechanism) is None or isinstance(error, ValueError):
            raise  # in Python, a user's own error says most
        raise ValueError(
            "`mechanism` must be a function that makes a Mechanism, got "
            f"{checks.shown(mechanism)}, which fails: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, Mechanism):
        raise ValueError(
            "`mechanism` must be a function that makes a Mechanism, got "
            f"{checks.shown(mechanism)}, which makes {checks.shown(made)}."
        )
    return made


def _hint(mechanism: Any) -> str:
    """Returns advice for a coefficient that a `Mechanism` holds already."""
    if not isinstance(mechanism, Mechanism) or mechanism.factory:
        return ""
    return (
        " It is an object that holds its coefficients already: give `mechanism` the function "
        "that makes it from them instead."
    )
