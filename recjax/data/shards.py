"""Interactions in slices, from Parquet or CSV files that memory need not hold."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from recjax.data.frames import (
    BYTE_ORDER_MARK,
    as_numbers,
    begins_with_zero,
    check_header,
    check_rows,
    find_parquet,
    parse_csv,
)
from recjax.errors import DataError
from recjax.files import write_file

_BLOCK = 1 << 25  # bytes of CSV text that are parsed at a time


@dataclasses.dataclass(frozen=True)
class Shard:
    """Rows offset..offset+size-1 of a Parquet file; `start` rows of the source come before them."""

    path: Path
    offset: int
    size: int
    start: int

    def read(self, columns: Sequence[str]) -> pl.DataFrame:
        """The rows."""
        try:
            rows = scan_files([self.path]).select(columns).slice(self.offset, self.size)
            return rows.collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise _unreadable(self.path, error) from error


def scan_files(files: Sequence[Path]) -> pl.LazyFrame:
    """Parquet files as one lazy frame; what their folders are called makes no columns."""
    return pl.scan_parquet(list(files), hive_partitioning=False)


def make_shards(path: Path, rows: int) -> list[Shard]:
    """Slices of up to so many rows of a Parquet file or a folder of them.

    Raises:
      DataError: a file cannot be read, or its columns are not those of the first.
    """
    shards, start, first = [], 0, None
    for file in find_parquet(path):
        schema = read_schema(file)
        first = first or schema
        if schema != first:
            raise DataError(
                f"{file}: its columns are {schema}, where the first file of {path} has "
                f"{first}; all must have the same names and types, in the same order"
            )
        size = scan_files([file]).select(pl.len()).collect().item()
        for offset in range(0, size, rows):
            shards.append(Shard(file, offset, min(rows, size - offset), start + offset))
        start += size
    if first is None:
        raise DataError(f"{path}: no Parquet file in this folder")
    return shards


def read_schema(path: Path) -> dict[str, Any]:
    """Names and types of a Parquet file's columns.

    Raises:
      DataError: it cannot be read.
    """
    try:
        return dict(scan_files([path]).collect_schema())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error


def read_header(path: Path) -> list[str]:
    """The names of a CSV file's columns.

    Raises:
      DataError: it has none, or one twice, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            line = file.readline().removeprefix(BYTE_ORDER_MARK).rstrip(b"\r\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return check_header(line, path)


def csv_to_parquet(path: Path, folder: Path, keys: Sequence[str], block: int = _BLOCK) -> None:
    """Writes a CSV file as Parquet files, one for each block of its text, in a folder.

    Types and values are those of `read_frame` and `keep_zeros`. A block that is there already is
    left as it is.

    Args:
      path: the CSV file.
      folder: where the files go; what else it keeps there tells how far it came.
      keys: columns of ids, which stay text if one begins with a zero.
      block: bytes that are parsed at a time.

    Raises:
      DataError: the file is no CSV file, naming the line.
    """
    folder.mkdir(exist_ok=True)
    plan = folder / "types.json"
    if not plan.exists():
        write_file(plan, json.dumps(_survey(path, block)))
    types = json.loads(plan.read_text())
    text = {name: pl.String for name in types["columns"]}
    read_as = {name: _final_type(name, facts, keys) for name, facts in types["columns"].items()}
    for number, (line, data) in enumerate(_blocks(path, block)):
        file = folder / f"{number:06}.parquet"
        if file.exists():
            continue
        overrides = text | {n: t for n, t in read_as.items() if t is not None}
        frame = parse_csv(data, path, line, schema_overrides=overrides)
        for name in [name for name, found in read_as.items() if found is None]:
            frame = frame.with_columns(frame[name].cast(pl.Float64, strict=False))
        partial = folder / "partial"
        frame.write_parquet(partial)
        partial.rename(file)


def _survey(path: Path, block: int) -> dict[str, Any]:
    """What the blocks of a CSV file hold, column by column, once all its rows are checked."""
    columns: dict[str, dict[str, Any]] = {}
    for line, data in _blocks(path, block):
        header_line, _, body = data.partition(b"\n")
        header = check_header(header_line, path)
        if body:
            check_rows(body, header, path, line)
        typed = parse_csv(data, path, line, infer_schema_length=None)
        text = parse_csv(data, path, line, infer_schema=False)
        for name in typed.columns:
            facts = columns.setdefault(
                name, {"types": [], "numbers": True, "nan": False, "zeros": False}
            )
            if typed[name].null_count() == len(typed):
                continue
            kind = str(typed[name].dtype)
            if kind not in facts["types"]:
                facts["types"].append(kind)
            numbers = as_numbers(text[name])
            facts["numbers"] &= numbers is not None
            facts["nan"] |= numbers is not None and bool(numbers.is_nan().any())
            facts["zeros"] |= typed[name].dtype.is_numeric() and begins_with_zero(text[name])
    return {"columns": columns}


def _final_type(name: str, facts: dict[str, Any], keys: Sequence[str]) -> Any:
    """The type that reading the whole file would find; None: text, all of it numbers."""
    kinds = set(facts["types"])
    if len(kinds) == 1:
        found = kinds.pop()
    elif kinds == {"Int64", "Int128"}:
        found = "Int128"
    elif "Float64" in kinds and kinds <= {"Int64", "Int128", "Float64"}:
        found = "Float64"
    else:
        found = "String"
    if found == "String":
        return None if facts["numbers"] and facts["nan"] else pl.String
    return pl.String if name in keys and facts["zeros"] else getattr(pl, found)


def _blocks(path: Path, block: int) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole rows, each below the header, and the line that its first row begins at."""
    try:
        with open(path, "rb") as file:
            header = file.readline().removeprefix(BYTE_ORDER_MARK)
            line, carry, found = 2, b"", False
            while data := file.read(block):
                carry += data
                cut = _last_row_end(carry)
                # Blank lines stay behind: those that end the file are no rows.
                rows = carry[:cut].rstrip(b"\r\n")
                if not rows:
                    continue
                cut = carry.index(b"\n", len(rows)) + 1
                yield line, header + carry[:cut]
                found = True
                line += carry.count(b"\n", 0, cut)
                carry = carry[cut:]
            rest = carry.rstrip(b"\r\n")
            if rest or not found:
                yield line, header + rest if rest else header.rstrip(b"\r\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _last_row_end(data: bytes) -> int:
    """One past the last line break that is not within quotes; 0 if there is none."""
    end = data.rfind(b"\n") + 1
    while end and data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return end


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0]
    return DataError(f"{path}: cannot be read as a Parquet file: {reason}")
