"""Where a model is good: slices of queries and targets, each only where it can score them."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int, Num

NOT_SCORED = "not scored by this model"

HISTORY_LABELS = np.array(["0", "1-5", "6-20", "21-50", ">50"])
_HISTORY_ENDS = (1, 6, 21, 51)

ITEM_CLASSES = ("head", "middle", "tail", "cold")

Slice = dict[str, float | int | str]


def history_class(count_Q: Int[np.ndarray, " Q"]) -> Int[np.ndarray, " Q"]:
    """Index into HISTORY_LABELS of each number of known interactions."""
    return np.digitize(count_Q, _HISTORY_ENDS)


def item_class(popularity_N: Num[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Index into ITEM_CLASSES of each item, by its training interactions.

    Head: the fewest items, the most popular first (ties to the lower index), that hold a third of
    all training interactions; middle: the next third; tail: the rest; cold: items without any.
    """
    popularity_N = popularity_N.astype(np.float64)
    order = np.argsort(-popularity_N, kind="stable")
    sorted_N = popularity_N[order]
    before_N = np.cumsum(sorted_N) - sorted_N
    class_N = np.empty(len(order), np.int64)
    class_N[order] = np.minimum(3 * before_N // max(sorted_N.sum(), 1), 2).astype(np.int64)
    class_N[popularity_N <= 0] = ITEM_CLASSES.index("cold")
    return class_N


@dataclasses.dataclass(frozen=True)
class Targets:
    """The distinct targets of all queries.

    Attributes:
      query: int [T], the query that each belongs to.
      rank: int [T], its place (from 0) in that query's list, or the list's length where absent.
      kind: int [T], index into ITEM_CLASSES.
      scored: bool [T], whether the model can rank this item for this query.
    """

    query: Int[np.ndarray, " T"]
    rank: Int[np.ndarray, " T"]
    kind: Int[np.ndarray, " T"]
    scored: Bool[np.ndarray, " T"]


def make_slices(
    targets: Targets,
    metrics_Q: Mapping[str, np.ndarray],
    ks: Sequence[int],
    *,
    history_count_Q: Int[np.ndarray, " Q"],
    cold_user_Q: Bool[np.ndarray, " Q"],
    served_Q: Bool[np.ndarray, " Q"],
) -> dict[str, Slice]:
    """Count and metrics of each slice: `all`, `history/*`, `users/*` and `items/*`.

    Of queries (by known history, by whether the user has training interactions): the mean of each
    per-query metric. Of targets (by class of item): recall@k = targets of the class in the top k /
    targets of the class. `status` is `scored`, `empty`, or NOT_SCORED where the model can score
    nothing of the slice; metrics are there only where it is `scored`. `not_scored` counts the
    queries (or targets) that the model cannot score: they are misses in these metrics.
    """
    count_Q = np.bincount(targets.query, minlength=len(served_Q))
    history_Q = history_class(history_count_Q)

    def of_queries(chosen_Q: np.ndarray) -> Slice:
        targets_Q = count_Q[chosen_Q]
        record = _count(len(targets_Q), int(targets_Q.sum()), served_Q[chosen_Q])
        if record["status"] == "scored":
            record |= {name: float(values[chosen_Q].mean()) for name, values in metrics_Q.items()}
        return record

    def of_targets(chosen_T: np.ndarray) -> Slice:
        query_T = targets.query[chosen_T]
        record = _count(len(np.unique(query_T)), len(query_T), targets.scored[chosen_T])
        if record["status"] == "scored":
            record |= {f"recall@{k}": float((targets.rank[chosen_T] < k).mean()) for k in ks}
        return record

    slices = {"all": of_queries(np.ones(len(served_Q), bool))}
    for i, label in enumerate(HISTORY_LABELS):
        slices[f"history/{label}"] = of_queries(history_Q == i)
    slices["users/warm"] = of_queries(~cold_user_Q)
    slices["users/cold"] = of_queries(cold_user_Q)
    for i, name in enumerate(ITEM_CLASSES):
        slices[f"items/{name}"] = of_targets(targets.kind == i)
    return slices


def _count(queries: int, targets: int, scored: np.ndarray) -> Slice:
    status = "scored" if scored.any() else NOT_SCORED if len(scored) else "empty"
    return {
        "queries": queries,
        "targets": targets,
        "not_scored": int(np.count_nonzero(~scored)),
        "status": status,
    }
