"""Softmax cross-entropy over a whole corpus, without ever holding the B x N logits.

The loss ends the graph, so its gradient is formed in the forward pass, row tile by row tile (6NDB
flops, no logits kept), and the backward pass only multiplies by one scalar.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def softmax_loss(
    query_BxD: Float[Array, "B D"],
    item_NxD: Float[Array, "N D"],
    label_BxP: Int[Array, "B P"],
    label_weight_BxP: Float[Array, "B P"],
    weight_B: Float[Array, "B"],
    *,
    bias_N: Float[Array, "N"] | None = None,
    mask_N: Bool[Array, "N"] | None = None,
    scale: float | Float[Array, ""] = 1.0,
    offset: int | Int[Array, ""] = 0,
    axis: str | None = None,
    tile: int = 128,
) -> tuple[Float[Array, ""], Float[Array, "B"]]:
    """Exact softmax cross-entropy over the corpus: (weighted sum, loss of each example).

    With s_bi = scale <query_b, item_i> + bias_i, example b loses

        log sum_i e^(s_bi) - sum_p label_weight_bp s_(b, label_bp)

    and the sum is over weight_b times that. Labels are rows of the corpus, -1 for padding. Items
    where `mask_N` is False are not in the sum; a label that is masked has probability 0 and an
    infinite loss. The sum is differentiable in the queries, items, bias and scale (not twice, nor
    in forward mode); the loss of each example is for metrics and passes no gradient. Sums are
    taken in float32 whatever the dtype of the embeddings.

    With `axis`, `item_NxD`, `bias_N` and `mask_N` are this device's shard, rows
    [offset, offset + N) of the corpus, and everything else is the same on all devices of the axis.
    The gradient w.r.t. the queries and the scale is then the whole one on every device (summed
    over the axis here, so nobody may sum it again); w.r.t. items and bias it is the shard's.

    Args:
        query_BxD: query embeddings, in the dtype of the items.
        item_NxD: item embeddings.
        label_BxP: the labels of each example.
        label_weight_BxP: their weights, 1 in sum where the example counts.
        weight_B: weight of each example; 0 for padding.
        bias_N: added to the scores of the items.
        mask_N: False for items that are not in the sum.
        scale: 1 / temperature.
        offset: row of the corpus where the shard begins.
        axis: name of the axis over which the corpus is split.
        tile: examples whose logits are held at once.
    """
    inputs = _Inputs(query_BxD, item_NxD, bias_N, jnp.asarray(scale, jnp.float32))
    targets = _Targets(label_BxP - offset, label_weight_BxP, weight_B, mask_N)
    total, loss_B = _loss(min(tile, len(query_BxD)), axis, inputs, targets)
    return total, jax.lax.stop_gradient(loss_B)


def log_partition(
    query_BxD: Float[Array, "B D"],
    item_NxD: Float[Array, "N D"],
    *,
    bias_N: Float[Array, "N"] | None = None,
    mask_N: Bool[Array, "N"] | None = None,
    scale: float | Float[Array, ""] = 1.0,
    axis: str | None = None,
    tile: int = 128,
) -> Float[Array, "B"]:
    """log Z of each query: log sum_i e^(scale <query, item_i> + bias_i).

    The arguments are those of `softmax_loss`; with `axis` it is not to be differentiated.
    """
    inputs = _Inputs(query_BxD, item_NxD, bias_N, jnp.asarray(scale, jnp.float32))

    def one_tile(query_TxD: Array) -> Array:
        max_T, sum_T, _ = _normalise(_logits(query_TxD, inputs, mask_N), axis)
        return max_T + jnp.log(sum_T)

    tiles = split_rows(query_BxD, min(tile, len(query_BxD)))
    return join_rows(jax.lax.map(one_tile, tiles), len(query_BxD))


def split_rows(x_Bx: Array, tile: int) -> Array:
    """The leading axis cut into tiles, [ceil(B / tile), tile, ...]; the last filled with zeros."""
    padding = [(0, -len(x_Bx) % tile)] + [(0, 0)] * (x_Bx.ndim - 1)
    return jnp.pad(x_Bx, padding).reshape(-1, tile, *x_Bx.shape[1:])


def join_rows(tiles: Array, num_rows: int) -> Array:
    """What `split_rows` cut, joined again."""
    return tiles.reshape(-1, *tiles.shape[2:])[:num_rows]


def product(subscripts: str, a: Array, b: Array) -> Array:
    """An einsum of two arrays, summed in float32."""
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def scaled(gradient: Any, factor: Array) -> Any:
    """A tree of gradients times a float32 number, each in its own dtype."""
    return jax.tree.map(lambda x: (factor * x.astype(jnp.float32)).astype(x.dtype), gradient)


class _Inputs(NamedTuple):
    """What the loss is differentiated in."""

    query_BxD: Array
    item_NxD: Array
    bias_N: Array | None
    scale: Array


class _Targets(NamedTuple):
    label_BxP: Array  # rows of this shard; out of its range where another shard has the label
    label_weight_BxP: Array
    weight_B: Array
    mask_N: Array | None


def _loss_primal(tile: int, axis: str | None, inputs: Any, targets: Any) -> tuple[Array, Array]:
    return _forward(tile, axis, inputs, targets, with_gradient=False)[0]


def _loss_fwd(tile: int, axis: str | None, inputs: Any, targets: Any) -> tuple[Any, Any]:
    return _forward(tile, axis, inputs, targets, with_gradient=True)


def _loss_bwd(tile: int, axis: str | None, gradient: Any, cotangents: tuple) -> tuple[Any, None]:
    return scaled(gradient, cotangents[0]), None


_loss = jax.custom_vjp(_loss_primal, nondiff_argnums=(0, 1))
_loss.defvjp(_loss_fwd, _loss_bwd)


def _forward(
    tile: int, axis: str | None, inputs: _Inputs, targets: _Targets, *, with_gradient: bool
) -> tuple[tuple[Array, Array], _Inputs | None]:
    """((weighted sum, loss of each example), gradient of the sum or None)."""
    item_NxD, scale = inputs.item_NxD, inputs.scale
    num_items, dtype = len(item_NxD), item_NxD.dtype

    def one_tile(sums: Any, rows: Any) -> tuple[Any, tuple[Array, Any]]:
        query_TxD, label_TxP, y_TxP, weight_T = rows
        logits_TxN = _logits(query_TxD, inputs, targets.mask_N)
        max_T, sum_T, exp_TxN = _normalise(logits_TxN, axis)
        is_own_TxP = (label_TxP >= 0) & (label_TxP < num_items)
        at = jnp.arange(tile)[:, None], jnp.where(is_own_TxP, label_TxP, num_items)
        label_logit_TxP = logits_TxN.at[at].get(mode="fill", fill_value=0.0)
        target_T = jnp.sum(_times(y_TxP, label_logit_TxP), axis=1)
        loss_T = max_T + jnp.log(sum_T) - _sum_over(target_T, axis)
        if not with_gradient:
            return sums, (loss_T, None)
        # e^(s - max) - y sum e^(s - max) is p - y but for one factor a row. The small operands of
        # the products carry the factor, so the tile is not written once more.
        excess_TxN = exp_TxN.at[at].add(-y_TxP * sum_T[:, None], mode="drop").astype(dtype)
        factor_T = weight_T / sum_T
        d_item_NxD, d_bias_N = sums
        scaled_TxD = (query_TxD.astype(jnp.float32) * factor_T[:, None]).astype(dtype)
        d_item_NxD += product("tn,td->nd", excess_TxN, scaled_TxD)
        if d_bias_N is not None:
            d_bias_N += product("tn,t->n", excess_TxN, factor_T.astype(dtype))
        d_query_TxD = product("tn,nd->td", excess_TxN, item_NxD) * factor_T[:, None]
        return (d_item_NxD, d_bias_N), (loss_T, d_query_TxD)

    rows = jax.tree.map(lambda x: split_rows(x, tile), (inputs.query_BxD, *targets[:3]))
    sums = None
    if with_gradient:
        d_bias_N = None if inputs.bias_N is None else jnp.zeros(num_items, jnp.float32)
        sums = jnp.zeros(item_NxD.shape, jnp.float32), d_bias_N
    sums, (loss_B, d_query_BxD) = jax.lax.scan(one_tile, sums, rows)
    loss_B = join_rows(loss_B, len(targets.weight_B))
    total = jnp.sum(_times(targets.weight_B, loss_B))
    if not with_gradient:
        return (total, loss_B), None

    d_query_BxD = _sum_over(join_rows(d_query_BxD, len(loss_B)), axis)
    d_item_NxD, d_bias_N = sums
    gradient = _Inputs(
        scale * d_query_BxD,
        scale * d_item_NxD,
        d_bias_N,
        jnp.sum(inputs.query_BxD.astype(jnp.float32) * d_query_BxD),
    )
    return (total, loss_B), jax.tree.map(lambda d, x: d.astype(x.dtype), gradient, inputs)


def _logits(query_TxD: Array, inputs: _Inputs, mask_N: Array | None) -> Array:
    logits_TxN = inputs.scale * product("td,nd->tn", query_TxD, inputs.item_NxD)
    if inputs.bias_N is not None:
        logits_TxN += inputs.bias_N.astype(jnp.float32)[None, :]
    return logits_TxN if mask_N is None else jnp.where(mask_N[None, :], logits_TxN, -jnp.inf)


def _normalise(logits_TxN: Array, axis: str | None) -> tuple[Array, Array, Array]:
    """(max, sum of e^(s - max)) of each row over the whole axis, and e^(s - max)."""
    max_T = jnp.max(logits_TxN, axis=1)
    max_T = max_T if axis is None else jax.lax.pmax(max_T, axis)
    exp_TxN = jnp.exp(logits_TxN - max_T[:, None])
    return max_T, _sum_over(jnp.sum(exp_TxN, axis=1), axis), exp_TxN


def _sum_over(x: Array, axis: str | None) -> Array:
    return x if axis is None else jax.lax.psum(x, axis)


def _times(weight: Array, x: Array) -> Array:
    """The weighted x: 0 where the weight is 0, even if x is infinite."""
    return jnp.where(weight == 0, 0.0, weight * x)
