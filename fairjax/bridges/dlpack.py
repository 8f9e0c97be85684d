"""DLPack: share tensors of other libraries with JAX, and JAX arrays with PyTorch.

    shared     torch.Tensor, numpy.ndarray, ...  ->  jax.Array, for `fairjax.contributions`
    to_torch   jax.Array  ->  torch.Tensor, for rewards from `fairjax.rewards`

Only `to_torch` needs PyTorch. JAX assumes that its arrays never change, so do not write to
memory that is shared while its array is in use.
"""

import importlib
from typing import Any

import jax
import numpy as np

from fairjax.types import Array, Stacked


def shared(tensors: Any) -> Stacked:
    """Returns JAX arrays that share the memory of tensors; nothing is copied.

    Args:
      tensors: one tensor `[N, D]`, or a pytree, such as a mapping of names, of tensors
        `[N, ...]`: anything with `__dlpack__`.

    Returns:
      The same pytree of JAX arrays, for the functions of `fairjax.contributions`.

    Raises:
      ValueError: a tensor requires a gradient, has gaps or repeats in memory, does not
        start at a multiple of 64 bytes (PyTorch's do, numpy's often do not), is read-only (JAX
        0.12 shares those too), or has 64 bits while jax_enable_x64 is off.

    Examples:
      >>> import fairjax as fj
      >>> updates = jax.numpy.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])  # or a torch.Tensor
      >>> print(fj.contributions.cosine(shared(updates)).round(3))
      [0.707 0.707 0.   ]
    """
    return jax.tree_util.tree_map_with_path(_share, tensors)


def to_torch(arrays: Any) -> Any:
    """Returns PyTorch tensors that share the memory of JAX arrays; nothing is copied.

    Args:
      arrays: an array or a pytree of arrays, each on one device.

    Returns:
      The same pytree of tensors.

    Raises:
      ImportError: PyTorch is not installed.
    """
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        raise ImportError("`to_torch` needs PyTorch: pip install torch") from error
    return jax.tree.map(torch.from_dlpack, arrays)


def _share(path: Any, tensor: Any) -> Array:
    name = f"`tensors{jax.tree_util.keystr(path)}`"
    if not hasattr(tensor, "__dlpack__") or isinstance(tensor, np.ma.MaskedArray):
        raise ValueError(f"{name} must be a whole tensor with `__dlpack__`, got {type(tensor)}.")
    if getattr(tensor, "requires_grad", False):
        raise ValueError(f"{name} must not require a gradient: share its `.detach()`.")
    try:
        array = jax.dlpack.from_dlpack(tensor, copy=False)
    except ValueError as error:
        raise ValueError(
            f"{name} must start at a multiple of 64 bytes to be shared, as whole tensors of "
            "PyTorch do and many arrays of numpy do not: copy it with `jax.numpy.array`."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"{name} cannot be shared: its entries must lie in memory without gaps or repeats. "
            "Make a copy with `.contiguous()` or `numpy.ascontiguousarray`. JAX says: "
            f"{error}"
        ) from error
    except BufferError as error:
        raise ValueError(
            f"{name} cannot be shared: {error} Copy it with `jax.numpy.array`."
        ) from error
    dtype = str(tensor.dtype).removeprefix("torch.")
    if array.dtype.name != dtype:
        raise ValueError(
            f"{name} must have a dtype that JAX keeps, got {dtype}, which would become "
            f"{array.dtype}: enable jax_enable_x64 or convert it."
        )
    return array
