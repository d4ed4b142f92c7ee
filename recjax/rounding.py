"""Numbers kept as the bits of bfloat16, and written with stochastic rounding.

An array of bfloat16 is kept as uint16: to scatter into bfloat16 itself, XLA on CPU first turns the
whole array into float32. Whoever reads a table or a moment does it through `as_float32`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray, UInt16

from recjax.hashing import entry_bits

BYTES = {"float32": 4, "bfloat16": 2}  # of a number, by what it is kept in
Dtype = Literal["float32", "bfloat16"]
# A table [R, D], or what an optimizer keeps of one ([R, D] or [R]), in either dtype.
Stored = Float[Array, "R ..."] | UInt16[Array, "R ..."]


def as_float32(x: Array) -> Array:
    """Numbers from what is kept of them: bits of bfloat16 become float32, others stay as they are.

    Of a large array take the rows that are needed first.
    """
    if x.dtype != jnp.uint16:
        return x
    return jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)


def as_kept(x: Float32[Array, "*S"], dtype: Dtype) -> Float32[Array, "*S"] | UInt16[Array, "*S"]:
    """What is kept of numbers in a dtype, rounded to the nearest: for how an array begins."""
    if dtype == "float32":
        return x
    return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)


def round_randomly(
    x: Float32[Array, "M *D"], key: PRNGKeyArray, row_M: Int[Array, "M"]
) -> UInt16[Array, "M *D"]:
    """The bits of x in bfloat16, rounded up or down by chance so that the mean is x.

    A number between two neighbours of bfloat16 becomes the one at a distance of d with a chance of
    1 - d / their distance (Gupta et al., ICML 2015). Many changes too small for the nearest
    bfloat16 so add up as they should. A number of bfloat16 stays what it is, infinities and NaN
    too; one beyond the largest may become infinite, as it does by rounding to the nearest.

    Args:
        x: rows, or one number of each.
        key: of the array and the step; see `entry_bits`, whose bits decide.
        row_M: the rows' numbers in the whole array.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    chance = entry_bits(key, row_M, x.size // len(row_M)).reshape(x.shape) >> 16
    rounded = jnp.where(jnp.isnan(x), bits | 0x400000, bits + chance) >> 16
    return rounded.astype(jnp.uint16)
