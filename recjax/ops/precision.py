"""Products in the operands that accelerators multiply fastest, summed in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

COMPUTE_DTYPES = ("float32", "bfloat16")


def product(subscripts: str, a: Array, b: Array) -> Array:
    """An einsum of two arrays of one dtype, summed in float32.

    On CPU, which has no such product of bfloat16, the same operands are multiplied in float32.
    """

    def direct(a: Array, b: Array) -> Array:
        return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)

    def widened(a: Array, b: Array) -> Array:
        # Rounded once more: XLA may leave out a conversion to bfloat16 and back.
        return direct(*(rounded(x.astype(jnp.float32), "bfloat16") for x in (a, b)))

    if a.dtype != jnp.bfloat16:
        return direct(a, b)
    return jax.lax.platform_dependent(a, b, cpu=widened, default=direct)


def transposed_product(a_TxC: Array, b_TxD: Array) -> Array:
    """a^T b [C, D], summed in float32.

    XLA on CPU runs b^T a three times as fast where C is the larger; the barrier keeps it from
    making the one into the other.
    """
    return jax.lax.optimization_barrier(product("td,tc->dc", b_TxD, a_TxC)).T


def rounded(x: Float[Array, "..."], compute_dtype: str) -> Float[Array, "..."]:
    """The nearest numbers of a dtype in COMPUTE_DTYPES, in the dtype of x.

    Gradients pass straight through, rounded alike.
    """
    if compute_dtype == "float32":
        return x
    info = jnp.finfo(compute_dtype)
    return jax.lax.reduce_precision(x, exponent_bits=info.nexp, mantissa_bits=info.nmant)
