"""Candidate sources: which items the queries of a batch are scored against.

A source draws ids together with log_q, the log of the expected number of times that each id is
drawn. Nobody else computes log_q.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from recjax.errors import ConfigError, DataError


class Candidates(NamedTuple):
    """Items that all queries are scored against."""

    ids_C: Array  # int32
    log_q_C: Array  # float32, log of the expected number of draws; +inf: not a candidate


class Draw(NamedTuple):
    """What one replica drew.

    Where `slot_B` is None, all replicas drew the same candidates, and their embeddings are needed.
    Otherwise candidate b is the label in column slot_B[b] of this replica's example b, so that its
    embedding is at hand, and `gather_candidates` joins the candidates of all replicas.
    """

    candidates: Candidates
    label_log_q_BxP: Array  # float32, what log_q would be for the labels, were they drawn
    slot_B: Array | None = None  # int32


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("tables",), meta_fields=("sampler",)
)
@dataclasses.dataclass(frozen=True)
class CandidateSource:
    """A way to draw candidates: a pure function and the arrays it reads.

    A pytree of its arrays, so that a jitted step takes it as an argument.
    """

    tables: Any
    sampler: Callable[..., Draw]

    def draw(
        self,
        key: PRNGKeyArray,
        label_BxP: Int[Array, "B P"],
        label_weight_BxP: Float[Array, "B P"],
        weight_B: Float[Array, "B"],
        index_B: Int[Array, "B"],
        *,
        axis: str | None = None,
    ) -> Draw:
        """Draws candidates for a batch.

        Args:
            key: the same on every replica.
            label_BxP: the labels of this replica's examples, -1 for padding.
            label_weight_BxP: their weights.
            weight_B: weight of each example; 0 for padding.
            index_B: position of each example in the global batch.
            axis: name of the axis over which the batch is split.
        """
        return self.sampler(
            self.tables, key, label_BxP, label_weight_BxP, weight_B, index_B, axis=axis
        )


def make_source(
    name: str,
    frequency_N: np.ndarray,
    *,
    count: int = 0,
    power: float = 1.0,
    mask_N: np.ndarray | None = None,
) -> CandidateSource:
    """Builds a candidate source by its name.

    Args:
        name: 'in_batch', 'uniform', 'log_uniform' or 'unigram'.
        frequency_N: mass of each item among the training labels (any common factor).
        count: draws per step; not used by 'in_batch'.
        power: 'unigram' draws item i in proportion to frequency_i^power.
        mask_N: False for items that are not to be drawn; not used by 'in_batch'.

    Raises:
        ConfigError: an unknown name, or a count or power that cannot be.
        DataError: no item can be drawn.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no candidate source {name!r}: there are {', '.join(SOURCES)}{hint}")
    frequency_N = np.asarray(frequency_N, np.float64)
    mask_N = np.ones(len(frequency_N), bool) if mask_N is None else np.asarray(mask_N, bool)
    if not (np.isfinite(frequency_N).all() and (frequency_N >= 0).all() and frequency_N.any()):
        raise DataError("candidates: item frequencies must be finite, not negative and not all 0")
    return SOURCES[name](frequency_N, count=count, power=power, mask_N=mask_N)


def gather_candidates(
    candidates: Candidates, embedding_CxD: Float[Array, "C D"], axis: str | None
) -> tuple[Candidates, Float[Array, "G D"]]:
    """Candidates of all replicas and their embeddings, in the order of the global batch.

    Differentiable: each replica's embeddings receive the gradients of all replicas' losses.
    """
    if axis is None:
        return candidates, embedding_CxD
    return jax.tree.map(
        lambda x: jax.lax.all_gather(x, axis, tiled=True), (candidates, embedding_CxD)
    )


def in_batch(
    log_p_N: Float[Array, "N"],
    key: PRNGKeyArray,
    label_BxP: Int[Array, "B P"],
    label_weight_BxP: Float[Array, "B P"],
    weight_B: Float[Array, "B"],
    index_B: Int[Array, "B"],
    *,
    axis: str | None = None,
) -> Draw:
    """One label of every example, drawn by its weight, for all queries of the global batch.

    What an example gives is one of its own positives, never a negative of its own query, so that
    an item of frequency p is expected (n - 1) p times among the other n - 1 examples: log_q =
    log((n - 1) p). Examples of weight 0, or without a label, give nothing.
    """
    gives_B = (weight_B > 0) & jnp.any(label_weight_BxP > 0, axis=1)
    num_giving = jnp.sum(gives_B.astype(jnp.int32))
    num_giving = num_giving if axis is None else jax.lax.psum(num_giving, axis)
    log_others = jnp.log(jnp.maximum(num_giving - 1, 1).astype(jnp.float32))
    slot_B = _draw_slot(key, label_weight_BxP, index_B)
    ids_B = jnp.take_along_axis(label_BxP, slot_B[:, None], axis=1)[:, 0]
    log_q_B = log_others + _log_p(log_p_N, ids_B)
    # An item that training labels never name has p = 0: it is no candidate, in place of Z = inf.
    log_q_B = jnp.where(gives_B & jnp.isfinite(log_q_B), log_q_B, jnp.inf)
    return Draw(Candidates(ids_B, log_q_B), log_others + _log_p(log_p_N, label_BxP), slot_B)


def from_distribution(
    tables: Mapping[str, Array],
    key: PRNGKeyArray,
    label_BxP: Int[Array, "B P"],
    label_weight_BxP: Float[Array, "B P"],
    weight_B: Float[Array, "B"],
    index_B: Int[Array, "B"],
    *,
    axis: str | None = None,
    count: int,
) -> Draw:
    """`count` draws with replacement from a fixed distribution p: log_q = log(count p).

    The inverse of the cumulative distribution in whole 2^-32ths: `bound_T` is the last 32-bit
    number that falls to each item of `support_T`, so p is exactly the frequency of the draws.
    """
    bits_C = jax.random.bits(key, (count,), jnp.uint32)
    ids_C = tables["support_T"][jnp.searchsorted(tables["bound_T"], bits_C)]
    log_count = float(np.log(count))
    return Draw(
        Candidates(ids_C, log_count + _log_p(tables["log_p_N"], ids_C)),
        log_count + _log_p(tables["log_p_N"], label_BxP),
    )


def _draw_slot(key: Array, label_weight_BxP: Array, index_B: Array) -> Array:
    """One column of each row, drawn by its weight."""
    if label_weight_BxP.shape[1] == 1:
        return jnp.zeros(len(index_B), jnp.int32)
    uniform_B = jax.vmap(lambda index: jax.random.uniform(jax.random.fold_in(key, index)))(index_B)
    cumulative_BxP = jnp.cumsum(label_weight_BxP, axis=1)
    threshold_Bx1 = uniform_B[:, None] * cumulative_BxP[:, -1:]
    return jnp.argmax(cumulative_BxP > threshold_Bx1, axis=1).astype(jnp.int32)


def _log_p(log_p_N: Array, ids: Array) -> Array:
    return log_p_N.at[jnp.where(ids < 0, len(log_p_N), ids)].get(mode="fill", fill_value=-jnp.inf)


def _make_in_batch(
    frequency_N: np.ndarray, *, count: int, power: float, mask_N: np.ndarray
) -> CandidateSource:
    del count, power, mask_N
    return CandidateSource(_log(frequency_N / frequency_N.sum()), in_batch)


def _make_uniform(
    frequency_N: np.ndarray, *, count: int, power: float, mask_N: np.ndarray
) -> CandidateSource:
    del frequency_N, power
    return _make_from_distribution("uniform", mask_N.astype(np.float64), count)


def _make_log_uniform(
    frequency_N: np.ndarray, *, count: int, power: float, mask_N: np.ndarray
) -> CandidateSource:
    """P(rank r) proportional to log((r + 2) / (r + 1)), the most frequent item at rank 0."""
    del power
    order = np.argsort(-frequency_N, kind="stable")
    order = order[mask_N[order]]
    mass_N = np.zeros(len(frequency_N))
    mass_N[order] = np.log1p(1 / np.arange(1, len(order) + 1))
    return _make_from_distribution("log_uniform", mass_N, count)


def _make_unigram(
    frequency_N: np.ndarray, *, count: int, power: float, mask_N: np.ndarray
) -> CandidateSource:
    if not power >= 0:
        raise ConfigError(f"unigram candidates need a power of at least 0, not {power}")
    drawn_N = mask_N & (frequency_N > 0)
    mass_N = np.zeros(len(frequency_N))
    mass_N[drawn_N] = frequency_N[drawn_N] ** power
    return _make_from_distribution("unigram", mass_N, count)


def _make_from_distribution(name: str, mass_N: np.ndarray, count: int) -> CandidateSource:
    if count < 1:
        raise ConfigError(f"{name} candidates need at least 1 draw per step, not {count}")
    support_T = np.flatnonzero(mass_N)
    if not len(support_T):
        raise DataError(f"{name} candidates: no item can be drawn (all are masked or unseen)")
    # Every item keeps at least one of the 2^32 numbers; the rest is divided by mass.
    share_T = np.cumsum(mass_N[support_T]) / mass_N.sum()
    end_T = np.arange(1, len(support_T) + 1) + np.rint(share_T * (2**32 - len(support_T)))
    end_T = end_T.astype(np.int64)
    end_T[-1] = 2**32
    p_N = np.zeros(len(mass_N))
    p_N[support_T] = np.diff(end_T, prepend=0) / 2**32
    tables = {
        "support_T": jnp.asarray(support_T.astype(np.int32)),
        "bound_T": jnp.asarray((end_T - 1).astype(np.uint32)),
        "log_p_N": _log(p_N),
    }
    return CandidateSource(tables, functools.partial(from_distribution, count=count))


def _log(p_N: np.ndarray) -> Array:
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(p_N).astype(np.float32))


SOURCES: dict[str, Callable[..., CandidateSource]] = {
    "in_batch": _make_in_batch,
    "uniform": _make_uniform,
    "log_uniform": _make_log_uniform,
    "unigram": _make_unigram,
}
