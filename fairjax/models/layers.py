"""Layers: convolution and pooling that are fast when many agents' weights run together.

The convolution of images [B, H, W, C] with a kernel [P, Q, C, F] is [B, H', W', F], with
H' = H - P + 1 and W' = W - Q + 1:

    y[b, h, w, f]   =  sum_pqc x[b, h + p, w + q, c] k[p, q, c, f]

On a CPU, XLA is slow at the gradient of a convolution, and at kernels that differ between agents
under `vmap`. In these cases the sum is written as matrix products, which are fast everywhere. If a
window holds few numbers (P Q C small), whole windows are copied:

    y[b, h, w]      =  window[b, h, w] [P Q C] @ k [P Q C, F]

Otherwise only strips of one row are copied, which are P times fewer numbers. One product covers
several kernel rows p, and its outputs, which are small if F is small, are shifted and added:

    z[b, h, w, p]   =  strip[b, h, w] [Q C] @ k[p] [Q C, F]
    y[b, h, w]      =  sum_p z[b, h + p, w, p]

G kernel rows at once need H' + G - 1 rows of strips instead of H', so G stays small. Gradients
are products of the same shapes. Evaluation with one agent's kernel needs no gradient and keeps
XLA's own operations, which XLA fuses into one.

Large kernels need far fewer multiplications by Fourier transforms (see `fourier`). On a CPU these
are used wherever they save half of the multiplications, with or without gradients. A small kernel
of several channels is computed together with a max-pool that follows (see `tiles`).
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from fairjax import checks
from fairjax.models import fourier, tiles
from fairjax.types import Array

# Measured on a CPU, forward and backward, with the paper's networks.
LARGEST_WINDOW = 128  # most numbers in a window that is copied whole
ROWS_AT_ONCE = 4  # kernel rows in one product
FOURIER_SAVES = 2.0  # factor by which transforms must save multiplications to be used
SMALLEST_TILE = 64  # fewest numbers in a tile; those of the MNIST network, 16, gain nothing

_SEQUENCES = lax.conv_dimension_numbers((1,) * 3, (1,) * 3, ("NWC", "WIO", "NWC"))
_IMAGES = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, ("NHWC", "HWIO", "NHWC"))


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    **options: Any,
) -> Array:
    """Returns the same as `jax.lax.conv_general_dilated`, faster for many agents' weights.

    Pass it to Flax: `nn.Conv(..., conv_general_dilated=conv_general_dilated)`. Convolutions of
    images or sequences with the channels last, stride one, no dilation, one group, any padding, and
    default precision in float32, float64 or bfloat16, become matrix products if they are
    differentiated or mapped over kernels. All others are passed to `lax`.

    Args:
      lhs: `[B, H, W, C]` images or `[B, L, C]` sequences.
      rhs: `[P, Q, C, F]` or `[P, C, F]` kernel.
      window_strides: one step per spatial axis.
      padding: "SAME", "VALID", "SAME_LOWER", or (low, high) per spatial axis.
      lhs_dilation: see `lax`.
      rhs_dilation: see `lax`.
      dimension_numbers: see `lax`; None means channels first.
      feature_group_count: see `lax`.
      batch_group_count: see `lax`.
      precision: see `lax`.
      preferred_element_type: see `lax`.
      **options: see `lax`.

    Returns:
      `[B, H', W', F]` or `[B, L', F]`, in the dtype of `lhs`.

    Raises:
      TypeError: as in `lax`.
      ValueError: as in `lax`.

    Examples:
      >>> image, kernel = jnp.arange(9.0).reshape(1, 3, 3, 1), jnp.ones((2, 2, 1, 1))
      >>> channels_last = ("NHWC", "HWIO", "NHWC")
      >>> y = conv_general_dilated(image, kernel, (1, 1), "VALID", dimension_numbers=channels_last)
      >>> print(y[0, :, :, 0])
      [[ 8. 12.]
       [20. 24.]]
    """
    rest = {
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": rhs_dilation,
        "dimension_numbers": dimension_numbers,
        "feature_group_count": feature_group_count,
        "batch_group_count": batch_group_count,
        "precision": precision,
        "preferred_element_type": preferred_element_type,
        **options,
    }
    if _is_simple(lhs, rhs, window_strides, rest):
        x = _pad(lhs, rhs.shape[:-2], padding)
        if all(n >= k for n, k in zip(x.shape[1:-1], rhs.shape[:-2], strict=True)):
            if _fourier_is_faster(x, rhs):
                return fourier.convolve(x, rhs)
            if lhs.ndim == 4:
                return _convolve(x, rhs)
            # A sequence is an image of width one; its strips are its rows, without a copy.
            return _convolve(x[:, :, None], rhs[:, None])[:, :, 0]
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **rest)


def conv_max_pool(
    lhs: Array, rhs: Array, window_strides: Sequence[int], padding: Any, **options: Any
) -> Array:
    """Returns `max_pool` of `conv_general_dilated`, on a CPU by tiles where they are faster.

    Pass it to Flax. By tiles, inputs that are not finite may also make NaN of outputs beside them.

    Args:
      lhs: `[B, H, W, C]` images.
      rhs: `[P, Q, C, F]` kernel.
      window_strides: see `conv_general_dilated`.
      padding: see `conv_general_dilated`.
      **options: see `conv_general_dilated`.

    Returns:
      `[B, H' // 2, W' // 2, F]` maxima of the convolution's windows of two by two.

    Raises:
      TypeError: as in `lax`.
      ValueError: as in `lax`, or the convolution has fewer than two rows or columns.

    Examples:
      >>> image, kernel = jnp.arange(16.0).reshape(1, 4, 4, 1), jnp.ones((3, 3, 1, 1))
      >>> channels_last = ("NHWC", "HWIO", "NHWC")
      >>> print(conv_max_pool(image, kernel, (1, 1), "VALID", dimension_numbers=channels_last))
      [[[[90.]]]]
    """
    if _is_simple(lhs, rhs, window_strides, options) and jax.default_backend() == "cpu":
        x = _pad(lhs, rhs.shape[:-2], padding)
        wide = lhs.ndim == 4 and all(n > k for n, k in zip(x.shape[1:3], rhs.shape, strict=False))
        fits = wide and SMALLEST_TILE <= tiles.size(rhs.shape) <= LARGEST_WINDOW
        if fits and not _fourier_is_faster(x, rhs):
            return tiles.convolve_and_pool(x, rhs)
    return max_pool(conv_general_dilated(lhs, rhs, window_strides, padding, **options))


def max_pool(x: Array, window: tuple[int, int] = (2, 2)) -> Array:
    """Returns the largest entry of every window; windows do not overlap.

    Rows and columns that fill no window are dropped. Apply it before a monotone activation: the
    result is the same and needs fewer exponentials. The gradient of a window goes to its largest
    entry, the first in reading order if several are equal, as in PyTorch. A NaN makes its window
    NaN if it is differentiated; otherwise XLA may lose the NaN on a CPU.

    Args:
      x: `[..., H, W, C]` images.
      window: height P and width Q of a window.

    Returns:
      `[..., H // P, W // Q, C]` maxima.

    Raises:
      ValueError: `window` is not two whole numbers above zero, or is larger than the image.

    Examples:
      >>> print(max_pool(jnp.arange(15.0).reshape(1, 3, 5, 1))[0, :, :, 0])
      [[6. 8.]]
    """
    height, width = window
    checks.count("window[0]", height)
    checks.count("window[1]", width)
    if height > x.shape[-3] or width > x.shape[-2]:
        raise ValueError(
            f"`window` must fit into the image, got window={window} "
            f"and an image of height {x.shape[-3]} and width {x.shape[-2]}."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return _select_first_maxima(x, window)
    return _pool(x, tuple(window))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _pool(x: Array, window: tuple[int, int]) -> Array:
    box = (*(1,) * (x.ndim - 3), *window, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, box, box, "VALID")


@_pool.defjvp
def _pool_gradient(window: Any, primals: Any, tangents: Any) -> Any:
    return jax.jvp(lambda x: _select_first_maxima(x, window), primals, tangents)


def _select_first_maxima(x: Array, window: tuple[int, int]) -> Array:
    height, width = window
    bottom, right = x.shape[-3] // height * height, x.shape[-2] // width * width
    places = itertools.product(range(height), range(width))
    return tiles.first_maximum(
        x[..., row:bottom:height, column:right:width, :] for row, column in places
    )


def _is_simple(lhs: Array, rhs: Array, steps: Any, options: Mapping[str, Any]) -> bool:
    """Says whether arguments of `lax.conv_general_dilated` ask for nothing unusual."""
    rest = dict(options)
    dilations = [rest.pop(name, None) for name in ("lhs_dilation", "rhs_dilation")]
    groups = [rest.pop(name, 1) for name in ("feature_group_count", "batch_group_count")]
    numbers = rest.pop("dimension_numbers", None)
    return (
        lhs.ndim in (3, 4)
        and lhs.ndim == rhs.ndim
        and lhs.shape[-1] == rhs.shape[-2]
        and lhs.dtype == rhs.dtype
        and lhs.dtype in (jnp.float32, jnp.float64, jnp.bfloat16)
        and lhs.size * rhs.size > 0
        and all(each is None or set(each) == {1} for each in (steps, *dilations))
        and all(count == 1 for count in groups)
        and all(option is None for option in rest.values())
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, numbers)
        == (_SEQUENCES if lhs.ndim == 3 else _IMAGES)
    )


def _pad(x: Array, window: tuple[int, ...], padding: Any) -> Array:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], window, (1,) * len(window), padding)
    borders = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), borders)


def _fourier_is_faster(x: Array, kernel: Array) -> bool:
    # On accelerators, default precision would lose digits that cancel in transforms.
    if x.ndim != 4 or x.dtype == jnp.bfloat16 or jax.default_backend() != "cpu":
        return False
    height, width = (n - k + 1 for n, k in zip(x.shape[1:3], kernel.shape, strict=False))
    direct = len(x) * height * width * kernel.size
    return direct > FOURIER_SAVES * fourier.multiplications(x.shape, kernel.shape)


@jax.custom_jvp
def _convolve(x: Array, kernel: Array) -> Array:
    return _convolve_by_xla(x, kernel)


@_convolve.defjvp
def _convolve_gradient(primals: Any, tangents: Any) -> Any:
    return jax.jvp(_convolve_by_products, primals, tangents)


@custom_vmap
def _convolve_by_xla(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=_IMAGES)


@_convolve_by_xla.def_vmap
def _convolve_together(size: int, mapped: Any, x: Array, kernel: Array) -> tuple[Array, bool]:
    if mapped[1]:
        axes = (0 if mapped[0] else None, 0)
        return jax.vmap(_convolve_by_products, axes)(x, kernel), True
    y = _convolve_by_xla(x.reshape(-1, *x.shape[2:]), kernel)
    return y.reshape(size, -1, *y.shape[1:]), True


def _convolve_by_products(x: Array, kernel: Array) -> Array:
    height, width, channels, features = kernel.shape
    out_height = x.shape[1] - height + 1
    strips = tiles.copy_strips(x, width)  # [B, H, W', Q C]
    if height * width * channels <= LARGEST_WINDOW:
        windows = [strips[:, p : p + out_height] for p in range(height)]
        windows = jnp.concatenate(windows, axis=-1)  # [B, H', W', P Q C]
        return _multiply_rows(windows, kernel.reshape(-1, features))
    groups = -(-height // ROWS_AT_ONCE)
    bounds = [group * height // groups for group in range(groups + 1)]
    total: Any = 0
    for start, stop in zip(bounds, bounds[1:], strict=False):
        rows = strips[:, start : stop + out_height - 1]
        columns = kernel[start:stop].transpose(1, 2, 0, 3).reshape(width * channels, -1)
        products = _multiply_rows(rows, columns)  # [B, H' + G - 1, W', G F]
        for p, product in enumerate(jnp.split(products, stop - start, axis=-1)):
            total += product[:, p : p + out_height]
    return total


def _multiply_rows(rows: Array, matrix: Array) -> Array:
    # On a CPU, XLA takes a sixth longer for the gradients of a product with four axes.
    product = rows.reshape(-1, rows.shape[-1]) @ matrix
    return product.reshape(*rows.shape[:-1], -1)
