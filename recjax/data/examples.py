"""Training examples: positions in the users' own interactions, turned into arrays batch by batch.

Nothing is materialised: an example is a position, its history a slice of what precedes it.
"""

import abc
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int

from recjax.data.blocks import count_by_user_and_item, owners, user_blocks
from recjax.data.context import WATCH_TIME, ContextReader, check_context
from recjax.data.dataset import Dataset, Interactions
from recjax.data.hashing import random_bits, to_uniform
from recjax.data.history import Histories, distinct_rows, drop_items
from recjax.data.lists import ItemLists
from recjax.data.negatives import NegativeReader
from recjax.data.split import TRAIN, Split
from recjax.errors import ConfigError, DataError

HISTORY_OF = {"next_item": "past", "multi_hot": "profile"}
_BLOCK = 8  # examples, of which the first one's user is kept: half a byte an example
_DROPOUT, _LABELS = range(2)  # streams of random bits, beside that of negatives.py


class TrainExamples(abc.ABC):
    """What a model is trained on; `make_train_examples` builds one."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of examples of an epoch."""

    @property
    @abc.abstractmethod
    def labels_per_example(self) -> int:
        """P: the width of a batch's labels."""

    @property
    @abc.abstractmethod
    def label_frequency_N(self) -> np.ndarray:
        """How often a label of a row, drawn by its weight, is each item: float64 [N], sums to 1.

        The expected shares of an epoch. The weights of examples have no part in it: they scale
        losses, and a row's labels come into a batch as often whatever the row weighs.
        """

    @abc.abstractmethod
    def batch(
        self, indices_B: Int[np.ndarray, "B"], *, seed: int, epoch: int
    ) -> dict[str, np.ndarray]:
        """The examples at the given positions; each row depends on its own example alone.

        Args:
          indices_B: positions in 0..size-1.
          seed: of what is random in an example: dropped history, labels and negatives left out.
          epoch: as `seed`; each epoch draws afresh.

        Returns:
          `user` int32 [B]; `history` int32 [B, L], the oldest first, -1 on the left; `context/*`
          float32 [B], NaN where missing; `label` int32 [B, P], -1 where `label_weight` float32
          [B, P] is 0 (its rows sum to 1); `weight` float32 [B]; `index` int32 [B], the position in
          the batch; where asked for, `negative` int32 [B, E], distinct in a row and none of its
          labels, -1 on the right.
        """

    @abc.abstractmethod
    def describe(self) -> str:
        """One line for people."""


@dataclasses.dataclass(frozen=True)
class NextItemExamples(TrainExamples):
    """One example per training interaction: its item, from what the user did before it.

    Attributes:
      rows: interactions in which those of training come first among each user's.
      num_items: N.
      user_A: int32, the users with examples, in rising order.
      first_example_A: int64 [A + 1], the first example of each, and one past the last.
      min_history: the earlier training interactions that an example needs.
      histories: of `rows`.
      context: reads the context features.
      negatives: reads those of the interaction.
    """

    rows: Interactions
    num_items: int
    user_A: np.ndarray
    first_example_A: np.ndarray
    min_history: int
    histories: Histories
    context: ContextReader
    negatives: NegativeReader

    @property
    def size(self) -> int:
        """Number of examples of an epoch."""
        return int(self.first_example_A[-1])

    @property
    def labels_per_example(self) -> int:
        """P: 1."""
        return 1

    @functools.cached_property
    def label_frequency_N(self) -> Float64[np.ndarray, "N"]:
        """Share of the examples whose label is each item."""
        count_N = np.zeros(self.num_items, np.int64)
        for users, examples in user_blocks(self.first_example_A):
            active = users.start + owners(self.first_example_A, users)
            _, position = self._locate(active, np.arange(examples.start, examples.stop))
            count_N += np.bincount(self.rows.item[position], minlength=self.num_items)
        return count_N / self.size

    def batch(
        self, indices_B: Int[np.ndarray, "B"], *, seed: int, epoch: int
    ) -> dict[str, np.ndarray]:
        """See `TrainExamples.batch`."""
        active_B = self._active(indices_B)
        start_B, position_B = self._locate(active_B, indices_B)
        batch = {
            "user": self.user_A[active_B],
            "history": self.histories.before(start_B, position_B),
        }
        if self.context.names:
            assert self.rows.time is not None
            time_B = self.rows.time[position_B]
            batch |= self.context.read(position_B, time_B, start_B, position_B)
        batch |= self.negatives.read(position_B, indices_B, seed=seed, epoch=epoch)
        label_BxP = self.rows.item[position_B][:, None]
        label_weight_BxP = np.ones(label_BxP.shape, np.float32)
        return batch | _labelled(label_BxP, label_weight_BxP, np.ones(len(indices_B), np.float32))

    @functools.cached_property
    def _block_A(self) -> np.ndarray:
        """Whose example is every `_BLOCK`th: its place in `user_A`, int32."""
        firsts = np.arange(0, self.size, _BLOCK)
        return (np.searchsorted(self.first_example_A, firsts, side="right") - 1).astype(np.int32)

    def _active(self, indices_B: np.ndarray) -> np.ndarray:
        """Whose the examples are: places in `user_A`.

        A search among all users misses the cache all the time, which took most of a batch. But of
        the users after that of a block's first example, each has one in the block or lies beyond.
        """
        low_B = self._block_A[indices_B // _BLOCK].astype(np.int64)
        after_BxK = low_B[:, None] + np.arange(1, _BLOCK)
        first_BxK = self.first_example_A[np.minimum(after_BxK, len(self.user_A))]
        return low_B + np.sum(first_BxK <= indices_B[:, None], axis=1)

    def _locate(self, active_B: np.ndarray, indices_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where in `rows` the users of examples begin, and the examples' own interactions."""
        start_B = self.rows.offsets[self.user_A[active_B]]
        return start_B, start_B + self.min_history + indices_B - self.first_example_A[active_B]

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{self.size:,} next_item examples of {len(self.user_A):,} users, "
            f"past of up to {self.histories.windows.shape[1]}, "
            f"context {', '.join(self.context.names) or 'none'}"
            f"{_describe(self.negatives)}"
        )


@dataclasses.dataclass(frozen=True)
class MultiHotExamples(TrainExamples):
    """One example per user with training interactions: its distinct items, from themselves.

    The labels and the history of Mult-DAE (Liang et al., WWW 2018).

    Attributes:
      train: the training interactions, the latest of each user and item.
      num_items: N.
      user_E: int32, the example's user.
      histories: of the training interactions.
      history_dropout: chance that an item is left out of the history in an epoch.
      max_labels: users with more distinct items get so many of them, others every epoch.
      weight_power: an example weighs (number of its distinct items) ** weight_power.
      negatives: reads those of all the user's training interactions.
    """

    train: Interactions
    num_items: int
    user_E: np.ndarray
    histories: Histories
    history_dropout: float
    max_labels: int
    weight_power: float
    negatives: NegativeReader

    @property
    def size(self) -> int:
        """Number of examples of an epoch."""
        return len(self.user_E)

    @functools.cached_property
    def labels_per_example(self) -> int:
        """P: `max_labels`, or the distinct items of the most active user if that is less."""
        return min(self.max_labels, int(np.diff(self.train.offsets).max()))

    @functools.cached_property
    def label_frequency_N(self) -> Float64[np.ndarray, "N"]:
        """Expected share: a user's mass is even over its items, whichever of them are drawn."""
        share_M = 1.0 / np.diff(self.train.offsets)[self.train.user]
        mass_N = np.bincount(self.train.item, weights=share_M, minlength=self.num_items)
        return mass_N / mass_N.sum()

    def batch(
        self, indices_B: Int[np.ndarray, "B"], *, seed: int, epoch: int
    ) -> dict[str, np.ndarray]:
        """See `TrainExamples.batch`."""
        user_B = self.user_E[indices_B]
        start_B, end_B = self.train.offsets[user_B], self.train.offsets[user_B + 1]
        history_BxL = self.histories.before(start_B, end_B)
        if self.history_dropout > 0.0:
            from_end_L = np.arange(history_BxL.shape[1], 0, -1)
            bits_BxL = random_bits(seed, epoch, _DROPOUT, indices_B[:, None], from_end_L[None, :])
            history_BxL = drop_items(history_BxL, to_uniform(bits_BxL), self.history_dropout)
        label_BxP = ItemLists(self.train.offsets, self.train.item).draw(
            user_B, self.labels_per_example, indices_B, stream=_LABELS, seed=seed, epoch=epoch
        )
        count_B = (end_B - start_B).astype(np.float64)
        share_B = 1.0 / np.minimum(count_B, self.labels_per_example)
        label_weight_BxP = ((label_BxP >= 0) * share_B[:, None]).astype(np.float32)
        weight_B = (count_B**self.weight_power).astype(np.float32)
        negative = self.negatives.read(user_B, indices_B, seed=seed, epoch=epoch)
        labelled = _labelled(label_BxP, label_weight_BxP, weight_B)
        return {"user": user_B, "history": history_BxL} | negative | labelled

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{self.size:,} multi_hot examples (one a user), {self.train.size / self.size:.1f} "
            f"distinct items each, up to {self.labels_per_example} of them labels, "
            f"profile of up to {self.histories.windows.shape[1]}, "
            f"{self.history_dropout:.0%} of it dropped"
            f"{_describe(self.negatives)}"
        )


def make_train_examples(
    dataset: Dataset,
    split: Split,
    *,
    labels: str,
    history: str,
    history_length: int,
    max_labels: int = 128,
    history_dropout: float = 0.0,
    context: Sequence[str] = (),
    min_history: int = 1,
    weight_power: float = 0.0,
    negatives: bool = False,
    max_negatives: int = 16,
) -> NextItemExamples | MultiHotExamples:
    """Training examples of the interactions that the split trains on.

    Args:
      dataset: the data.
      split: of that data.
      labels: `next_item` or `multi_hot`.
      history: `past` (with next_item) or `profile` (with multi_hot).
      history_length: L; 0 for none.
      max_labels: multi_hot: the most labels of one example.
      history_dropout: multi_hot: chance that an item is left out of the history.
      context: next_item: names of context features (see `available_context`).
      min_history: next_item: the earlier training interactions that an example needs.
      weight_power: multi_hot: an example weighs (number of its distinct items) ** weight_power.
      negatives: whether examples have negatives of their own: with next_item those that the
        interaction lists, with multi_hot those of all the user's training interactions.
      max_negatives: the most negatives of one example.

    Raises:
      ConfigError: choices that do not go together.
      DataError: the data has no times or no negatives where they are needed, or no example is left.
    """
    check_history(dataset, history, history_length)
    if HISTORY_OF.get(labels) != history:
        raise ConfigError(
            f"config.examples.labels={labels!r} with history={history!r}: legal are "
            + " and ".join(f"{label!r} with {policy!r}" for label, policy in HISTORY_OF.items())
        )
    if not 0.0 <= history_dropout < 1.0 or (history == "past" and history_dropout > 0.0):
        raise ConfigError(
            f"config.examples.history_dropout={history_dropout} with history={history!r}: it "
            "must be in [0, 1), and 0 unless the history is 'profile'"
        )
    if max_labels < 1:
        raise ConfigError(f"config.examples.max_labels={max_labels}: it must be 1 or more")
    if labels == "next_item" and weight_power != 0.0:
        raise ConfigError(
            f"config.examples.weight_power={weight_power} with config.examples.labels='next_item': "
            "each of its examples has one label; set it to 0.0 or use 'multi_hot'"
        )
    if labels == "multi_hot" and context:
        raise ConfigError(
            f"context features {tuple(context)} with config.examples.labels='multi_hot': its "
            "examples have no moment to compute them at; leave them out or use 'next_item'"
        )
    check_context(dataset, context)
    every = slim(dataset.interactions, context, negatives=negatives)
    mask_M = split.part_M == TRAIN
    count_U, _ = count_by_user_and_item(every, mask_M, dataset.items.size)
    if not count_U.any():
        raise DataError(f"{dataset.name}: the split {split.name!r} has no training interactions")
    in_place = labels == "next_item" and not negatives and _comes_first(every, mask_M, count_U)
    train = every if in_place else every.select(mask_M)
    reader = NegativeReader()
    if negatives:
        owner_M = train.user if labels == "multi_hot" else np.arange(train.size)
        reader = NegativeReader.build(
            train, owner_M, dataset.items.size, max_negatives, dataset.name
        )
        train = dataclasses.replace(train, negatives=None)
    if labels == "multi_hot":
        train = train.select(distinct_rows(train.user, train.item, keep="last"))
        return MultiHotExamples(
            train=train,
            num_items=dataset.items.size,
            user_E=np.flatnonzero(np.diff(train.offsets)).astype(np.int32),
            histories=Histories.build(train.item, history_length),
            history_dropout=history_dropout,
            max_labels=max_labels,
            weight_power=weight_power,
            negatives=reader,
        )
    examples_U = np.maximum(count_U - min_history, 0)
    user_A = np.flatnonzero(examples_U).astype(np.int32)
    examples = NextItemExamples(
        rows=train,
        num_items=dataset.items.size,
        user_A=user_A,
        first_example_A=np.concatenate([[0], np.cumsum(examples_U[user_A])]),
        min_history=min_history,
        histories=Histories.build(train.item, history_length),
        context=ContextReader.build(context, train, train),
        negatives=reader,
    )
    if not examples.size:
        raise DataError(
            f"{dataset.name}: no training interaction has {min_history} earlier ones of its user; "
            "lower config.examples.min_history"
        )
    return examples


def _comes_first(every: Interactions, mask_M: np.ndarray, count_U: np.ndarray) -> bool:
    """Whether each user's interactions where the mask is true come before all others."""
    for users, rows in user_blocks(every.offsets):
        owner = owners(every.offsets, users)
        place = np.arange(rows.start, rows.stop) - every.offsets[users][owner]
        if not np.array_equal(mask_M[rows], place < count_U[users][owner]):
            return False
    return True


def check_history(dataset: Dataset, history: str, history_length: int) -> None:
    """Raises if there is no such history, or the data has no times to order a `past` by."""
    if history not in HISTORY_OF.values():
        raise ConfigError(f"config.examples.history={history!r}: it must be 'past' or 'profile'")
    if history_length < 0:
        raise ConfigError(f"config.examples.history_length={history_length}: it must be 0 or more")
    if history == "past" and dataset.interactions.time is None:
        raise DataError(
            f"{dataset.name}: this data has no times, and without them nothing is 'past' or "
            "'next_item'; use config.examples.labels='multi_hot' with history='profile', or name "
            "the schema's time column"
        )


def slim(
    interactions: Interactions, context: Sequence[str], *, negatives: bool = False
) -> Interactions:
    """The interactions without the columns that the context features do not read."""
    names = [WATCH_TIME if name == "last_watch_time" else name for name in context]
    columns = {n: c for n, c in interactions.columns.items() if n in names}
    kept = interactions.negatives if negatives else None
    return dataclasses.replace(interactions, columns=columns, part=None, negatives=kept)


def _labelled(
    label_BxP: np.ndarray, label_weight_BxP: np.ndarray, weight_B: np.ndarray
) -> dict[str, np.ndarray]:
    return {
        "label": label_BxP,
        "label_weight": label_weight_BxP,
        "weight": weight_B,
        "index": np.arange(len(label_BxP), dtype=np.int32),
    }


def _describe(negatives: NegativeReader) -> str:
    return f", up to {negatives.width} negatives of its own" if negatives.width else ""
