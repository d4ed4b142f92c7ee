"""Queries: whom to recommend to, from what is known of them, and what they turned out to want."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32

from recjax.data.context import ContextReader, check_context
from recjax.data.dataset import Dataset, Interactions
from recjax.data.examples import check_history, slim
from recjax.data.hashing import mix
from recjax.data.history import Histories, distinct_rows
from recjax.data.split import TRAIN, Split, hash_ids
from recjax.errors import ConfigError, DataError

SEEN_POLICIES = ("known", "train", "none")


@dataclasses.dataclass(frozen=True)
class EvalQueries:
    """One query a user, as `make_queries` and `serving_queries` build them.

    Attributes:
      user_Q: int32, the users.
      known: what is known of these users when the part is asked.
      target_offsets: int64 [Q + 1]; query q's targets are target_items[offsets[q]:offsets[q + 1]].
      target_items: int32, distinct within a query, in the order the user came to them.
      history_count_Q: int64, known interactions of the user.
      user_in_training_Q: bool, whether training has any interaction of the user.
      time_Q: float64, unix seconds of the request: the first target's; NaN where there is none.
      past_end_Q: int64, one past the user's last known interaction before the request.
      request_Q: int64, the row of the request among all interactions; -1 for now.
      context: reads the context features.
      histories: of the interactions that the history policy takes.
      history_start_Q: int64, where the user's begin in `histories`.
      history_end_Q: int64, one past the last of them that the query may read: under `past` those
        before the request, under `profile` all.
      seen_items: policy -> (int64 offsets [U + 1], int32 distinct items).
    """

    user_Q: np.ndarray
    known: Interactions
    target_offsets: np.ndarray
    target_items: np.ndarray
    history_count_Q: np.ndarray
    user_in_training_Q: np.ndarray
    time_Q: np.ndarray
    past_end_Q: np.ndarray
    request_Q: np.ndarray
    context: ContextReader
    histories: Histories
    history_start_Q: np.ndarray
    history_end_Q: np.ndarray
    seen_items: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @property
    def size(self) -> int:
        """Number of queries."""
        return len(self.user_Q)

    def batch(self, rows: Int[np.ndarray, "B"]) -> dict[str, np.ndarray]:
        """The queries at the given positions: `user`, `history` and `context/*`.

        Arrays are as in `TrainExamples.batch`; nothing is random and nothing dropped.
        """
        user_B = self.user_Q[rows]
        return {
            "user": user_B,
            "history": self.histories.before(self.history_start_Q[rows], self.history_end_Q[rows]),
        } | self.context.read(
            self.request_Q[rows],
            self.time_Q[rows],
            self.known.offsets[user_B],
            self.past_end_Q[rows],
        )

    def seen_targets(self, policy: str) -> Bool[np.ndarray, " T"]:
        """Whether each target is an item that `seen` removes: no ranking can find it."""
        if policy == "none":
            return np.zeros(len(self.target_items), bool)
        offsets, items = self.seen_items[policy]
        user_T = np.repeat(self.user_Q, np.diff(self.target_offsets))
        owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        stride = 1 + max(items.max(initial=0), self.target_items.max(initial=0))
        pairs = owner * np.int64(stride) + items
        return np.isin(user_T * np.int64(stride) + self.target_items, pairs)

    def seen(self, rows: Int[np.ndarray, "B"], policy: str) -> Int32[np.ndarray, "B S"]:
        """Distinct items that are not to be recommended: padded with -1, S a power of two.

        Args:
          rows: positions of queries.
          policy: `known` (all that is known of the user), `train` (the user's training items) or
            `none`.

        Raises:
          ConfigError: any other policy.
        """
        if policy not in SEEN_POLICIES:
            raise ConfigError(f"config.eval.seen={policy!r}: it must be one of {SEEN_POLICIES}")
        if policy == "none":
            return np.full((len(rows), 1), -1, np.int32)
        offsets, items = self.seen_items[policy]
        user_B = self.user_Q[rows]
        start_B, end_B = offsets[user_B], offsets[user_B + 1]
        longest = int((end_B - start_B).max(initial=1))
        if not items.size:
            items = np.full(1, -1, np.int32)
        row_BxS = start_B[:, None] + np.arange(1 << (longest - 1).bit_length())[None, :]
        seen_BxS = items.take(row_BxS, mode="clip")
        return np.where(row_BxS < end_B[:, None], seen_BxS, np.int32(-1))


def make_queries(
    dataset: Dataset,
    split: Split,
    part: str,
    *,
    history: str,
    history_length: int,
    context: Sequence[str] = (),
    max_queries: int = 0,
) -> EvalQueries:
    """One query for each user with interactions to be predicted, asked at the first of them.

    A `past` history and the context features are of what the user did before the first target, as
    far as the split lets it be known; a `profile` is of all that is known.

    Args:
      dataset: the data.
      split: of that data.
      part: `valid` or `test`.
      history: `past` (known interactions in order) or `profile` (distinct known items).
      history_length: L, the latest that are kept; 0 for none.
      context: names of context features (see `available_context`).
      max_queries: above 0: of more users, so many are asked, drawn by a hash of their ids, so that
        `valid` and `test` ask the same ones.

    Raises:
      ConfigError: an unknown history policy, or `valid` of a split that trains on it.
      DataError: the data has no times where they are needed, or the part is empty.
    """
    check_history(dataset, history, history_length)
    check_context(dataset, context)
    if part == "valid" and split.trains_on_valid:
        raise ConfigError(
            f"{dataset.name}: with config.split.fit='train_and_valid' there is nothing to validate "
            "on; ask for 'test', or set split.fit to 'train'"
        )
    every = slim(dataset.interactions, context)
    target = np.flatnonzero(split.target_M(part))
    if not target.size:
        raise DataError(
            f"{dataset.name}: the split {split.name!r} has nothing to predict in {part!r}"
        )
    if max_queries:
        user_T = np.searchsorted(every.offsets, target, side="right") - 1
        asked_U = np.zeros(every.num_users, bool)
        asked_U[_draw_users(dataset, np.unique(user_T), max_queries)] = True
        target = target[asked_U[user_T]]
    target = target[distinct_rows(every.user[target], every.item[target], keep="first")]
    user_Q, first_Q, count_Q = np.unique(every.user[target], return_index=True, return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(count_Q)])
    return _queries(
        dataset,
        every,
        split.known_M(part),
        train_M=split.part_M == TRAIN,
        user_Q=user_Q,
        targets=(offsets, every.item[target]),
        request_Q=target[first_Q],
        history=history,
        history_length=history_length,
        context=context,
    )


def serving_queries(
    dataset: Dataset,
    split: Split | None,
    user_Q: Int[np.ndarray, "Q"],
    *,
    history: str,
    history_length: int,
    context: Sequence[str] = (),
) -> EvalQueries:
    """Queries for recommending to users now, with every interaction of the data known.

    The request's time is that of the user's last interaction (so `time_since_last` is 0), the only
    present that the data knows; a context column has no value at such a request.

    Args:
      dataset: the data.
      split: says what training saw; None if it saw every interaction.
      user_Q: positions of users, in any order, repeated or not.
      history: as in `make_queries`.
      history_length: as in `make_queries`.
      context: as in `make_queries`.

    Raises:
      ConfigError: an unknown history policy.
      DataError: a position outside the user table, or no times where they are needed.
    """
    check_history(dataset, history, history_length)
    check_context(dataset, context)
    outside = (user_Q < 0) | (user_Q >= dataset.users.size)
    if outside.any():
        raise DataError(
            f"{dataset.name}: no user at position {user_Q[outside][0]} (query "
            f"{np.flatnonzero(outside)[0]}); positions go from 0 to {dataset.users.size - 1}"
        )
    every = slim(dataset.interactions, context)
    all_M = np.ones(every.size, bool)
    return _queries(
        dataset,
        every,
        all_M,
        train_M=all_M if split is None else split.part_M == TRAIN,
        user_Q=user_Q,
        targets=(np.zeros(len(user_Q) + 1, np.int64), np.zeros(0, np.int32)),
        request_Q=None,
        history=history,
        history_length=history_length,
        context=context,
    )


def _queries(
    dataset: Dataset,
    every: Interactions,
    known_M: np.ndarray,
    *,
    train_M: np.ndarray,
    user_Q: np.ndarray,
    targets: tuple[np.ndarray, np.ndarray],
    request_Q: np.ndarray | None,
    history: str,
    history_length: int,
    context: Sequence[str],
) -> EvalQueries:
    """Queries at the rows request_Q of every interaction; None: after the last of each user."""
    asked_U = np.zeros(every.num_users, bool)
    asked_U[user_Q] = True
    asked_M = np.repeat(asked_U, np.diff(every.offsets))
    known_M, train_M = known_M & asked_M, train_M & asked_M
    known = _select(every, known_M)
    distinct = _distinct(known)
    trained = distinct if np.array_equal(known_M, train_M) else _distinct(_select(every, train_M))
    source = known if history == "past" else distinct
    if request_Q is None:
        past_end_Q = known.offsets[user_Q + 1]
        last_Q = np.where(np.diff(every.offsets)[user_Q] > 0, every.offsets[user_Q + 1] - 1, -1)
        time_Q = _at(every.time, last_Q)
        request_Q = np.full(len(user_Q), -1)
    else:
        past_end_Q = np.searchsorted(np.flatnonzero(known_M), request_Q)
        time_Q = _at(every.time, request_Q)
    return EvalQueries(
        user_Q=user_Q.astype(np.int32),
        known=known,
        target_offsets=targets[0],
        target_items=targets[1],
        history_count_Q=np.diff(known.offsets)[user_Q],
        user_in_training_Q=np.diff(trained.offsets)[user_Q] > 0,
        time_Q=time_Q,
        past_end_Q=past_end_Q,
        request_Q=request_Q,
        context=ContextReader.build(context, known, every),
        histories=Histories.build(source.item, history_length),
        history_start_Q=source.offsets[user_Q],
        history_end_Q=past_end_Q if history == "past" else source.offsets[user_Q + 1],
        seen_items={
            "known": (distinct.offsets, distinct.item),
            "train": (trained.offsets, trained.item),
        },
    )


def _draw_users(dataset: Dataset, user_Q: np.ndarray, count: int) -> np.ndarray:
    """Up to so many of the users: those whose ids have the lowest hashes."""
    hash_Q = mix(hash_ids(dataset.users.ids[user_Q]), 0)
    return user_Q[np.argsort(hash_Q, kind="stable")[:count]]


def _select(every: Interactions, mask_M: np.ndarray) -> Interactions:
    """The interactions where the mask is true; of few, nothing else is read."""
    few = 4 * np.count_nonzero(mask_M) < len(mask_M)
    return every.select(np.flatnonzero(mask_M) if few else mask_M)


def _distinct(interactions: Interactions) -> Interactions:
    return interactions.select(distinct_rows(interactions.user, interactions.item, keep="last"))


def _at(time_M: np.ndarray | None, row_Q: np.ndarray) -> np.ndarray:
    if time_M is None or not time_M.size:
        return np.full(len(row_Q), np.nan)
    return np.where(row_Q < 0, np.nan, time_M.take(row_Q, mode="clip"))
