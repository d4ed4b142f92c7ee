"""A data set in memory: columnar, immutable, interactions sorted by user and time."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from recjax.data.lists import ItemLists, take_lists
from recjax.data.schema import Schema

if TYPE_CHECKING:
    from recjax.data.world import World


@dataclasses.dataclass(frozen=True)
class Dense:
    """A number per row: float32 [n]; NaN where it is missing."""

    values: np.ndarray

    def take(self, rows: np.ndarray) -> "Dense":
        """The column at the given rows."""
        return Dense(self.values[rows])


@dataclasses.dataclass(frozen=True)
class Categorical:
    """One value of a set per row: int32 codes [n] into vocab [V]; -1 where it is missing."""

    codes: np.ndarray
    vocab: np.ndarray

    def take(self, rows: np.ndarray) -> "Categorical":
        """The column at the given rows."""
        return Categorical(self.codes[rows], self.vocab)


@dataclasses.dataclass(frozen=True)
class Bag:
    """Several values per row: row r holds codes[offsets[r]:offsets[r+1]], indices into vocab."""

    offsets: np.ndarray
    codes: np.ndarray
    vocab: np.ndarray

    def take(self, rows: np.ndarray) -> "Bag":
        """The column at the given rows (integers or a mask)."""
        offsets, places = take_lists(self.offsets, rows)
        return Bag(offsets, self.codes[places], self.vocab)


@dataclasses.dataclass(frozen=True)
class Vector:
    """A pretrained vector per row: float32 [n, d]; a row of NaN where it is missing."""

    values: np.ndarray

    def take(self, rows: np.ndarray) -> "Vector":
        """The column at the given rows."""
        return Vector(self.values[rows])


Column = Dense | Categorical | Bag | Vector


@dataclasses.dataclass(frozen=True)
class Table:
    """A user or item table: ids [n] as the source wrote them (int64 or str), and its columns."""

    ids: np.ndarray
    columns: Mapping[str, Column] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.ids)

    @functools.cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.ids, kind="stable")

    def index_of(self, ids: Any) -> np.ndarray:
        """Positions (int32) of ids in this table; -1 for an id that it does not hold."""
        ids = np.asarray(ids)
        if (
            ids.size == 0
            or self.size == 0
            or (ids.dtype.kind in "US") != (self.ids.dtype.kind in "US")
        ):
            return np.full(ids.shape, -1, np.int32)
        place = np.minimum(np.searchsorted(self.ids, ids, sorter=self._order), self.size - 1)
        found = self._order[place]
        return np.where(self.ids[found] == ids, found, -1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Who interacted with what: sorted by user, then time, then row of the source.

    Attributes:
      user: int32 [M], positions in the user table.
      item: int32 [M], positions in the item table.
      offsets: int64 [U + 1]; user u's interactions are rows offsets[u]:offsets[u + 1].
      time: float64 [M], unix seconds, or None.
      columns: further columns (the context side of the schema).
      part: int8 [M], a predefined split (codes as in `split.py`), or None.
      negatives: of each interaction, the items that were shown and not chosen, or None.
    """

    user: np.ndarray
    item: np.ndarray
    offsets: np.ndarray
    time: np.ndarray | None = None
    columns: Mapping[str, Column] = dataclasses.field(default_factory=dict)
    part: np.ndarray | None = None
    negatives: ItemLists | None = None

    @property
    def size(self) -> int:
        """Number of interactions."""
        return len(self.user)

    @property
    def num_users(self) -> int:
        """Number of users, those without interactions included."""
        return len(self.offsets) - 1

    @classmethod
    def build(
        cls,
        user: np.ndarray,
        item: np.ndarray,
        num_users: int,
        *,
        time: np.ndarray | None = None,
        columns: Mapping[str, Column] | None = None,
        part: np.ndarray | None = None,
        negatives: ItemLists | None = None,
    ) -> "Interactions":
        """Sorts rows given in the order of the source; ties in time keep that order."""
        order = order_rows(user, time)
        return cls(
            user=user[order].astype(np.int32),
            item=item[order].astype(np.int32),
            offsets=offsets_of(user, num_users),
            time=None if time is None else time[order].astype(np.float64),
            columns={name: column.take(order) for name, column in (columns or {}).items()},
            part=None if part is None else part[order].astype(np.int8),
            negatives=None if negatives is None else negatives.take(order),
        )

    def between(self, users: slice, rows: slice) -> "Interactions":
        """A run of users, counted from 0 on, and their interactions without columns or negatives.

        `rows` are theirs.
        """
        return Interactions(
            user=self.user[rows] - np.int32(users.start),
            item=self.item[rows],
            offsets=self.offsets[users.start : users.stop + 1] - rows.start,
            time=None if self.time is None else self.time[rows],
            part=None if self.part is None else self.part[rows],
        )

    def select(self, mask_M: np.ndarray) -> "Interactions":
        """The interactions where the mask is true (or of ascending rows), for the same users."""
        user = self.user[mask_M]
        return Interactions(
            user=user,
            item=self.item[mask_M],
            offsets=offsets_of(user, self.num_users),
            time=None if self.time is None else self.time[mask_M],
            columns={name: column.take(mask_M) for name, column in self.columns.items()},
            part=None if self.part is None else self.part[mask_M],
            negatives=None if self.negatives is None else self.negatives.take(mask_M),
        )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Users, items, their interactions, and what their columns mean.

    Attributes:
      name: what the data set is called in logs and protocols.
      schema: kinds and sides of the columns.
      users: the user table; every user of the interactions is in it.
      items: the item table; every item of the interactions is in it.
      interactions: sorted by user and time.
      titles: a title per item (str [N]), or None.
      world: the truth that a synthetic data set was drawn from, or None.
    """

    name: str
    schema: Schema
    users: Table
    items: Table
    interactions: Interactions
    titles: np.ndarray | None = None
    world: "World | None" = None

    @functools.cached_property
    def hash(self) -> str:
        """16 hex digits over every id, column and interaction: equal data, equal hash."""
        return self.digest(_update)

    def digest(self, update: "Callable[[hashlib._Hash, np.ndarray], None]") -> str:
        """The hash, where `update` brings the bytes of each array."""
        record = dataclasses.asdict(self.schema)
        if self.schema.negatives is None:  # counts where it is set: the hash of other data stays
            del record["negatives"]
        digest = hashlib.sha256((json.dumps(record, indent=2) + "\n").encode())
        inter = self.interactions
        arrays = [self.users.ids, self.items.ids, inter.user, inter.item, inter.time, inter.part]
        for columns in (self.users.columns, self.items.columns, inter.columns):
            for name in sorted(columns):
                digest.update(name.encode())
                arrays.extend(vars(columns[name]).values())
        if inter.negatives is not None:
            arrays.extend((inter.negatives.offsets, inter.negatives.items))
        for array in arrays:
            if array is not None:
                digest.update(f"{array.dtype.kind}{array.shape}".encode())
                update(digest, array)
        return digest.hexdigest()[:16]

    @classmethod
    def from_frames(
        cls,
        interactions: Any,
        users: Any = None,
        items: Any = None,
        schema: Schema | None = None,
        *,
        name: str = "frames",
        unknown_items: str = "error",
    ) -> "Dataset":
        """A data set from Polars or pandas frames in memory (see `recjax.data.table`).

        Args:
          interactions: one row per interaction.
          users: one row per user, or None.
          items: one row per item, or None.
          schema: kinds and names of the columns; inferred where None.
          name: what the data set is called.
          unknown_items: `error` or `drop`, for interactions and negatives that are not in `items`.

        Raises:
          DataError: naming the frame, row and column that is wrong.
        """
        from recjax.data import table  # table reads files into frames and builds on this module

        return table.dataset_from_frames(
            interactions, users, items, schema, name=name, unknown_items=unknown_items
        )


def order_rows(user: np.ndarray, time: np.ndarray | None) -> np.ndarray:
    """The order by user, then time, then row."""
    return np.argsort(user, kind="stable") if time is None else np.lexsort((time, user))


def offsets_of(user: np.ndarray, num_users: int) -> np.ndarray:
    """Where each user's rows begin, and where the last's end, once they are sorted: int64."""
    return np.concatenate([[0], np.cumsum(np.bincount(user, minlength=num_users))]).astype(np.int64)


def _update(digest: "hashlib._Hash", array: np.ndarray) -> None:
    if array.size:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
