"""Sentences: the largest output of a convolution over each sentence, without paying for padding.

    y[b, f]    =  max_l  sum_pe  table[tokens[b, l + p], e]  k[p, e, f]        tokens [B, L], 0 pads

On a CPU all sentences are written one after the other, each followed by P - 1 zeros, so that no
window reaches from one into the next:

    flat       =  sentence 1, 0 .. 0, sentence 2, 0 .. 0, ..., 0 .. 0
    z[j]       =  sum_p  table[flat[j + p]]  k[p]              as matrix products, block by block
    y[b]       =  max of z over the windows that begin in the sentence, and of the last one, which
                  holds only padding, if the sentence has such a window

There are as many blocks as the batch has words, so shapes are static and results exact. Elsewhere
all L positions are computed, in one product.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from fairjax.models.layers import conv_general_dilated
from fairjax.types import Array, Scalar

BLOCK = 512  # windows in one product; its numbers stay in the caches


def largest_windows(tokens: Array, table: Array, kernel: Array) -> Array:
    """Returns for every sentence and feature the largest output of a convolution.

    The gradient goes to the largest window. Equal ones share it; on a CPU it goes to the first, and
    there are no derivatives in forward mode.

    Args:
      tokens: `[B, L]` rows of the table; zeros at a sentence's end are padding.
      table: `[V, E]` embeddings; padding has one like any other token.
      kernel: `[P, E, F]`.

    Returns:
      `[B, F]`.

    Examples:
      >>> table = jnp.array([[0.0], [1.0], [2.0]])
      >>> print(largest_windows(jnp.array([[1, 2, 0], [1, 0, 0]]), table, jnp.ones((2, 1, 1))))
      [[3.]
       [1.]]
    """
    if jax.default_backend() == "cpu" and tokens.shape[1] >= len(kernel):
        return _packed(tokens, table, kernel)
    columns = ("NWC", "WIO", "NWC")
    outputs = conv_general_dilated(table[tokens], kernel, (1,), "VALID", dimension_numbers=columns)
    return outputs.max(1)


@jax.custom_vjp
def _packed(tokens: Array, table: Array, kernel: Array) -> Array:
    flat, num_blocks, places = _pack(tokens, len(kernel))
    return _convolve(flat, num_blocks, table, kernel)[places].max(1)


def _forward(tokens: Array, table: Array, kernel: Array) -> tuple[Array, Any]:
    flat, num_blocks, places = _pack(tokens, len(kernel))
    outputs = _convolve(flat, num_blocks, table, kernel)[places]  # [B, L - P + 1, F]
    largest = outputs.max(1)
    number = jnp.arange(places.shape[1])[:, None]
    # Several times as fast as `argmax`.
    best = jnp.where(outputs == largest[:, None], number, len(number) - 1).min(1)
    places = jnp.take_along_axis(places, best, axis=1)
    return largest, (flat, num_blocks, places, table, kernel)


def _backward(kept: Any, gradient: Array) -> tuple[None, Array, Array]:
    flat, num_blocks, places, table, kernel = kept
    height, width, features = kernel.shape
    size = len(flat) - height + 1
    columns = jnp.arange(features)
    of_outputs = jnp.zeros((size, features), gradient.dtype).at[places, columns].add(gradient)
    matrix = kernel.reshape(-1, features)

    def block(number: Scalar, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        of_table, of_matrix = sums
        rows = lax.dynamic_slice(flat, (number * BLOCK,), (BLOCK + height - 1,))
        own = lax.dynamic_slice(of_outputs, (number * BLOCK, 0), (BLOCK, features))
        of_matrix += _windows(table[rows], height).T @ own
        of_windows = own @ matrix.T
        of_rows: Any = sum(
            jnp.pad(part, ((p, height - 1 - p), (0, 0)))
            for p, part in enumerate(jnp.split(of_windows, height, axis=1))
        )
        return of_table.at[rows].add(of_rows), of_matrix

    zeros = jnp.zeros_like(table), jnp.zeros_like(matrix)
    of_table, of_matrix = lax.fori_loop(0, num_blocks, block, zeros)
    return None, of_table, of_matrix.reshape(kernel.shape)


_packed.defvjp(_forward, _backward)


def _pack(tokens: Array, height: int) -> tuple[Array, Scalar, Array]:
    """Returns the sentences in one row, how many blocks they fill, and where windows begin.

    The last is `[B, L - P + 1]`: places in the row.
    """
    num_sentences, longest = tokens.shape
    position = jnp.arange(longest)
    lengths = jnp.where(tokens != 0, position + 1, 0).max(1)
    ends = jnp.cumsum(lengths + height - 1)
    starts = ends - (lengths + height - 1)
    padding = ends[-1]  # a window of zeros begins here
    capacity = -(-(num_sentences * (longest + height - 1) + 1) // BLOCK) * BLOCK
    inside = position < lengths[:, None]
    row = jnp.where(inside, starts[:, None] + position, capacity + height)
    flat = jnp.zeros(capacity + height - 1, tokens.dtype).at[row].set(tokens, mode="drop")
    num_windows = longest - height + 1
    places = jnp.where(inside, row, padding)[:, :num_windows]
    return flat, _common(padding // BLOCK + 1), places


def _convolve(flat: Array, num_blocks: Scalar, table: Array, kernel: Array) -> Array:
    """Returns the outputs `[C, F]` of all windows of the first blocks, and zeros behind them."""
    height, _, features = kernel.shape
    matrix = kernel.reshape(-1, features)

    def block(number: Scalar, outputs: Array) -> Array:
        rows = lax.dynamic_slice(flat, (number * BLOCK,), (BLOCK + height - 1,))
        own = _windows(table[rows], height) @ matrix
        return lax.dynamic_update_slice(outputs, own, (number * BLOCK, 0))

    outputs = jnp.zeros((len(flat) - height + 1, features), kernel.dtype)
    return lax.fori_loop(0, num_blocks, block, outputs)


def _windows(rows: Array, height: int) -> Array:
    """Returns all windows `[M - P + 1, P E]` of rows `[M, E]`."""
    size = len(rows) - height + 1
    return jnp.concatenate([rows[p : p + size] for p in range(height)], axis=1)


@custom_vmap
def _common(count: Scalar) -> Scalar:
    """Returns a number; under `vmap` the largest of all, so that a loop has one length."""
    return count


@_common.def_vmap
def _take_largest(size: int, mapped: Any, count: Array) -> tuple[Scalar, bool]:
    return count.max(), False
