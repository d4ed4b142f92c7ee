"""Rankers to stand beside a model: popularity, chance, and the truth of a planted world."""

import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from recjax.ops import topk

Ranker = Callable[[dict[str, np.ndarray], np.ndarray, int], tuple[Array, Array]]
"""(batch, seen_BxS, k) -> (scores_BxK, ids_BxK): how evaluation sees any model."""


@runtime_checkable
class Oracle(Protocol):
    """What knows the true distribution, such as `recjax.data.synthetic.World`."""

    def log_prob(self, user_B: np.ndarray, history_BxL: np.ndarray) -> np.ndarray:
        """log p(item | user, history), [B, N]."""
        ...


def popularity_ranker(
    popularity_N: Num[np.ndarray, " N"], mask_N: Bool[np.ndarray, " N"]
) -> Ranker:
    """The same list for everyone, the most popular first; ties to the lower item index.

    Raises:
      ValueError: the mask leaves no item.
    """
    order = np.argsort(-popularity_N.astype(np.float64), kind="stable")
    return _fixed_order(order[mask_N[order]], len(mask_N), lambda user_B: jnp.zeros_like(user_B))


def random_ranker(mask_N: Bool[np.ndarray, " N"], seed: int) -> Ranker:
    """Items by chance, as a pure function of (seed, user): its recall is that of a uniform draw.

    All lists run along one random circle of the items, each user's from a random place on it.

    Raises:
      ValueError: the mask leaves no item.
    """
    order = np.random.default_rng(seed).permutation(np.flatnonzero(mask_N))
    start = functools.partial(_random_place, jax.random.key(seed), len(order))
    return _fixed_order(order, len(mask_N), start)


def oracle_ranker(world: Oracle, mask_N: Bool[np.ndarray, " N"]) -> Ranker:
    """The true p(i | x) of planted data: no model can rank better in expectation.

    The batch's `history` must reach as far back as the truth looks.
    """
    mask = jnp.asarray(mask_N)

    def rank(batch: dict[str, np.ndarray], seen_BxS: np.ndarray, k: int) -> tuple[Array, Array]:
        log_prob_BxN = world.log_prob(np.asarray(batch["user"]), np.asarray(batch["history"]))
        scores_BxN = jnp.asarray(log_prob_BxN, jnp.float32)
        return topk.top_k_scores(scores_BxN, k, mask, jnp.asarray(seen_BxS))

    return rank


def _fixed_order(order: np.ndarray, num_items: int, start: Callable[[Array], Array]) -> Ranker:
    """Ranks items in a given cyclic order, from the place start(user_B)."""
    if len(order) == 0:
        raise ValueError("the mask leaves no item to rank")
    place_N = np.full(num_items, -1, np.int32)
    place_N[order] = np.arange(len(order))
    order_R, place_N = jnp.asarray(order, jnp.int32), jnp.asarray(place_N)

    def rank(batch: dict[str, np.ndarray], seen_BxS: np.ndarray, k: int) -> tuple[Array, Array]:
        start_B = start(jnp.asarray(batch["user"]))
        return _rank_in_order(order_R, place_N, start_B, jnp.asarray(seen_BxS), k)

    return rank


@jax.jit
def _random_place(
    key: Array, num_places: int | Array, user_B: Int[Array, " B"]
) -> Int[Array, " B"]:
    keys_B = jax.vmap(lambda user: jax.random.fold_in(key, user))(user_B)
    return jax.vmap(lambda one: jax.random.randint(one, (), 0, num_places))(keys_B)


@functools.partial(jax.jit, static_argnames="k")
def _rank_in_order(
    order_R: Int[Array, " R"],
    place_N: Int[Array, " N"],
    start_B: Int[Array, " B"],
    seen_BxS: Int[Array, "B S"],
    k: int,
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    num_ranked = order_R.shape[0]
    # The first k unseen items are among the first k + S.
    width = min(num_ranked, k + seen_BxS.shape[1])
    place_BxS = place_N[jnp.maximum(seen_BxS, 0)]
    column_BxS = (place_BxS - start_B[:, None]) % num_ranked
    removed = (seen_BxS >= 0) & (place_BxS >= 0) & (column_BxS < width)
    scores_BxW = jnp.broadcast_to(-jnp.arange(width, dtype=jnp.float32), (len(start_B), width))
    scores_BxK, column_BxK = topk.top_k_scores(
        scores_BxW, k, None, jnp.where(removed, column_BxS, -1)
    )
    ids_BxK = order_R[(column_BxK + start_B[:, None]) % num_ranked]
    return scores_BxK, jnp.where(column_BxK < 0, -1, ids_BxK)
