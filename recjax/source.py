"""The draw: candidates for a batch and their log_q, as a pure function of a source and its state.

log_q is the log of the expected number of times that an id is drawn. Nobody else computes it.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from recjax.collectives import gather_over
from recjax.distributions import Distribution, Leaf, log_p
from recjax.errors import ConfigError
from recjax.frequency import StreamingFrequency

State = dict[str, dict[str, Array]]

_IN_BATCH, _POOL, _DISTRIBUTIONS = range(3)  # streams of random keys within a draw


class Candidates(NamedTuple):
    """Items to score queries against."""

    ids_C: Array  # int32
    log_q_C: Array  # float32, log of the expected number of draws; +inf: not a candidate


class Draw(NamedTuple):
    """What one replica drew; None for what its source has no part of.

    Attributes:
        shared: candidates of all queries, the same on every replica; their embeddings are needed.
        own: candidate b is the label in column slot_B[b] of this replica's example b, so that its
            embedding is at hand, and `gather_candidates` joins those of all replicas. The id is -1
            where the example gives nothing.
        slot_B: int32, those columns.
        stored: candidates of all queries whose embeddings are the memory's.
        negative: [B, E], negatives of each example's own: id -1 is none; log_q is -log of their
            weight.
        pool: int32 [S], distinct ids out of which `pick_hard` takes negatives of each example's
            own; -1 is none.
        label_log_q_BxP: float32, what log_q would be for the labels, were they drawn; 0 where
            nothing is shared.
    """

    shared: Candidates | None
    own: Candidates | None
    slot_B: Array | None
    stored: Candidates | None
    negative: Candidates | None
    pool: Array | None
    label_log_q_BxP: Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("log_p_N", "distributions", "pool"),
    meta_fields=(
        "in_batch",
        "streaming",
        "memory",
        "explicit_weight",
        "num_hard",
        "hard_refresh",
    ),
)
@dataclasses.dataclass(frozen=True)
class CandidateSource:
    """A way to draw candidates, made of the parts that are present; `recjax.candidates.make_source`
    builds one.

    A pytree of its arrays, so that a jitted step takes it as an argument. The parts that all
    queries share are one sample (Yang et al., WWW 2020 companion, "Mixed negative sampling for
    learning two-tower neural networks in recommendations"): with p an item's share of the labels,
    n the examples of the global batch and m the filled part of the memory, the item is expected

        (n - 1 + m) p + sum over the distributions of count_d p_d

    times, whichever part draws it, and log_q is the log of that. An example gives one of its own
    labels, never a negative of its own query, hence n - 1. An item that no part expects, such as
    one that the training labels never name, is no candidate, in place of Z = inf.

    Attributes:
        log_p_N: float32, log of each item's share of the labels; None where it is not needed or
            `streaming`.
        distributions: drawn from at every step.
        pool: drawn from every `hard_refresh` steps, for `pick_hard`.
        in_batch: whether every example gives one of its labels, drawn by its weight.
        streaming: the estimator of p, or None.
        memory: how many of the batches' own items, the latest, are kept with their embeddings.
        explicit_weight: weight of the examples' own negatives; 0: they are not used.
        num_hard: how many items of the pool each example keeps.
        hard_refresh: steps between two draws of the pool.
    """

    log_p_N: Leaf = None
    distributions: tuple[Distribution, ...] = ()
    pool: Distribution | None = None
    in_batch: bool = False
    streaming: StreamingFrequency | None = None
    memory: int = 0
    explicit_weight: float = 0.0
    num_hard: int = 0
    hard_refresh: int = 1

    def init(self, dim: int) -> State:
        """The state before the first step, the same on every replica.

        Args:
            dim: length of an item's embedding.

        Returns:
            `frequency`: of the streaming estimator, and `memory`: `ids_M` int32 (-1 is empty),
            `embedding_MxD` float32 and `cursor` int32 []; each only where the source has it.
        """
        state = {}
        if self.streaming is not None:
            state["frequency"] = self.streaming.init()
        if self.memory:
            state["memory"] = {
                "ids_M": jnp.full(self.memory, -1, jnp.int32),
                "embedding_MxD": jnp.zeros((self.memory, dim), jnp.float32),
                "cursor": jnp.zeros((), jnp.int32),
            }
        return state

    def draw(
        self,
        state: State,
        key: PRNGKeyArray,
        batch: Mapping[str, Array],
        step: int | Int[Array, ""],
        *,
        axis: str | None = None,
    ) -> tuple[Draw, State]:
        """Draws candidates for a batch.

        Args:
            state: after the step before.
            key: the same on every replica and at every step.
            batch: this replica's `label` and `label_weight` [B, P] (-1 and 0 for padding),
                `weight` [B] (0 for padding), `index` [B], the position in the global batch, and
                for explicit negatives `negative` [B, E] (-1 for padding).
            step: steps taken before this one.
            axis: name of the axis over which the batch is split.

        Returns:
            What was drawn, and the state in which the frequencies have seen this batch.

        Raises:
            ConfigError: explicit negatives are asked for, but the batch has none.
        """
        label_BxP = batch["label"]
        step_key = jax.random.fold_in(key, step)
        own_B = slot_B = None
        num_others = jnp.zeros((), jnp.int32)
        if self.in_batch:
            gives_B = (batch["weight"] > 0) & jnp.any(batch["label_weight"] > 0, axis=1)
            slot_key = jax.random.fold_in(step_key, _IN_BATCH)
            slot_B = _draw_slot(slot_key, batch["label_weight"], batch["index"])
            own_B = jnp.where(gives_B, _column(label_BxP, slot_B), -1)
            own_G = gather_over(own_B, axis)
            num_others = _count(own_G) - 1
            if self.streaming is not None:
                seen = self.streaming.update(state["frequency"], own_G, step)
                state = {**state, "frequency": seen}
        if self.memory:
            num_others += _count(state["memory"]["ids_M"])

        def candidates(ids_C: Array) -> Candidates:
            log_q_C = self._log_q(state, num_others, ids_C)
            return Candidates(ids_C, jnp.where(jnp.isfinite(log_q_C), log_q_C, jnp.inf))

        drawn = [
            each.draw(jax.random.fold_in(step_key, _DISTRIBUTIONS + i))
            for i, each in enumerate(self.distributions)
        ]
        draw = Draw(
            shared=candidates(jnp.concatenate(drawn)) if drawn else None,
            own=None if own_B is None else candidates(own_B),
            slot_B=slot_B,
            stored=candidates(state["memory"]["ids_M"]) if self.memory else None,
            negative=self._negative(batch) if self.explicit_weight else None,
            pool=self._draw_pool(key, step),
            label_log_q_BxP=self._label_log_q(state, num_others, label_BxP, step),
        )
        return draw, state

    def push(
        self, state: State, ids_G: Int[Array, "G"], embedding_GxD: Float[Array, "G D"]
    ) -> State:
        """The state in which the memory holds the batch's own items; the oldest are gone.

        Cross-batch memory (Wang et al., CVPR 2020, arXiv:1912.06798); of a batch that is larger
        than the memory the last are kept. Without a memory the state is returned as it is.

        Args:
            state: of `draw`.
            ids_G: own items of the global batch, in its order; -1: nothing was given.
            embedding_GxD: their embeddings; no gradient passes.
        """
        if not self.memory:
            return state
        old = state["memory"]
        gives_G = ids_G >= 0
        count_G = jnp.cumsum(gives_G.astype(jnp.int32))
        is_kept_G = gives_G & (count_G > count_G[-1] - self.memory)
        at_G = jnp.where(is_kept_G, (old["cursor"] + count_G - 1) % self.memory, self.memory)
        embedding_GxD = jax.lax.stop_gradient(embedding_GxD).astype(jnp.float32)
        new = {
            "ids_M": old["ids_M"].at[at_G].set(ids_G, mode="drop"),
            "embedding_MxD": old["embedding_MxD"].at[at_G].set(embedding_GxD, mode="drop"),
            "cursor": (old["cursor"] + count_G[-1]) % self.memory,
        }
        return {**state, "memory": new}

    def _log_q(self, state: State, num_others: Array, ids: Array) -> Array:
        """Log of how often all shared parts together are expected to draw each id."""
        parts = [each.log_q(ids) for each in self.distributions]
        if self.in_batch:
            if self.streaming is not None:
                log_share = jnp.log(self.streaming.share(state["frequency"], ids))
            else:
                assert self.log_p_N is not None
                log_share = log_p(self.log_p_N, ids)
            parts.append(_log_at_least_one(num_others) + log_share)
        return functools.reduce(jnp.logaddexp, parts)

    def _label_log_q(
        self,
        state: State,
        num_others: Array,
        label_BxP: Array,
        step: int | Array,
    ) -> Array:
        if not self.in_batch and not self.distributions:
            return jnp.zeros(label_BxP.shape, jnp.float32)
        log_q_BxP = self._log_q(state, num_others, label_BxP)
        if self.streaming is None:
            return log_q_BxP
        # Of several labels some were never given yet: that is less than once in all draws so far.
        num_draws = state["frequency"]["draws"] * jnp.asarray(step + 1, jnp.float32)
        least = _log_at_least_one(num_others) - jnp.log(jnp.maximum(num_draws, 1.0))
        return jnp.where(label_BxP < 0, log_q_BxP, jnp.maximum(log_q_BxP, least))

    def _negative(self, batch: Mapping[str, Array]) -> Candidates:
        """The examples' own negatives, each once, without what is also a label."""
        if "negative" not in batch:
            raise ConfigError(
                "config.loss.candidates: explicit negatives need a data set whose schema names a "
                "`negatives` column"
            )
        negative_BxE = batch["negative"]
        is_label_BxE = jnp.any(batch["label"][:, :, None] == negative_BxE[:, None, :], axis=1)
        equal_BxExE = negative_BxE[:, :, None] == negative_BxE[:, None, :]
        is_again_BxE = jnp.any(jnp.tril(equal_BxExE, -1), axis=2)
        negative_BxE = jnp.where(is_label_BxE | is_again_BxE, -1, negative_BxE)
        log_q = -float(np.log(self.explicit_weight))
        return Candidates(negative_BxE, jnp.full(negative_BxE.shape, log_q, jnp.float32))

    def _draw_pool(self, key: Array, step: int | Array) -> Array | None:
        if self.pool is None:
            return None
        refresh_key = jax.random.fold_in(key, step // self.hard_refresh)
        sorted_S = jnp.sort(self.pool.draw(jax.random.fold_in(refresh_key, _POOL)))
        is_first_S = jnp.concatenate([jnp.ones(1, bool), sorted_S[1:] != sorted_S[:-1]])
        return jnp.where(is_first_S, sorted_S, -1)


def _draw_slot(key: Array, label_weight_BxP: Array, index_B: Array) -> Array:
    """One column of each row, drawn by its weight."""
    if label_weight_BxP.shape[1] == 1:
        return jnp.zeros(len(index_B), jnp.int32)
    uniform_B = jax.vmap(lambda index: jax.random.uniform(jax.random.fold_in(key, index)))(index_B)
    cumulative_BxP = jnp.cumsum(label_weight_BxP, axis=1)
    threshold_Bx1 = uniform_B[:, None] * cumulative_BxP[:, -1:]
    return jnp.argmax(cumulative_BxP > threshold_Bx1, axis=1).astype(jnp.int32)


def _column(x_BxP: Array, slot_B: Array) -> Array:
    return jnp.take_along_axis(x_BxP, slot_B[:, None], axis=1)[:, 0]


def _count(ids: Array) -> Array:
    return jnp.sum((ids >= 0).astype(jnp.int32))


def _log_at_least_one(count: Array) -> Array:
    return jnp.log(jnp.maximum(count, 1).astype(jnp.float32))
