"""A loss over the scores of own and shared items, without ever holding the B x C scores.

The loss ends the graph, so its gradient is formed in the forward pass, row tile by row tile, and
the backward pass only multiplies by one scalar. What the loss is, a rule on one tile's scores
says; everything else is here.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recjax.ops.chunks import choose_rows
from recjax.ops.precision import product, transposed_product
from recjax.ops.softmax import join_rows, scaled, split_rows

# (score_TxP, log_w_TxP, y_TxP, score_TxC, log_w_TxC) -> loss_T
Rule = Callable[[Array, Array, Array, Array, Array], Array]

_FEW_OWN = 8  # own items; up to here comparing is faster than a scatter and a gather


def candidate_loss(
    rule: Rule,
    query_BxD: Float[Array, "B D"],
    own_BxPxD: Float[Array, "B P D"],
    candidate_CxD: Float[Array, "C D"],
    own_id_BxP: Int[Array, "B P"],
    own_log_w_BxP: Float[Array, "B P"] | None,
    label_weight_BxP: Float[Array, "B P"],
    ids_C: Int[Array, "C"] | None,
    log_w_C: Float[Array, "C"],
    weight_B: Float[Array, "B"],
    *,
    scale: float | Float[Array, ""] = 1.0,
    own_bias_BxP: Float[Array, "B P"] | None = None,
    candidate_bias_C: Float[Array, "C"] | None = None,
    tile: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, "B"]]:
    """A rule on the scores scale <query, item> + bias: (weighted sum, loss of each example).

    Of a shared candidate that is one of an example's own items the rule sees log_w = -inf, as it
    does of own items with id -1. The sum is differentiable in the embeddings, biases and scale
    (not twice, nor in forward mode); the loss of each example passes no gradient. Scores are
    float32 whatever the dtype of the embeddings.

    Args:
        rule: of which each row's loss depends on that row's scores alone.
        query_BxD: query embeddings.
        own_BxPxD: embeddings of each example's own items; of no effect where they are padding.
        candidate_CxD: embeddings of the candidates, shared by all queries; there may be none.
        own_id_BxP: each example's own items; -1 for padding.
        own_log_w_BxP: log of their weights; None for 0.
        label_weight_BxP: > 0 for labels.
        ids_C: the candidates; None where candidate c is item c.
        log_w_C: log of their weights; -inf is no candidate.
        weight_B: weight of each example; 0 for padding.
        scale: 1 / temperature.
        own_bias_BxP: added to the scores of the own items.
        candidate_bias_C: added to the scores of the candidates.
        tile: examples whose scores are held at once, to be set in tests only; None chooses.
    """
    if not len(candidate_CxD):  # one that is none, so that no rule has to reduce over nothing
        candidate_CxD = jnp.zeros((1, candidate_CxD.shape[1]), candidate_CxD.dtype)
        ids_C, log_w_C = jnp.full(1, -1, jnp.int32), jnp.full(1, -jnp.inf, jnp.float32)
        candidate_bias_C = None if candidate_bias_C is None else jnp.zeros(1, jnp.float32)
    num_candidates = len(candidate_CxD)
    if ids_C is None:
        group_BxP, group_C = own_id_BxP, None
    else:
        # Equal ids are one group, named by where it begins among the sorted ids.
        sorted_C = jnp.sort(ids_C)
        group_BxP = jnp.searchsorted(sorted_C, own_id_BxP)
        found_BxP = sorted_C.at[group_BxP].get(mode="fill", fill_value=-1) == own_id_BxP
        group_BxP = jnp.where(found_BxP, group_BxP, -1)
        group_C = jnp.searchsorted(sorted_C, ids_C)
    log_w_BxP = jnp.zeros(own_id_BxP.shape) if own_log_w_BxP is None else own_log_w_BxP
    inputs = _Inputs(
        query_BxD,
        own_BxPxD,
        candidate_CxD,
        own_bias_BxP,
        candidate_bias_C,
        jnp.asarray(scale, jnp.float32),
    )
    targets = _Targets(
        jnp.where(own_id_BxP >= 0, log_w_BxP, -jnp.inf),
        label_weight_BxP,
        weight_B,
        jnp.where(group_BxP >= 0, group_BxP, num_candidates),
        group_C,
        log_w_C,
    )
    numbers = num_candidates + math.prod(own_BxPxD.shape[1:])  # own items have gradients of theirs
    tile = min(tile or choose_rows(len(query_BxD), numbers), len(query_BxD))
    total, loss_B = _loss(rule, tile, inputs, targets)
    return total, jax.lax.stop_gradient(loss_B)


class _Inputs(NamedTuple):
    """What the loss is differentiated in."""

    query_BxD: Array
    own_BxPxD: Array
    candidate_CxD: Array
    own_bias_BxP: Array | None
    candidate_bias_C: Array | None
    scale: Array


class _Targets(NamedTuple):
    log_w_BxP: Array
    label_weight_BxP: Array
    weight_B: Array
    group_BxP: Array  # C where the item is not among the candidates
    group_C: Array | None  # None for arange(C)
    log_w_C: Array


def _loss_primal(rule: Rule, tile: int, inputs: Any, targets: Any) -> tuple[Array, Array]:
    return _forward(rule, tile, inputs, targets, with_gradient=False)[0]


def _loss_fwd(rule: Rule, tile: int, inputs: Any, targets: Any) -> tuple[Any, Any]:
    return _forward(rule, tile, inputs, targets, with_gradient=True)


def _loss_bwd(rule: Rule, tile: int, d_inputs: Any, cotangents: tuple) -> tuple[Any, None]:
    return scaled(d_inputs, cotangents[0]), None


_loss = jax.custom_vjp(_loss_primal, nondiff_argnums=(0, 1))
_loss.defvjp(_loss_fwd, _loss_bwd)


def _forward(
    rule: Rule, tile: int, inputs: _Inputs, targets: _Targets, *, with_gradient: bool
) -> tuple[tuple[Array, Array], _Inputs | None]:
    """((weighted sum, loss of each example), gradient of the sum or None)."""
    candidate_CxD, bias_C, scale = inputs.candidate_CxD, inputs.candidate_bias_C, inputs.scale
    dtype = candidate_CxD.dtype

    def one_tile(sums: Any, rows: Any) -> tuple[Any, tuple[Array, Any]]:
        query_TxD, own_TxPxD, bias_TxP, log_w_TxP, y_TxP, weight_T, group_TxP = rows
        score_TxP = scale * product("td,tpd->tp", query_TxD, own_TxPxD)
        if bias_TxP is not None:
            score_TxP += bias_TxP.astype(jnp.float32)
        score_TxC = scale * product("td,cd->tc", query_TxD, candidate_CxD)
        if bias_C is not None:
            score_TxC += bias_C.astype(jnp.float32)[None, :]
        is_own_TxC = _is_own(group_TxP, targets.group_C, len(candidate_CxD))
        log_w_TxC = jnp.where(is_own_TxC, -jnp.inf, targets.log_w_C[None, :])

        def loss_of(score_TxP: Array, score_TxC: Array) -> Array:
            return rule(score_TxP, log_w_TxP, y_TxP, score_TxC, log_w_TxC)

        if not with_gradient:
            return sums, (loss_of(score_TxP, score_TxC), None)
        loss_T, pull_back = jax.vjp(loss_of, score_TxP, score_TxC)
        d_TxP, d_TxC = pull_back(weight_T)
        d_TxC = d_TxC.astype(dtype)
        d_candidate_CxD, d_bias_C = sums
        d_candidate_CxD += transposed_product(d_TxC, query_TxD)
        if d_bias_C is not None:
            d_bias_C += jnp.sum(d_TxC, axis=0, dtype=jnp.float32)
        d_query_TxD = product("tc,cd->td", d_TxC, candidate_CxD)
        d_query_TxD += product("tp,tpd->td", d_TxP.astype(dtype), own_TxPxD)
        d_own_TxPxD = scale * d_TxP[:, :, None] * query_TxD.astype(jnp.float32)[:, None]
        d_rows = d_query_TxD, d_own_TxPxD.astype(dtype), d_TxP
        return (d_candidate_CxD, d_bias_C), (loss_T, d_rows)

    rows = jax.tree.map(
        lambda x: split_rows(x, tile), (*inputs[:2], inputs.own_bias_BxP, *targets[:4])
    )
    sums = None
    if with_gradient:
        d_bias_C = None if bias_C is None else jnp.zeros(len(bias_C), jnp.float32)
        sums = jnp.zeros(candidate_CxD.shape, jnp.float32), d_bias_C
    sums, (loss_B, d_rows) = jax.lax.scan(one_tile, sums, rows)
    loss_B = join_rows(loss_B, len(targets.weight_B))
    total = jnp.sum(jnp.where(targets.weight_B == 0, 0.0, targets.weight_B * loss_B))
    if not with_gradient:
        return (total, loss_B), None

    d_query_BxD, d_own_BxPxD, d_score_BxP = jax.tree.map(
        lambda x: join_rows(x, len(loss_B)), d_rows
    )
    d_candidate_CxD, d_bias_C = sums
    d_inputs = _Inputs(
        scale * d_query_BxD,
        d_own_BxPxD,
        scale * d_candidate_CxD,
        None if inputs.own_bias_BxP is None else d_score_BxP,
        d_bias_C,
        jnp.sum(inputs.query_BxD.astype(jnp.float32) * d_query_BxD),
    )
    return (total, loss_B), jax.tree.map(lambda d, x: d.astype(x.dtype), d_inputs, inputs)


def _is_own(group_TxP: Array, group_C: Array | None, num_candidates: int) -> Array:
    """Whether a candidate is an own item of the example."""
    num_own = group_TxP.shape[1]
    if num_own <= _FEW_OWN:
        group_C = jnp.arange(num_candidates) if group_C is None else group_C
        is_TxC = [group_TxP[:, p, None] == group_C[None, :] for p in range(num_own)]
        return functools.reduce(operator.or_, is_TxC)
    member_TxC = jnp.zeros((len(group_TxP), num_candidates), bool)
    rows_Tx1 = jnp.arange(len(group_TxP))[:, None]
    member_TxC = member_TxC.at[rows_Tx1, group_TxP].set(True, mode="drop")
    return member_TxC if group_C is None else member_TxC[:, group_C]
