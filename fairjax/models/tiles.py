"""Tiles: a convolution and the max-pool of two by two that follows it, in one matrix product.

The images are cut into cells of two by two pixels. A tile is the cells that a window of the pool
reads, and one product makes all four outputs of the window from it:

    m[b, h, w]   =   max over s, t of  tile[b, h, w] [4 c_h c_w C] @ k shifted by s, t

with c_h = P // 2 + 1 and c_w = Q // 2 + 1 cells for a kernel [P, Q, C, F]. There are a quarter as
many tiles as windows of the kernel, so less is copied, and the four outputs are four groups of
columns. The product has about (1 + 1/P) (1 + 1/Q) times as many multiplications.
"""

import functools
import itertools
from collections.abc import Iterable

import jax.numpy as jnp
from jax import lax

from fairjax.types import Array


def convolve_and_pool(x: Array, kernel: Array) -> Array:
    """Returns the largest of every two by two outputs of the valid convolution.

    Args:
      x: `[B, H, W, C]` images; H above P, W above Q.
      kernel: `[P, Q, C, F]`, of the same dtype.

    Returns:
      `[B, (H - P + 1) // 2, (W - Q + 1) // 2, F]`.

    Examples:
      >>> image, kernel = jnp.arange(16.0).reshape(1, 4, 4, 1), jnp.ones((3, 3, 1, 1))
      >>> print(convolve_and_pool(image, kernel))
      [[[[90.]]]]
    """
    height, width, channels, features = kernel.shape
    rows, columns = (x.shape[1] - height + 1) // 2, (x.shape[2] - width + 1) // 2
    down, right = height // 2 + 1, width // 2 + 1  # cells of a tile
    cells_down, cells_right = rows + down - 1, columns + right - 1
    # The last row of a tile does not count if the kernel's height is even; there may be none.
    borders = ((0, 2 * cells_down - x.shape[1], 0), (0, 2 * cells_right - x.shape[2], 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *borders, (0, 0, 0)))
    cells = x.reshape(len(x), cells_down, 2, cells_right, 2, channels)
    cells = cells.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), cells_down, cells_right, -1)
    strips = copy_strips(cells, right)
    tiles = jnp.concatenate([strips[:, p : p + rows] for p in range(down)], axis=-1)
    shifted = [
        jnp.pad(kernel, ((s, 2 * down - height - s), (t, 2 * right - width - t), (0, 0), (0, 0)))
        for s, t in itertools.product(range(2), range(2))
    ]
    matrix = jnp.stack(shifted, axis=3).reshape(down, 2, right, 2, channels, 4 * features)
    matrix = matrix.transpose(0, 2, 1, 3, 4, 5).reshape(-1, 4 * features)
    products = tiles.reshape(-1, len(matrix)) @ matrix
    largest = first_maximum(jnp.split(products, 4, axis=1))
    return largest.reshape(len(x), rows, columns, features)


def size(kernel: tuple[int, ...]) -> int:
    """Returns how many numbers a tile has, by the shape of a kernel.

    Examples:
      >>> size((5, 5, 3, 16))
      108
    """
    height, width, channels, _ = kernel
    return 4 * (height // 2 + 1) * (width // 2 + 1) * channels


def copy_strips(x: Array, width: int) -> Array:
    """Returns `[B, H, W - width + 1, width C]`, parts of the rows of images `[B, H, W, C]`."""
    if width == x.shape[2]:
        return x.reshape(*x.shape[:2], 1, -1)
    out_width = x.shape[2] - width + 1
    return jnp.concatenate([x[:, :, q : q + out_width] for q in range(width)], axis=-1)


def first_maximum(entries: Iterable[Array]) -> Array:
    """Returns the largest of several arrays, entry by entry; the first has a tie's gradient."""
    # `jnp.maximum` would share the gradient of a tie.
    return functools.reduce(lambda a, b: jnp.where((a >= b) | jnp.isnan(a), a, b), entries)
