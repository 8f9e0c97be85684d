"""Mechanisms judge updates and pay agents; one per file. `REGISTRY` maps names to factories.

Files that several share: `base` has the protocol, `context` what a mechanism may look at, `plans`
what it may decide before training, `lengths` to what uploads are rescaled, `reputable` who leaves a
reputable set, `tensors` rewards by tensor, `factors` those for adapters, `alone` what agents reach
alone, and `switched` one mechanism of several by its number.
"""

from collections.abc import Callable

from fairjax import checks
from fairjax.mechanisms.accounts import accounts
from fairjax.mechanisms.alone import WORDS as MEASURED_ON
from fairjax.mechanisms.base import Context, Mechanism, Outcome, checked_answer
from fairjax.mechanisms.cffl import cffl
from fairjax.mechanisms.cgsv import cgsv
from fairjax.mechanisms.cgsv_released import cgsv_released
from fairjax.mechanisms.dw import dw
from fairjax.mechanisms.eci import MAX_SCORED_AGENTS, eci
from fairjax.mechanisms.fair_yet_equal import fair_yet_equal
from fairjax.mechanisms.fedave import fedave
from fairjax.mechanisms.fedavg import fedavg
from fairjax.mechanisms.fedfaim import fedfaim
from fairjax.mechanisms.fedit import fedit
from fairjax.mechanisms.fedrac import fedrac
from fairjax.mechanisms.fedsac import fedsac
from fairjax.mechanisms.ffa_lora import ffa_lora
from fairjax.mechanisms.flora import flora
from fairjax.mechanisms.iafl import iafl
from fairjax.mechanisms.lengths import Length, length_at
from fairjax.mechanisms.nested import nested
from fairjax.mechanisms.plans import Plan, checked_plan, start_at_server
from fairjax.mechanisms.proportional import proportional
from fairjax.mechanisms.qffl import qffl
from fairjax.mechanisms.rr import rr
from fairjax.mechanisms.shapfed import shapfed
from fairjax.mechanisms.standalone import standalone
from fairjax.mechanisms.switched import switched
from fairjax.mechanisms.zero_padding import zero_padding

REGISTRY = {
    factory.__name__: factory
    for factory in (
        cgsv,
        cgsv_released,
        fedavg,
        standalone,
        accounts,
        cffl,
        dw,
        eci,
        fair_yet_equal,
        fedave,
        fedfaim,
        fedrac,
        fedsac,
        iafl,
        nested,
        proportional,
        qffl,
        rr,
        shapfed,
        flora,
        fedit,
        zero_padding,
        ffa_lora,
    )
}

OURS = frozenset(REGISTRY)
FOR_ADAPTERS = ("flora", "fedit", "zero_padding", "ffa_lora")  # without adapters: `fedavg`


def register(name: str, factory: Callable[..., Mechanism]) -> None:
    """Makes a mechanism of your own known by a name in this process.

    Records keep only the name: register it again before you open a run, and take another directory
    when it has changed. On the command line write a file and a name in it, as mine.py:factory.

    Args:
      name: a name that no other mechanism has; a second call with a name of your own replaces it.
      factory: returns the `Mechanism`; its arguments are the coefficients and options that it
        takes. Its docstring's first line is its description.

    Raises:
      ValueError: `name` is no word of letters, digits and `_`, or that of a mechanism of fairjax;
        or `factory` is not a function.

    Examples:
      >>> register("plain", lambda: fedavg())
      >>> REGISTRY["plain"]().name
      'fedavg'
    """
    checks.new_name("name", name, OURS)
    checks.function("factory", factory, "factory(...) -> Mechanism")
    REGISTRY[name] = factory


__all__ = [
    "FOR_ADAPTERS",
    "MAX_SCORED_AGENTS",
    "MEASURED_ON",
    "OURS",
    "REGISTRY",
    "Context",
    "Length",
    "Mechanism",
    "Outcome",
    "Plan",
    "accounts",
    "cffl",
    "cgsv",
    "cgsv_released",
    "checked_answer",
    "checked_plan",
    "dw",
    "eci",
    "fair_yet_equal",
    "fedavg",
    "fedave",
    "fedfaim",
    "fedit",
    "fedrac",
    "fedsac",
    "ffa_lora",
    "flora",
    "iafl",
    "length_at",
    "nested",
    "proportional",
    "qffl",
    "register",
    "rr",
    "shapfed",
    "standalone",
    "start_at_server",
    "switched",
    "zero_padding",
]
