"""Guesses the schema of frames from the names and types of their columns."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from recjax.data.columns import DATE_PATTERN
from recjax.data.schema import Feature, Schema
from recjax.errors import DataError

_log = logging.getLogger(__name__)

# Names are compared in lower case without `_`, `-` and spaces; the first that is there is taken.
USER_NAMES = ("user", "userid", "uid", "customer", "customerid", "member", "memberid", "visitorid")
ITEM_NAMES = (
    *("item", "itemid", "iid", "movie", "movieid", "product", "productid", "video", "videoid"),
    *(
        "track",
        "trackid",
        "song",
        "songid",
        "book",
        "bookid",
        "article",
        "articleid",
        "asin",
        "sku",
    ),
)
TIME_NAMES = ("time", "timestamp", "ts", "unixtime", "datetime", "date", "eventtime", "createdat")
PART_NAMES = ("split", "part", "partition")
NEGATIVE_NAMES = ("negatives", "negativeitems", "negativeids")
TITLE_NAMES = ("title", "name", "itemname", "movietitle", "productname")
PART_VALUES = ("train", "valid", "validation", "val", "test")

_FEW = 20  # an integer of at most so many values, each often seen, is a code and not a quantity
_BAG_SHARE = 0.2  # of the values of a text column that hold a separator


Frame = pl.DataFrame | pl.LazyFrame


def infer_schema(
    interactions: Frame,
    users: Frame | None = None,
    items: Frame | None = None,
    *,
    sources: Mapping[str, str] | None = None,
) -> Schema:
    """The schema that names and types suggest, to be edited where it guesses wrong.

    Keys go by the usual names. Floats and dates are dense; so are integers, except that those of
    a user or an item with few values are categorical; text and booleans are categorical; text with
    `|` and lists are bags; lists and arrays of floats are vectors. Near-unique text is given
    min_count 2. Text or lists called `negatives` are ids of items that were not chosen.
    A column that is empty or of a type that no feature has is left out, with a warning.

    Args:
      interactions: one row per interaction; a lazy frame is streamed.
      users: one row per user, or None.
      items: one row per item, or None.
      sources: what `interactions`, `users` and `items` are called in messages.

    Raises:
      DataError: no column of the interactions is known as the user's or the item's id.
    """
    names = {"interactions": "interactions", "users": "users", "items": "items", **(sources or {})}
    types = interactions.collect_schema()
    user, item = find_keys(types.names())
    for side, column, legal in (("user", user, USER_NAMES), ("item", item, ITEM_NAMES)):
        if column is None:
            raise DataError(
                f"{names['interactions']}: no column holds the {side}'s id; its columns are "
                f"{types.names()}. Call one {side!r} (or {', '.join(legal[1:4])}, ...), or "
                f"name it under {side!r} in schema.json"
            )
    assert user is not None and item is not None
    time = _find(types.names(), TIME_NAMES)
    part = _find(types.names(), PART_NAMES)
    if part is not None and not _is_part(interactions, part):
        part = None
    negatives = _find(types.names(), NEGATIVE_NAMES)
    if negatives is not None and not _lists_ids(interactions, negatives):
        negatives = None
    item_types = {} if items is None else items.collect_schema()
    title = _find([*item_types], TITLE_NAMES)
    if title is not None and item_types[title] != pl.String:
        title = None
    features = []
    for side, frame, keys in (
        ("user", users, (user,)),
        ("item", items, (item, title)),
        ("context", interactions, (user, item, time, part, negatives)),
    ):
        if frame is None:
            continue
        for name in frame.collect_schema().names():
            if name not in keys:
                source = names["interactions" if side == "context" else f"{side}s"]
                features.extend(_infer_feature(frame, name, side, source))
    return Schema(
        tuple(features),
        user=user,
        item=item,
        time=time,
        part=part,
        title=title,
        negatives=negatives,
    )


def find_keys(columns: Sequence[str]) -> tuple[str | None, str | None]:
    """Which columns are the user's and the item's id, by their names."""
    return _find(columns, USER_NAMES), _find(columns, ITEM_NAMES)


def _infer_feature(frame: Frame, name: str, side: str, source: str) -> list[Feature]:
    """The feature of a column, or [] for one that cannot be a feature."""
    dtype, column = frame.collect_schema()[name], pl.col(name)
    count = _ask(frame, column.count())
    inner = getattr(dtype, "inner", None)
    if count == 0:
        _log.warning("%s: column %r is empty and is left out of the schema", source, name)
        return []
    if inner is not None and inner.is_float():
        kind = "vector"
    elif inner is not None and (inner.is_integer() or inner in (pl.String, pl.Boolean)):
        kind = "bag"
    elif dtype.is_float() or dtype.is_decimal() or dtype in (pl.Date, pl.Datetime, pl.Duration):
        kind = "dense"
    elif dtype.is_integer():
        distinct = _FEW + 1 if side == "context" else _ask(frame, column.drop_nulls().n_unique())
        kind = "categorical" if distinct <= _FEW and 2 * distinct <= count else "dense"
    elif dtype == pl.String and _ask(frame, column.str.contains(DATE_PATTERN).all()):
        kind = "dense"
    elif dtype == pl.String:
        bags = _ask(frame, column.str.contains("|", literal=True).sum())
        kind = "bag" if bags >= _BAG_SHARE * count else "categorical"
    elif dtype in (pl.Boolean, pl.Categorical, pl.Enum):
        kind = "categorical"
    else:
        _log.warning(
            "%s: column %r is of type %s and is left out of the schema", source, name, dtype
        )
        return []
    rare = False
    if kind == "categorical" and dtype == pl.String:
        rare = 2 * _ask(frame, column.drop_nulls().n_unique()) > count
    return [Feature(name, kind, side, min_count=2 if rare else 1)]


def _ask(frame: Frame, question: pl.Expr) -> Any:
    """The one value that an expression has; a lazy frame is streamed."""
    engine = "streaming" if isinstance(frame, pl.LazyFrame) else "in-memory"
    return frame.lazy().select(question).collect(engine=engine).item()


def _find(columns: Sequence[str], names: tuple[str, ...]) -> str | None:
    plain = {c.lower().translate({ord(x): None for x in "_- "}): c for c in reversed(columns)}
    return next((plain[name] for name in names if name in plain), None)


def _is_part(frame: Frame, name: str) -> bool:
    if frame.collect_schema()[name] not in (pl.String, pl.Categorical, pl.Enum):
        return False
    words = pl.col(name).drop_nulls().cast(pl.String).str.to_lowercase()
    return _ask(frame, words.len()) > 0 and _ask(frame, words.is_in(PART_VALUES).all())


def _lists_ids(frame: Frame, name: str) -> bool:
    """Whether a column can list ids; a column of numbers is taken for a count of them."""
    dtype = frame.collect_schema()[name]
    inner = getattr(dtype, "inner", None)
    if inner is None:
        return dtype == pl.String and _ask(frame, pl.col(name).count()) > 0
    return inner.is_integer() or inner == pl.String
