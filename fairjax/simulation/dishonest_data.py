"""Dishonest data: functions that change an agent's examples before the first round.

rng, data [n], strength  ->  x [n, ...], y [n]
"""

import numpy as np

from fairjax import checks
from fairjax.data import Dataset
from fairjax.simulation.kinds import ANY, RATE, Kind, register

DATA: dict[str, Kind] = {}

Examples = tuple[np.ndarray, np.ndarray]


@register(DATA, strength=1.0, most=RATE)
def label_flip(rng: np.random.Generator, data: Dataset, strength: float) -> Examples:
    """Trains on the class C - 1 - y in place of y, at a rate."""
    flipped = data.classes_for("`label_flip`") - 1 - data.y
    return data.x, _replace_some(rng, data.y, flipped, strength)


@register(DATA, strength=1.0, most=RATE)
def label_flip_1_7(rng: np.random.Generator, data: Dataset, strength: float) -> Examples:
    """Trains on ones as sevens, and sevens as ones, at a rate."""
    if data.classes_for("`label_flip_1_7`") <= 7:
        raise ValueError(
            f"`label_flip_1_7` needs the classes 1 and 7, got {data.num_classes} classes."
        )
    swapped = np.where(data.y == 1, 7, np.where(data.y == 7, 1, data.y))
    return data.x, _replace_some(rng, data.y, swapped, strength)


@register(DATA, strength=0.5, most=RATE)
def label_noise(rng: np.random.Generator, data: Dataset, strength: float) -> Examples:
    """Trains on random classes, at a rate."""
    drawn = rng.integers(data.classes_for("`label_noise`"), size=len(data.y))
    return data.x, _replace_some(rng, data.y, drawn, strength)


@register(DATA, strength=1.0, most=ANY)
def feature_noise(rng: np.random.Generator, data: Dataset, strength: float) -> Examples:
    """Trains on examples with normal noise or random tokens."""
    x, size = data.x, data.vocabulary_size
    if x.dtype == np.float32:
        with np.errstate(over="ignore"):
            noisy = x + np.float32(strength) * rng.normal(size=x.shape).astype(np.float32)
        if not np.isfinite(noisy[np.isfinite(x)]).all():
            raise ValueError(
                "`strength of feature_noise` must leave examples that float32 holds, got "
                f"{strength!r}."
            )
        return noisy, data.y
    if size is None:
        raise ValueError(
            "`feature_noise` needs examples of floats, or of tokens with their "
            "`vocabulary_size`, got whole numbers without a `vocabulary_size`."
        )
    checks.between("strength of feature_noise on tokens", strength, 0, 1)
    replaced = (x > 0) & (rng.uniform(size=x.shape) < strength)
    return np.where(replaced, rng.integers(1, size, size=x.shape, dtype=np.int32), x), data.y


def _replace_some(
    rng: np.random.Generator, y: np.ndarray, others: np.ndarray, rate: float
) -> np.ndarray:
    return np.where(rng.uniform(size=len(y)) < rate, others, y)
