"""Losses over a query's scores: the exact softmax, and its estimate from candidates.

Every loss takes `weight_B` (0 for padding) and returns (weighted sum, loss of each example). Only
the sum is differentiable; the caller divides it by the weights' sum over all replicas.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from recjax.candidates import Candidates
from recjax.ops.softmax import join_rows, product, scaled, softmax_loss, split_rows


def softmax(
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
) -> tuple[Float[Array, ""], Float[Array, "B"]]:
    """Exact softmax cross-entropy over the corpus; see `recjax.ops.softmax.softmax_loss`."""
    return softmax_loss(
        query_BxD,
        item_NxD,
        label_BxP,
        label_weight_BxP,
        weight_B,
        bias_N=bias_N,
        mask_N=mask_N,
        scale=scale,
        offset=offset,
        axis=axis,
    )


def sampled_softmax(
    query_BxD: Float[Array, "B D"],
    positive_BxPxD: Float[Array, "B P D"],
    candidate_CxD: Float[Array, "C D"],
    label_BxP: Int[Array, "B P"],
    label_weight_BxP: Float[Array, "B P"],
    candidates: Candidates,
    weight_B: Float[Array, "B"],
    *,
    scale: float | Float[Array, ""] = 1.0,
    positive_bias_BxP: Float[Array, "B P"] | None = None,
    candidate_bias_C: Float[Array, "C"] | None = None,
    correct: bool = True,
    positive_log_q_BxP: Float[Array, "B P"] | None = None,
    tile: int = 128,
) -> tuple[Float[Array, ""], Float[Array, "B"]]:
    """Softmax cross-entropy against candidates: (weighted sum, loss of each example).

    The positives are always scored, exactly. With s = scale <query, item> + bias and log_q the log
    of the expected number of times that a candidate was drawn, the partition function of query b
    is estimated once, for all its labels:

        Z_b = sum_p e^(s_bp) + sum_(c not a label of b) e^(s_bc - log_q_c)
        loss_b = log Z_b - sum_p label_weight_bp s_bp

    A candidate that is a label of the query (an accidental hit) is left out, so that every item
    is counted once in expectation: E[Z_b] is the sum over the whole corpus, and as the candidates
    grow in number the gradient becomes that of `softmax`. Bengio & Senecal 2008, "Adaptive
    importance sampling to accelerate training of a neural probabilistic language model"; Jean et
    al. 2015, "On using very large target vocabulary for neural machine translation"
    (arXiv:1412.2007); for candidates from the batch, Yi et al., RecSys 2019,
    "Sampling-bias-corrected neural modeling for large corpus item recommendations".

    The sum is differentiable in the embeddings, biases and scale (not twice, nor in forward mode:
    like the exact softmax it forms its gradient in the forward pass, tile by tile).

    Args:
        query_BxD: query embeddings.
        positive_BxPxD: embeddings of the labels; of no effect where the label is padding.
        candidate_CxD: embeddings of the candidates, shared by all queries.
        label_BxP: the labels of each example, distinct; -1 for padding.
        label_weight_BxP: their weights, 1 in sum where the example counts.
        candidates: ids and log_q of the candidates; +inf is no candidate.
        weight_B: weight of each example; 0 for padding.
        scale: 1 / temperature.
        positive_bias_BxP: added to the scores of the labels.
        candidate_bias_C: added to the scores of the candidates.
        correct: False drops log_q, and with it the unbiasedness: frequently drawn items are then
            pushed down in proportion to how often they are drawn.
        positive_log_q_BxP: subtracted from the scores of the labels where given: the common
            variant that corrects the positive too, which is biased (arXiv:2507.09331).
        tile: examples whose logits are held at once.
    """
    # Equal ids are one group, named by where it begins among the sorted ids.
    sorted_C = jnp.sort(candidates.ids_C)
    group_BxP = jnp.searchsorted(sorted_C, label_BxP)
    is_hit_BxP = sorted_C.at[group_BxP].get(mode="fill", fill_value=-1) == label_BxP
    log_q_C = candidates.log_q_C
    inputs = _Inputs(
        query_BxD,
        positive_BxPxD,
        candidate_CxD,
        positive_bias_BxP,
        candidate_bias_C,
        jnp.asarray(scale, jnp.float32),
    )
    targets = _Targets(
        label_BxP,
        label_weight_BxP,
        weight_B,
        positive_log_q_BxP,
        jnp.where(is_hit_BxP, group_BxP, len(sorted_C)),
        jnp.searchsorted(sorted_C, candidates.ids_C),
        log_q_C if correct else jnp.where(jnp.isposinf(log_q_C), log_q_C, 0.0),
    )
    total, loss_B = _loss(min(tile, len(query_BxD)), inputs, targets)
    return total, jax.lax.stop_gradient(loss_B)


class Loss(NamedTuple):
    """A loss against the full corpus (None where it has no such form) and against candidates."""

    full: Callable[..., tuple[Array, Array]] | None
    sampled: Callable[..., tuple[Array, Array]]


LOSSES: dict[str, Loss] = {"softmax": Loss(softmax, sampled_softmax)}


class _Inputs(NamedTuple):
    """What the sampled loss is differentiated in."""

    query_BxD: Array
    positive_BxPxD: Array
    candidate_CxD: Array
    positive_bias_BxP: Array | None
    candidate_bias_C: Array | None
    scale: Array


class _Targets(NamedTuple):
    label_BxP: Array
    label_weight_BxP: Array
    weight_B: Array
    positive_log_q_BxP: Array | None
    group_BxP: Array  # C where the label is not among the candidates
    group_C: Array
    log_q_C: Array


def _loss_primal(tile: int, inputs: Any, targets: Any) -> tuple[Array, Array]:
    return _forward(tile, inputs, targets, with_gradient=False)[0]


def _loss_fwd(tile: int, inputs: Any, targets: Any) -> tuple[Any, Any]:
    return _forward(tile, inputs, targets, with_gradient=True)


def _loss_bwd(tile: int, gradient: Any, cotangents: tuple) -> tuple[Any, None]:
    return scaled(gradient, cotangents[0]), None


_loss = jax.custom_vjp(_loss_primal, nondiff_argnums=(0,))
_loss.defvjp(_loss_fwd, _loss_bwd)


def _forward(
    tile: int, inputs: _Inputs, targets: _Targets, *, with_gradient: bool
) -> tuple[tuple[Array, Array], _Inputs | None]:
    """((weighted sum, loss of each example), gradient of the sum or None)."""
    candidate_CxD, bias_C, scale = inputs.candidate_CxD, inputs.candidate_bias_C, inputs.scale
    dtype = candidate_CxD.dtype

    def one_tile(sums: Any, rows: Any) -> tuple[Any, tuple[Array, Any]]:
        query_TxD, positive_TxPxD, bias_TxP, label_TxP, y_TxP, weight_T, log_q_TxP, group_TxP = rows
        score_TxP = scale * product("td,tpd->tp", query_TxD, positive_TxPxD)
        score_TxP = _plus(_plus(score_TxP, bias_TxP), log_q_TxP, sign=-1.0)
        logits_TxP = jnp.where(label_TxP >= 0, score_TxP, -jnp.inf)
        shift_C = _plus(-targets.log_q_C, bias_C)
        logits_TxC = scale * product("td,cd->tc", query_TxD, candidate_CxD) + shift_C[None, :]
        logits_TxC = jnp.where(_hits(group_TxP, targets.group_C), -jnp.inf, logits_TxC)
        max_T = jnp.maximum(jnp.max(logits_TxP, axis=1), jnp.max(logits_TxC, axis=1))
        max_T = jnp.where(jnp.isneginf(max_T), 0.0, max_T)  # an example of padding alone
        exp_TxP = jnp.exp(logits_TxP - max_T[:, None])
        exp_TxC = jnp.exp(logits_TxC - max_T[:, None])
        sum_T = jnp.sum(exp_TxP, axis=1) + jnp.sum(exp_TxC, axis=1)
        loss_T = max_T + jnp.log(sum_T) - jnp.sum(y_TxP * score_TxP, axis=1)
        if not with_gradient:
            return sums, (loss_T, None)
        d_candidate_CxD, d_bias_C = sums
        factor_T = jnp.where(weight_T == 0, 0.0, weight_T / sum_T)
        scaled_TxD = (query_TxD.astype(jnp.float32) * factor_T[:, None]).astype(dtype)
        exp_TxC = exp_TxC.astype(dtype)
        d_candidate_CxD += product("tc,td->cd", exp_TxC, scaled_TxD)
        if d_bias_C is not None:
            d_bias_C += product("tc,t->c", exp_TxC, factor_T.astype(dtype))
        d_score_TxP = factor_T[:, None] * (exp_TxP - y_TxP * sum_T[:, None])
        d_query_TxD = factor_T[:, None] * product("tc,cd->td", exp_TxC, candidate_CxD)
        d_query_TxD += product("tp,tpd->td", d_score_TxP.astype(dtype), positive_TxPxD)
        d_positive_TxPxD = scale * d_score_TxP[:, :, None] * query_TxD.astype(jnp.float32)[:, None]
        d_rows = d_query_TxD, d_positive_TxPxD.astype(dtype), d_score_TxP
        return (d_candidate_CxD, d_bias_C), (loss_T, d_rows)

    rows = jax.tree.map(
        lambda x: split_rows(x, tile), (*inputs[:2], inputs.positive_bias_BxP, *targets[:5])
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

    d_query_BxD, d_positive_BxPxD, d_score_BxP = jax.tree.map(
        lambda x: join_rows(x, len(loss_B)), d_rows
    )
    d_candidate_CxD, d_bias_C = sums
    gradient = _Inputs(
        scale * d_query_BxD,
        d_positive_BxPxD,
        scale * d_candidate_CxD,
        None if inputs.positive_bias_BxP is None else d_score_BxP,
        d_bias_C,
        jnp.sum(inputs.query_BxD.astype(jnp.float32) * d_query_BxD),
    )
    return (total, loss_B), jax.tree.map(lambda d, x: d.astype(x.dtype), gradient, inputs)


def _hits(group_TxP: Array, group_C: Array) -> Array:
    """Whether a candidate is a label of the example."""
    if group_TxP.shape[1] == 1:
        return group_TxP == group_C[None, :]
    member_TxC = jnp.zeros((len(group_TxP), len(group_C)), bool)
    rows_Tx1 = jnp.arange(len(group_TxP))[:, None]
    return member_TxC.at[rows_Tx1, group_TxP].set(True, mode="drop")[:, group_C]


def _plus(x: Array, term: Array | None, sign: float = 1.0) -> Array:
    return x if term is None else x + sign * term.astype(jnp.float32)
