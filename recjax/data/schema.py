"""What the columns of a data set are: kinds, sides and how each is turned into numbers."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any

from recjax.errors import DataError

KINDS = ("dense", "categorical", "bag", "history", "vector")
SIDES = ("user", "item", "context")
TRANSFORMS = ("standard", "log", "bucket", "none")


@dataclasses.dataclass(frozen=True)
class Feature:
    """One column that a model may read.

    Attributes:
      name: the column's name.
      kind: `dense` (a number), `categorical` (one value of a set), `bag` (several values of a
        set), `vector` (a frozen pretrained vector) or `history` (items of earlier interactions).
      side: `user`, `item` or `context` (a column of the interactions).
      transform: dense only: `standard` (zero mean, unit variance on training data), `log`
        (log1p, then standard), `bucket` (quantiles of the training data) or `none`.
      buckets: number of buckets where transform is `bucket`.
      hash_buckets: categorical and bag: 0 for a vocabulary built on training data; otherwise
        values are hashed into so many buckets (for open sets).
      min_count: values seen less often in training are out of vocabulary.
      separator: how the values of a bag are separated in text files.
    """

    name: str
    kind: str
    side: str
    transform: str = "standard"
    buckets: int = 16
    hash_buckets: int = 0
    min_count: int = 1
    separator: str = "|"

    def __post_init__(self):
        for field, value, legal in (
            ("kind", self.kind, KINDS),
            ("side", self.side, SIDES),
            ("transform", self.transform, TRANSFORMS),
        ):
            if value not in legal:
                raise DataError(
                    f"schema: feature {self.name!r} has {field}={value!r}; legal are {legal}"
                )


@dataclasses.dataclass(frozen=True)
class Schema:
    """The features of a data set and the names of its key columns.

    Attributes:
      features: every column that a model may read, in a fixed order.
      user: the column of the user id, in the interactions and the user table.
      item: the column of the item id, in the interactions and the item table.
      time: the interactions' column of unix seconds, or None where the data has no time.
      part: the interactions' column that holds a predefined split, or None.
      title: the item table's column that names an item to a person, or None.
      negatives: the interactions' column that lists the ids of items that were shown with each and
        not chosen (in text files separated by `|`), or None.
    """

    features: tuple[Feature, ...] = ()
    user: str = "user"
    item: str = "item"
    time: str | None = None
    part: str | None = None
    title: str | None = None
    negatives: str | None = None

    def __post_init__(self):
        seen: set[tuple[str, str]] = set()
        for feature in self.features:
            if (feature.side, feature.name) in seen:
                raise DataError(f"schema: {feature.side} feature {feature.name!r} appears twice")
            seen.add((feature.side, feature.name))

    def of_side(self, side: str) -> tuple[Feature, ...]:
        """The features of one side, in schema order."""
        return tuple(f for f in self.features if f.side == side)

    def to_json(self) -> str:
        """The schema as indented JSON, to be edited by hand."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "schema.json") -> "Schema":
        """Reads what `to_json` wrote; `source` names the file in errors."""
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{source}, line {error.lineno}: not JSON: {error.msg}") from error
        if not isinstance(record, dict):
            raise DataError(f"{source}: expected a JSON object, found {type(record).__name__}")
        features = record.pop("features", [])
        _check_keys(record, cls, source)
        for feature in features:
            _check_keys(feature, Feature, f"{source}: a feature")
        try:
            return cls(features=tuple(Feature(**f) for f in features), **record)
        except TypeError as error:
            raise DataError(f"{source}: {error}") from error


def _check_keys(record: Mapping[str, Any], cls: type, source: str) -> None:
    if not isinstance(record, Mapping):
        raise DataError(f"{source}: expected a JSON object, found {type(record).__name__}")
    legal = [f.name for f in dataclasses.fields(cls)]
    for key in record:
        if key not in legal:
            near = difflib.get_close_matches(key, legal, n=3) or legal
            raise DataError(f"{source}: unknown key {key!r}; did you mean one of {near}?")
