"""How often items are drawn from the batch, estimated while the batches pass."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from recjax.hashing import mix

_NUM_HASHES = 4
_SEEDS_K = np.arange(1, _NUM_HASHES + 1, dtype=np.uint32) * np.uint32(0x9E3779B9)


@dataclasses.dataclass(frozen=True)
class StreamingFrequency:
    """Estimates the share of each item in a stream of batches, in one cell of memory per item.

    Yi et al., RecSys 2019, "Sampling-bias-corrected neural modeling for large corpus item
    recommendations" (10.1145/3298689.3346996), keep the step at which an item was last seen and a
    moving mean of the gap between the steps at which it occurs, and take 1 / gap for its rate.
    An item that comes several times in a batch has its rate capped at one a step by that. So its
    count c in the steps in which it occurs has a moving mean too, and

        rate = mean count / mean gap        p = rate / mean number of draws per step.

    An item that occurs in a share P of the steps has E[gap] = 1 / P, and E[c | c >= 1] P = E[c]:
    the rate is E[c] in the limit, for rare items and for those of every batch. The first gap
    counts from the start of the stream. An importance weight divides by p, and the mean gap
    itself has no bias, however few gaps it is of.

    The k-th occurrence enters the means with weight max(rate, 1/k): plain means at first, later
    exponential ones over about 1 / rate occurrences, which follow a drifting stream.

    With buckets, four independent hashes give an id a bucket each, for sets of ids that are open
    or too large for cells of their own. Items that share a bucket add to its rate, so the
    smallest of the four is taken: it exceeds p by more than e / buckets with a probability of
    e^-4 at most (the count-min sketch; Cormode & Muthukrishnan 2005).

    Args:
        num_items: ids are 0 .. num_items - 1 where there are no buckets.
        rate: the smallest weight of an occurrence, in (0, 1].
        buckets: cells of each hash; 0: a cell for every item.
    """

    num_items: int
    rate: float
    buckets: int = 0

    def init(self) -> dict[str, Array]:
        """The state before the first batch.

        H cells of each of K hashes: `last_KxH` int32, the last step at which it occurred (-1:
        none yet); `times_KxH` int32, at how many steps it did; `gap_KxH` and `count_KxH`
        float32, the means; `draws` float32 [], mean number of draws per step.
        """
        shape = (_NUM_HASHES, self.buckets) if self.buckets else (1, self.num_items)
        return {
            "last_KxH": jnp.full(shape, -1, jnp.int32),
            "times_KxH": jnp.zeros(shape, jnp.int32),
            "gap_KxH": jnp.zeros(shape, jnp.float32),
            "count_KxH": jnp.zeros(shape, jnp.float32),
            "draws": jnp.zeros((), jnp.float32),
        }

    def update(
        self, state: Mapping[str, Array], ids_G: Int[Array, "G"], step: int | Int[Array, ""]
    ) -> dict[str, Array]:
        """The state after a batch.

        Args:
            state: after the batch before.
            ids_G: what was drawn from the global batch; -1: nothing.
            step: 0 for the first batch, then one more for each.
        """
        step = jnp.asarray(step, jnp.int32)
        at = self._cells(ids_G)
        num_draws = jnp.sum((ids_G >= 0).astype(jnp.int32)).astype(jnp.float32)
        times_KxG = state["times_KxH"].at[at].get(mode="fill", fill_value=0) + 1
        weight_KxG = jnp.maximum(jnp.float32(self.rate), 1.0 / times_KxG.astype(jnp.float32))
        step_KxG = jnp.broadcast_to(step, times_KxG.shape)
        gap_KxG = (step_KxG - state["last_KxH"].at[at].get(mode="fill", fill_value=0)).astype(
            jnp.float32
        )
        count_KxG = jax.vmap(_occurrences)(at[1]).astype(jnp.float32)

        def moved(mean_KxH: Array, value_KxG: Array) -> Array:
            mean_KxG = mean_KxH.at[at].get(mode="fill", fill_value=0.0)
            mean_KxG += weight_KxG * (value_KxG - mean_KxG)
            # Occurrences of one cell write the same number, so their order is of no effect.
            return mean_KxH.at[at].set(mean_KxG, mode="drop")

        draws = state["draws"]
        return {
            "last_KxH": state["last_KxH"].at[at].set(step_KxG, mode="drop"),
            "times_KxH": state["times_KxH"].at[at].set(times_KxG, mode="drop"),
            "gap_KxH": moved(state["gap_KxH"], gap_KxG),
            "count_KxH": moved(state["count_KxH"], count_KxG),
            "draws": draws + (num_draws - draws) / (step + 1).astype(jnp.float32),
        }

    def share(self, state: Mapping[str, Array], ids: Int[Array, "..."]) -> Float[Array, "..."]:
        """The estimated share of the draws that fall on each id; 0 for one that never occurred."""
        at = self._cells(ids.reshape(-1))
        gap_KxG = state["gap_KxH"].at[at].get(mode="fill", fill_value=0.0)
        count_KxG = state["count_KxH"].at[at].get(mode="fill", fill_value=0.0)
        # Every gap is at least 1, so the maximum only guards cells that are empty.
        rate_KxG = count_KxG / jnp.maximum(gap_KxG, 1.0)
        rate_G = jnp.min(rate_KxG, axis=0) / jnp.maximum(state["draws"], 1e-9)
        return rate_G.reshape(ids.shape)

    def _cells(self, ids_G: Array) -> tuple[Array, Array]:
        """The indices [K, 1] and [K, G] of the ids' cells; out of range where there is no id."""
        if not self.buckets:
            return jnp.zeros((1, 1), jnp.int32), jnp.where(ids_G < 0, self.num_items, ids_G)[None]
        bits_KxG = mix(ids_G.astype(jnp.uint32)[None, :] ^ jnp.asarray(_SEEDS_K)[:, None])
        cell_KxG = (bits_KxG % jnp.uint32(self.buckets)).astype(jnp.int32)
        cell_KxG = jnp.where(ids_G[None, :] < 0, self.buckets, cell_KxG)
        return jnp.arange(_NUM_HASHES, dtype=jnp.int32)[:, None], cell_KxG


def _occurrences(cell_G: Array) -> Array:
    """How often each entry's value stands among the entries."""
    sorted_G = jnp.sort(cell_G)
    end_G = jnp.searchsorted(sorted_G, cell_G, side="right")
    return end_G - jnp.searchsorted(sorted_G, cell_G, side="left")
