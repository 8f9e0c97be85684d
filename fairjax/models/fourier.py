"""Convolution by Fourier transforms, which are matrix products themselves.

Put images [B, H, W, C] and a kernel [P, Q, C, F] on a torus of H x W. The valid outputs of their
convolution are those that do not wrap around, and it is a product at every frequency l:

    Y[l]   =   X[l] [B, C] @ conj(K[l]) [C, F]

A transform along a short side is a product with a constant matrix. The real rows are transformed
first, which leaves H // 2 + 1 frequencies, then the columns. Complex numbers are pairs (real,
imaginary) on an axis of length 2. Space is always the leading axis, so that nothing is
transposed between products.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fairjax.types import Array


def convolve(x: Array, kernel: Array) -> Array:
    """Returns the valid convolution, as matrix products at every frequency.

    Args:
      x: `[B, H, W, C]` images.
      kernel: `[P, Q, C, F]`, P at most H and Q at most W, of the same dtype.

    Returns:
      `[B, H - P + 1, W - Q + 1, F]`, up to rounding.

    Examples:
      >>> image, kernel = jnp.arange(9.0).reshape(1, 3, 3, 1), jnp.ones((2, 2, 1, 1))
      >>> print(convolve(image, kernel)[0, :, :, 0].round(3).astype(int))
      [[ 8 12]
       [20 24]]
    """
    batch, height, width, channels = x.shape
    features = kernel.shape[-1]
    image = _transform(x.transpose(1, 2, 0, 3), height, width)
    filters = _transform(kernel.transpose(0, 1, 3, 2), height, width)
    products = _multiply_rows(
        image.reshape(-1, 2 * batch, channels), filters.reshape(-1, 2 * features, channels)
    )
    # The gradient of a split joins its parts; that of slices would pad and add them.
    of_real, of_imaginary = jnp.split(products, 2, axis=1)
    real_real, real_imaginary = jnp.split(of_real, 2, axis=2)
    imaginary_real, imaginary_imaginary = jnp.split(of_imaginary, 2, axis=2)
    real = real_real + imaginary_imaginary
    imaginary = imaginary_real - real_imaginary
    valid = (height - kernel.shape[0] + 1, width - kernel.shape[1] + 1)
    y = _invert_transform(jnp.stack([real, imaginary], 1), height, width, *valid)
    return y.transpose(2, 0, 1, 3)


def multiplications(images: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """Returns how many multiplications `convolve` needs, by the shapes of its arguments.

    Examples:
      >>> direct = 32 * 8 * 8 * 7 * 7 * 64 * 16
      >>> round(direct / multiplications((32, 14, 14, 64), (7, 7, 64, 16)), 1)
      2.5
    """
    batch, height, width, channels = images
    rows, columns, _, features = kernel
    half = height // 2 + 1

    def transform(num_rows: int, num_columns: int) -> int:
        return 2 * half * num_columns * (num_rows + 2 * width)

    products = 4 * half * width * batch * channels * features
    image = batch * channels * transform(height, width)
    filters = channels * features * transform(rows, columns)
    back = batch * features * transform(height - rows + 1, width - columns + 1)
    return products + image + filters + back


@jax.custom_jvp
def _multiply_rows(x: Array, kernel: Array) -> Array:
    """Returns `[L, B, F]`, the products of `x [L, B, C]` with `kernel [L, F, C]`."""
    return jnp.einsum("lbc,lfc->lbf", x, kernel)


@_multiply_rows.defjvp
def _multiply_rows_changes(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, kernel), (change_of_x, change) = primals, tangents
    # The kernel's gradient is [L, F, B] @ [L, B, C]. On a CPU, XLA takes half the time if the first
    # is a transposed copy (inner barrier) of what is computed once for both gradients (outer one).
    changes = lax.optimization_barrier(jnp.einsum("lfc,lbc->lfb", change, x))
    changed = _multiply_rows(change_of_x, kernel) + changes.transpose(0, 2, 1)
    return _multiply_rows(x, kernel), lax.optimization_barrier(changed)


def _transform(x: Array, height: int, width: int) -> Array:
    """Returns the transform `[H // 2 + 1, W, 2, ...]` of real `[P, Q, ...]`, padded by zeros."""
    rows, columns, *rest = x.shape
    half = height // 2 + 1
    by_rows = jnp.asarray(_real_transform(height)[:, :, :rows], x.dtype).reshape(-1, rows)
    x = (by_rows @ x.reshape(rows, -1)).reshape(half, 2 * columns, -1)
    by_columns = _complex_transform(width)[:, :, :, :columns].reshape(2 * width, 2 * columns)
    return _multiply_each(by_columns, x).reshape(half, width, 2, *rest)


def _invert_transform(x: Array, height: int, width: int, rows: int, columns: int) -> Array:
    """Inverts `_transform`; returns the top-left `[rows, columns, ...]` block."""
    half, rest = height // 2 + 1, x.shape[2:]
    # The inverse is the transform's transpose, divided by the number of points.
    by_columns = _complex_transform(width)[:, :, :, :columns]
    by_columns = by_columns.reshape(2 * width, 2 * columns).T / width
    x = _multiply_each(by_columns, x.reshape(half, 2 * width, -1))
    # A frequency also stands for its mirror image, except the first, and the middle one if the
    # height is even.
    twice = np.where((2 * np.arange(half) % height) == 0, 1, 2)[:, None, None]
    by_rows = (twice * _real_transform(height)[:, :, :rows] / height).reshape(2 * half, rows).T
    y = jnp.asarray(by_rows, x.dtype) @ x.reshape(2 * half, -1)
    return y.reshape(rows, columns, *rest)


def _multiply_each(matrix: np.ndarray, x: Array) -> Array:
    """Returns `[R, A, n]`, the products of one matrix `[A, B]` with `x [R, B, n]`."""
    # With a single matrix, XLA would move axis R into the rows and transpose everything.
    matrices = np.broadcast_to(matrix, (len(x), *matrix.shape))
    return jnp.einsum("rab,rbn->ran", jnp.asarray(matrices, x.dtype), x)


@functools.cache
def _real_transform(length: int) -> np.ndarray:
    """Returns the transform `[length // 2 + 1, 2, length]` of real numbers."""
    angles = 2 * np.pi * np.outer(np.arange(length // 2 + 1), np.arange(length)) / length
    return np.stack([np.cos(angles), -np.sin(angles)], 1)


@functools.cache
def _complex_transform(length: int) -> np.ndarray:
    """Returns the transform `[length, 2, 2, length]` of pairs (real, imaginary)."""
    angles = 2 * np.pi * np.outer(np.arange(length), np.arange(length)) / length
    cosines, sines = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cosines, sines], 1), np.stack([-sines, cosines], 1)], 1)
