"""What holds of whole columns that are read in slices."""

import polars as pl

from recjax.data.columns import WHOLE_NUMBER, Slice
from recjax.data.schema import Feature, Schema
from recjax.errors import DataError

_TEXT = (pl.String, pl.Categorical, pl.Enum)


def survey_columns(frame: pl.LazyFrame, schema: Schema, source: str) -> dict[str, Slice]:
    """By column of the interactions: what reading a slice of it must know of the rest.

    Raises:
      DataError: a column of vectors holds none.
    """
    types = frame.collect_schema()
    found = {}
    features = schema.of_side("context")
    for name in (schema.time, *(f.name for f in features if f.kind == "dense")):
        if name is not None and types[name] == pl.String:
            found[name] = Slice(first=_first_text(frame, name))
    for feature in features:
        if feature.kind == "vector":
            found[feature.name] = Slice(width=_vector_width(frame, feature, source))
    if schema.negatives is not None:
        found[schema.negatives] = Slice(numbers=_lists_numbers(frame, schema.negatives))
    return found


def _first_text(frame: pl.LazyFrame, name: str) -> str | None:
    text = frame.select(pl.col(name).str.strip_chars()).filter(pl.col(name) != "").head(1)
    return next(iter(text.collect(engine="streaming")[name]), None)


def _lists_numbers(frame: pl.LazyFrame, name: str) -> bool | None:
    dtype, lists = frame.collect_schema()[name], pl.col(name)
    if isinstance(dtype, pl.Array):
        lists = lists.arr.to_list()
    elif dtype in _TEXT:
        lists = lists.cast(pl.String).str.split("|")
    if dtype not in _TEXT and getattr(dtype, "inner", None) != pl.String:
        return None
    words = frame.select(lists).explode(name).select(pl.col(name).str.strip_chars())
    numbers = words.filter(pl.col(name) != "").select(pl.col(name).str.contains(WHOLE_NUMBER).all())
    return bool(numbers.collect(engine="streaming").item())


def _vector_width(frame: pl.LazyFrame, feature: Feature, source: str) -> int | None:
    dtype, lists = frame.collect_schema()[feature.name], pl.col(feature.name)
    if dtype == pl.String:
        frame = frame.filter(lists.str.strip_chars() != "")
        lists = lists.str.split(feature.separator)
    elif isinstance(dtype, pl.Array):
        lists = lists.arr.to_list()
    elif not isinstance(dtype, pl.List):
        return None
    lengths = frame.select(length=lists.list.len()).drop_nulls()
    first = lengths.head(1).collect(engine="streaming")["length"].to_list()
    longest = first and (first[0] or lengths.max().collect(engine="streaming").item())
    if not longest:
        raise DataError(f"{source}, column {feature.name!r}: no row holds a vector")
    return first[0]
