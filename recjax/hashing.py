"""Random bits on the device that are a function of the entry that they are for."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, UInt32


def mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The finaliser of MurmurHash3: every bit of a uint32 changes half of the others."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def entry_bits(
    key: PRNGKeyArray, row_M: Int[Array, "M"] | UInt32[Array, "M"], dim: int
) -> UInt32[Array, "M D"]:
    """32 random bits for each entry of rows of a table.

    They depend on the key, the row's number in the whole table and the column alone: not on which
    device holds the row, nor on which rows are asked for beside it. Every entry is by itself, so
    that a compiler needs no memory for them.

    Args:
        key: of one table at one step; another key gives other bits.
        row_M: numbers of rows.
        dim: D.
    """
    row, column = jax.random.bits(key, (2,), jnp.uint32)
    of_row_Mx1 = mix(row_M.astype(jnp.uint32) ^ row)[:, None]
    of_column_1xD = mix(jnp.arange(dim, dtype=jnp.uint32) ^ column)[None, :]
    return mix(of_row_Mx1 ^ of_column_1xD)
