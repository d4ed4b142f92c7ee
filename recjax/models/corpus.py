"""The item side of a whole corpus, in bounded memory and split over devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

PyTree = Any


def encode_corpus(
    encode: Callable[[Int[Array, "C"]], Float[Array, "C D"]],
    item_N: Int[Array, "N"],
    chunk: int,
) -> Float[Array, "N D"]:
    """Item embeddings of many items, `chunk` at a time.

    Each chunk is rematerialised in the backward pass, so that hidden layers are held for one chunk
    only, whatever N.

    Args:
      encode: embeds one chunk of item positions.
      item_N: the positions.
      chunk: items encoded at once.
    """
    count = item_N.shape[0]
    if count <= chunk:
        return encode(item_N)
    padded = jnp.pad(item_N, (0, -count % chunk)).reshape(-1, chunk)
    step = jax.checkpoint(encode)
    _, embedded = jax.lax.scan(lambda carry, ids_C: (carry, step(ids_C)), None, padded)
    return embedded.reshape(-1, embedded.shape[-1])[:count]


def sum_gradient(tree: PyTree, axis: str | None) -> PyTree:
    """The identity, whose gradient is summed over a mesh axis.

    For replicated parameters that each device of the axis uses on a part of the corpus only: their
    whole gradient is the sum of the devices' (the operator f of Megatron-LM, Shoeybi et al. 2019).
    """
    return tree if axis is None else jax.tree.map(functools.partial(_sum_gradient, axis), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_gradient(axis: str, x: Array) -> Array:
    del axis
    return x


def _sum_gradient_fwd(axis: str, x: Array) -> tuple[Array, None]:
    del axis
    return x, None


def _sum_gradient_bwd(axis: str, residual: None, grad: Array) -> tuple[Array]:
    del residual
    return (jax.lax.psum(grad, axis),)


_sum_gradient.defvjp(_sum_gradient_fwd, _sum_gradient_bwd)
