"""Lists of the best items for many queries, a batch of them at a time."""

import collections
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

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
      rows: which queries.
      scores_BxK: float32; -inf where there is no item.
      ids_BxK: int32; -1 where there is no item.
    """

    rows: Int[np.ndarray, "B"]
    scores_BxK: Float[np.ndarray, "B K"]
    ids_BxK: Int[np.ndarray, "B K"]


def rank_batches(
    ranker: Ranker,
    queries: RankedQueries,
    batches: Iterable[Int[np.ndarray, "_"]],
    k: int,
    *,
    seen: str,
    batch_size: int,
    at_once: int = 1,
) -> Generator[Lists, None, None]:
    """The lists of each batch, in the order of the batches.

    While some are ranked this thread makes the next. Programs that one thread starts run on CPU one
    after another, and each has parts (XLA's top_k) that keep a single core: so each of `at_once`
    batches has a thread of its own. Close the iterator before its end if other programs are to run:
    what was begun is ended first.

    Args:
      ranker: is always given `batch_size` rows (a batch of fewer is filled up), so that it is
        compiled once for each width of what was seen.
      queries: whom to rank for.
      batches: rows of the queries, 1 to `batch_size` of them; may be endless.
      k: length of the lists.
      seen: which known items are removed from a list: a policy that `queries.seen` knows.
      batch_size: rows of a batch.
      at_once: threads that call the ranker, such as `Parallel.rankings_at_once`; with 1 it is
        called in the order of the batches, each time when the call before has ended.

    Raises:
      ValueError: a batch has too many rows, or none.
    """

    def rank(rows: np.ndarray, batch: dict[str, np.ndarray], seen_BxS: np.ndarray) -> Lists:
        scores_BxK, ids_BxK = ranker(batch, seen_BxS, k)
        return Lists(rows, np.asarray(scores_BxK)[: len(rows)], np.asarray(ids_BxK)[: len(rows)])

    compiled: set[tuple[int, ...]] = set()
    pending: collections.deque[Future[Lists]] = collections.deque()
    with ThreadPoolExecutor(at_once) as pool:
        for rows in batches:
            if not 0 < len(rows) <= batch_size:
                raise ValueError(f"a batch has {len(rows)} rows; it must have 1 to {batch_size}")
            filled = np.resize(rows, batch_size)
            batch, seen_BxS = queries.batch(filled), queries.seen(filled, seen)
            while len(pending) > at_once:
                yield pending.popleft().result()
            pending.append(pool.submit(rank, rows, batch, seen_BxS))
            if seen_BxS.shape not in compiled:  # one thread is to compile it
                compiled.add(seen_BxS.shape)
                wait([pending[-1]])
        while pending:
            yield pending.popleft().result()


def in_batches(rows: Int[np.ndarray, "Q"], batch_size: int) -> Iterator[Int[np.ndarray, "_"]]:
    """The rows, `batch_size` at a time; fewer in the last."""
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]
