"""Softmax over a whole corpus, without ever holding the B x N logits.

Both functions work on tiles of logits: some rows by all items where that stays modest, else some
rows by a chunk of items, in two passes: one for the sum over all chunks, one that computes the
logits again. Where the loss ends the graph its gradient is formed in the forward pass, and the
backward pass only multiplies by one scalar: 6NDB flops with row tiles (no logits are computed
twice), 8NDB with chunks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from recjax.collectives import sum_over
from recjax.ops.chunks import Chunk, Corpus, choose_chunk, choose_tile
from recjax.ops.precision import product, transposed_product

_LOWEST = jnp.finfo(jnp.float32).min  # a maximum over nothing, from which -inf may be subtracted


def softmax_loss(
    query_BxD: Float[Array, "B D"],
    item_NxD: Float[Array, "N D"],
    label_BxP: Int[Array, "B P"],
    label_weight_BxP: Float[Array, "B P"],
    weight_B: Float[Array, "B"],
    *,
    bias_N: Float[Array, "N"] | None = None,
    mask_N: Bool[Array, "N"] | None = None,
    log_prior_N: Float[Array, "N"] | None = None,
    scale: float | Float[Array, ""] = 1.0,
    label_smoothing: float = 0.0,
    offset: int | Int[Array, ""] = 0,
    axis: str | None = None,
    tile: int | tuple[int, int] | None = None,
) -> tuple[Float[Array, ""], Float[Array, "B"]]:
    """Exact softmax cross-entropy over the corpus: (weighted sum, loss of each example).

    With s_bi = scale <query_b, item_i> + bias_i + log_prior_i, example b loses

        log sum_i e^(s_bi) - sum_i t_bi s_bi

    where the targets t_b are its label weights at its labels; with label smoothing eps (Szegedy et
    al. 2016, arXiv:1512.00567) 1 - eps times that, and eps / n at each of the n items that are not
    masked. The sum is over weight_b times the loss. Labels are rows of the corpus, -1 for padding.
    Items where `mask_N` is False are not in the sum; a label that is masked has probability 0 and
    an infinite loss. The weighted sum is differentiable in the queries, items, bias and scale (not
    twice, nor in forward mode); the loss of each example is for metrics and passes no gradient.
    Sums are taken in float32 whatever the dtype of the embeddings.

    With `axis`, `item_NxD`, `bias_N`, `mask_N` and `log_prior_N` are this device's shard, rows
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
        log_prior_N: added to the scores too, a constant: logit adjustment by log frequency is
            Menon et al. 2021 (arXiv:2007.07314). -inf masks the item.
        scale: 1 / temperature.
        label_smoothing: eps, in [0, 1).
        offset: row of the corpus where the shard begins.
        axis: name of the axis over which the corpus is split.
        tile: the logits that are held at once, to be set in tests and measurements only: a number
            of rows (by all items), or (rows, items). None chooses by the shapes.
    """
    num_rows, num_items = len(query_BxD), len(item_NxD)
    if tile is None:
        tile = choose_tile(num_rows, num_items)
    rows, chunk = (tile, num_items) if isinstance(tile, int) else tile
    plan = _Plan(min(rows, num_rows), min(chunk, num_items), axis, label_smoothing)
    inputs = _Inputs(query_BxD, item_NxD, bias_N, jnp.asarray(scale, jnp.float32))
    targets = _Targets(label_BxP - offset, label_weight_BxP, weight_B)
    total, loss_B = _loss(plan, inputs, _fixed(mask_N, log_prior_N), targets)
    return total, jax.lax.stop_gradient(loss_B)


def corpus_logsumexp(
    query_BxD: Float[Array, "B D"],
    item_NxD: Float[Array, "N D"],
    *,
    bias_N: Float[Array, "N"] | None = None,
    mask_N: Bool[Array, "N"] | None = None,
    log_prior_N: Float[Array, "N"] | None = None,
    scale: float | Float[Array, ""] = 1.0,
    axis: str | None = None,
    chunk: int | None = None,
) -> Float[Array, "B"]:
    """log Z of each query: log sum_i e^(scale <query, item_i> + bias_i + log_prior_i).

    Each row is differentiable by itself in the query, items, bias and scale (not twice, nor in
    forward mode): the backward pass computes the logits again, so a loss of its own that only needs
    the weighted sum's gradient is faster as `softmax_loss`. The arguments are those of
    `softmax_loss`, as are the gradients with `axis`; `chunk` is the number of items at a time.
    """
    rows, size = choose_chunk(len(query_BxD), len(item_NxD))
    plan = _Plan(rows, min(chunk or size, len(item_NxD)), axis)
    inputs = _Inputs(query_BxD, item_NxD, bias_N, jnp.asarray(scale, jnp.float32))
    return _logsumexp(plan, inputs, _fixed(mask_N, log_prior_N))


def split_rows(x_Bx: Array, tile: int) -> Array:
    """The leading axis cut into tiles, [ceil(B / tile), tile, ...]; the last filled with zeros."""
    padding = [(0, -len(x_Bx) % tile)] + [(0, 0)] * (x_Bx.ndim - 1)
    return jnp.pad(x_Bx, padding).reshape(-1, tile, *x_Bx.shape[1:])


def join_rows(tiles: Array, num_rows: int) -> Array:
    """What `split_rows` cut, joined again."""
    return tiles.reshape(-1, *tiles.shape[2:])[:num_rows]


def scaled(gradient: Any, factor: Array) -> Any:
    """A tree of gradients times a float32 number, each in its own dtype."""
    return jax.tree.map(lambda x: (factor * x.astype(jnp.float32)).astype(x.dtype), gradient)


class _Plan(NamedTuple):
    """What is fixed before tracing."""

    rows: int
    chunk: int  # the number of items where a tile holds all of them
    axis: str | None
    smoothing: float = 0.0


class _Inputs(NamedTuple):
    """What is differentiated in; a gradient has the same form."""

    query_BxD: Array
    item_NxD: Array
    bias_N: Array | None
    scale: Array


class _Targets(NamedTuple):
    label_BxP: Array  # rows of this shard; out of its range where another shard has the label
    label_weight_BxP: Array
    weight_B: Array


class _Sums(NamedTuple):
    """Gradients that gather from tile to tile, in float32."""

    d_item_NxD: Array
    d_bias_N: Array | None


def _loss_primal(plan: _Plan, inputs: Any, fixed_N: Any, targets: Any) -> tuple[Array, Array]:
    return _forward(plan, inputs, fixed_N, targets, with_gradient=False)[0]


def _loss_fwd(plan: _Plan, inputs: Any, fixed_N: Any, targets: Any) -> tuple[Any, Any]:
    return _forward(plan, inputs, fixed_N, targets, with_gradient=True)


def _loss_bwd(plan: _Plan, gradient: Any, cotangents: tuple) -> tuple[Any, None, None]:
    del plan
    return scaled(gradient, cotangents[0]), None, None


_loss = jax.custom_vjp(_loss_primal, nondiff_argnums=(0,))
_loss.defvjp(_loss_fwd, _loss_bwd)


def _forward(
    plan: _Plan, inputs: _Inputs, fixed_N: Array | None, targets: _Targets, *, with_gradient: bool
) -> tuple[tuple[Array, Array], _Inputs | None]:
    """((weighted sum, loss of each example), gradient of the sum or None)."""
    corpus = _corpus(plan, inputs, fixed_N)
    uniform = _uniform_target(plan, corpus, fixed_N) if plan.smoothing else None

    def one_tile(sums: Any, rows: Any) -> tuple[Any, tuple[Array, Any]]:
        query_TxD, label_TxP, y_TxP, weight_T = rows
        y_TxP = (1 - plan.smoothing) * y_TxP

        def at(chunk: Chunk) -> tuple[Array, Array]:
            return jnp.arange(plan.rows)[:, None], chunk.columns(label_TxP)

        def target(chunk: Chunk, logits_TxC: Array) -> Array:
            logit_TxP = logits_TxC.at[at(chunk)].get(mode="fill", fill_value=0.0)
            return jnp.sum(_times(y_TxP, logit_TxP), axis=1)

        max_T, sum_T, target_T, exp_TxN = _normalise(plan, inputs, corpus, query_TxD, target)
        if uniform is not None:
            mean_T = product("td,d->t", query_TxD.astype(jnp.float32), uniform.item_D)
            target_T += inputs.scale * mean_T + uniform.shift
        loss_T = max_T + jnp.log(sum_T) - sum_over(target_T, plan.axis)
        if not with_gradient:
            return sums, (loss_T, None)

        # e^(s - max) - y sum e^(s - max) is p - y but for one factor a row. The small operands of
        # the products carry the factor, so the tile is not written once more.
        def excess(chunk: Chunk) -> Array:
            exp_TxC = exp_TxN
            if exp_TxC is None:
                exp_TxC = jnp.exp(chunk.logits(query_TxD, inputs.scale) - max_T[:, None])
            return exp_TxC.at[at(chunk)].add(-y_TxP * sum_T[:, None], mode="drop")

        factor_T = weight_T / sum_T
        sums, d_query_TxD = _add_gradient(inputs.scale, corpus, query_TxD, factor_T, excess, sums)
        if uniform is not None:
            d_query_TxD -= weight_T[:, None] * uniform.item_D[None, :]
        return sums, (loss_T, d_query_TxD)

    sums = None
    if with_gradient:
        sums = _zero_sums(inputs)
        if uniform is not None:
            query_BxD = inputs.query_BxD.astype(jnp.float32)
            mean_D = inputs.scale * product("bd,b->d", query_BxD, targets.weight_B)
            d_bias_N = -uniform.target_N * jnp.sum(targets.weight_B)
            sums = _Sums(
                -uniform.target_N[:, None] * mean_D[None, :],
                None if inputs.bias_N is None else d_bias_N,
            )
    rows = jax.tree.map(lambda x: split_rows(x, plan.rows), (inputs.query_BxD, *targets))
    sums, (loss_B, d_query_BxD) = jax.lax.scan(one_tile, sums, rows)
    loss_B = join_rows(loss_B, len(targets.weight_B))
    total = jnp.sum(_times(targets.weight_B, loss_B))
    if not with_gradient:
        return (total, loss_B), None
    return (total, loss_B), _gradient(plan, inputs, join_rows(d_query_BxD, len(loss_B)), sums)


def _logsumexp_primal(plan: _Plan, inputs: Any, fixed_N: Any) -> Array:
    return _logsumexp_fwd(plan, inputs, fixed_N)[0]


def _logsumexp_fwd(plan: _Plan, inputs: Any, fixed_N: Any) -> tuple[Array, tuple]:
    corpus = _corpus(plan, inputs, fixed_N)

    def one_tile(query_TxD: Array) -> tuple[Array, Array]:
        return _normalise(plan, inputs, corpus, query_TxD, lambda *_: jnp.float32(0))[:2]

    tiles = jax.lax.map(one_tile, split_rows(inputs.query_BxD, plan.rows))
    max_B, sum_B = (join_rows(x, len(inputs.query_BxD)) for x in tiles)
    return max_B + jnp.log(sum_B), (inputs, fixed_N, max_B, sum_B)


def _logsumexp_bwd(plan: _Plan, kept: tuple, cotangent_B: Array) -> tuple[Any, None]:
    inputs, fixed_N, max_B, sum_B = kept
    corpus = _corpus(plan, inputs, fixed_N)

    def one_tile(sums: Any, rows: Any) -> tuple[Any, Array]:
        query_TxD, max_T, factor_T = rows

        def exp(chunk: Chunk) -> Array:
            return jnp.exp(chunk.logits(query_TxD, inputs.scale) - max_T[:, None])

        return _add_gradient(inputs.scale, corpus, query_TxD, factor_T, exp, sums)

    rows = (inputs.query_BxD, max_B, cotangent_B / sum_B)
    rows = jax.tree.map(lambda x: split_rows(x, plan.rows), rows)
    sums, d_query_BxD = jax.lax.scan(one_tile, _zero_sums(inputs), rows)
    return _gradient(plan, inputs, join_rows(d_query_BxD, len(max_B)), sums), None


_logsumexp = jax.custom_vjp(_logsumexp_primal, nondiff_argnums=(0,))
_logsumexp.defvjp(_logsumexp_fwd, _logsumexp_bwd)


class _Uniform(NamedTuple):
    """The uniform part of smoothed targets: eps / n at each item of the shard that counts."""

    target_N: Array
    item_D: Array  # the items, and what is added to their scores, summed with these weights
    shift: Array


def _uniform_target(plan: _Plan, corpus: Corpus, fixed_N: Array | None) -> _Uniform:
    item_NxD, shift_N = corpus.item_NxD, corpus.shift_N
    counts_N = jnp.ones(len(item_NxD), bool) if fixed_N is None else ~jnp.isneginf(fixed_N)
    share = plan.smoothing / sum_over(jnp.sum(counts_N, dtype=jnp.float32), plan.axis)
    shift = jnp.float32(0) if shift_N is None else jnp.sum(jnp.where(counts_N, shift_N, 0.0))
    # One product over a million items would sum them one after the other, and lose five digits.
    parts = Corpus(item_NxD, jnp.where(counts_N, 0.0, -jnp.inf), min(1024, len(item_NxD)))

    def add(chunk: Chunk, sum_D: Array) -> Array:
        counts_C = (chunk.shift_C == 0).astype(item_NxD.dtype)
        return sum_D + product("c,cd->d", counts_C, chunk.item_CxD)

    item_D = parts.fold(add, jnp.zeros(item_NxD.shape[1], jnp.float32))
    return _Uniform(share * counts_N.astype(jnp.float32), share * item_D, share * shift)


def _normalise(
    plan: _Plan,
    inputs: _Inputs,
    corpus: Corpus,
    query_TxD: Array,
    target: Callable[[Chunk, Array], Array],
) -> tuple[Array, Array, Array, Array | None]:
    """(max, sum of e^(s - max), the shard's sum of `target`, e^(s - max)) of each row.

    Max and sum are over the whole axis; the last is None where the corpus is in chunks.
    """
    if corpus.is_whole:
        chunk = corpus.chunk(0)
        logits_TxN = chunk.logits(query_TxD, inputs.scale)
        max_T = _max_over(jnp.maximum(_LOWEST, jnp.max(logits_TxN, axis=1)), plan.axis)
        exp_TxN = jnp.exp(logits_TxN - max_T[:, None])
        sum_T = sum_over(jnp.sum(exp_TxN, axis=1), plan.axis)
        return max_T, sum_T, target(chunk, logits_TxN), exp_TxN

    def add(chunk: Chunk, sums: tuple) -> tuple:
        max_T, sum_T, target_T = sums
        logits_TxC = chunk.logits(query_TxD, inputs.scale)
        new_T = jnp.maximum(max_T, jnp.max(logits_TxC, axis=1))
        sum_T *= jnp.exp(max_T - new_T)
        sum_T += jnp.sum(jnp.exp(logits_TxC - new_T[:, None]), axis=1)
        return new_T, sum_T, target_T + target(chunk, logits_TxC)

    zero_T = jnp.zeros(len(query_TxD), jnp.float32)
    max_T, sum_T, target_T = corpus.fold(add, (zero_T + _LOWEST, zero_T, zero_T))
    whole_T = _max_over(max_T, plan.axis)
    return whole_T, sum_over(sum_T * jnp.exp(max_T - whole_T), plan.axis), target_T, None


def _add_gradient(
    scale: Array,
    corpus: Corpus,
    query_TxD: Array,
    factor_T: Array,
    excess: Callable[[Chunk], Array],
    sums: _Sums,
) -> tuple[_Sums, Array]:
    """The sums with the rows' part added; and the gradient w.r.t. scale times the queries.

    That w.r.t. the logits of a chunk is factor_T times `excess`.
    """
    dtype = corpus.item_NxD.dtype
    weight_T = (scale * factor_T)[:, None]
    scaled_TxD = (query_TxD.astype(jnp.float32) * weight_T).astype(dtype)

    def add(chunk: Chunk, kept: tuple) -> tuple:
        (d_item_NxD, d_bias_N), d_query_TxD = kept
        excess_TxC = excess(chunk).astype(dtype)
        d_item_CxD = transposed_product(excess_TxC, scaled_TxD)
        if d_bias_N is not None:
            d_bias_C = product("tc,t->c", excess_TxC, factor_T.astype(dtype))
            d_bias_N = chunk.add_to(d_bias_N, d_bias_C)
        d_query_TxD += product("tc,cd->td", excess_TxC, chunk.item_CxD)
        return _Sums(chunk.add_to(d_item_NxD, d_item_CxD), d_bias_N), d_query_TxD

    sums, d_query_TxD = corpus.fold(add, (sums, jnp.zeros(query_TxD.shape, jnp.float32)))
    return sums, d_query_TxD * factor_T[:, None]


def _gradient(plan: _Plan, inputs: _Inputs, d_scaled_BxD: Array, sums: _Sums) -> _Inputs:
    """The gradient in the dtypes of the inputs, from the shard's w.r.t. scale times the queries."""
    d_scaled_BxD = sum_over(d_scaled_BxD, plan.axis)
    d_scale = jnp.sum(inputs.query_BxD.astype(jnp.float32) * d_scaled_BxD)
    gradient = _Inputs(inputs.scale * d_scaled_BxD, *sums, d_scale)
    return jax.tree.map(lambda d, x: d.astype(x.dtype), gradient, inputs)


def _zero_sums(inputs: _Inputs) -> _Sums:
    bias_N = inputs.bias_N
    zero_N = None if bias_N is None else jnp.zeros(bias_N.shape, jnp.float32)
    return _Sums(jnp.zeros(inputs.item_NxD.shape, jnp.float32), zero_N)


def _fixed(mask_N: Array | None, log_prior_N: Array | None) -> Array | None:
    """What is added to every score and is no parameter; -inf for an item that is masked."""
    prior_N = None if log_prior_N is None else log_prior_N.astype(jnp.float32)
    if mask_N is None:
        return prior_N
    return jnp.where(mask_N, jnp.float32(0) if prior_N is None else prior_N, -jnp.inf)


def _corpus(plan: _Plan, inputs: _Inputs, fixed_N: Array | None) -> Corpus:
    shift_N = fixed_N
    if inputs.bias_N is not None:
        bias_N = inputs.bias_N.astype(jnp.float32)
        shift_N = bias_N if fixed_N is None else bias_N + fixed_N
    return Corpus(inputs.item_NxD, shift_N, plan.chunk)


def _max_over(x: Array, axis: str | None) -> Array:
    return x if axis is None else jax.lax.pmax(x, axis)


def _times(weight: Array, x: Array) -> Array:
    """The weighted x: 0 where the weight is 0, even if x is infinite."""
    return jnp.where(weight == 0, 0.0, weight * x)
