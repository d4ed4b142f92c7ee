"""Ranking and catalogue metrics, and bootstrap intervals: numpy, float64.

Letters: Q queries, K top-k, N items, T targets (all queries' targets in one row), M metrics.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

_CHUNK = 1 << 22

PER_QUERY = ("recall", "ndcg", "hit_rate", "precision", "mrr", "map")

# What each metric is divided by, for the record of a protocol.
DENOMINATORS = {
    "recall": "number of targets of the query",
    "ndcg": "discounted gain of min(k, number of targets) hits at the top",
    "hit_rate": "1",
    "precision": "k",
    "mrr": "rank of the first hit; 0 where there is none in the top k",
    "map": "min(k, number of targets)",
    "coverage": "number of items in the corpus",
    "gini": "exposure of every item in the corpus, those never recommended included",
    "popularity_lift": "mean training popularity of the targets",
}


def ranking_metrics(
    topk_QxK: Int[np.ndarray, "Q K"],
    target_offsets: Int[np.ndarray, " Q1"],
    target_items: Int[np.ndarray, " T"],
    ks: Sequence[int],
) -> dict[str, Float[np.ndarray, " Q"]]:
    """Metrics of each query, by names such as `recall@10`, in the order of `PER_QUERY`.

    With n the number of distinct targets of a query, h(k) how many of them are in its top k, and
    r the rank (from 1) of a hit:

        recall@k    = h(k) / n                                   (not over min(k, n))
        ndcg@k      = sum over hits 1 / log2(r + 1) / sum for r = 1 .. min(k, n) of the same
        hit_rate@k  = 1 where h(k) > 0, else 0
        precision@k = h(k) / k                                   (short lists count as misses)
        mrr@k       = 1 / r of the first hit, 0 where h(k) = 0
        map@k       = sum over hits h(r) / r / min(k, n)

    A target that is nowhere in the top k is a miss, whether or not it could be ranked.

    Args:
      topk_QxK: recommended items, best first; -1 where there is none.
      target_offsets: query q's targets are target_items[target_offsets[q]:target_offsets[q + 1]].
      target_items: target items; one that a query holds twice counts once.
      ks: cut-offs, each from 1 to K.

    Raises:
      ValueError: a cut-off outside 1..K, or a query without targets.
    """
    num_queries, width = topk_QxK.shape
    _check_ks(ks, width)
    query_T, item_T = distinct_targets(target_offsets, target_items)
    rank_T = target_ranks(topk_QxK, query_T, item_T)
    count_Q = np.bincount(query_T, minlength=num_queries)
    if (count_Q == 0).any():
        raise ValueError(f"query {int(np.argmin(count_Q))} has no targets; metrics need at least 1")

    # The j-th best ranked target of a query sits at rank r: precision there is j / r.
    order = np.lexsort((rank_T, query_T))
    start_Q = np.cumsum(count_Q) - count_Q
    rank_T, query_T = rank_T[order], query_T[order]
    nth_T = np.arange(len(rank_T)) - start_Q[query_T] + 1
    gain_T = 1 / np.log2(rank_T + 2)
    precision_T = nth_T / (rank_T + 1)
    first_Q = rank_T[start_Q]
    ideal = np.cumsum(1 / np.log2(np.arange(width) + 2))

    result: dict[str, np.ndarray] = {}
    for k in ks:
        hit_T = rank_T < k
        hits_Q = np.bincount(query_T, hit_T, num_queries)
        reach_Q = np.minimum(k, count_Q)
        dcg_Q = np.bincount(query_T, hit_T * gain_T, num_queries)
        result[f"recall@{k}"] = hits_Q / count_Q
        result[f"ndcg@{k}"] = dcg_Q / ideal[reach_Q - 1]
        result[f"hit_rate@{k}"] = (hits_Q > 0).astype(np.float64)
        result[f"precision@{k}"] = hits_Q / k
        result[f"mrr@{k}"] = np.where(first_Q < k, 1 / (first_Q + 1), 0.0)
        result[f"map@{k}"] = np.bincount(query_T, hit_T * precision_T, num_queries) / reach_Q
    return {f"{name}@{k}": result[f"{name}@{k}"] for name in PER_QUERY for k in ks}


def catalogue_metrics(
    topk_QxK: Int[np.ndarray, "Q K"],
    popularity_N: Num[np.ndarray, " N"],
    num_corpus: int,
    ks: Sequence[int],
    target_items: Int[np.ndarray, " T"],
) -> dict[str, float]:
    """Metrics of all lists together, by names such as `coverage@10`.

    With c_i how often item i is in a top k, n = num_corpus and pop_i its training interactions:

        coverage@k        = number of items with c_i > 0 / n
        gini@k            = sum_j (2 j - n - 1) c_(j) / (n sum_i c_i), c ascending over the corpus:
                            0 where all items are shown equally often, (n - 1) / n where one is
        mean_popularity@k = sum_i c_i pop_i / sum_i c_i
        popularity_lift@k = mean_popularity@k / mean of pop over target_items; above 1 where the
                            lists are more popular than what users went on to choose
        novelty@k         = mean over recommendations of -log2(max(pop_i, 1) / sum pop), in bits
                            (an item never seen in training counts as one seen once)

    Empty places (-1) do not count. A value that is not defined (no recommendation at all, or only
    targets of no popularity) is NaN.

    Args:
      topk_QxK: recommended items, best first; -1 where there is none.
      popularity_N: number of training interactions of each item.
      num_corpus: number of items that are ranked against each other.
      ks: cut-offs, each from 1 to K.
      target_items: targets of all queries.
    """
    _check_ks(ks, topk_QxK.shape[1])
    popularity_N = popularity_N.astype(np.float64)
    total = popularity_N.sum()
    target_popularity = popularity_N[target_items].mean() if len(target_items) else 0.0
    bits_N = -np.log2(np.maximum(popularity_N, 1) / max(total, 1))
    result: dict[str, dict[int, float]] = {}
    for k in ks:
        shown = topk_QxK[:, :k]
        count_N = np.bincount(shown[shown >= 0], minlength=len(popularity_N)).astype(np.float64)
        places = count_N.sum()
        mean_popularity = _divide((count_N * popularity_N).sum(), places)
        values = {
            "coverage": _divide((count_N > 0).sum(), num_corpus),
            "gini": _gini(count_N, num_corpus),
            "mean_popularity": mean_popularity,
            "popularity_lift": _divide(mean_popularity, target_popularity),
            "novelty": _divide((count_N * bits_N).sum(), places),
        }
        for name, value in values.items():
            result.setdefault(name, {})[k] = float(value)
    return {f"{name}@{k}": values[k] for name, values in result.items() for k in ks}


def distinct_targets(
    target_offsets: Int[np.ndarray, " Q1"], target_items: Int[np.ndarray, " T"]
) -> tuple[Int[np.ndarray, " D"], Int[np.ndarray, " D"]]:
    """Query and item of each target, a repeated one once, ordered by query and item."""
    num_queries = len(target_offsets) - 1
    query_T = np.repeat(np.arange(num_queries, dtype=np.int64), np.diff(target_offsets))
    if len(target_items) == 0:
        return query_T, target_items.astype(np.int64)
    base = int(target_items.max()) + 1
    key = np.unique(query_T * base + target_items)
    return key // base, key % base


def target_ranks(
    topk_QxK: Int[np.ndarray, "Q K"],
    query_T: Int[np.ndarray, " T"],
    item_T: Int[np.ndarray, " T"],
) -> Int[np.ndarray, " T"]:
    """Place (from 0) of each target in its query's list; K where it is not in it."""
    width = topk_QxK.shape[1]
    rank_T = np.empty(len(item_T), np.int64)
    step = max(1, _CHUNK // width)
    for start in range(0, len(item_T), step):
        rows = slice(start, start + step)
        found = topk_QxK[query_T[rows]] == item_T[rows, None]
        rank_T[rows] = np.where(found.any(axis=1), found.argmax(axis=1), width)
    return rank_T


def bootstrap_means(
    values_QxM: Float[np.ndarray, "Q M"], *, samples: int = 1000, seed: int = 0
) -> Float[np.ndarray, "samples M"]:
    """Means of M metrics over queries drawn with replacement, the same draws for all metrics.

    Each sample draws Q indices uniformly and counts them (exact multinomial weights); the means are
    one matrix product. Memory stays near 100 MB whatever Q is.

    Raises:
      ValueError: no queries, or a value that is not finite.
    """
    num_queries = len(values_QxM)
    if num_queries == 0:
        raise ValueError("bootstrap: there are no queries to draw from")
    if not np.isfinite(values_QxM).all():
        raise ValueError("bootstrap: a value is NaN or infinite")
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // num_queries)
    means = []
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        drawn = rng.integers(num_queries, size=(rows, num_queries), dtype=np.int32)
        drawn = drawn + (np.arange(rows) * num_queries)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * num_queries)
        means.append(counts.reshape(rows, num_queries).astype(np.float64) @ values_QxM)
    return np.concatenate(means) / num_queries


def bootstrap_interval(
    values_Q: Float[np.ndarray, " Q"], *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over queries (Efron, 1979)."""
    low, high = interval_of(bootstrap_means(values_Q[:, None], samples=samples, seed=seed), level)
    return float(low[0]), float(high[0])


def paired_bootstrap(
    a_Q: Float[np.ndarray, " Qa"],
    b_Q: Float[np.ndarray, " Qb"],
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Mean of a - b over the same queries, and its bootstrap interval: (difference, low, high).

    Raises:
      ValueError: the two are not of equal length.
    """
    if a_Q.shape != b_Q.shape:
        raise ValueError(f"paired_bootstrap: {len(a_Q)} queries against {len(b_Q)}: pair them")
    difference_Q = a_Q.astype(np.float64) - b_Q
    low, high = bootstrap_interval(difference_Q, samples=samples, seed=seed, level=level)
    return float(difference_Q.mean()), low, high


def interval_of(
    means_SxM: Float[np.ndarray, "S M"], level: float = 0.95
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """The quantiles between which a share `level` of the samples lies, for each metric."""
    if not 0 < level < 1:
        raise ValueError(f"bootstrap: level={level}; it must lie between 0 and 1")
    low, high = np.quantile(means_SxM, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _gini(count_N: np.ndarray, num_corpus: int) -> float:
    shown = np.sort(count_N[count_N > 0])
    # Items never shown are the first of the order and add nothing to the sum.
    place = np.arange(num_corpus - len(shown) + 1, num_corpus + 1)
    return _divide(((2 * place - num_corpus - 1) * shown).sum(), num_corpus * shown.sum())


def _divide(numerator: Any, denominator: Any) -> float:
    return float(numerator / denominator) if denominator else float("nan")


def _check_ks(ks: Sequence[int], width: int) -> None:
    if not ks or min(ks) < 1 or max(ks) > width:
        raise ValueError(f"ks={list(ks)}: each must be from 1 to {width}, the length of the lists")
