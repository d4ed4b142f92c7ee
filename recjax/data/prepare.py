"""Prepares files of any size as a data set that is read where it lies (see `store`).

The interactions are read in shards, never whole: the ids of each are collected, then its rows are
put in order by ranges of users (buckets), then each bucket is gathered from all shards, sorted and
written to its place. Memory holds one shard or bucket, and the tables of users and items. What is
finished lies in a folder beside the target, and a preparation that was killed goes on from there.
"""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from recjax.data.columns import Slice, to_array
from recjax.data.files import decode, read_bytes
from recjax.data.frames import (
    find_parquet,
    keep_zeros,
    read_frame,
)
from recjax.data.infer import find_keys, infer_schema
from recjax.data.rows import Rows, bucket_ends, load_bucket, read_shard, recode, save_buckets
from recjax.data.schema import Schema
from recjax.data.shards import Shard, csv_to_parquet, make_shards, read_header, scan_files
from recjax.data.store import (
    FORMAT,
    column_arrays,
    create_array,
    open_array,
    save_array,
    write_manifest,
    write_rows,
)
from recjax.data.survey import survey_columns
from recjax.data.table import (
    TABLES,
    add_users,
    check_columns,
    find_tables,
    make_columns,
    make_titles,
    none_is_known,
    positions,
    report_unknown,
    same_kind,
    table_ids,
    write_schema,
)
from recjax.data.workplace import Report, alone, begin, is_finished, stamp
from recjax.errors import CheckpointError, ConfigError, DataError
from recjax.files import write_file

SHARD_ROWS = 1 << 22


def prepare_dataset(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    schema: Schema | None = None,
    unknown_items: str = "error",
    shard_rows: int = SHARD_ROWS,
    report: Report = lambda line: None,
) -> Path:
    """Makes of the files in `source` the prepared data set `out`; the same data as reading them.

    `source` is what `data.name=table` reads; `interactions.parquet` may be a folder of Parquet
    files. Where `out` is finished and of these files nothing is done; where an earlier call was
    stopped, this one goes on.

    Args:
      source: the folder with `interactions.*`, and perhaps `users.*`, `items.*`, `schema.json`.
      out: the folder to make.
      schema: in place of `schema.json`, or of an inferred one.
      unknown_items: `error` or `drop`, for interactions and negatives not in the item table.
      shard_rows: interactions that memory holds at a time.
      report: is told how far it came, a line at a time.

    Returns:
      `out`.

    Raises:
      ConfigError: a setting outside its legal values, or `out` holds something else.
      DataError: what is wrong with the files, naming file, row and column; or a full disk.
    """
    source, out = Path(source), Path(out).absolute()
    if unknown_items not in ("error", "drop"):
        raise ConfigError(f"unknown_items={unknown_items!r}; it must be 'error' or 'drop'")
    if shard_rows < 1:
        raise ConfigError(f"shard_rows={shard_rows}; it must be 1 or more")
    paths = find_tables(source, "--source")
    if schema is None and (source / "schema.json").exists():
        file = source / "schema.json"
        schema = Schema.from_json(decode(read_bytes(file), file), str(file))
    made_of = {
        "files": [stamp(file, source) for path in paths.values() for file in find_parquet(path)],
        "unknown_items": unknown_items,
    }
    work = out.with_name(f".{out.name}.preparing")
    if is_finished(out, made_of, schema):
        shutil.rmtree(work, ignore_errors=True)
        report(f"{out} is prepared already, of these files")
        return out
    try:
        with alone(work):
            given = None if schema is None else schema.to_json()
            begin(work, made_of | {"format": FORMAT, "rows": shard_rows, "schema": given}, report)
            names = {stem: str(path) for stem, path in paths.items()}
            job = _make_job(work, paths, names, schema, unknown_items, shard_rows, report)
            written = _run(job)
            name = source.resolve().name
            digest = write_manifest(work / "data", name, job.schema, written, made_of)
            os.rename(work / "data", out)
            shutil.rmtree(work)
            report(f"{out} is prepared: hash {digest}")
    except (OSError, CheckpointError, pl.exceptions.PolarsError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(
            f"{out}: cannot be prepared: {reason}. What is finished is kept in "
            f"{work}: with the cause removed, the same command goes on from there"
        ) from error
    if schema is None:
        write_schema(job.schema, source / "schema.json")
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """What every step reads."""

    work: Path
    sources: dict[str, str]
    schema: Schema
    unknown_items: str
    shards: list[Shard]
    slices: dict[str, Slice]
    users: pl.DataFrame | None
    items: pl.DataFrame | None
    rows: int
    report: Report

    @functools.cached_property
    def listed_items(self) -> pl.Series | None:
        """The ids of the item table, if there is one."""
        if self.items is None:
            return None
        key = self.schema.item
        return table_ids(self.items, key, self.items[key], self.sources["items"])

    def read(self, shard: Shard) -> Rows:
        """The rows of a shard, checked."""
        return read_shard(shard, self.schema, self.slices, self.sources["interactions"])

    def each(self, stage: str, count: int) -> Iterator[tuple[int, Path]]:
        """The numbers of a stage's folders that are still to be made, and where to make them."""
        folder = self.work / stage
        folder.mkdir(exist_ok=True)
        for number in range(count):
            made = folder / f"{number:06}"
            if not made.exists():
                partial = folder / "partial"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                yield number, partial
                os.rename(partial, made)
            self.report(f"{stage}: {number + 1} of {count}")

    def folders(self, stage: str) -> list[Path]:
        """The finished folders of a stage, in order."""
        return sorted(path for path in (self.work / stage).iterdir() if path.name != "partial")


def _make_job(
    work: Path,
    paths: dict[str, Path],
    sources: dict[str, str],
    schema: Schema | None,
    unknown_items: str,
    rows: int,
    report: Report,
) -> _Job:
    path = paths["interactions"]
    if path.suffix == ".csv":
        keys: Sequence[str | None] = (
            find_keys(read_header(path)) if schema is None else (schema.user, schema.item)
        )
        more = () if schema is None else (schema.negatives,)
        report(f"{path}: read as CSV")
        csv_to_parquet(path, work / "csv", [key for key in (*keys, *more) if key])
        path = work / "csv"
    shards = make_shards(path, rows)
    if not sum(shard.size for shard in shards):
        raise DataError(f"{sources['interactions']}: no interactions; it needs at least one row")
    frame = scan_files(find_parquet(path))
    tables = {stem: read_frame(paths[stem]) for stem in ("users", "items") if stem in paths}
    if schema is None:
        kept = work / "schema.json"
        if not kept.exists():
            inferred = infer_schema(frame, **tables, sources=sources)
            write_file(kept, inferred.to_json())
        schema = Schema.from_json(kept.read_text(), str(kept))
    for stem, key in (("users", schema.user), ("items", schema.item)):
        if stem in tables:
            tables[stem] = keep_zeros(tables[stem], (key,), paths[stem])
    users, items = tables.get("users"), tables.get("items")
    sources = dict(zip(TABLES, TABLES, strict=True)) | sources
    check_columns(schema, frame.collect_schema().to_frame(), users, items, sources)
    slices = survey_columns(frame, schema, sources["interactions"])
    return _Job(work, sources, schema, unknown_items, shards, slices, users, items, rows, report)


def _run(job: _Job) -> list[str]:
    """All stages; the names of the arrays that are in data/."""
    _scan(job)
    user_ids, item_ids, user_frame, vocabs = _merge(job)
    count_U = np.zeros(len(user_ids), np.int64)
    for folder in job.folders("scan"):
        known = pl.read_parquet(folder / "users.parquet")
        count_U[positions(user_ids, known["id"])] += known["count"].to_numpy()
    # Whole users; about as many rows as a shard has, unless one user alone has more.
    bucket_U = ((np.cumsum(count_U) - count_U) // job.rows).astype(np.int32)
    _partition(job, user_ids, item_ids, bucket_U, vocabs)
    offsets = np.concatenate([[0], np.cumsum(count_U)])
    arrays = {
        "users/ids": to_array(user_ids),
        "items/ids": to_array(item_ids),
        "interactions/offsets": offsets,
        **_table_arrays(job, "user", user_frame),
        **_table_arrays(job, "item", job.items),
    }
    titles = make_titles(job.schema, job.items, item_ids)
    if titles is not None:
        arrays["items/titles"] = titles
    for place, vocab in vocabs.items():
        arrays[f"interactions/{place}.vocab"] = vocab
    for name, array in arrays.items():
        save_array(job.work / "data" / f"{name}.npy", array)
    return [*arrays, *_gather(job, offsets, bucket_U)]


def _table_arrays(job: _Job, side: str, frame: pl.DataFrame | None) -> dict[str, np.ndarray]:
    columns = make_columns(job.schema, side, frame, job.sources[f"{side}s"])
    arrays: dict[str, np.ndarray] = {}
    for place, column in enumerate(columns.values()):
        arrays |= column_arrays(f"{side}s", place, column)
    return arrays


def _scan(job: _Job) -> None:
    """By shard: checks all rows, and collects ids and words."""
    for number, folder in job.each("scan", len(job.shards)):
        shard = job.shards[number]
        rows = job.read(shard)
        facts = {"unknown": 0, "unknown_shown": 0, "first_shown": -1}
        user = rows.user
        if job.listed_items is not None:
            unknown = positions(job.listed_items, rows.item) < 0
            facts["unknown"] = int(unknown.sum())
            _save_ids(folder / "unknown", rows.item.filter(pl.Series(unknown)))
            if rows.shown is not None:
                strange = positions(job.listed_items, rows.shown) < 0
                facts["unknown_shown"] = int(strange.sum())
                if strange.any():
                    first = rows.shown_row[np.argmax(strange)]
                    facts["first_shown"] = shard.start + int(first) + 1
                _save_ids(folder / "unknown_shown", rows.shown.filter(pl.Series(strange)))
            user = user.filter(pl.Series(~unknown))
        else:
            _save_ids(folder / "items", rows.item)
            if rows.shown is not None:
                _save_ids(folder / "shown", rows.shown)
        counts = user.alias("id").value_counts(name="count").sort("id")
        counts.write_parquet(folder / "users.parquet")
        for place, vocab in rows.vocabs.items():
            save_array(folder / f"{place}.vocab.npy", vocab)
        (folder / "facts.json").write_text(json.dumps(facts))


def _merge(
    job: _Job,
) -> tuple[pl.Series, pl.Series, pl.DataFrame | None, dict[int, np.ndarray]]:
    """Ids of users and items, the user table, and the vocabularies of the context columns."""
    folders = job.folders("scan")
    facts = [json.loads((folder / "facts.json").read_text()) for folder in folders]
    users = _distinct(folders, "users").sort()
    if job.listed_items is not None:
        item_ids = job.listed_items
        for key, where in (("unknown", ""), ("unknown_shown", "row")):
            count = sum(fact[key] for fact in facts)
            if count:
                if where:
                    first = min(f["first_shown"] for f in facts if f["first_shown"] > 0)
                    where = f"row {first}, column {job.schema.negatives!r}"
                distinct = _distinct(folders, key)
                report_unknown(count, distinct, job.sources, job.unknown_items, where)
        if not len(users):
            raise none_is_known(job.sources)
    else:
        item_ids = _distinct(folders, "items")
        if job.schema.negatives is not None:
            item_ids = pl.concat(same_kind(item_ids, _distinct(folders, "shown")))
        item_ids = item_ids.unique().sort()
    user_ids, user_frame = users, job.users
    if user_frame is not None:
        user_ids = table_ids(user_frame, job.schema.user, users, job.sources["users"])
        user_ids, user_frame = add_users(user_ids, user_frame, users)
    vocabs = {}
    for place, feature in enumerate(job.schema.of_side("context")):
        if feature.kind in ("categorical", "bag"):
            parts = [open_array(folder / f"{place}.vocab.npy") for folder in folders]
            vocabs[place] = np.unique(np.concatenate(parts))
    return user_ids, item_ids, user_frame, vocabs


def _partition(
    job: _Job,
    user_ids: pl.Series,
    item_ids: pl.Series,
    bucket_U: np.ndarray,
    vocabs: dict[int, np.ndarray],
) -> None:
    """By shard: ids become positions, and the rows of each bucket come together."""
    for number, folder in job.each("partition", len(job.shards)):
        parts = recode(job.read(job.shards[number]), user_ids, item_ids, vocabs)
        save_buckets(folder, parts, bucket_U[parts[0]["user"]], int(bucket_U[-1]) + 1)


def _gather(job: _Job, offsets: np.ndarray, bucket_U: np.ndarray) -> list[str]:
    """By bucket: its rows of all shards, sorted, in their place; the names of the arrays."""
    folders = job.folders("partition")
    buckets = int(bucket_U[-1]) + 1
    first_row = offsets[np.searchsorted(bucket_U, np.arange(buckets))]
    target = job.work / "data" / "interactions"
    flat, ragged = _names(job.schema)
    first_item = {
        key: np.concatenate([[0], sum(bucket_ends(folder, key) for folder in folders)])
        for key in ragged
    }
    size = int(offsets[-1])
    if not (job.work / "sized").exists():
        for key, name in flat.items():
            like = open_array(folders[0] / f"{key}.npy")
            create_array(target / f"{name}.npy", like.dtype, (size, *like.shape[1:]))
        for key, (starts, items) in ragged.items():
            create_array(target / f"{starts}.npy", np.dtype(np.int64), (size + 1,))
            total = int(first_item[key][-1])
            create_array(target / f"{items}.npy", np.dtype(np.int32), (total,))
        (job.work / "sized").touch()
    for bucket, _ in job.each("gather", buckets):
        arrays, lists = load_bucket(folders, bucket, [*flat], [*ragged])
        first = int(first_row[bucket])
        for key, name in flat.items():
            write_rows(target / f"{name}.npy", first, arrays[key])
        for key, (starts, items) in ragged.items():
            base = int(first_item[key][bucket])
            write_rows(target / f"{starts}.npy", first, lists[key].offsets + base)
            write_rows(target / f"{items}.npy", base, lists[key].items)
    found = [*flat.values(), *(name for pair in ragged.values() for name in pair)]
    return [f"interactions/{name}" for name in found]


def _names(schema: Schema) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """By key, the file of an array of the interactions, and the two of lists."""
    flat, ragged = {"user": "user", "item": "item"}, {}
    flat |= {"time": "time"} if schema.time is not None else {}
    flat |= {"part": "part"} if schema.part is not None else {}
    for place, feature in enumerate(schema.of_side("context")):
        if feature.kind == "bag":
            ragged[str(place)] = (f"{place}.offsets", f"{place}.codes")
        else:
            field = "codes" if feature.kind == "categorical" else "values"
            flat[str(place)] = f"{place}.{field}"
    if schema.negatives is not None:
        ragged["negatives"] = ("negatives.offsets", "negatives.items")
    return flat, ragged


def _save_ids(path: Path, ids: pl.Series) -> None:
    pl.DataFrame({"id": ids.unique(maintain_order=True)}).write_parquet(f"{path}.parquet")


def _distinct(folders: Sequence[Path], key: str) -> pl.Series:
    """The ids that the shards hold, in the order of their first."""
    found = pl.Series("id", [], pl.Int64)
    for folder in folders:
        ids = pl.read_parquet(folder / f"{key}.parquet")["id"]
        if len(ids):  # an empty list of ids may be of another type
            found = pl.concat([found, ids]).unique(maintain_order=True) if len(found) else ids
    return found
