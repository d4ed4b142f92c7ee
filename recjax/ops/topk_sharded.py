"""The exact top k of a corpus whose items are split over the devices of an axis."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from recjax.ops.topk import top_k


def top_k_sharded(
    query_BxD: Float[Array, "B D"],
    item_CxD: Float[Array, "C D"],
    k: int,
    *,
    axis: str,
    bias_C: Float[Array, " C"] | None = None,
    mask_C: Bool[Array, " C"] | None = None,
    seen_BxS: Int[Array, "B S"] | None = None,
    scale: float | Float[Array, ""] = 1.0,
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """`top_k`, device d of the axis holding items [d C, (d + 1) C): the same on all its devices.

    Each device ranks its own items; the k best of each are gathered, and the k best of those are
    the result: 2 k numbers a query and device are sent. Ties go to the lower item index, as there.

    Args:
      query_BxD: the queries, the same on all devices of the axis.
      item_CxD: this device's items.
      k: number of items wanted.
      axis: over which items are split.
      bias_C: added to the scores of this device's items.
      mask_C: False for an item of this device that is never returned.
      seen_BxS: positions in the whole corpus, never returned to one query; padded with -1.
      scale: a positive factor of the products.
    """
    count = item_CxD.shape[0]
    offset = lax.axis_index(axis) * count
    if seen_BxS is not None:
        own_BxS = seen_BxS - offset
        is_own_BxS = (seen_BxS >= 0) & (own_BxS >= 0) & (own_BxS < count)
        seen_BxS = jnp.where(is_own_BxS, own_BxS, -1)
    scores_BxK, ids_BxK = top_k(
        query_BxD, item_CxD, k, bias_N=bias_C, mask_N=mask_C, seen_BxS=seen_BxS, scale=scale
    )
    ids_BxK = jnp.where(ids_BxK < 0, -1, ids_BxK + offset)
    return merge_top_k(scores_BxK, ids_BxK, axis)


def merge_top_k(
    scores_BxK: Float[Array, "B K"], ids_BxK: Int[Array, "B K"], axis: str
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """The k best of the devices' lists, each of items that come after those of the device before.

    Each list is in the order of `top_k`, and the lists stand in the order of their items, so equal
    scores are met in the order of the items, which `lax.top_k` keeps.
    """
    scores_BxM = lax.all_gather(scores_BxK, axis, axis=1, tiled=True)
    ids_BxM = lax.all_gather(ids_BxK, axis, axis=1, tiled=True)
    best_BxK, place_BxK = lax.top_k(scores_BxM, scores_BxK.shape[1])
    return best_BxK, jnp.take_along_axis(ids_BxM, place_BxK, axis=1)
