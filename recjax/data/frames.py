"""Frames from Parquet and CSV files."""

import csv
import io
from pathlib import Path
from typing import Any

import polars as pl

from recjax.data.files import decode, read_bytes
from recjax.errors import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def find_parquet(path: Path) -> list[Path]:
    """The files of a Parquet table: the path itself or, of a folder, all in it by name."""
    return sorted(path.rglob("*.parquet")) if path.is_dir() else [path]


def read_frame(path: Path) -> pl.DataFrame:
    """The frame in a CSV file, a Parquet file or a folder of Parquet files.

    Raises:
      DataError: it cannot be read, naming the file and, of CSV, the line.
    """
    if path.suffix == ".csv":
        return _read_csv(_csv_bytes(path), path)
    files = find_parquet(path)
    if not files:
        raise DataError(f"{path}: no Parquet file in this folder")
    try:
        return pl.read_parquet(files, hive_partitioning=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read as a Parquet file: {reason}") from error


def keep_zeros(frame: pl.DataFrame, keys: tuple[str, ...], path: Path) -> pl.DataFrame:
    """The frame of a file, with text for those ids of a CSV file that begin with a zero.

    Polars infers integers of them, which would make one user of 007 and 7.
    """
    keys = tuple(key for key in keys if key in frame.columns and frame[key].dtype.is_numeric())
    if path.suffix != ".csv" or not keys:
        return frame
    data = _csv_bytes(path)
    for key in keys:  # one at a time, for memory; the other columns are not parsed
        text = pl.read_csv(data, columns=[key], infer_schema=False)[key]
        if begins_with_zero(text):
            frame = frame.with_columns(text)
    return frame


def begins_with_zero(text: pl.Series) -> bool:
    """Whether one of these numbers does, and has more digits."""
    return bool(text.str.contains(r"^\s*0\d+\s*$").any())


def as_numbers(text: pl.Series) -> pl.Series | None:
    """The numbers that a column holds if all of its text is numbers; None if not."""
    numbers = text.cast(pl.Float64, strict=False)
    return numbers if numbers.null_count() == text.null_count() else None


def parse_csv(data: bytes, path: Path, line: int = 2, **options: Any) -> pl.DataFrame:
    """The frame of CSV text with a header; `line` is the number of its first row in the file.

    Raises:
      DataError: it cannot be read, naming the file.
    """
    try:
        return pl.read_csv(data, **options)
    except pl.exceptions.PolarsError as error:
        decode(data, path, line - 1)  # the usual cause, and it knows the line
        raise DataError(f"{path}: not a CSV file: {str(error).splitlines()[0]}") from error


def check_header(line: bytes, path: Path) -> list[str]:
    """The names of a CSV file's columns.

    Raises:
      DataError: there are none, one appears twice, or the delimiter is not a comma.
    """
    header = next(csv.reader([decode(line, path).rstrip("\r")]), [])
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
    return header


def check_rows(data: bytes, header: list[str], path: Path, line: int = 1) -> None:
    """Refuses rows with too few or too many fields; `line` is the number of the first."""
    # Without quotes, a file of even rows has exactly so many commas: one pass of bytes.count.
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    if b'"' not in data and data.count(b",") == lines * (len(header) - 1):
        widest = max(row.count(b",") for row in data.splitlines())
        if widest == len(header) - 1:
            return
    reader = csv.reader(io.StringIO(decode(data, path, line), newline=""))
    for row in reader:
        if row and len(row) != len(header):
            raise DataError(
                f"{path}, line {line - 1 + reader.line_num}: {len(row)} field(s), where the header "
                f"has {len(header)}: {header}"
            )


def _csv_bytes(path: Path) -> bytes:
    return read_bytes(path).removeprefix(BYTE_ORDER_MARK).rstrip(b"\r\n")


def _read_csv(data: bytes, path: Path) -> pl.DataFrame:
    header = check_header(data.split(b"\n", 1)[0], path)
    check_rows(data, header, path)
    frame = parse_csv(data, path, infer_schema_length=None)
    for series in frame:
        if series.dtype == pl.String:
            # Polars takes a column of numbers for text where one of them is written "nan".
            numbers = as_numbers(series)
            if numbers is not None and numbers.is_nan().any():
                frame = frame.with_columns(numbers)
    return frame
