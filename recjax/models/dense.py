"""The layer of matrix products that towers are made of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recjax.ops.precision import product


def make_dense(width: int, compute_dtype: str, *, name: str, use_bias: bool = True) -> nn.Dense:
    """A dense layer whose products, and those of its gradient, are of `compute_dtype` operands.

    Parameters, sums and results are float32 (Micikevicius et al., ICLR 2018, arXiv:1710.03740;
    bfloat16 has the range of float32, so losses need no scaling).

    Args:
      width: numbers that it returns.
      compute_dtype: of COMPUTE_DTYPES in `recjax.ops.precision`.
      name: of the layer's parameters.
      use_bias: whether it adds a bias.
    """
    dot_general = None if compute_dtype == "float32" else _dot_general
    return nn.Dense(width, use_bias=use_bias, name=name, dot_general=dot_general)


def _dot_general(x: Array, kernel_IxO: Array, dimension_numbers: tuple, precision: None) -> Array:
    """The product that `nn.Dense` asks for: of the last axis of x and the first of the kernel."""
    del dimension_numbers, precision
    return _matmul(x.reshape(-1, x.shape[-1]), kernel_IxO).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _matmul(x_BxI: Float[Array, "B I"], kernel_IxO: Float[Array, "I O"]) -> Float[Array, "B O"]:
    return _matmul_fwd(x_BxI, kernel_IxO)[0]


def _matmul_fwd(x_BxI: Array, kernel_IxO: Array) -> tuple[Array, tuple[Array, Array]]:
    operands = x_BxI.astype(jnp.bfloat16), kernel_IxO.astype(jnp.bfloat16)
    return product("bi,io->bo", *operands), operands


def _matmul_bwd(operands: tuple[Array, Array], grad_BxO: Array) -> tuple[Array, Array]:
    x_BxI, kernel_IxO = operands
    grad_BxO = grad_BxO.astype(jnp.bfloat16)
    return product("bo,io->bi", grad_BxO, kernel_IxO), product("bi,bo->io", x_BxI, grad_BxO)


_matmul.defvjp(_matmul_fwd, _matmul_bwd)
