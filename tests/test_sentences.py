"""Padding of sentences and few outputs cost less, and change nothing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fairjax.models import products, sentences
from fairjax.types import Array

NUM_WORDS, WIDTH, FEATURES = 40, 6, 5


def drawn(lengths: list[int], longest: int, height: int, seed: int = 0) -> tuple[Array, ...]:
    """Tokens of sentences with these lengths, a table and a kernel."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, NUM_WORDS, (len(lengths), longest))
    tokens *= np.arange(longest) < np.array(lengths)[:, None]
    table = jnp.asarray(rng.normal(size=(NUM_WORDS, WIDTH)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(height, WIDTH, FEATURES)), jnp.float32)
    return jnp.asarray(tokens, jnp.int32), table, kernel


def plain(tokens: Array, table: Array, kernel: Array) -> Array:
    """The largest outputs of XLA's convolution over all positions."""
    columns = ("NWC", "WIO", "NWC")
    found = lax.conv_general_dilated(
        table[tokens], kernel, (1,), "VALID", dimension_numbers=columns
    )
    return found.max(1)


def check_alike(tokens: Array, table: Array, kernel: Array) -> None:
    """Compares values and gradients for a random direction of the outputs."""
    direction = jax.random.normal(jax.random.key(1), (len(tokens), FEATURES))

    def slopes(function: Callable[..., Array]) -> Any:
        def value(table: Array, kernel: Array) -> tuple[Array, Array]:
            found = function(tokens, table, kernel)
            return (found * direction).sum(), found

        return jax.jit(jax.grad(value, (0, 1), has_aux=True))(table, kernel)

    jax.tree.map(
        lambda found, expected: np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4),
        slopes(sentences.largest_windows),
        slopes(plain),
    )


@pytest.mark.parametrize("height", [1, 3])
@pytest.mark.parametrize(
    "lengths",
    [[7], [0, 0], [1, 2, 3, 4, 5, 6, 7, 8, 9, 0], [3] * 200],
    ids=str,
)
def test_largest_windows_are_those_of_the_padded_convolution(lengths, height):
    check_alike(*drawn(lengths, 9, height))


def test_many_blocks_of_words_are_joined_without_a_seam():
    lengths = np.random.default_rng(2).integers(0, 31, 150).tolist()
    assert sum(lengths) > 3 * sentences.BLOCK
    check_alike(*drawn(lengths, 30, 3))


def test_zeros_within_a_sentence_are_tokens():
    tokens, table, kernel = drawn([9, 5], 9, 3)
    check_alike(tokens.at[:, 2:4].set(0), table, kernel)


def test_equal_windows_pass_the_gradient_once():
    tokens, table, kernel = drawn([8], 8, 2)
    check_alike(jnp.full_like(tokens, 3), table, kernel)


def test_many_agents_at_once_give_what_each_gives_alone():
    lengths = [[2, 7, 0], [9, 9, 9], [1, 0, 0]]
    agents = [drawn(own, 9, 3, seed) for seed, own in enumerate(lengths)]
    stacked = [jnp.stack(parts) for parts in zip(*agents, strict=True)]

    def slope(tokens: Array, table: Array, kernel: Array) -> tuple[Array, Array]:
        return jax.grad(lambda *own: sentences.largest_windows(tokens, *own).sum(), (0, 1))(
            table, kernel
        )

    together, alone = jax.jit(jax.vmap(slope))(*stacked), jax.jit(slope)
    for number, agent in enumerate(agents):
        for found, expected in zip(together, alone(*agent), strict=True):
            np.testing.assert_allclose(found[number], expected, rtol=1e-5, atol=1e-5)


def test_a_nan_stays_in_its_sentence():
    tokens, table, kernel = drawn([4, 3], 9, 3)
    tokens = tokens.at[0].set(jnp.where(tokens[0] > 0, 7, 0)).at[1].set(jnp.minimum(tokens[1], 6))
    found = sentences.largest_windows(tokens, table.at[7].set(jnp.nan), kernel)
    assert jnp.isnan(found[0]).all()
    assert jnp.isfinite(found[1]).all()


def test_short_sentences_cost_less_than_long_ones():
    def num_blocks(lengths: list[int]) -> int:
        tokens, _, _ = drawn(lengths, 50, 3)
        return int(sentences._pack(tokens, 3)[1])

    assert num_blocks([5] * 100) == 2  # 100 sentences of 5 words and 2 zeros
    assert num_blocks([50] * 100) == 11


@pytest.mark.parametrize(("batch", "outputs"), [(1, 1), (32, 10), (32, 17)])
def test_products_and_their_derivatives_are_those_of_lax(batch, outputs):
    rng = np.random.default_rng(0)
    x, kernel, change, direction = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((batch, 9), (9, outputs), (9, outputs), (batch, outputs))
    )
    dims = (((1,), (0,)), ((), ()))

    def of(product):
        def value(x: Array, kernel: Array) -> Array:
            return (product(x, kernel, dims) * direction).sum()

        def derivatives(x: Array, kernel: Array, change: Array) -> Any:
            slopes = jax.value_and_grad(value, (0, 1))(x, kernel)
            along = jax.jvp(lambda kernel: product(x, kernel, dims), (kernel,), (change,))
            several = jax.vmap(jax.grad(value, 1), (None, 0))(x, jnp.stack([kernel, change]))
            return slopes, along, several

        return jax.jit(derivatives)(x, kernel, change)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        of(products.dot_general),
        of(lax.dot_general),
    )


def test_only_products_with_few_outputs_avoid_a_transposed_batch():
    x, dims = jnp.ones((32, 100)), (((1,), (0,)), ((), ()))
    for outputs, few in ((10, True), (64, False)):
        grad = jax.grad(lambda kernel: products.dot_general(x, kernel, dims).sum())
        lowered = jax.jit(grad).lower(jnp.ones((100, outputs))).as_text()
        assert ("optimization_barrier" in lowered) == few
