"""A corpus split over devices is ranked as if it were whole."""

import jax.numpy as jnp
import numpy as np
import pytest

from recjax.ops.topk import top_k
from recjax.ops.topk_sharded import top_k_sharded
from recjax.parallel import BY_MODEL, WHOLE, make_parallel


@pytest.mark.parametrize("k", [3, 7])
def test_it_is_the_whole_corpus_top_k_with_ties_masks_and_seen_items(k):
    """5 items a device, so that a k of 7 asks each for more than it has; many scores are equal."""
    rng = np.random.default_rng(0)
    query_BxD = jnp.asarray(rng.integers(-1, 2, (6, 3)), jnp.float32)
    item_NxD = jnp.asarray(rng.integers(-1, 2, (20, 3)), jnp.float32)
    bias_N = jnp.asarray(rng.integers(0, 2, 20), jnp.float32)
    mask_N = jnp.asarray(rng.random(20) < 0.6)
    seen_BxS = jnp.asarray(rng.integers(-1, 20, (6, 4)), jnp.int32)
    seen_BxS = seen_BxS.at[0].set(jnp.arange(4))

    def rank(item_CxD, bias_C, mask_C, query_BxD, seen_BxS):
        return top_k_sharded(
            query_BxD,
            item_CxD,
            k,
            axis="model",
            bias_C=bias_C,
            mask_C=mask_C,
            seen_BxS=seen_BxS,
            scale=0.5,
        )

    parallel = make_parallel("shard_map", 2, 4, 16)
    mapped = parallel.map(rank, (BY_MODEL, BY_MODEL, BY_MODEL, WHOLE, WHOLE), WHOLE)
    found = mapped(item_NxD, bias_N, mask_N, query_BxD, seen_BxS)
    wanted = top_k(
        query_BxD, item_NxD, k, bias_N=bias_N, mask_N=mask_N, seen_BxS=seen_BxS, scale=0.5
    )
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(x, y)
