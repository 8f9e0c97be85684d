"""Mechanisms: who is paid what. One rule per file; `REGISTRY` maps a name to its factory."""

from fairjax.mechanisms.base import Context, Mechanism, Outcome
from fairjax.mechanisms.cgsv import cgsv
from fairjax.mechanisms.cgsv_released import cgsv_released
from fairjax.mechanisms.fedavg import fedavg
from fairjax.mechanisms.standalone import standalone

REGISTRY = {
    "cgsv": cgsv,
    "cgsv_released": cgsv_released,
    "fedavg": fedavg,
    "standalone": standalone,
}

__all__ = [
    "REGISTRY",
    "Context",
    "Mechanism",
    "Outcome",
    "cgsv",
    "cgsv_released",
    "fedavg",
    "standalone",
]
