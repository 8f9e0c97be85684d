"""Apportionment: whole numbers of examples from real-valued shares.

    quota   q_i  =  total * share_i / sum_j share_j
    size    n_i  =  floor(q_i), plus one for the largest q_i - floor(q_i)

So the sizes sum to the total exactly, and no size is more than one away from its quota.
"""

import numpy as np


def apportion(total: int, shares: np.ndarray) -> np.ndarray:
    """Returns whole numbers that sum to `total`, in proportion to `shares`.

    Args:
      total: the whole number to hand out, not negative.
      shares: `[K]` numbers, not negative, not all zero; they need not sum to one.

    Returns:
      `[K]` int64 numbers by the method of the largest remainder; among equal
      remainders the first comes first.

    Examples:
      >>> print(apportion(10, np.array([1.0, 1.0, 1.0])))
      [4 3 3]
    """
    # Divide by the largest share first, since a sum of huge shares would overflow.
    shares = np.asarray(shares, dtype=np.float64)
    shares = shares / shares.max()
    quotas = total * shares / shares.sum()
    sizes = np.floor(quotas).astype(np.int64)
    order = np.argsort(sizes - quotas, kind="stable")
    sizes[order[: total - sizes.sum()]] += 1
    return sizes


def at_least_one(sizes: np.ndarray) -> np.ndarray:
    """Returns `sizes` with every zero raised to one, taken from the largest.

    Args:
      sizes: `[K]` whole numbers, not negative, that sum to K or more.

    Returns:
      `[K]` whole numbers of at least one, with the same sum.

    Examples:
      >>> print(at_least_one(np.array([0, 0, 5])))
      [1 1 3]
    """
    sizes = sizes.copy()
    for poor in np.flatnonzero(sizes == 0):
        sizes[sizes.argmax()] -= 1
        sizes[poor] = 1
    return sizes
