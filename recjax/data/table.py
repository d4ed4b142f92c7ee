"""Data sets from frames in memory, and from a directory of Parquet or CSV files.

DIR holds `interactions.{parquet,csv}` and, optionally, `users.*`, `items.*` and `schema.json`.
Columns of the interactions that are no keys are context features; such a column (a rating, say) is
often known only after the interaction, and then it may be read of earlier interactions only.
"""

import csv
import difflib
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recjax.data.columns import make_column, make_ids, make_time, to_array
from recjax.data.dataset import Column, Dataset, Interactions, Table
from recjax.data.files import decode, describe, read_bytes
from recjax.data.infer import infer_schema
from recjax.data.schema import Schema
from recjax.data.split import TEST, TRAIN, VALID
from recjax.errors import CheckpointError, ConfigError, DataError
from recjax.files import write_file

_log = logging.getLogger(__name__)

_FRAMES = ("interactions", "users", "items")
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
    `items` the tables are the sorted distinct ids of the interactions.

    Args:
      interactions: one row per interaction.
      users: one row per user, or None.
      items: one row per item, or None.
      schema: kinds and names of the columns; inferred where None (`recjax.data.infer`).
      name: what the data set is called.
      unknown_items: `error` or `drop`, for interactions whose item is not in `items`.
      sources: what `interactions`, `users` and `items` are called in messages.

    Raises:
      DataError: naming the frame, row and column that is wrong.
    """
    if unknown_items not in ("error", "drop"):
        raise ConfigError(f"data.unknown_items={unknown_items!r}; it must be 'error' or 'drop'")
    source = {**dict(zip(_FRAMES, _FRAMES, strict=True)), **(sources or {})}
    rows = _to_frame(interactions, source["interactions"])
    user_frame = None if users is None else _to_frame(users, source["users"])
    item_frame = None if items is None else _to_frame(items, source["items"])
    if rows.is_empty():
        raise DataError(f"{source['interactions']}: no interactions; it needs at least one row")
    if schema is None:
        schema = infer_schema(rows, user_frame, item_frame, sources=source)
    _check_columns(schema, rows, user_frame, item_frame, source)

    user_M = make_ids(rows[schema.user], source["interactions"])
    item_M = make_ids(rows[schema.item], source["interactions"])
    time = None if schema.time is None else make_time(rows[schema.time], source["interactions"])
    part = None if schema.part is None else _read_part(rows[schema.part], source["interactions"])
    columns = _make_columns(schema, "context", rows, source["interactions"])

    item_ids, item_index = _index(item_frame, schema.item, item_M, source["items"])
    keep = item_index >= 0
    if not keep.all():
        _report_unknown(item_M.filter(~pl.Series(keep)), source, unknown_items)
        if not keep.any():
            raise DataError(f"{source['interactions']}: none of its items is in {source['items']}")
        user_M, item_index = user_M.filter(pl.Series(keep)), item_index[keep]
        time, part = (None if x is None else x[keep] for x in (time, part))
        columns = {key: column.take(keep) for key, column in columns.items()}

    user_ids, user_index = _index(user_frame, schema.user, user_M, source["users"])
    absent = user_index < 0
    if user_frame is not None and absent.any():
        new = user_M.filter(pl.Series(absent)).unique().sort()
        user_ids, user_M = _same_kind(user_ids, user_M)
        user_ids = pl.concat([user_ids, _same_kind(new, user_ids)[0]])
        user_frame = pl.concat([user_frame, user_frame.clear(len(new))])
        user_index = _positions(user_ids, user_M)
    titles = None
    if schema.title is not None and item_frame is not None:
        text = item_frame[schema.title].cast(pl.String, strict=False)
        titles = to_array(text.fill_null(item_ids.cast(pl.String)))
    return Dataset(
        name=name,
        schema=schema,
        users=Table(to_array(user_ids), _make_columns(schema, "user", user_frame, source["users"])),
        items=Table(to_array(item_ids), _make_columns(schema, "item", item_frame, source["items"])),
        interactions=Interactions.build(
            user_index, item_index, len(user_ids), time=time, columns=columns, part=part
        ),
        titles=titles,
    )


def load_table(directory: str | Path, *, unknown_items: str = "error") -> Dataset:
    """The data set in a directory of Parquet or CSV files.

    Where `schema.json` is absent the schema is inferred and, once everything was read and found
    good, written there for editing.

    Args:
      directory: holds `interactions.{parquet,csv}`, optionally `users.*`, `items.*`, `schema.json`.
      unknown_items: `error` or `drop`, for interactions whose item is not in the item table.

    Raises:
      DataError: naming the file, row and column that is wrong.
    """
    directory = Path(directory)
    paths = {stem: _find_file(directory, stem) for stem in _FRAMES}
    if paths["interactions"] is None:
        raise DataError(
            f"{directory}: no interactions.parquet or interactions.csv there: it "
            f"{describe(directory)}; --config.data.dir must name the directory with your tables"
        )
    frames = {stem: _read_file(path) for stem, path in paths.items() if path is not None}
    sources = {stem: str(path) for stem, path in paths.items() if path is not None}
    schema_path = directory / "schema.json"
    inferred = not schema_path.exists()
    if inferred:
        schema = infer_schema(**frames, sources=sources)
    else:
        schema = Schema.from_json(decode(read_bytes(schema_path), schema_path), str(schema_path))
    keys = {"interactions": (schema.user, schema.item), "users": (schema.user,)}
    for stem, frame in frames.items():
        frames[stem] = _keep_zeros(frame, keys.get(stem, (schema.item,)), Path(sources[stem]))
    dataset = dataset_from_frames(
        **frames,
        schema=schema,
        name=directory.resolve().name,
        unknown_items=unknown_items,
        sources=sources,
    )
    if inferred:
        _write_schema(schema, schema_path)
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


def _check_columns(
    schema: Schema,
    rows: pl.DataFrame,
    users: pl.DataFrame | None,
    items: pl.DataFrame | None,
    source: Mapping[str, str],
) -> None:
    wanted = [("interactions", "key", x) for x in (schema.user, schema.item)]
    wanted += [("interactions", "key", x) for x in (schema.time, schema.part) if x is not None]
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


def _index(
    frame: pl.DataFrame | None, key: str, ids_M: pl.Series, source: str
) -> tuple[pl.Series, np.ndarray]:
    """The ids of a table, and the position of each interaction's id in it (-1: not there)."""
    if frame is None:
        ids = ids_M.unique().sort()
        return ids, _positions(ids, ids_M)
    ids = make_ids(frame[key], source)
    twice = ids.is_duplicated()
    if twice.any():
        first = ids.filter(twice)[0]
        rows = [r + 1 for r in (ids == first).arg_true().head(2).to_list()]
        raise DataError(
            f"{source}, column {key!r}: {ids.filter(twice).n_unique()} id(s) appear more than "
            f"once, first {first!r} in rows {rows[0]} and {rows[1]}; each needs exactly one row"
        )
    return ids, _positions(ids, ids_M)


def _positions(ids: pl.Series, ids_M: pl.Series) -> np.ndarray:
    ids, ids_M = _same_kind(ids, ids_M)
    table = pl.DataFrame({"id": ids}).with_row_index("position")
    found = pl.DataFrame({"id": ids_M}).join(table, on="id", how="left", maintain_order="left")
    return found["position"].cast(pl.Int32).fill_null(-1).to_numpy()


def _same_kind(a: pl.Series, b: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Both as text where one is: a CSV file whose ids are all digits is read as integers."""
    return (a, b) if a.dtype == b.dtype else (a.cast(pl.String), b.cast(pl.String))


def _report_unknown(items: pl.Series, source: Mapping[str, str], unknown_items: str) -> None:
    distinct = items.unique(maintain_order=True)
    message = (
        f"{source['interactions']}: {len(items)} interaction(s) with {len(distinct)} item(s) that "
        f"are not in {source['items']}, the first {distinct.head(5).to_list()}"
    )
    if unknown_items == "error":
        raise DataError(f"{message}; add them, or set data.unknown_items=drop")
    _log.warning("%s: dropped", message)


def _make_columns(
    schema: Schema, side: str, frame: pl.DataFrame | None, source: str
) -> dict[str, Column]:
    if frame is None:
        return {}
    return {f.name: make_column(frame[f.name], f, source) for f in schema.of_side(side)}


def _read_part(series: pl.Series, source: str) -> np.ndarray:
    words = series.cast(pl.String, strict=False).str.to_lowercase().fill_null("")
    bad = ~words.is_in(list(_PARTS))
    if bad.any():
        row = int(np.argmax(bad.to_numpy()))
        raise DataError(
            f"{source}, row {row + 1}, column {series.name!r}: {series[row]!r} is no part of a "
            f"split; it must be one of {list(_PARTS)}"
        )
    return words.replace_strict(_PARTS, return_dtype=pl.Int8).to_numpy()


def _find_file(directory: Path, stem: str) -> Path | None:
    found = [path for s in _SUFFIXES if (path := directory / f"{stem}{s}").exists()]
    if len(found) > 1:
        raise DataError(
            f"{directory}: both {found[0].name} and {found[1].name}; remove one of them"
        )
    return found[0] if found else None


def _read_file(path: Path) -> pl.DataFrame:
    if path.suffix == ".csv":
        return _read_csv(_csv_bytes(path), path)
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read as a Parquet file: {reason}") from error


def _keep_zeros(frame: pl.DataFrame, keys: tuple[str, ...], path: Path) -> pl.DataFrame:
    """The frame of a file, with text for those ids of a CSV file that begin with a zero.

    Polars infers integers of them, which would make one user of 007 and 7.
    """
    keys = tuple(key for key in keys if key in frame.columns and frame[key].dtype.is_numeric())
    if path.suffix != ".csv" or not keys:
        return frame
    data = _csv_bytes(path)
    for key in keys:  # one at a time, for memory; the other columns are not parsed
        text = pl.read_csv(data, columns=[key], infer_schema=False)[key]
        if text.str.contains(r"^\s*0\d+\s*$").any():
            frame = frame.with_columns(text)
    return frame


def _csv_bytes(path: Path) -> bytes:
    return read_bytes(path).removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")


def _read_csv(data: bytes, path: Path) -> pl.DataFrame:
    _check_csv(data, path)
    try:
        frame = pl.read_csv(data, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        decode(data, path)  # the usual cause, and it knows the line
        raise DataError(f"{path}: not a CSV file: {str(error).splitlines()[0]}") from error
    for series in frame:
        if series.dtype == pl.String:
            # Polars takes a column of numbers for text where one of them is written "nan".
            numbers = series.cast(pl.Float64, strict=False)
            if numbers.null_count() == series.null_count() and numbers.is_nan().any():
                frame = frame.with_columns(numbers)
    return frame


def _check_csv(data: bytes, path: Path) -> None:
    """Refuses a wrong delimiter and rows with too few or too many fields, naming the line."""
    header = next(csv.reader([decode(data.split(b"\n", 1)[0], path).rstrip("\r")]), [])
    if not header or header == [""]:
        raise DataError(f"{path}, line 1: empty; the first line must name the columns")
    if len(header) == 1:
        delimiter = next((d for d in (";", "\t", "|", ":") if d in header[0]), None)
        if delimiter is not None:
            raise DataError(
                f"{path}, line 1: one column {header[0]!r}; columns must be separated by ',', and "
                f"these seem to be by {delimiter!r}"
            )
    if len(set(header)) < len(header):
        twice = next(x for x in header if header.count(x) > 1)
        raise DataError(f"{path}, line 1: the column {twice!r} appears twice; names must differ")
    # Without quotes, a file of even rows has exactly so many commas: one pass of bytes.count.
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    if b'"' not in data and data.count(b",") == lines * (len(header) - 1):
        widest = max(line.count(b",") for line in data.splitlines())
        if widest == len(header) - 1:
            return
    reader = csv.reader(io.StringIO(decode(data, path), newline=""))
    for row in reader:
        if row and len(row) != len(header):
            raise DataError(
                f"{path}, line {reader.line_num}: {len(row)} field(s), where the header has "
                f"{len(header)}: {header}"
            )


def _write_schema(schema: Schema, path: Path) -> None:
    """Writes the schema whole or not at all; a directory that cannot be written is no error."""
    try:
        write_file(path, schema.to_json())
    except CheckpointError as error:
        _log.warning("%s: the inferred schema could not be written (%s)", path, error)
        return
    _log.info("%s: written, as inferred; edit it where a kind is wrong", path)
