"""Rows of interactions between the source's files and their place in a prepared data set."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from recjax.data.columns import WHOLE, Slice, make_column, make_id_lists, make_ids, make_time
from recjax.data.dataset import Bag, Categorical, Column, order_rows
from recjax.data.lists import ItemLists
from recjax.data.schema import Schema
from recjax.data.shards import Shard
from recjax.data.store import open_array, read_rows, save_array
from recjax.data.table import positions, read_part


@dataclasses.dataclass(frozen=True)
class Rows:
    """A shard's rows as the source has them.

    Attributes:
      user: ids, Int64 or String.
      item: likewise.
      time: float64, or None.
      part: int8, or None.
      columns: the context columns, in the order of the schema; vocabularies are the shard's own.
      shown_row: of each negative, the row of the shard.
      shown: ids of the negatives; None where the schema names none.
    """

    user: pl.Series
    item: pl.Series
    time: np.ndarray | None
    part: np.ndarray | None
    columns: tuple[Column, ...]
    shown_row: np.ndarray
    shown: pl.Series | None

    @property
    def vocabs(self) -> dict[int, np.ndarray]:
        """The vocabularies by the place of their column."""
        return {
            place: column.vocab
            for place, column in enumerate(self.columns)
            if isinstance(column, Categorical | Bag)
        }


# Arrays with a row for each interaction, and lists with one list for each, by key: `user`, `item`,
# `time`, `part`, `negatives`, or the place of a context column.
Parts = tuple[dict[str, np.ndarray], dict[str, ItemLists]]


def read_shard(shard: Shard, schema: Schema, slices: Mapping[str, Slice], source: str) -> Rows:
    """The rows of a shard, checked.

    Raises:
      DataError: what is wrong, naming the row and column.
    """
    features = schema.of_side("context")
    keys = (schema.user, schema.item, schema.time, schema.part, schema.negatives)
    names = dict.fromkeys([key for key in keys if key is not None] + [f.name for f in features])
    frame = shard.read([*names])

    def slice_of(name: str) -> Slice:
        return dataclasses.replace(slices.get(name, WHOLE), start=shard.start)

    def ids(name: str) -> pl.Series:
        return make_ids(frame[name], source, slice_of(name))

    time, part, negatives = schema.time, schema.part, schema.negatives
    shown_row, shown = np.zeros(0, np.int64), None
    if negatives is not None:
        shown_row, shown = make_id_lists(frame[negatives], source, slice_of(negatives))
    return Rows(
        user=ids(schema.user),
        item=ids(schema.item),
        time=None if time is None else make_time(frame[time], source, slice_of(time)),
        part=None if part is None else read_part(frame[part], source, shard.start),
        columns=tuple(make_column(frame[f.name], f, source, slice_of(f.name)) for f in features),
        shown_row=shown_row,
        shown=shown,
    )


def recode(
    rows: Rows, user_ids: pl.Series, item_ids: pl.Series, vocabs: Mapping[int, np.ndarray]
) -> Parts:
    """The rows whose item is known, with positions for ids and codes of the whole vocabularies."""
    item = positions(item_ids, rows.item)
    keep = item >= 0
    flat = {"user": positions(user_ids, rows.user.filter(pl.Series(keep))), "item": item[keep]}
    ragged = {}
    for key, array in (("time", rows.time), ("part", rows.part)):
        if array is not None:
            flat[key] = array[keep]
    for place, column in enumerate(rows.columns):
        column = column.take(keep)
        if isinstance(column, Categorical | Bag):
            code = np.searchsorted(vocabs[place], column.vocab).astype(np.int32)
            codes = np.append(code, np.int32(-1))[column.codes]  # -1, missing, takes the last
            if isinstance(column, Bag):
                ragged[str(place)] = ItemLists(column.offsets, codes)
            else:
                flat[str(place)] = codes
        else:
            flat[str(place)] = column.values
    if rows.shown is not None:
        shown = positions(item_ids, rows.shown)
        counts = np.bincount(rows.shown_row[shown >= 0], minlength=len(keep))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        ragged["negatives"] = ItemLists(offsets, shown[shown >= 0]).take(keep)
    return flat, ragged


def save_buckets(folder: Path, parts: Parts, bucket: np.ndarray, buckets: int) -> None:
    """Writes rows by bucket, and within one in their order."""
    flat, ragged = parts
    order = np.argsort(bucket, kind="stable")
    for key, array in flat.items():
        save_array(folder / f"{key}.npy", array[order])
    for key, lists in ragged.items():
        taken = lists.take(order)
        save_array(folder / f"{key}.offsets.npy", taken.offsets)
        save_array(folder / f"{key}.items.npy", taken.items)
    counts = np.bincount(bucket, minlength=buckets)
    save_array(folder / "starts.npy", np.concatenate([[0], np.cumsum(counts)]))


def bucket_ends(folder: Path, key: str) -> np.ndarray:
    """How many entries the lists of each bucket and of those before it hold together."""
    starts = open_array(folder / "starts.npy")
    return open_array(folder / f"{key}.offsets.npy")[starts[1:]]


def load_bucket(
    folders: Sequence[Path], bucket: int, flat: Sequence[str], ragged: Sequence[str]
) -> Parts:
    """The rows of one bucket that `save_buckets` left in the folders, sorted by user and time."""
    arrays = {key: [] for key in flat}
    lengths, items = {key: [] for key in ragged}, {key: [] for key in ragged}
    for folder in folders:
        start, end = read_rows(folder / "starts.npy", bucket, bucket + 2).tolist()
        for key in flat:
            arrays[key].append(read_rows(folder / f"{key}.npy", start, end))
        for key in ragged:
            offsets = read_rows(folder / f"{key}.offsets.npy", start, end + 1)
            lengths[key].append(np.diff(offsets))
            ends = int(offsets[0]), int(offsets[-1])
            items[key].append(read_rows(folder / f"{key}.items.npy", *ends))
    joined = {key: np.concatenate(found) for key, found in arrays.items()}
    order = order_rows(joined["user"], joined.get("time"))
    lists = {}
    for key in ragged:
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths[key]))])
        lists[key] = ItemLists(offsets, np.concatenate(items[key])).take(order)
    return {key: array[order] for key, array in joined.items()}, lists
