"""Encoder: a BERT encoder of sentences, whose padding a CPU does not compute.

tokens [B, L]  ->  words in a row [T, E]  ->  layers  ->  mean over words [B, E]

Dense layers see all words of a batch in one row of T places, of which T is B L or, if the batch has
so few words, what batches of the training data need. Only attention sees sentences `[B, L, E]`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fairjax.types import Array


class Row(NamedTuple):
    """How words of sentences `[B, L]` lie in a row of T places.

    Attributes:
      tokens: `[T]`, 0 where there is no word.
      places: `[T]` the place of a word in its sentence.
      from_row: `[B, L]` where each word is in the row; T for padding.
      to_row: `[T]` where each word is in the sentences laid end to end; B L for no word.
    """

    tokens: Array
    places: Array
    from_row: Array
    to_row: Array


class Encoder(nn.Module):
    """The words of sentences after all layers; names follow the published weights' meaning."""

    vocabulary_size: int
    num_layers: int
    num_heads: int
    width: int
    inner: int
    longest: int

    @nn.compact
    def __call__(self, row: Row) -> Array:
        """Maps words in a row to `[T, E]`."""
        x = nn.Embed(self.vocabulary_size, self.width, name="words")(row.tokens)
        x += nn.Embed(self.longest, self.width, name="places")(row.places)
        x += self.param("sentence", nn.initializers.zeros_init(), (self.width,))
        x = _norm("norm")(x)
        sizes, names = (self.num_heads, self.width, self.inner), self.layer_names
        if self.is_initializing():
            for name in names:
                x = _Layer(*sizes, name=name)(x, row)
            return x
        # A loop over all layers, so that one layer is compiled and not all of them.
        own: Any = self.variables["params"]
        layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(own[name] for name in names))
        layer = _Layer(*sizes, parent=None)  # pyright: ignore[reportCallIssue]

        def after(x: Array, params: Any) -> tuple[Array, None]:
            return layer.apply({"params": params}, x, row), None  # pyright: ignore[reportReturnType]

        return lax.scan(after, x, layers)[0]

    @property
    def layer_names(self) -> list[str]:
        """The names of the layers in the parameters."""
        return [f"layer_{number}" for number in range(self.num_layers)]


class _Layer(nn.Module):
    num_heads: int
    width: int
    inner: int

    @nn.compact
    def __call__(self, x: Array, row: Row) -> Array:
        query, key, value = (
            self._heads(nn.Dense(self.width, name=name)(x), row)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bihd,bjhd->bhij", query, key) / math.sqrt(query.shape[-1])
        is_word = row.from_row < len(row.tokens)
        scores = jnp.where(is_word[:, None, None], scores, -jnp.inf)
        # A sentence without words would give NaN.
        scores = jnp.where(is_word.any(1)[:, None, None, None], scores, 0)
        mixed = jnp.einsum("bhij,bjhd->bihd", nn.softmax(scores), value)
        mixed = _move_rows(mixed.reshape(-1, self.width), row.to_row, row.from_row.reshape(-1))
        x = _norm("attention_norm")(x + nn.Dense(self.width, name="attention_output")(mixed))
        hidden = nn.gelu(nn.Dense(self.inner, name="inner")(x), approximate=False)
        return _norm("norm")(x + nn.Dense(self.width, name="output")(hidden))

    def _heads(self, x: Array, row: Row) -> Array:
        """Returns `[B, L, heads, E / heads]` of words in a row."""
        x = _move_rows(x, row.from_row.reshape(-1), row.to_row)
        return x.reshape(*row.from_row.shape, self.num_heads, -1)


class Classifier(nn.Module):
    """A linear layer on the mean of an encoder's words."""

    encoder: Encoder
    num_outputs: int
    mean_words: float  # of a sentence of the training data
    spread: float  # their standard deviation

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps tokens `[B, L]` to outputs `[B, C]`."""
        x = self.sentences(x)
        x = nn.RMSNorm(use_scale=False)(x)  # of one length, as published, so that the head learns
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros_init(), name="head")(x)

    def sentences(self, tokens: Array) -> Array:
        """Returns the means over words `[B, E]`; zero for a sentence without words."""
        size, length = tokens.shape
        few = math.ceil(size * self.mean_words + 3 * math.sqrt(size) * self.spread)
        num_words = (tokens != 0).sum()

        def whole(module: Any, tokens: Array) -> Array:
            return module._means(tokens, size * length)

        def packed(module: Any, tokens: Array) -> Array:
            return module._means(tokens, few)

        if few >= size * length or self.is_initializing() or jax.default_backend() != "cpu":
            return whole(self, tokens)
        return nn.cond(num_words <= few, packed, whole, self, tokens)

    def _means(self, tokens: Array, num_places: int) -> Array:
        row = lay_in_row(tokens, num_places)
        words = self.encoder(row)
        rows = _move_rows(words, row.from_row.reshape(-1), row.to_row)
        counts = (tokens != 0).sum(1, keepdims=True)
        return rows.reshape(*tokens.shape, -1).sum(1) / jnp.maximum(counts, 1)


def lay_in_row(tokens: Array, num_places: int) -> Row:
    """Returns the words of sentences `[B, L]` in a row with at least as many places.

    Examples:
      >>> row = lay_in_row(jnp.array([[7, 8, 0], [9, 0, 0]]), 4)
      >>> print(row.tokens, row.places, row.to_row)
      [7 8 9 0] [0 1 0 0] [0 1 3 6]
    """
    flat = tokens.reshape(-1)
    is_word = flat != 0
    place = jnp.cumsum(is_word) - 1
    from_row = jnp.where(is_word, place, num_places)
    to_row = jnp.full(num_places, flat.size).at[from_row].set(jnp.arange(flat.size), mode="drop")
    own = jnp.append(flat, 0)[to_row]
    places = jnp.where(to_row < flat.size, to_row % tokens.shape[1], 0)
    return Row(own, places, from_row.reshape(tokens.shape), to_row)


@jax.custom_vjp
def _move_rows(x: Array, places: Array, inverse: Array) -> Array:
    """Returns the rows of `x` at `places`, zeros where a place is beyond them.

    Places are different, so the gradient is a move by the inverse, not a sum.
    """
    return _take(x, places)


def _take(x: Array, places: Array) -> Array:
    return x.at[places].get(mode="fill", fill_value=0)


def _move_rows_forward(x: Array, places: Array, inverse: Array) -> tuple[Array, Array]:
    return _take(x, places), inverse


def _move_rows_backward(inverse: Array, gradient: Array) -> tuple[Array, None, None]:
    return _take(gradient, inverse), None, None


_move_rows.defvjp(_move_rows_forward, _move_rows_backward)


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-12, name=name)
