"""Guesses the schema of frames from the names and types of their columns."""

import logging
from collections.abc import Mapping

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


def infer_schema(
    interactions: pl.DataFrame,
    users: pl.DataFrame | None = None,
    items: pl.DataFrame | None = None,
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
      interactions: one row per interaction.
      users: one row per user, or None.
      items: one row per item, or None.
      sources: what `interactions`, `users` and `items` are called in messages.

    Raises:
      DataError: no column of the interactions is known as the user's or the item's id.
    """
    names = {"interactions": "interactions", "users": "users", "items": "items", **(sources or {})}
    user = _find(interactions, USER_NAMES)
    item = _find(interactions, ITEM_NAMES)
    for side, column, legal in (("user", user, USER_NAMES), ("item", item, ITEM_NAMES)):
        if column is None:
            raise DataError(
                f"{names['interactions']}: no column holds the {side}'s id; its columns are "
                f"{interactions.columns}. Call one {side!r} (or {', '.join(legal[1:4])}, ...), or "
                f"name it under {side!r} in schema.json"
            )
    assert user is not None and item is not None
    time = _find(interactions, TIME_NAMES)
    part = _find(interactions, PART_NAMES)
    if part is not None and not _is_part(interactions[part]):
        part = None
    negatives = _find(interactions, NEGATIVE_NAMES)
    if negatives is not None and not _lists_ids(interactions[negatives]):
        negatives = None
    title = None if items is None else _find(items, TITLE_NAMES)
    if title is not None and items is not None and items[title].dtype != pl.String:
        title = None
    features = []
    for side, frame, keys in (
        ("user", users, (user,)),
        ("item", items, (item, title)),
        ("context", interactions, (user, item, time, part, negatives)),
    ):
        for series in [] if frame is None else frame:
            if series.name not in keys:
                source = names["interactions" if side == "context" else f"{side}s"]
                features.extend(_infer_feature(series, side, source))
    return Schema(
        tuple(features),
        user=user,
        item=item,
        time=time,
        part=part,
        title=title,
        negatives=negatives,
    )


def _infer_feature(series: pl.Series, side: str, source: str) -> list[Feature]:
    """The feature of a column, or [] for one that cannot be a feature."""
    dtype, values = series.dtype, series.drop_nulls()
    inner = getattr(dtype, "inner", None)
    if len(values) == 0:
        _log.warning("%s: column %r is empty and is left out of the schema", source, series.name)
        return []
    if inner is not None and inner.is_float():
        kind = "vector"
    elif inner is not None and (inner.is_integer() or inner in (pl.String, pl.Boolean)):
        kind = "bag"
    elif dtype.is_float() or dtype.is_decimal() or dtype in (pl.Date, pl.Datetime, pl.Duration):
        kind = "dense"
    elif dtype.is_integer():
        distinct = values.n_unique()
        few = side != "context" and distinct <= _FEW and 2 * distinct <= len(values)
        kind = "categorical" if few else "dense"
    elif dtype == pl.String and values.str.contains(DATE_PATTERN).all():
        kind = "dense"
    elif dtype == pl.String:
        bag = values.str.contains("|", literal=True).sum() >= _BAG_SHARE * len(values)
        kind = "bag" if bag else "categorical"
    elif dtype in (pl.Boolean, pl.Categorical, pl.Enum):
        kind = "categorical"
    else:
        _log.warning(
            "%s: column %r is of type %s and is left out of the schema", source, series.name, dtype
        )
        return []
    rare = kind == "categorical" and dtype == pl.String and 2 * values.n_unique() > len(values)
    return [Feature(series.name, kind, side, min_count=2 if rare else 1)]


def _find(frame: pl.DataFrame, names: tuple[str, ...]) -> str | None:
    plain = {c.lower().translate({ord(x): None for x in "_- "}): c for c in reversed(frame.columns)}
    return next((plain[name] for name in names if name in plain), None)


def _is_part(series: pl.Series) -> bool:
    if series.dtype not in (pl.String, pl.Categorical, pl.Enum):
        return False
    values = series.drop_nulls().cast(pl.String).unique().str.to_lowercase()
    return len(values) > 0 and values.is_in(PART_VALUES).all()


def _lists_ids(series: pl.Series) -> bool:
    """Whether a column can list ids; a column of numbers is taken for a count of them."""
    inner = getattr(series.dtype, "inner", None)
    if inner is None:
        return series.dtype == pl.String and series.count() > 0
    return inner.is_integer() or inner == pl.String
