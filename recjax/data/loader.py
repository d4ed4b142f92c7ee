"""Batches by step: the batch is the record, and the position in the data is the step."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Generator

import grain
import numpy as np

from recjax.data.examples import TrainExamples
from recjax.data.shuffle import shuffled

_MAX_THREADS = 2
_KEPT = 1 << 26  # examples whose order is kept in memory, 256 MiB an epoch


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Batches that hold every one of `size` examples once; the last may be padded."""
    return -(-size // batch_size)


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batch of every step, a pure function of (seed, epoch, step within the epoch).

    Attributes:
      examples: what batches are made of.
      batch_size: rows of every batch.
      seed: of the order and of what is random in an example.
      rows: those of the batch that are made: a process's share; None for all.
    """

    examples: TrainExamples
    batch_size: int
    seed: int
    rows: slice | None = None

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return steps_per_epoch(self.examples.size, self.batch_size)

    @functools.cached_property
    def _orders(self) -> "_Orders":
        return _Orders(self.examples.size, self.seed)

    def __post_init__(self):
        _ = self._orders  # made here, in one thread

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """The rows of a step's global batch; those that pad the epoch's last one have weight 0."""
        epoch, place = divmod(int(step), self.per_epoch)
        first = place * self.batch_size
        indices_B = self._orders.read(epoch, first, first + self.batch_size)
        real = len(indices_B)
        padding = np.full(self.batch_size - real, indices_B[0], indices_B.dtype)
        indices_B = np.concatenate([indices_B, padding])
        index_B = np.arange(self.batch_size, dtype=np.int32)
        if self.rows is not None:
            indices_B, index_B = indices_B[self.rows], index_B[self.rows]
        batch = self.examples.batch(indices_B, seed=self.seed, epoch=epoch)
        batch["index"] = index_B
        batch["weight"][index_B >= real] = 0.0
        return batch


def make_batches(
    examples: TrainExamples,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    prefetch: int,
    rows: slice | None = None,
) -> Generator[dict[str, np.ndarray], None, None]:
    """The batches of steps start..stop-1, made ahead in threads that end with the iterator.

    Args:
      examples: what batches are made of.
      batch_size: rows of every batch.
      seed: of the order and of what is random in an example.
      start: the first step; a resumed run gets what the run never stopped would have got.
      stop: one past the last step.
      prefetch: batches made ahead; 0 makes each when it is asked for.
      rows: those of each batch that are made; None for all.
    """
    batches = Batches(examples, batch_size, seed, rows)
    options = grain.ReadOptions(
        num_threads=min(prefetch, _MAX_THREADS), prefetch_buffer_size=prefetch
    )
    dataset = grain.MapDataset.range(start, max(start, stop)).map(batches)
    with contextlib.closing(iter(dataset.to_iter_dataset(options))) as iterator:
        yield from iterator


class _Orders:
    """One permutation an epoch; keeps two, for the threads on either side of an epoch's end.

    Of very many examples none is kept: each place is computed when it is read.
    """

    def __init__(self, size: int, seed: int):
        self._size = size
        self._seed = seed
        self._lock = threading.Lock()
        self._kept: dict[int, np.ndarray] = {}

    def read(self, epoch: int, first: int, end: int) -> np.ndarray:
        """The examples at places first..end-1."""
        if self._size > _KEPT:
            places = np.arange(first, min(end, self._size))
            return shuffled(places, self._size, self._seed, epoch)
        return self._of(epoch)[first:end]

    def _of(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._kept:
                key = (epoch << 64) | (self._seed % 2**64)
                generator = np.random.Generator(np.random.Philox(key=key))
                self._kept[epoch] = generator.permutation(np.arange(self._size, dtype=np.int32))
                if len(self._kept) > 2:
                    del self._kept[next(iter(self._kept))]
            return self._kept[epoch]
