"""Data sets from frames in memory, and from a directory of Parquet or CSV files.

DIR holds `interactions.{parquet,csv}` and, optionally, `users.*`, `items.*` and `schema.json`.
Columns of the interactions that are no keys are context features; such a column (a rating, say) is
often known only after the interaction, and then it may be read of earlier interactions only.
The column `negatives` lists the ids of items that were shown and not chosen (in CSV: 7|12|31).
"""

import difflib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recjax.data.columns import make_column, make_id_lists, make_ids, make_time, to_array
from recjax.data.dataset import Column, Dataset, Interactions, Table
from recjax.data.files import decode, describe, read_bytes
from recjax.data.frames import keep_zeros, read_frame
from recjax.data.infer import infer_schema
from recjax.data.lists import ItemLists
from recjax.data.schema import Schema
from recjax.data.split import TEST, TRAIN, VALID
from recjax.errors import CheckpointError, ConfigError, DataError
from recjax.files import write_file

_log = logging.getLogger(__name__)

TABLES = ("interactions", "users", "items")
_SUFFIXES = (".parquet", ".csv")
_PARTS = {"train": TRAIN, "valid": VALID, "validation": VALID, "val": VALID, "test": TEST}


def dataset_from_frames(
    interactions: Any,
    users: Any = None,
    items: Any = None,
    schema: Schema | None = None,
    *,
    name: str = "frames",
    unknown_items: str = "error",
    sources: Mapping[str, str] | None = None,
) -> Dataset:
    """A data set from frames in memory: Polars, pandas (needs pyarrow) or a dict of columns.

    A user whom `users` does not list gets a row with every value missing. Without `users` or
    `items` the tables are the sorted distinct ids of the interactions (and of their negatives).

    Args:
      interactions: one row per interaction.
      users: one row per user, or None.
      items: one row per item, or None.
      schema: kinds and names of the columns; inferred where None (`recjax.data.infer`).
      name: what the data set is called.
      unknown_items: `error` or `drop`, for interactions and negatives that are not in `items`.
      sources: what `interactions`, `users` and `items` are called in messages.

    Raises:
      DataError: naming the frame, row and column that is wrong.
    """
    if unknown_items not in ("error", "drop"):
        raise ConfigError(f"data.unknown_items={unknown_items!r}; it must be 'error' or 'drop'")
    source = {**dict(zip(TABLES, TABLES, strict=True)), **(sources or {})}
    rows = _to_frame(interactions, source["interactions"])
    user_frame = None if users is None else _to_frame(users, source["users"])
    item_frame = None if items is None else _to_frame(items, source["items"])
    if rows.is_empty():
        raise DataError(f"{source['interactions']}: no interactions; it needs at least one row")
    if schema is None:
        schema = infer_schema(rows, user_frame, item_frame, sources=source)
    check_columns(schema, rows, user_frame, item_frame, source)

    user_M = make_ids(rows[schema.user], source["interactions"])
    item_M = make_ids(rows[schema.item], source["interactions"])
    time = None if schema.time is None else make_time(rows[schema.time], source["interactions"])
    part = None if schema.part is None else read_part(rows[schema.part], source["interactions"])
    columns = make_columns(schema, "context", rows, source["interactions"])

    row_T, shown_T = np.zeros(0, np.int64), item_M.clear()
    if schema.negatives is not None:
        row_T, shown_T = make_id_lists(rows[schema.negatives], source["interactions"])
    listed = pl.concat(same_kind(item_M, shown_T))
    item_ids = table_ids(item_frame, schema.item, listed, source["items"])
    position = positions(item_ids, listed)
    item_index, shown_index = position[: len(rows)], position[len(rows) :]
    keep = item_index >= 0
    if not keep.all():
        unknown = item_M.filter(~pl.Series(keep))
        distinct = unknown.unique(maintain_order=True)
        report_unknown(len(unknown), distinct, source, unknown_items)
        if not keep.any():
            raise none_is_known(source)
        user_M, item_index = user_M.filter(pl.Series(keep)), item_index[keep]
        time, part = (None if x is None else x[keep] for x in (time, part))
        columns = {key: column.take(keep) for key, column in columns.items()}
    negatives = None
    if schema.negatives is not None:
        known = shown_index >= 0
        if not known.all():
            first = f"row {row_T[~known][0] + 1}, column {schema.negatives!r}"
            unknown = shown_T.filter(~pl.Series(known))
            distinct = unknown.unique(maintain_order=True)
            report_unknown(len(unknown), distinct, source, unknown_items, first)
        counts = np.bincount(row_T[known], minlength=len(rows))
        negatives = ItemLists(np.concatenate([[0], np.cumsum(counts)]), shown_index[known])
        negatives = negatives.take(keep)

    user_ids = table_ids(user_frame, schema.user, user_M, source["users"])
    if user_frame is not None:
        user_ids, user_frame = add_users(user_ids, user_frame, user_M)
    user_index = positions(user_ids, user_M)
    return Dataset(
        name=name,
        schema=schema,
        users=Table(to_array(user_ids), make_columns(schema, "user", user_frame, source["users"])),
        items=Table(to_array(item_ids), make_columns(schema, "item", item_frame, source["items"])),
        interactions=Interactions.build(
            user_index,
            item_index,
            len(user_ids),
            time=time,
            columns=columns,
            part=part,
            negatives=negatives,
        ),
        titles=make_titles(schema, item_frame, item_ids),
    )


def load_table(directory: str | Path, *, unknown_items: str = "error") -> Dataset:
    """The data set in a directory of Parquet or CSV files.

    Where `schema.json` is absent the schema is inferred and, once everything was read and found
    good, written there for editing.

    Args:
      directory: holds `interactions.{parquet,csv}`, optionally `users.*`, `items.*`, `schema.json`.
      unknown_items: `error` or `drop`, for interactions and negatives not in the item table.

    Raises:
      DataError: naming the file, row and column that is wrong.
    """
    directory = Path(directory)
    paths = find_tables(directory)
    frames = {stem: read_frame(path) for stem, path in paths.items()}
    sources = {stem: str(path) for stem, path in paths.items()}
    schema_path = directory / "schema.json"
    inferred = not schema_path.exists()
    if inferred:
        schema = infer_schema(**frames, sources=sources)
    else:
        schema = Schema.from_json(decode(read_bytes(schema_path), schema_path), str(schema_path))
    keys = {
        "interactions": (schema.user, schema.item, schema.negatives or ""),
        "users": (schema.user,),
    }
    for stem, frame in frames.items():
        frames[stem] = keep_zeros(frame, keys.get(stem, (schema.item,)), Path(sources[stem]))
    dataset = dataset_from_frames(
        **frames,
        schema=schema,
        name=directory.resolve().name,
        unknown_items=unknown_items,
        sources=sources,
    )
    if inferred:
        write_schema(schema, schema_path)
    return dataset


def _to_frame(data: Any, source: str) -> pl.DataFrame:
    if isinstance(data, pl.LazyFrame):
        return data.collect()
    if isinstance(data, pl.DataFrame):
        return data
    try:
        if isinstance(data, Mapping):
            return pl.DataFrame(dict(data))
        if hasattr(data, "columns") and hasattr(data, "to_dict"):
            return pl.from_pandas(data)
    except ImportError as error:
        raise DataError(
            f"{source}: reading a pandas frame needs pyarrow ({error}); install it (pip install "
            "pyarrow), or pass a Polars frame or a dict of columns"
        ) from error
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise DataError(
            f"{source}: cannot be made a frame: {str(error).splitlines()[0]}"
        ) from error
    raise DataError(
        f"{source}: expected a Polars or pandas frame or a dict of columns, "
        f"not {type(data).__name__}"
    )


def check_columns(
    schema: Schema,
    rows: pl.DataFrame,
    users: pl.DataFrame | None,
    items: pl.DataFrame | None,
    source: Mapping[str, str],
) -> None:
    """Raises DataError for the first column that the schema names and no frame has."""
    wanted = [("interactions", "key", x) for x in (schema.user, schema.item)]
    optional = (schema.time, schema.part, schema.negatives)
    wanted += [("interactions", "key", x) for x in optional if x is not None]
    wanted += [("users", "key", schema.user)] if users is not None else []
    wanted += [("items", "key", schema.item)] if items is not None else []
    wanted += [("items", "title", schema.title)] if schema.title is not None else []
    frame_of = {"user": "users", "item": "items", "context": "interactions"}
    wanted += [(frame_of[f.side], f"{f.side} feature", f.name) for f in schema.features]
    frames = {"interactions": rows, "users": users, "items": items}
    for which, role, column in wanted:
        frame = frames[which]
        if frame is None:
            raise DataError(
                f"schema: the {role} {column!r} needs a table of {which}, and there is none; give "
                f"{which}.csv or {which}.parquet (or a frame), or take {column!r} out of the schema"
            )
        if column not in frame.columns:
            near = difflib.get_close_matches(column, frame.columns, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"{source[which]}: no column {column!r}, which the schema names as {role}; its "
                f"columns are {frame.columns}{hint}"
            )


def table_ids(frame: pl.DataFrame | None, key: str, ids_M: pl.Series, source: str) -> pl.Series:
    """The ids of a table, distinct; without one, the sorted distinct ids of the interactions."""
    if frame is None:
        return ids_M.unique().sort()
    ids = make_ids(frame[key], source)
    twice = ids.is_duplicated()
    if twice.any():
        first = ids.filter(twice)[0]
        rows = [r + 1 for r in (ids == first).arg_true().head(2).to_list()]
        raise DataError(
            f"{source}, column {key!r}: {ids.filter(twice).n_unique()} id(s) appear more than "
            f"once, first {first!r} in rows {rows[0]} and {rows[1]}; each needs exactly one row"
        )
    return ids


def add_users(
    ids: pl.Series, frame: pl.DataFrame, ids_M: pl.Series
) -> tuple[pl.Series, pl.DataFrame]:
    """The user table with a row, all values missing, for each user that it does not list."""
    absent = positions(ids, ids_M) < 0
    if not absent.any():
        return ids, frame
    new = ids_M.filter(pl.Series(absent)).unique().sort()
    ids = same_kind(ids, ids_M)[0]
    ids = pl.concat([ids, same_kind(new, ids)[0]])
    return ids, pl.concat([frame, frame.clear(len(new))])


def make_titles(schema: Schema, frame: pl.DataFrame | None, ids: pl.Series) -> np.ndarray | None:
    """A title per item, its id where it has none; None where the schema names no titles."""
    if schema.title is None or frame is None:
        return None
    text = frame[schema.title].cast(pl.String, strict=False)
    return to_array(text.fill_null(ids.cast(pl.String)))


def positions(ids: pl.Series, ids_M: pl.Series) -> np.ndarray:
    """The position in `ids` of each of the others, int32; -1 for one that is not there."""
    ids, ids_M = same_kind(ids, ids_M)
    table = pl.DataFrame({"id": ids}).with_row_index("position")
    found = pl.DataFrame({"id": ids_M}).join(table, on="id", how="left", maintain_order="left")
    return found["position"].cast(pl.Int32).fill_null(-1).to_numpy()


def same_kind(a: pl.Series, b: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Both as text where one is: a CSV file whose ids are all digits is read as integers."""
    return (a, b) if a.dtype == b.dtype else (a.cast(pl.String), b.cast(pl.String))


def report_unknown(
    count: int,
    distinct: pl.Series,
    source: Mapping[str, str],
    unknown_items: str,
    where: str = "",
) -> None:
    """Raises or warns; `where` says which of the negatives is the first, if they are negatives."""
    message = (
        f"{source['interactions']}{where and ', ' + where}: {count} "
        f"{'negative' if where else 'interaction'}(s) with {len(distinct)} item(s) that are not "
        f"in {source['items']}, the first {distinct.head(5).to_list()}"
    )
    if unknown_items == "error":
        raise DataError(f"{message}; add them, or set data.unknown_items=drop")
    _log.warning("%s: dropped", message)


def none_is_known(source: Mapping[str, str]) -> DataError:
    """The error where no interaction is left."""
    return DataError(f"{source['interactions']}: none of its items is in {source['items']}")


def make_columns(
    schema: Schema, side: str, frame: pl.DataFrame | None, source: str
) -> dict[str, Column]:
    """The columns of one side, by name; {} where there is no frame."""
    if frame is None:
        return {}
    return {f.name: make_column(frame[f.name], f, source) for f in schema.of_side(side)}


def read_part(series: pl.Series, source: str, start: int = 0) -> np.ndarray:
    """The codes of a column of parts; `start` rows of the file come before it."""
    words = series.cast(pl.String, strict=False).str.to_lowercase().fill_null("")
    bad = ~words.is_in(list(_PARTS))
    if bad.any():
        row = int(np.argmax(bad.to_numpy()))
        raise DataError(
            f"{source}, row {start + row + 1}, column {series.name!r}: {series[row]!r} is no "
            f"part of a split; it must be one of {list(_PARTS)}"
        )
    return words.replace_strict(_PARTS, return_dtype=pl.Int8).to_numpy()


def find_tables(directory: Path, key: str = "--config.data.dir") -> dict[str, Path]:
    """The Parquet or CSV file of each table that a directory holds; `key` is who named it.

    Raises:
      DataError: there are no interactions, or a table is there twice.
    """
    paths = {}
    for stem in TABLES:
        found = [path for s in _SUFFIXES if (path := directory / f"{stem}{s}").exists()]
        if len(found) > 1:
            raise DataError(
                f"{directory}: both {found[0].name} and {found[1].name}; remove one of them"
            )
        if found:
            paths[stem] = found[0]
    if "interactions" not in paths:
        raise DataError(
            f"{directory}: no interactions.parquet or interactions.csv there: it "
            f"{describe(directory)}; {key} must name the directory with your tables"
        )
    return paths


def write_schema(schema: Schema, path: Path) -> None:
    """Writes the schema whole or not at all; a directory that cannot be written is no error."""
    try:
        write_file(path, schema.to_json())
    except CheckpointError as error:
        _log.warning("%s: the inferred schema could not be written (%s)", path, error)
        return
    _log.info("%s: written, as inferred; edit it where a kind is wrong", path)
