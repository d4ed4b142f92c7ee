"""Turns columns of a Polars frame into the columns, ids and times of a data set.

Rows in messages count from 1; a header is not counted. A null (an empty cell) is a missing value;
NaN is refused, because it is more often a mistake upstream than a value that is known to be absent.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import polars as pl

from recjax.data.dataset import Bag, Categorical, Column, Dense, Vector
from recjax.data.schema import Feature
from recjax.errors import DataError

DATE_PATTERN = r"^\d{4}-\d\d-\d\d"
WHOLE_NUMBER = r"^(0|-?[1-9]\d{0,17})$"
_LATEST = 1e11  # seconds: the year 5138; as milliseconds it is 1973


@dataclasses.dataclass(frozen=True)
class Slice:
    """What holds of a whole column, where a series is a slice of it.

    Attributes:
      start: rows before the slice.
      first: the first text that is not blank, which tells how the others are read; None: that of
        the series.
      numbers: whether all ids that text lists are whole numbers; None: the series tells.
      width: numbers in each vector; None: the first tells.
    """

    start: int = 0
    first: str | None = None
    numbers: bool | None = None
    width: int | None = None


WHOLE = Slice()


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a series comes from, for messages."""

    source: str
    column: str
    slice: Slice

    def __str__(self) -> str:
        return f"{self.source}, column {self.column!r}"

    def row(self, mask: pl.Series | np.ndarray) -> int:
        """The first row of the column, from 1 on, where the mask of the series is true."""
        return self.slice.start + _first(mask) + 1


def make_column(series: pl.Series, feature: Feature, source: str, slice: Slice = WHOLE) -> Column:
    """A column of the kind that the feature states; its vocabulary is that of the series.

    Args:
      series: the values, one a row.
      feature: kind, name and separator.
      source: the file or frame, for messages.
      slice: which rows of the column these are.

    Raises:
      DataError: the values do not fit the kind, or are NaN or infinite, naming the row.
    """
    return _MAKERS[feature.kind](series, feature, _Place(source, feature.name, slice))


def make_ids(series: pl.Series, source: str, slice: Slice = WHOLE) -> pl.Series:
    """Ids as Int64 or String, none missing.

    Raises:
      DataError: a missing id, a fraction, or a type that cannot be an id.
    """
    where = _Place(source, series.name, slice)
    if series.dtype.is_float():
        series = _whole(series, where, "an id is a whole number or text")
    elif series.dtype.is_integer():
        series = _to_int64(series, where)
    elif series.dtype in (pl.String, pl.Categorical, pl.Enum):
        series = _blank_to_null(series.cast(pl.String))
    else:
        raise DataError(f"{where}: an id is a whole number or text, not {series.dtype}")
    if series.null_count():
        raise DataError(
            f"{where}: {series.null_count()} missing id(s), the first in row "
            f"{where.row(series.is_null())}; every row needs one"
        )
    return series


def make_id_lists(
    series: pl.Series, source: str, slice: Slice = WHOLE
) -> tuple[np.ndarray, pl.Series]:
    """Lists of ids: the row of each id (int64, from 0 and in order), and the ids as `make_ids`.

    Text is split at `|`, and is of numbers if all of it is; blanks in a list are left out. A column
    of whole numbers holds one a row.

    Raises:
      DataError: a type that cannot be an id.
    """
    dtype = series.dtype
    if isinstance(dtype, pl.Array):
        series = series.arr.to_list()
    elif dtype in (pl.String, pl.Categorical, pl.Enum):
        series = series.cast(pl.String).str.split("|")
    elif not isinstance(dtype, pl.List):
        series = series.reshape((-1, 1)).arr.to_list()
    rows = np.repeat(np.arange(len(series)), series.list.len().fill_null(0).to_numpy())
    flat = series.filter(series.list.len() > 0).explode()
    if flat.dtype == pl.String:
        flat = _blank_to_null(flat.str.strip_chars())
        numbers = flat.str.contains(WHOLE_NUMBER).all() if slice.numbers is None else slice.numbers
        if numbers:
            flat = flat.cast(pl.Int64)
    there = flat.is_not_null()
    if not there.any():
        return rows[:0], pl.Series(series.name, [], pl.Int64)
    if not (flat.dtype.is_integer() or flat.dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise DataError(
            f"{source}, column {series.name!r}: each row lists ids, whole numbers or text (7|12), "
            f"and these are {dtype}"
        )
    return rows[there.to_numpy()], make_ids(flat.filter(there), source)


def make_time(series: pl.Series, source: str, slice: Slice = WHOLE) -> np.ndarray:
    """Unix seconds, float64, from numbers, dates, or text that holds either.

    Raises:
      DataError: a time is missing, NaN, infinite, unreadable or in milliseconds, naming the row.
    """
    where = _Place(source, series.name, slice)
    time = _to_float64(series, where)
    missing = np.isnan(time)
    if missing.any():
        raise DataError(
            f"{where}: {missing.sum()} row(s) without a time, the first is row "
            f"{where.row(missing)}; give every row unix seconds, or none a time column"
        )
    late = np.abs(time) > _LATEST
    if late.any() and not _holds_dates(series, where):
        raise DataError(
            f"{where}, row {where.row(late)}: {time[_first(late)]:.0f} looks like "
            "milliseconds (or finer): divide by 1000 (microseconds: by 1000000); times are "
            "unix seconds"
        )
    return time


def _dense(series: pl.Series, feature: Feature, where: _Place) -> Dense:
    values = _to_float64(series, where)
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    bad = np.isinf(narrow)
    if bad.any():
        raise DataError(
            f"{where}, row {where.row(bad)}: {values[_first(bad)]} does not fit a 32-bit float"
        )
    return Dense(narrow)


def _categorical(series: pl.Series, feature: Feature, where: _Place) -> Categorical:
    return Categorical(*_encode(_words(series, where, "categorical")))


def _bag(series: pl.Series, feature: Feature, where: _Place) -> Bag:
    if isinstance(series.dtype, pl.Array):
        series = series.arr.to_list()
    elif not isinstance(series.dtype, pl.List):
        series = _words(series, where, "a bag").cast(pl.String).str.split(feature.separator)
    rows = np.repeat(np.arange(len(series)), series.list.len().fill_null(0).to_numpy())
    flat = series.filter(series.list.len() > 0).explode()
    words = _words(flat, where, "a bag")
    if words.dtype == pl.String:
        words = _blank_to_null(words.str.strip_chars())
    codes, vocab = _encode(words)
    kept = codes >= 0
    counts = np.bincount(rows[kept], minlength=len(series))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Bag(offsets, codes[kept], vocab)


def _vector(series: pl.Series, feature: Feature, where: _Place) -> Vector:
    if series.dtype == pl.String:
        series = _blank_to_null(series).str.split(feature.separator)
    elif isinstance(series.dtype, pl.Array) and series.dtype.size is not None:
        series = series.arr.to_list()
    if not isinstance(series.dtype, pl.List) or isinstance(series.dtype.inner, (pl.List, pl.Array)):
        raise DataError(f"{where}: a vector is a list of numbers in each row, not {series.dtype}")
    known = series.is_not_null()
    lengths = series.filter(known).list.len().to_numpy()
    rows = np.flatnonzero(known.to_numpy())
    width = where.slice.width
    if width is None:
        if len(lengths) == 0 or lengths.max() == 0:
            raise DataError(f"{where}: no row holds a vector")
        width = int(lengths[0])
    others = np.flatnonzero(lengths != width)
    if others.size:
        odd = int(others[0])
        raise DataError(
            f"{where}, row {where.slice.start + rows[odd] + 1}: a vector of {lengths[odd]} numbers "
            f"where the rows before it hold {width}; all must be of one length"
        )
    flat = series.filter(known).explode()
    try:
        numbers = flat.cast(pl.Float64).cast(pl.Float32).to_numpy().reshape(-1, width)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{where}: a vector holds numbers only: {error}") from error
    bad = ~np.isfinite(numbers).all(axis=1)
    if bad.any():
        row = where.slice.start + rows[int(np.argmax(bad))] + 1
        raise DataError(
            f"{where}, row {row}: the vector holds NaN, a null or infinity; write numbers only, or "
            "leave the whole cell empty where the vector is missing"
        )
    values = np.full((len(series), width), np.nan, np.float32)
    values[rows] = numbers
    return Vector(values)


def _history(series: pl.Series, feature: Feature, where: _Place) -> Column:
    raise DataError(
        f"{where}: kind 'history' is built from the interactions, never read from a column; "
        "remove it from the schema, or make it a bag"
    )


_MAKERS: dict[str, Callable[[pl.Series, Feature, _Place], Column]] = {
    "dense": _dense,
    "categorical": _categorical,
    "bag": _bag,
    "vector": _vector,
    "history": _history,
}


def _to_float64(series: pl.Series, where: _Place) -> np.ndarray:
    """Numbers, with NaN where (and only where) the series is null."""
    dtype = series.dtype
    if dtype in (pl.Date, pl.Datetime):
        numbers = series.dt.epoch("us") / 1e6
    elif dtype == pl.Duration:
        numbers = series.dt.total_microseconds() / 1e6
    elif dtype == pl.String:
        numbers = _parse_numbers(series, where)
    elif dtype.is_numeric() or dtype in (pl.Boolean, pl.Null):
        numbers = series.cast(pl.Float64)
    else:
        raise DataError(f"{where}: a dense column holds numbers, not {dtype}")
    bad = (~numbers.is_finite()).fill_null(False)
    if bad.any():
        raise DataError(
            f"{where}: {bad.sum()} value(s) that are NaN or infinite, the first in row "
            f"{where.row(bad)}; leave the cell empty (null) where a value is missing"
        )
    return numbers.to_numpy()


def _words(series: pl.Series, where: _Place, kind: str) -> pl.Series:
    """Int64 or String, null where missing."""
    dtype = series.dtype
    if dtype.is_integer():
        return _to_int64(series, where)
    if dtype.is_float():
        return _whole(series, where, f"the schema calls it {kind}; make it dense")
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Date, pl.Datetime, pl.Null):
        return _blank_to_null(series.cast(pl.String))
    raise DataError(f"{where}: the schema calls it {kind}, but its values are {dtype}")


def _encode(words: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """int32 codes (-1 where null) into the sorted vocabulary."""
    codes = words.rank("dense").cast(pl.Int32) - 1
    vocab = words.drop_nulls().unique().sort()
    return codes.fill_null(-1).to_numpy(), to_array(vocab)


def to_array(ids: pl.Series) -> np.ndarray:
    """Int64 or String as int64 or fixed-width str: never an object array."""
    return ids.to_numpy().astype(str) if ids.dtype == pl.String else ids.to_numpy()


def _whole(series: pl.Series, where: _Place, remedy: str) -> pl.Series:
    bad = (~series.is_finite() | (series != series.floor())).fill_null(False)
    if bad.any():
        raise DataError(
            f"{where}, row {where.row(bad)}: {series[_first(bad)]} is not a whole number; {remedy}"
        )
    return _to_int64(series, where)


def _to_int64(series: pl.Series, where: _Place) -> pl.Series:
    whole = series.cast(pl.Int64, strict=False)
    bad = whole.is_null() & series.is_not_null()
    if bad.any():
        raise DataError(
            f"{where}, row {where.row(bad)}: {series[_first(bad)]} does not fit a 64-bit integer"
        )
    return whole


def _parse_numbers(series: pl.Series, where: _Place) -> pl.Series:
    """Numbers, or the unix seconds of dates, from text that holds either."""
    series = _blank_to_null(series.str.strip_chars())
    if _holds_dates(series, where):
        first = pl.Series(series.name, [where.slice.first], pl.String)  # Polars goes by its format
        dates = pl.concat([first, series]).str.to_datetime(
            strict=False, time_unit="us", time_zone="UTC"
        )
        numbers = dates[1:].dt.epoch("us") / 1e6
    else:
        numbers = series.cast(pl.Float64, strict=False)
    bad = numbers.is_null() & series.is_not_null()
    if bad.any():
        raise DataError(
            f"{where}, row {where.row(bad)}: {series[_first(bad)]!r} is neither a number nor "
            "a date like the others (2024-05-01, 2024-05-01T12:00:00Z)"
        )
    return numbers


def _holds_dates(series: pl.Series, where: _Place) -> bool:
    """Whether the values are dates or, of text, the first that is not blank is one."""
    if series.dtype != pl.String:
        return series.dtype.is_temporal()
    first = pl.Series([where.slice.first], dtype=pl.String)
    if where.slice.first is None:
        first = _blank_to_null(series.str.strip_chars()).drop_nulls().head(1)
    return bool(first.str.contains(DATE_PATTERN).any())


def _blank_to_null(series: pl.Series) -> pl.Series:
    return series.set(series.str.strip_chars() == "", None)


def _first(mask: pl.Series | np.ndarray) -> int:
    return int(np.argmax(np.asarray(mask)))
