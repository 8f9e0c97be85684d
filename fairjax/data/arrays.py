"""Arrays: users' data as numpy arrays, or an error that says why it is not data.

lists, arrays of numpy, JAX or PyTorch, DataFrames, Series  ->  numbers, truth values, text
"""

import numbers
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def as_array(name: str, value: Any) -> np.ndarray:
    """Returns a value as an array.

    Arrays of objects get the dtype of their entries, if all fit one: the values of a
    DataFrame with columns of whole numbers, floats and truth values become floats.

    Raises:
      ValueError: the value is not an array, its rows have unequal lengths, entries are
        masked, or it is sparse.

    Examples:
      >>> print(as_array("`x`", np.array([[1, 0.5], [2, True]], dtype=object)))
      [[1.  0.5]
       [2.  1. ]]
    """
    if hasattr(value, "toarray"):
        raise ValueError(
            f"{name} must be dense, got a sparse {type(value).__name__}. Pass its toarray()."
        )
    if np.ma.is_masked(value):
        raise ValueError(f"{name} must have no masked entries. Fill them or leave rows out.")
    try:
        array = np.asarray(value)
        if array.dtype == object and array.ndim:
            array = np.array(array.tolist())
    except (ValueError, TypeError, RuntimeError) as error:
        reason = f"that numpy cannot read: {str(error).splitlines()[0]:.150}"
        if "inhomogeneous" in str(error):
            reason = "whose rows are not equally long."
        raise ValueError(
            f"{name} must be an array, got a {type(value).__name__} {reason}"
        ) from error
    if array.ndim == 0 and array.dtype.kind not in "iufb":
        raise ValueError(f"{name} must be an array, got {value!r:.100}.")
    return array


def is_known(value: Any) -> bool:
    """Says whether a value has known entries: it is neither traced nor only a shape."""
    return not isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct)


def is_floating(dtype: Any) -> bool:
    """Says whether numbers are floating, including JAX's bfloat16, which numpy does not know."""
    return jnp.issubdtype(dtype, jnp.floating)


def is_whole(dtype: Any) -> bool:
    """Says whether numbers are whole; truth values and numpy's time spans are not."""
    return dtype.kind != "m" and jnp.issubdtype(dtype, jnp.integer)


def described(array: Any) -> str:
    """Returns the dtype and shape of an array, for messages.

    Examples:
      >>> described(np.zeros((3, 2), np.float32))
      'float32[3, 2]'
    """
    if not hasattr(array, "dtype"):
        return repr(array)
    return f"{array.dtype}{list(array.shape)}"


def row_numbers(name: str, rows: Any, num_rows: int) -> np.ndarray:
    """Returns `rows` as int32 `[k]`, k >= 1, or raises unless they are row numbers."""
    array = as_array(name, rows)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {array.shape}.")
    if array.size == 0:
        raise ValueError(f"{name} must hold at least one row number, got none.")
    return check_rows(name, array, num_rows).astype(np.int32)


def check_rows(name: str, rows: np.ndarray, num_rows: int) -> np.ndarray:
    """Returns `rows`, or raises unless all entries are row numbers below `num_rows`."""
    if not is_whole(rows.dtype):
        hint = " Pass np.flatnonzero(mask) for a mask." if rows.dtype == bool else ""
        raise ValueError(f"{name} must be whole numbers, got dtype {rows.dtype}.{hint}")
    wrong = rows[(rows < 0) | (rows >= num_rows)]
    if wrong.size:
        raise ValueError(f"{name} must be in [0, {num_rows}), got row {wrong[0]}.")
    return rows


def first_not_number(array: np.ndarray, columns: Any = None) -> str:
    """Describes the first entry of an array that is not a number, with its row and column.

    Args:
      array: `[n, ...]`, with a dtype that is not numeric.
      columns: names of its columns; None: their numbers.

    Examples:
      >>> first_not_number(np.array([["1", "red"], ["2", "blue"]]), ["size", "colour"])
      "'red' in row 0 of column 'colour'"
    """
    rows = (
        array.reshape(len(array), -1) if array.dtype.kind in "OUSV" else array.reshape(1, -1)[:, :0]
    )
    for column, entries in enumerate(rows.T):
        for row, entry in enumerate(entries.tolist()):
            if not _reads_as_number(entry):
                place = "" if array.ndim == 1 else f" of column {column}"
                if columns is not None and array.ndim == 2:
                    place = f" of column {columns[column]!r}"
                return f"{entry!r:.100} in row {row}{place}"
    return f"dtype {array.dtype}"


def _reads_as_number(entry: Any) -> bool:
    if not isinstance(entry, str | bytes):
        return isinstance(entry, numbers.Real)
    try:
        float(entry)
    except ValueError:
        return False
    return True
