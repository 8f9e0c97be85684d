"""Products: of a batch with a layer's kernel, with a gradient that is fast for few outputs.

    y  =  x [B, E] @ k [E, F]            gradient of k   =  x^T @ dy   =  (dy^T @ x)^T

On a CPU, XLA copies the transposed x, which takes longer than the product where F is small. So the
second form is used, which needs no transposed x.
"""

from typing import Any

import jax
from jax import lax

from fairjax.types import Array

FEW_OUTPUTS = 16  # with more, the second form is slower
_PLAIN = (((1,), (0,)), ((), ()))


def dot_general(
    lhs: Array,
    rhs: Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    **options: Any,
) -> Array:
    """Returns the same as `jax.lax.dot_general`, with a faster gradient for few outputs.

    Pass it to Flax: `nn.Dense(10, dot_general=dot_general)`.

    Args:
      lhs: see `lax`; `[B, E]` is made faster.
      rhs: see `lax`; `[E, F]` with F at most 16 is made faster.
      dimension_numbers: see `lax`.
      precision: see `lax`.
      preferred_element_type: see `lax`.
      **options: see `lax`.

    Returns:
      As `lax` does.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(dot_general(jnp.ones((1, 3)), jnp.ones((3, 2)), (((1,), (0,)), ((), ()))))
      [[3. 3.]]
    """
    plain = dimension_numbers == _PLAIN and lhs.ndim == rhs.ndim == 2
    given = (precision, preferred_element_type, *options.values())
    alike = lhs.dtype == rhs.dtype and all(option is None for option in given)
    few = plain and rhs.shape[1] <= FEW_OUTPUTS and jax.default_backend() == "cpu"
    if few and alike:
        return _multiply(lhs, rhs)
    return lax.dot_general(
        lhs,
        rhs,
        dimension_numbers,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **options,
    )


@jax.custom_jvp
def _multiply(x: Array, kernel: Array) -> Array:
    return x @ kernel


@_multiply.defjvp
def _multiply_changes(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, kernel), (change_of_x, change) = primals, tangents
    # Without the barrier, XLA would undo both transpositions.
    transposed = lax.optimization_barrier(change.T)
    changes = lax.dot_general(transposed, x, (((1,), (1,)), ((), ())))
    return x @ kernel, change_of_x @ kernel + changes.T
