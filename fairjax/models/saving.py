"""Saving: parameters as a safetensors file, which other programs read without fairjax.

nested dicts of arrays  <->  arrays by name, such as "hidden/kernel"
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fairjax import checks, files
from fairjax.types import Params

SEPARATOR = "/"
DTYPES = (  # that safetensors writes, and JAX reads
    "bool", "bfloat16", "float16", "float32", "float64", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip


def save_params(path: str | os.PathLike, params: Params) -> None:
    """Writes parameters to a safetensors file, completely or not at all.

    Args:
      path: the file, such as "agent_2.safetensors"; one that exists is replaced.
      params: nested dicts of arrays, as models of Flax modules have them.

    Raises:
      ValueError: `params` are not nested dicts of arrays whose keys are texts without "/", or an
        array has another dtype than real numbers of 8 to 64 bits or booleans.
      OSError: the file cannot be written.

    Examples:
      >>> import tempfile
      >>> params = {"head": {"kernel": jnp.ones((4, 3))}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_params(folder + "/model.safetensors", params)
      ...     print(jax.tree.map(jnp.shape, load_params(folder + "/model.safetensors")))
      {'head': {'kernel': (4, 3)}}
    """
    from safetensors import numpy

    file = checks.path("path", path)
    tensors = numpy.save(_flatten(params))
    with files.replacing(file) as opened:
        opened.write(tensors)


def load_params(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the parameters in a safetensors file as nested dicts of arrays.

    Args:
      path: the file, from `save_params` or from another program.

    Raises:
      ValueError: the file cannot be read, is not a safetensors file, has an array "a" beside an
        array "a/b", or whole numbers of 64 bits, which JAX would cut without jax_enable_x64.

    Examples:
      See `save_params`.
    """
    from safetensors import SafetensorError, safe_open

    file = checks.path("path", path)
    try:
        with safe_open(file, "flax") as opened:
            names = opened.keys()
            cut = [name for name in names if opened.get_slice(name).get_dtype() in ("I64", "U64")]
            if cut and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
                raise ValueError(
                    f"`path` must hold whole numbers of up to 32 bits, got {file}, where "
                    f"{cut[0]!r} has 64. Enable jax_enable_x64."
                )
            found = {name: opened.get_tensor(name) for name in names}
    except OSError as error:
        raise ValueError(f"`path` must be a file to read, got {file}: {error}.") from error
    except SafetensorError as error:
        raise ValueError(f"`path` must be a safetensors file, got {file}: {error}.") from error
    for name in found:
        if any(other.startswith(name + SEPARATOR) for other in found):
            raise ValueError(
                f"`path` must hold arrays whose names can be nested, got {file}, where {name!r} is "
                "an array and holds others."
            )
    return traverse_util.unflatten_dict(found, sep=SEPARATOR)


def _flatten(params: Any) -> dict[str, np.ndarray]:
    """Returns arrays by name, or raises where names or arrays are missing."""
    flat: Any = {}
    if isinstance(params, dict):
        flat = traverse_util.flatten_dict(params, keep_empty_nodes=True)
    names = [name for path in flat for name in path]
    are_texts = all(isinstance(name, str) and SEPARATOR not in name for name in names)
    are_texts = are_texts and ("__metadata__",) not in flat  # of the format itself
    if not flat or not are_texts or not all(map(_is_array, flat.values())):
        raise ValueError(
            "`params` must be nested dicts of arrays, with keys that are texts without '/', "
            f"got {checks.shown(params)}."
        )
    for path, leaf in flat.items():
        if leaf.dtype.name not in DTYPES:
            raise ValueError(
                f"`params` must hold arrays of {', '.join(DTYPES)}, got {leaf.dtype} in "
                f"{SEPARATOR.join(path)!r}."
            )
    # The file is written as the array lies in memory.
    return {SEPARATOR.join(path): np.asarray(leaf, order="C") for path, leaf in flat.items()}


def _is_array(leaf: Any) -> bool:
    """Says whether a leaf is an array of numbers or booleans that is known."""
    is_array = isinstance(leaf, np.ndarray | np.generic | jax.Array)
    if not is_array or isinstance(leaf, np.ma.MaskedArray) or not checks.is_known(leaf):
        return False
    return leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.number)
