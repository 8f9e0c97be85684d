"""Arithmetic: products at full precision, ratios, and exact powers of two."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fairjax.types import Array, Scalar

dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def ratio(values: Array | float, divisors: Array) -> Array:
    """Returns values over divisors that are not negative; 0 where the divisor is zero."""
    dtype = jnp.result_type(values, divisors, float)
    return _ratio(jnp.asarray(values, dtype), jnp.asarray(divisors, dtype))


@jax.custom_jvp
def _ratio(values: Array, divisors: Array) -> Array:
    return jnp.where(divisors > 0, values / jnp.where(divisors > 0, divisors, 1), 0)


@_ratio.defjvp
def _ratio_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Returns the ratio and its change, without squares of divisors: these could vanish."""
    quotients = _ratio(*primals)
    return quotients, _ratio(tangents[0] - quotients * tangents[1], primals[1])


def root(squares: Array) -> Array:
    """Returns square roots of numbers that are not negative; at 0 their derivative is 0."""
    roots = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    return jnp.where(squares > 0, roots, lax.stop_gradient(squares))


def power_of_two(exponents: Array, dtype: jnp.dtype) -> Array:
    """Returns 2^exponents; 0 where that is subnormal, the largest power where it overflows."""
    limits = jnp.finfo(dtype)
    exponents = jnp.clip(exponents, limits.minexp - 1, limits.maxexp - 1)
    biased = exponents.astype(f"int{limits.bits}") + (limits.maxexp - 1)
    return lax.bitcast_convert_type(biased << limits.nmant, dtype)


def exponents_of(values: Array) -> Array:
    """Returns whole numbers e with 2^e <= |value| < 2^(e+1); for 0, one below all others."""
    limits = jnp.finfo(values.dtype)
    return (magnitude_bits(values) >> limits.nmant).astype(jnp.int32) - (limits.maxexp - 1)


def times_power_of_two(values: Array, exponents: Array) -> Array:
    """Returns values times 2^exponents, even if the dtype cannot hold 2^exponents."""
    half = exponents // 2
    first, second = power_of_two(half, values.dtype), power_of_two(exponents - half, values.dtype)
    return values * first * second


def largest_exponent(values: Array) -> Array:
    """Returns the exponent e of the largest magnitude, as in `exponents_of`; 0 if all are zero.

    Numbers times 2^-e are safe to sum and to divide by. Compiled code divides by multiplying
    with the inverse, which is 0 for numbers above 2^126.
    """
    largest = jnp.abs(values).max()
    return jnp.where(largest > 0, exponents_of(largest), 0)


def magnitude_bits(values: Array) -> Array:
    """Returns the bits of magnitudes as whole numbers, which have the same order."""
    integer = f"int{jnp.finfo(values.dtype).bits}"
    return lax.bitcast_convert_type(jnp.abs(values), integer)


@jax.custom_jvp
def cosine_of(inner: Array, squares: Array, total: Scalar) -> Array:
    """Returns inner / sqrt(squares total) within [-1, 1], and 0 where a length is not positive."""
    lengths = jnp.sqrt(jnp.maximum(squares, 0)) * jnp.sqrt(total)
    return jnp.clip(ratio(inner, lengths), -1, 1)


@cosine_of.defjvp
def _cosine_of_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Returns the cosine and its change, without powers of lengths: these would vanish."""
    inner, squares, total = primals
    defined = (squares > 0) & (total > 0)
    squares, total = (jnp.where(defined, one, 1) for one in (squares, total))
    by_inner, by_squares, by_total = tangents
    cosine = cosine_of(*primals)
    lengths = jnp.sqrt(squares) * jnp.sqrt(total)
    change = by_inner / lengths - cosine * (by_squares / squares + by_total / total) / 2
    return cosine, jnp.where(defined, change, 0)
