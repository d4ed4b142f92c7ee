"""The exact top k of a corpus for each query: one result on every platform.

Equal scores (0.0 and -0.0 among them) are ordered by item index, the lower first.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# On CPU, page faults of large fresh arrays cost more than the arithmetic: a tile of about 32 MB of
# scores, used again and again. Smaller and larger tiles, and blocks of 64, were slower (2 cores).
_TILE_SCORES = 1 << 23
_MIN_TILE_ROWS = 32
_BLOCK, _SMALL_BLOCK = 32, 4

_TopK = tuple[Float[Array, "B K"], Int[Array, "B K"]]


@functools.partial(jax.jit, static_argnames="k")
def top_k(
    query_BxD: Float[Array, "B D"],
    item_NxD: Float[Array, "N D"],
    k: int,
    *,
    bias_N: Float[Array, " N"] | None = None,
    mask_N: Bool[Array, " N"] | None = None,
    seen_BxS: Int[Array, "B S"] | None = None,
    scale: float | Float[Array, ""] = 1.0,
) -> _TopK:
    """The k items of highest scale * <query, item> + bias for each query, best first.

    On CPU the queries go in tiles of rows, so memory stays near 32 MB; elsewhere B x N scores are
    formed at once. Products are of full float32 precision on every platform.

    Args:
      query_BxD: the queries.
      item_NxD: the corpus.
      k: number of items wanted; may exceed N.
      bias_N: added to each item's score.
      mask_N: False for an item that is never returned.
      seen_BxS: items never returned to one query; padded with -1.
      scale: a positive factor of the products, such as 1 / temperature.

    Returns:
      float32 scores and int32 item indices [B, k]; -inf and -1 where fewer than k items remain,
      and for an item whose score is -inf.
    """
    num_items = item_NxD.shape[0]

    def score(rows: Array, width: int) -> Array:
        item_WxD = _pad(item_NxD, width, 0.0)
        scores_BxW = jnp.matmul(
            rows, item_WxD.T, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
        )
        if bias_N is None:
            return scores_BxW
        return scores_BxW + _pad(bias_N.astype(jnp.float32), width, 0.0)[None, :]

    query_BxD = query_BxD * jnp.asarray(scale, query_BxD.dtype)
    return _rank(query_BxD, score, num_items, k, mask_N, seen_BxS)


@functools.partial(jax.jit, static_argnames="k")
def top_k_scores(
    scores_BxN: Float[Array, "B N"],
    k: int,
    mask_N: Bool[Array, " N"] | None = None,
    seen_BxS: Int[Array, "B S"] | None = None,
) -> _TopK:
    """The k items of highest given score for each query: `top_k` for a scorer of any form."""

    def score(rows: Array, width: int) -> Array:
        return jnp.pad(rows.astype(jnp.float32), ((0, 0), (0, width - rows.shape[1])))

    return _rank(scores_BxN, score, scores_BxN.shape[1], k, mask_N, seen_BxS)


def _rank(
    rows_BxA: Array,
    score: Callable[[Array, int], Array],
    num_items: int,
    k: int,
    mask_N: Array | None,
    seen_BxS: Array | None,
) -> tuple[Array, Array]:
    """Ranks score(rows, width) [rows, width]; columns from num_items on are padding."""
    if k < 1:
        raise ValueError(f"top_k: k={k}; it must be at least 1")
    batch = rows_BxA.shape[0]
    if seen_BxS is None:
        seen_BxS = jnp.full((batch, 1), -1, jnp.int32)
    kept = min(k, num_items)

    def rank_tile(rows: Array, seen: Array, width: int, select: Callable) -> tuple[Array, Array]:
        scores = score(rows, width).at[:, num_items:].set(-jnp.inf)
        if mask_N is not None:
            scores = jnp.where(_pad(mask_N, width, False)[None, :], scores, -jnp.inf)
        # A negative index would wrap around: send padding past the end, where it is dropped.
        column = jnp.where(seen < 0, width, seen)
        row = jnp.arange(rows.shape[0], dtype=column.dtype)[:, None]
        scores, ids = select(scores.at[row, column].set(-jnp.inf, mode="drop"), kept)
        return scores, ids

    def whole(rows: Array, seen: Array) -> tuple[Array, Array]:
        return rank_tile(rows, seen, num_items, _top_k)

    def tiled(rows: Array, seen: Array) -> tuple[Array, Array]:
        blocked = num_items >= 4 * kept * _BLOCK
        width = math.ceil(num_items / _BLOCK) * _BLOCK if blocked else num_items
        select = _top_k_blocks if blocked else _top_k
        tile = max(_MIN_TILE_ROWS, _TILE_SCORES // max(1, width))
        if tile >= batch:
            return rank_tile(rows, seen, width, select)
        tiles = math.ceil(batch / tile)
        tile = math.ceil(batch / tiles)
        rows = _pad(rows, tiles * tile, 0).reshape(tiles, tile, *rows.shape[1:])
        seen = _pad(seen, tiles * tile, -1).reshape(tiles, tile, *seen.shape[1:])
        scores, ids = lax.map(lambda x: rank_tile(x[0], x[1], width, select), (rows, seen))
        return scores.reshape(-1, kept)[:batch], ids.reshape(-1, kept)[:batch]

    scores_BxK, ids_BxK = lax.platform_dependent(rows_BxA, seen_BxS, cpu=tiled, default=whole)
    ids_BxK = jnp.where(scores_BxK == -jnp.inf, -1, ids_BxK)
    missing = ((0, 0), (0, k - kept))
    return (
        jnp.pad(scores_BxK, missing, constant_values=-jnp.inf),
        jnp.pad(ids_BxK, missing, constant_values=-1),
    )


def _top_k(scores_BxN: Array, k: int) -> tuple[Array, Array]:
    """`lax.top_k`, but 0.0 and -0.0, which it puts in this order, are equal."""
    scores_BxK, ids_BxK = lax.top_k(jnp.where(scores_BxN == 0, 0.0, scores_BxN), k)
    return scores_BxK, ids_BxK


def _top_k_blocks(scores_BxN: Array, k: int, width: int = _BLOCK) -> tuple[Array, Array]:
    """`_top_k` by way of the k blocks of highest maximum, ties to the lower block.

    Exact: an item outside these blocks has k items before it, the maxima of these blocks. Blocks
    are put back in order of index, so that equal scores keep theirs. The maxima, and the items of
    the best blocks, are gone through in the same way by smaller blocks: XLA's top_k on CPU is a
    serial heap.
    """
    batch, num_items = scores_BxN.shape
    if num_items < 4 * k * width:
        return _top_k(scores_BxN, k)
    padding = ((0, 0), (0, -num_items % width))
    scores_BxN = jnp.pad(scores_BxN, padding, constant_values=-jnp.inf)
    blocks_BxMxW = scores_BxN.reshape(batch, -1, width)
    _, block_BxK = _top_k_blocks(blocks_BxMxW.max(axis=-1), k, _SMALL_BLOCK)
    block_BxK = jnp.sort(block_BxK, axis=-1)
    inside = jnp.take_along_axis(blocks_BxMxW, block_BxK[:, :, None], axis=1)
    scores_BxK, place_BxK = _top_k_blocks(inside.reshape(batch, k * width), k, _SMALL_BLOCK)
    block_BxK = jnp.take_along_axis(block_BxK, place_BxK // width, axis=1)
    return scores_BxK, block_BxK * width + place_BxK % width


def _pad(array: Array, length: int, value: float | int | bool) -> Array:
    """The array with its first axis lengthened by a value."""
    widths = [(0, length - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, widths, constant_values=value)
