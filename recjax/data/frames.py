"""Frames from Parquet and CSV files."""

import csv
import io
from pathlib import Path

import polars as pl

from recjax.data.files import decode, read_bytes
from recjax.errors import DataError


def read_frame(path: Path) -> pl.DataFrame:
    """The frame in a Parquet or CSV file.

    Raises:
      DataError: it cannot be read, naming the file and, of CSV, the line.
    """
    if path.suffix == ".csv":
        return _read_csv(_csv_bytes(path), path)
    try:
        return pl.read_parquet(path)
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
