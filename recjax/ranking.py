"""Lists of the best items for many queries, a batch of them at a time."""

import collections
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from recjax.baselines import Ranker


@runtime_checkable
class RankedQueries(Protocol):
    """What ranking asks of queries."""

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What a model is given for these queries."""
        ...

    def seen(self, rows: np.ndarray, policy: str) -> np.ndarray:
        """Items to be removed from each query's list [len(rows), S], padded with -1."""
        ...


class Lists(NamedTuple):
    """The lists of some queries, best first.

    Attributes:
      rows: which queries [B].
      scores_BxK: float32; -inf where there is no item.
      ids_BxK: int32; -1 where there is no item.
    """

    rows: np.ndarray
    scores_BxK: np.ndarray
    ids_BxK: np.ndarray


def rank_batches(
    ranker: Ranker,
    queries: RankedQueries,
    batches: Iterable[np.ndarray],
    k: int,
    *,
    seen: str,
    batch_size: int,
    at_once: int = 1,
) -> Iterator[Lists]:
    """The lists of each batch, in the order of the batches.

    While some are ranked this thread makes the next. Programs that one thread starts run on CPU one
    after another, and each has parts (XLA's top_k) that keep a single core: so each of `at_once`
    batches has a thread of its own.

    Args:
      ranker: is always given `batch_size` rows (a batch of fewer is filled up), so that it is
        compiled once for each width of what was seen.
      queries: whom to rank for.
      batches: rows of the queries, 1 to `batch_size` of them; may be endless.
      k: length of the lists.
      seen: which known items are removed from a list: a policy that `queries.seen` knows.
      batch_size: rows of a batch.
      at_once: `Parallel.rankings_at_once`; with 1, programs are started in the order of the
        batches, each when the one before has ended.
    """

    def rank(rows: np.ndarray, batch: dict[str, np.ndarray], seen_BxS: np.ndarray) -> Lists:
        scores_BxK, ids_BxK = ranker(batch, seen_BxS, k)
        return Lists(rows, np.asarray(scores_BxK)[: len(rows)], np.asarray(ids_BxK)[: len(rows)])

    compiled: set[tuple[int, ...]] = set()
    pending: collections.deque[Future[Lists]] = collections.deque()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for rows in batches:
                filled = np.resize(rows, batch_size)
                batch, seen_BxS = queries.batch(filled), queries.seen(filled, seen)
                is_new = seen_BxS.shape not in compiled  # one thread is to compile it
                while len(pending) > (0 if is_new else at_once):
                    yield pending.popleft().result()
                if is_new:
                    compiled.add(seen_BxS.shape)
                    yield rank(rows, batch, seen_BxS)
                else:
                    pending.append(pool.submit(rank, rows, batch, seen_BxS))
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def in_batches(rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """The rows, `batch_size` at a time; fewer in the last."""
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]
