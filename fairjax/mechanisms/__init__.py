"""Mechanisms judge updates and pay agents; one per file. `REGISTRY` maps names to factories."""

from fairjax.mechanisms.base import Context, Mechanism, Outcome, Plan, checked_answer
from fairjax.mechanisms.cffl import cffl
from fairjax.mechanisms.cgsv import cgsv
from fairjax.mechanisms.cgsv_released import cgsv_released
from fairjax.mechanisms.dw import dw
from fairjax.mechanisms.eci import MAX_EXACT_AGENTS, eci
from fairjax.mechanisms.fair_yet_equal import fair_yet_equal
from fairjax.mechanisms.fedavg import fedavg
from fairjax.mechanisms.iafl import iafl
from fairjax.mechanisms.lengths import Length, length_at
from fairjax.mechanisms.proportional import proportional
from fairjax.mechanisms.qffl import qffl
from fairjax.mechanisms.rr import rr
from fairjax.mechanisms.shapfed import shapfed
from fairjax.mechanisms.standalone import standalone
from fairjax.mechanisms.switched import switched

REGISTRY = {
    factory.__name__: factory
    for factory in (
        cgsv,
        cgsv_released,
        fedavg,
        standalone,
        cffl,
        dw,
        eci,
        fair_yet_equal,
        iafl,
        proportional,
        qffl,
        rr,
        shapfed,
    )
}

__all__ = [
    "MAX_EXACT_AGENTS",
    "REGISTRY",
    "Context",
    "Length",
    "Mechanism",
    "Outcome",
    "Plan",
    "cffl",
    "cgsv",
    "cgsv_released",
    "checked_answer",
    "dw",
    "eci",
    "fair_yet_equal",
    "fedavg",
    "iafl",
    "length_at",
    "proportional",
    "qffl",
    "rr",
    "shapfed",
    "standalone",
    "switched",
]
