"""Networks: Flax Linen modules, from a batch of examples to logits `[B, C]`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fairjax.models.layers import conv_general_dilated, conv_max_pool, max_pool
from fairjax.models.products import dot_general
from fairjax.models.sentences import largest_windows
from fairjax.types import Array, Key


class MLP(nn.Module):
    """Dense layers with relu between them; examples are flattened."""

    hidden: Sequence[int]
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[B, ...]` to logits `[B, C]`."""
        x = x.reshape(len(x), -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes, name="head", dot_general=dot_general)(x)


class MnistCNN(nn.Module):
    """The paper's network for MNIST: 104,242 parameters on 32x32 images of one channel."""

    num_classes: int = 10
    convolution: Callable[..., Array] = conv_general_dilated

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[B, 32, 32, 1]` to logits `[B, C]`; pools before the monotone activation."""
        # Leave out rows and columns that no second pooling window reaches: the last two of 32.
        height, width = (4 * ((size - 14) // 4) + 14 for size in x.shape[1:3])
        x = nn.tanh(_pooled_conv(64, 3, 3, by=self.convolution)(x[:, :height, :width]))
        x = nn.tanh(_pooled_conv(16, 7, 7, by=self.convolution)(x))
        x = nn.tanh(nn.Dense(200)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes, name="head")(x)


class CifarCNN(nn.Module):
    """The paper's network for CIFAR-10: 121,182 parameters on 32x32 images of 3 channels."""

    num_classes: int = 10
    convolution: Callable[..., Array] = conv_general_dilated

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[B, 32, 32, 3]` to logits `[B, C]`; pools before the monotone activation."""
        x = nn.relu(_pooled_conv(16, 5, 5, by=self.convolution)(x))
        x = nn.relu(_pooled_conv(32, 5, 5, by=self.convolution)(x))
        x = nn.relu(nn.Dense(120)(x.reshape(len(x), -1)))
        x = nn.relu(nn.Dense(84)(x))
        return nn.Dense(self.num_classes, name="head")(x)


class TextCNN(nn.Module):
    """Kim's network for sentences, trained from random embeddings.

    The embeddings start uniform in [-1/4, 1/4], as in Kim's program. With PyTorch's start,
    N(0, 1), small steps of Adam hardly move them, and test accuracy is lower.
    Padding, token 0, has an embedding like any other.
    """

    vocabulary_size: int
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps tokens `[B, L]` to logits `[B, C]`; takes maxima before the monotone activation."""
        embed = nn.Embed(
            self.vocabulary_size, 300, embedding_init=_draw_embedding, name="embedding"
        )
        branches = [_Branch(128, (3, 300), name=f"branch_{number}")() for number in range(3)]
        kernel, bias = (jnp.concatenate(parts, axis=-1) for parts in zip(*branches, strict=True))
        x = nn.relu(largest_windows(x, embed.embedding, kernel) + bias)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="head")(x)


class _Branch(nn.Module):
    """The parameters of a convolution: a kernel `[P, E, F]` and a bias `[F]`."""

    features: int
    window: tuple[int, int]

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        shape = (*self.window, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return kernel, self.param("bias", nn.initializers.zeros_init(), (self.features,))


def _draw_embedding(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    return jax.random.uniform(key, tuple(shape), dtype, -0.25, 0.25)


def _pooled_conv(features: int, *window: int, by: Callable[..., Array]) -> nn.Conv:
    """Returns a convolution with a max-pool of two by two, which a bias does not change."""

    def pooled(*args: Any, **options: Any) -> Array:
        return max_pool(by(*args, **options))

    together = conv_max_pool if by is conv_general_dilated else pooled
    return nn.Conv(features, window, padding="VALID", conv_general_dilated=together)
