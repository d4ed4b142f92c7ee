"""Ranks the whole corpus for every query and measures the result."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Num

from recjax import metrics as metrics_lib
from recjax import slices as slices_lib
from recjax.baselines import Ranker
from recjax.errors import DataError, DivergenceError
from recjax.files import write_file
from recjax.ranking import RankedQueries, in_batches, rank_batches


@runtime_checkable
class Queries(RankedQueries, Protocol):
    """What evaluation asks of its queries (see `recjax.data`): one per user who has targets."""

    @property
    def size(self) -> int:
        """Number of queries."""
        ...

    @property
    def user_Q(self) -> np.ndarray:
        """Position of each query's user."""
        ...

    @property
    def target_offsets(self) -> np.ndarray:
        """Query q's targets are target_items[target_offsets[q]:target_offsets[q + 1]]."""
        ...

    @property
    def target_items(self) -> np.ndarray:
        """Target items of all queries."""
        ...

    @property
    def history_count_Q(self) -> np.ndarray:
        """How many interactions of the user are known."""
        ...

    @property
    def user_in_training_Q(self) -> np.ndarray:
        """Whether the user has training interactions."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What one ranker achieved on one part.

    Attributes:
      metrics: means over all queries of the per-query metrics, and the catalogue metrics, by names
        such as `recall@10` (formulas in `recjax.metrics`).
      intervals: 95 % bootstrap interval over queries of each per-query metric: (low, high).
      slices: count and metrics of each slice (see `recjax.slices.make_slices`).
      per_query: one row per query: `user`, `num_targets`, `history_count`, `history` (its slice),
        `cold_user`, `served`, `targets_head` ... `targets_cold`, and every per-query metric.
      top_QxK: int32, the lists, best first; -1 where there is none.
    """

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    slices: Mapping[str, slices_lib.Slice]
    per_query: pl.DataFrame
    top_QxK: np.ndarray

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes `per_query` as Parquet: the whole file or, on an error, none."""
        content = io.BytesIO()
        self.per_query.write_parquet(content)
        write_file(path, content.getvalue())


def evaluate(
    queries: Queries,
    score_top_k: Ranker,
    *,
    part: str,
    ks: Sequence[int],
    corpus_mask_N: Bool[np.ndarray, " N"],
    rankable_mask_N: Bool[np.ndarray, " N"],
    popularity_N: Num[np.ndarray, " N"],
    seen: str,
    batch_size: int = 256,
    servable_Q: Bool[np.ndarray, " Q"] | None = None,
    user_ids_U: np.ndarray | None = None,
    samples: int = 1000,
    seed: int = 0,
    at_once: int = 1,
) -> Evaluation:
    """Ranks and measures all queries of a part.

    Args:
      queries: whom to rank for, and what they went on to choose.
      score_top_k: (batch, seen_BxS, k) -> (scores_BxK, ids_BxK); always called with batch_size rows
        (the last batch is filled up), so it is compiled once for each width of seen_BxS.
      part: name of the part, for messages.
      ks: cut-offs of the metrics.
      corpus_mask_N: items that are ranked against each other; coverage and Gini are over them.
      rankable_mask_N: items that this model can score; other targets are misses.
      popularity_N: number of training interactions of each item.
      seen: which known items are removed from a list: a policy that `queries.seen` knows.
      batch_size: queries ranked at a time.
      servable_Q: False for a query that the model cannot answer (matrix factorisation and an
        unknown user): it gets no list, so it is a miss.
      user_ids_U: ids of the users, for `per_query`; positions where None.
      samples: bootstrap samples; 0 for no intervals.
      seed: seed of the bootstrap.
      at_once: threads that call the ranker, as `recjax.ranking.rank_batches` has it.

    Raises:
      DataError: the part has no queries.
      DivergenceError: a score is NaN or infinite.
      ValueError: the ranker returned an item outside the corpus or one that it cannot score.
    """
    if queries.size == 0:
        raise DataError(f"part {part!r} has no queries: no user has an interaction in it")
    served_Q = np.ones(queries.size, bool) if servable_Q is None else servable_Q
    allowed_N = corpus_mask_N & rankable_mask_N
    top_QxK = np.full((queries.size, max(ks)), -1, np.int32)
    lists = rank_batches(
        score_top_k,
        queries,
        in_batches(np.flatnonzero(served_Q), batch_size),
        top_QxK.shape[1],
        seen=seen,
        batch_size=batch_size,
        at_once=at_once,
    )
    with contextlib.closing(lists):
        for rows, scores_BxK, ids_BxK in lists:
            if not np.isfinite(scores_BxK[ids_BxK >= 0]).all():
                raise DivergenceError(
                    "evaluation: a score is NaN or infinite; the model has diverged: lower "
                    "optim.learning_rate or resume from an earlier checkpoint"
                )
            top_QxK[rows] = ids_BxK
    _check_items(top_QxK, allowed_N, part)

    metrics_Q = metrics_lib.ranking_metrics(
        top_QxK, queries.target_offsets, queries.target_items, ks
    )
    values_QxM = np.stack(list(metrics_Q.values()), axis=1)
    metrics = dict(zip(metrics_Q, values_QxM.mean(axis=0).tolist(), strict=True))
    metrics |= metrics_lib.catalogue_metrics(
        top_QxK, popularity_N, int(corpus_mask_N.sum()), ks, queries.target_items
    )
    targets = _make_targets(queries, top_QxK, popularity_N, allowed_N, served_Q)
    slices = slices_lib.make_slices(
        targets,
        metrics_Q,
        ks,
        history_count_Q=queries.history_count_Q,
        cold_user_Q=~queries.user_in_training_Q,
        served_Q=served_Q,
    )
    return Evaluation(
        metrics=metrics,
        intervals=_intervals(list(metrics_Q), values_QxM, samples, seed),
        slices=slices,
        per_query=_per_query_frame(queries, targets, metrics_Q, served_Q, user_ids_U),
        top_QxK=top_QxK,
    )


def protocol_record(
    *, corpus: str, num_candidates: int, seen: str, part: str, ks: Sequence[int]
) -> dict[str, Any]:
    """What must be equal for two evaluations to be comparable, ready for `protocol.json`.

    Args:
      corpus: name of the corpus: which items are ranked (rated, listed, seen in training).
      num_candidates: number of items in it.
      seen: which known items are removed from a list.
      part: which part's targets are to be found.
      ks: cut-offs.
    """
    return {
        "corpus": corpus,
        "candidates": num_candidates,
        "ranking": "every item of the corpus, exact",
        "seen": seen,
        "ties": "lower item index first",
        "part": part,
        "ks": list(ks),
        "queries": "one per user with targets in the part; means over queries",
        "not_scored": "queries and targets that the model cannot score are misses",
        "denominators": dict(metrics_lib.DENOMINATORS),
    }


def _check_items(top_QxK: np.ndarray, allowed_N: np.ndarray, part: str) -> None:
    returned = np.unique(top_QxK)
    returned = returned[returned >= 0]
    inside = returned < len(allowed_N)
    wrong = returned[~inside | ~allowed_N[np.where(inside, returned, 0)]]
    if len(wrong):
        raise ValueError(
            f"part {part!r}: the ranker returned item {wrong[0]}, which is outside the corpus or "
            "one it said it cannot score; pass it the mask of the items that it may return"
        )


def _make_targets(
    queries: Queries,
    top_QxK: np.ndarray,
    popularity_N: np.ndarray,
    allowed_N: np.ndarray,
    served_Q: np.ndarray,
) -> slices_lib.Targets:
    query_T, item_T = metrics_lib.distinct_targets(queries.target_offsets, queries.target_items)
    return slices_lib.Targets(
        query=query_T,
        rank=metrics_lib.target_ranks(top_QxK, query_T, item_T),
        kind=slices_lib.item_class(popularity_N)[item_T],
        scored=allowed_N[item_T] & served_Q[query_T],
    )


def _intervals(
    names: list[str], values_QxM: Float[np.ndarray, "Q M"], samples: int, seed: int
) -> dict[str, tuple[float, float]]:
    if samples == 0:
        return {}
    means = metrics_lib.bootstrap_means(values_QxM, samples=samples, seed=seed)
    low, high = metrics_lib.interval_of(means)
    return {n: (float(a), float(b)) for n, a, b in zip(names, low, high, strict=True)}


def _per_query_frame(
    queries: Queries,
    targets: slices_lib.Targets,
    metrics_Q: Mapping[str, np.ndarray],
    served_Q: Bool[np.ndarray, " Q"],
    user_ids_U: np.ndarray | None,
) -> pl.DataFrame:
    def count(chosen_T: np.ndarray) -> np.ndarray:
        return np.bincount(targets.query[chosen_T], minlength=queries.size).astype(np.int32)

    history_Q = slices_lib.history_class(queries.history_count_Q)
    columns = {
        "user": queries.user_Q if user_ids_U is None else user_ids_U[queries.user_Q],
        "num_targets": count(np.ones(len(targets.query), bool)),
        "history_count": queries.history_count_Q,
        "history": slices_lib.HISTORY_LABELS[history_Q],
        "cold_user": ~queries.user_in_training_Q,
        "served": served_Q,
    }
    for i, name in enumerate(slices_lib.ITEM_CLASSES):
        columns[f"targets_{name}"] = count(targets.kind == i)
    return pl.DataFrame(columns | dict(metrics_Q))
