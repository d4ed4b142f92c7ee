"""Candidate sources: which items the queries of a batch are scored against.

`SOURCES` has them by name, and `make_source` builds one: a composition of the parts that
`CandidateSource` draws.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from recjax.collectives import gather_over
from recjax.distributions import log_uniform, to_log, uniform, unigram
from recjax.errors import ConfigError, DataError
from recjax.frequency import StreamingFrequency
from recjax.source import Candidates, CandidateSource, Draw

__all__ = [
    "FREQUENCIES",
    "SOURCES",
    "CandidateSource",
    "Candidates",
    "Draw",
    "SourceKind",
    "gather_candidates",
    "make_source",
    "pick_hard",
    "why_biased",
]

FREQUENCIES = ("exact", "streaming")


@dataclasses.dataclass(frozen=True)
class SourceSettings:
    """What a source is built from; the arguments of `make_source`, checked."""

    frequency_N: np.ndarray
    mask_N: np.ndarray
    count: int
    power: float
    mixed: tuple[str, ...]
    frequency: str
    frequency_rate: float
    frequency_buckets: int
    explicit_weight: float
    hard_count: int
    hard_refresh: int
    memory: int


class SourceKind(NamedTuple):
    """How a source of this name is built, and why its gradient is biased ('' if it is not).

    A gradient counts as unbiased where it becomes the exact one as the candidates grow in number.
    """

    build: Callable[[SourceSettings], CandidateSource]
    biased: str = ""


def make_source(
    name: str,
    frequency_N: np.ndarray,
    *,
    count: int = 0,
    power: float = 1.0,
    mask_N: np.ndarray | None = None,
    mixed: Sequence[str] = (),
    frequency: str = "exact",
    frequency_rate: float = 0.01,
    frequency_buckets: int = 0,
    explicit_weight: float = 1.0,
    hard_count: int = 0,
    hard_refresh: int = 1,
    memory: int = 0,
) -> CandidateSource:
    """Builds a candidate source by its name.

    Args:
        name: a key of `SOURCES`.
        frequency_N: mass of each item among the training labels (any common factor).
        count: draws per step of each distribution, and for 'hard' of each pool.
        power: 'unigram' and the pool of 'hard' draw item i in proportion to frequency_i^power.
        mask_N: False for items that no distribution is to draw.
        mixed: the sources that 'mixed' joins.
        frequency: how often an item is drawn from the batch: 'exact' reads `frequency_N`,
            'streaming' estimates it while the batches pass.
        frequency_rate: of the streaming estimator; see `StreamingFrequency`.
        frequency_buckets: cells of each of its hashes; 0: one cell for every item.
        explicit_weight: weight of an example's own negatives.
        hard_count: hard negatives that each example keeps out of the pool.
        hard_refresh: steps between two draws of the pool.
        memory: items that the memory holds.

    Raises:
        ConfigError: a setting of the group `loss` that cannot be.
        DataError: no item can be drawn.
    """
    _check_known("candidates", name, name, tuple(SOURCES))
    frequency_N = np.asarray(frequency_N, np.float64)
    if not (np.isfinite(frequency_N).all() and (frequency_N >= 0).all() and frequency_N.any()):
        raise DataError("candidates: item frequencies must be finite, not negative and not all 0")
    source = SOURCES[name].build(
        SourceSettings(
            frequency_N=frequency_N,
            mask_N=np.ones(len(frequency_N), bool) if mask_N is None else np.asarray(mask_N, bool),
            count=count,
            power=power,
            mixed=tuple(mixed),
            frequency=frequency,
            frequency_rate=frequency_rate,
            frequency_buckets=frequency_buckets,
            explicit_weight=explicit_weight,
            hard_count=hard_count,
            hard_refresh=hard_refresh,
            memory=memory,
        )
    )
    if frequency == "streaming" and not source.in_batch:
        raise ConfigError(
            f"config.loss.frequency={frequency}: it estimates how often an item is drawn from the "
            f"batch, which {name} candidates never are; set it to exact"
        )
    return source


def why_biased(name: str, mixed: Sequence[str] = (), explicit_weight: float = 1.0) -> str:
    """Why a source's gradient does not become the exact one with more candidates; '' if it does.

    Explicit negatives next to candidates of the whole corpus are exact terms of Z, so at a weight
    of 1 they bias nothing.
    """
    if name != "mixed":
        return SOURCES[name].biased
    reasons = [SOURCES[part].biased for part in mixed if part != "explicit"]
    if "explicit" in mixed and explicit_weight != 1.0:
        reasons.append(f"explicit negatives count {explicit_weight:g} times")
    return "; ".join(reason for reason in reasons if reason)


def pick_hard(
    query_BxD: Float[Array, "B D"],
    pool_SxD: Float[Array, "S D"],
    pool_S: Int[Array, "S"],
    bias_S: Float[Array, "S"] | None,
    label_BxP: Int[Array, "B P"],
    k: int,
    *,
    scale: float | Float[Array, ""] = 1.0,
) -> Candidates:
    """The k items of the pool that score highest for each query and are no labels of it.

    No gradient passes: the caller looks the embeddings of the items up again.

    Args:
        query_BxD: query embeddings.
        pool_SxD: embeddings of the pool.
        pool_S: its ids, distinct; -1 is none.
        bias_S: added to the scores.
        label_BxP: the labels of each query; -1 for padding.
        k: how many, at most S.
        scale: 1 / temperature.

    Returns:
        [B, k] ids, the highest score first, -1 where there are fewer than k; log_q is 0.
    """
    query_BxD, pool_SxD, bias_S, scale = jax.lax.stop_gradient((query_BxD, pool_SxD, bias_S, scale))
    order_S = jnp.argsort(pool_S)
    pool_S, pool_SxD = pool_S[order_S], pool_SxD[order_S]
    shift_S = jnp.where(pool_S < 0, -jnp.inf, 0.0)
    if bias_S is not None:
        shift_S += bias_S[order_S].astype(jnp.float32)

    def one_row(row: tuple[Array, Array]) -> Array:
        query_D, label_P = row
        score_S = jnp.einsum("d,sd->s", query_D, pool_SxD, preferred_element_type=jnp.float32)
        score_S = scale * score_S + shift_S
        at_P = jnp.searchsorted(pool_S, label_P)
        is_hit_P = pool_S.at[at_P].get(mode="fill", fill_value=-1) == label_P
        score_S = score_S.at[jnp.where(is_hit_P, at_P, len(pool_S))].set(-jnp.inf, mode="drop")
        top_K, slot_K = jax.lax.top_k(score_S, k)
        return jnp.where(jnp.isneginf(top_K), -1, pool_S[slot_K])

    ids_BxK = jax.lax.map(one_row, (query_BxD, label_BxP), batch_size=min(128, len(query_BxD)))
    return Candidates(ids_BxK, jnp.zeros(ids_BxK.shape, jnp.float32))


def gather_candidates(
    candidates: Candidates, embedding_CxD: Float[Array, "C D"], axis: str | None
) -> tuple[Candidates, Float[Array, "G D"]]:
    """Candidates of all replicas and their embeddings, in the order of the global batch.

    Differentiable: each replica's embeddings receive the gradients of all replicas' losses.
    """
    return gather_over((candidates, embedding_CxD), axis)


def _make_in_batch(settings: SourceSettings) -> CandidateSource:
    _check_known("frequency", settings.frequency, settings.frequency, FREQUENCIES)
    if settings.frequency == "exact":
        if settings.frequency_buckets:
            raise ConfigError(
                f"config.loss.frequency_buckets={settings.frequency_buckets}: exact frequencies "
                "are not hashed; set it to 0 or loss.frequency to streaming"
            )
        share_N = settings.frequency_N / settings.frequency_N.sum()
        return CandidateSource(in_batch=True, log_p_N=to_log(share_N))
    if not 0 < settings.frequency_rate <= 1:
        raise ConfigError(
            f"config.loss.frequency_rate={settings.frequency_rate}: it must be in (0, 1]"
        )
    _check_at_least("frequency_buckets", settings.frequency_buckets, 0)
    streaming = StreamingFrequency(
        len(settings.frequency_N), settings.frequency_rate, settings.frequency_buckets
    )
    return CandidateSource(in_batch=True, streaming=streaming)


def _make_uniform(settings: SourceSettings) -> CandidateSource:
    return CandidateSource(distributions=(uniform(settings.mask_N, settings.count),))


def _make_log_uniform(settings: SourceSettings) -> CandidateSource:
    drawn = log_uniform(settings.frequency_N, settings.mask_N, settings.count)
    return CandidateSource(distributions=(drawn,))


def _make_unigram(settings: SourceSettings) -> CandidateSource:
    drawn = unigram(settings.frequency_N, settings.mask_N, settings.count, settings.power)
    return CandidateSource(distributions=(drawn,))


def _make_memory(settings: SourceSettings) -> CandidateSource:
    """In-batch candidates and those of the batches before, with the embeddings they had then.

    Wang et al., CVPR 2020, "Cross-batch memory for embedding learning" (arXiv:1912.06798); for
    recommendation Wang et al., SIGIR 2021, "Cross-batch negative sampling for training two-tower
    recommenders".
    """
    _check_at_least("memory", settings.memory, 1)
    return dataclasses.replace(_make_in_batch(settings), memory=settings.memory)


def _make_explicit(settings: SourceSettings) -> CandidateSource:
    weight = settings.explicit_weight
    if not 0 < weight < np.inf:
        raise ConfigError(f"config.loss.explicit_weight={weight}: it must be above 0 and finite")
    return CandidateSource(explicit_weight=float(weight))


def _make_hard(settings: SourceSettings) -> CandidateSource:
    """The top-scoring items of a pool that is drawn as 'unigram' draws; see `pick_hard`."""
    _check_at_least("hard_negatives", settings.hard_count, 1)
    _check_at_least("hard_refresh", settings.hard_refresh, 1)
    pool = unigram(
        settings.frequency_N, settings.mask_N, settings.count, settings.power, name="hard"
    )
    if settings.hard_count > settings.count:
        raise ConfigError(
            f"config.loss.hard_negatives={settings.hard_count}: it must be at most the pool's "
            f"loss.num_sampled={settings.count}"
        )
    return CandidateSource(
        pool=pool, num_hard=settings.hard_count, hard_refresh=settings.hard_refresh
    )


def _make_mixed(settings: SourceSettings) -> CandidateSource:
    mixed = settings.mixed
    for name in mixed:
        _check_known("mixed", mixed, name, MIXABLE)
    if len(set(mixed)) != len(mixed) or len(mixed) < 2:
        raise ConfigError(
            f"config.loss.mixed={mixed}: it needs two or more different sources out of "
            f"{', '.join(MIXABLE)}"
        )
    if {"in_batch", "memory"} <= set(mixed):
        raise ConfigError(
            f"config.loss.mixed={mixed}: memory brings in_batch already; leave in_batch out"
        )
    return functools.reduce(_join, (SOURCES[name].build(settings) for name in mixed))


def _join(a: CandidateSource, b: CandidateSource) -> CandidateSource:
    return CandidateSource(
        log_p_N=a.log_p_N if b.log_p_N is None else b.log_p_N,
        distributions=a.distributions + b.distributions,
        in_batch=a.in_batch or b.in_batch,
        streaming=a.streaming or b.streaming,
        memory=max(a.memory, b.memory),
        explicit_weight=max(a.explicit_weight, b.explicit_weight),
    )


def _check_known(key: str, value: object, name: str, known: tuple[str, ...]) -> None:
    """Checks a name that is the value of a key of the group `loss`, or one of several there."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"config.loss.{key}={value}: no {name!r}: there are {', '.join(known)}{hint}"
        )


def _check_at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"config.loss.{key}={value}: it must be at least {least}")


MIXABLE = ("in_batch", "uniform", "log_uniform", "unigram", "explicit", "memory")
SOURCES: dict[str, SourceKind] = {
    "in_batch": SourceKind(_make_in_batch),
    "uniform": SourceKind(_make_uniform),
    "log_uniform": SourceKind(_make_log_uniform),
    "unigram": SourceKind(_make_unigram),
    "mixed": SourceKind(_make_mixed),
    "explicit": SourceKind(_make_explicit, "only the negatives that the data name are scored"),
    "hard": SourceKind(_make_hard, "the top-scoring negatives stand for all others"),
    "memory": SourceKind(
        _make_memory, "embeddings of earlier batches are stale and pass no gradient"
    ),
}
