import datetime

import polars as pl
import pytest

from recjax.data.infer import infer_schema
from recjax.errors import DataError


def test_keys_go_by_the_usual_names():
    rows = pl.DataFrame({"MovieID": [1], "userId": [1], "ts": [3], "split": ["train"]})
    schema = infer_schema(rows)
    assert (schema.user, schema.item, schema.time, schema.part) == (
        "userId",
        "MovieID",
        "ts",
        "split",
    )
    assert schema.features == () and schema.title is None


def test_a_split_column_with_other_values_is_a_feature():
    rows = pl.DataFrame({"user": [1], "item": [1], "part": ["left"]})
    schema = infer_schema(rows)
    assert schema.part is None and schema.features[0].name == "part"


@pytest.mark.parametrize(
    "values, found",
    [(["5|6"], True), ([[5, 6]], True), ([["a"]], True), ([3], False), ([[0.5]], False)],
)
def test_lists_of_ids_called_negatives_are_the_negatives(values, found):
    schema = infer_schema(pl.DataFrame({"user": [1], "item": [1], "Negatives": values}))
    assert schema.negatives == ("Negatives" if found else None)
    assert [f.name for f in schema.features] == ([] if found else ["Negatives"])


def test_kinds_follow_types():
    n = 40
    items = pl.DataFrame(
        {
            "item": range(n),
            "name": [f"n{i}" for i in range(n)],
            "year": [1990 + i % 30 for i in range(n)],
            "shelf": [i % 3 for i in range(n)],
            "price": [i / 2 for i in range(n)],
            "fresh": [i % 2 == 0 for i in range(n)],
            "maker": [f"m{i % 5}" for i in range(n)],
            "url": [f"https://x/{i}" for i in range(n)],
            "genres": ["a|b" if i % 2 else "a" for i in range(n)],
            "tags": [["x"]] * n,
            "words": [[1, 2]] * n,
            "vector": pl.Series([[0.5, 1.5]] * n, dtype=pl.Array(pl.Float32, 2)),
            "released": [datetime.date(2024, 1, 1)] * n,
            "bought": ["2024-01-01"] * n,
        }
    )
    schema = infer_schema(pl.DataFrame({"user": [1], "item": [1], "score": [3]}), items=items)
    assert schema.title == "name"
    assert {f.name: f.kind for f in schema.of_side("item")} == {
        **{"year": "dense", "shelf": "categorical", "price": "dense", "fresh": "categorical"},
        **{"maker": "categorical", "url": "categorical", "genres": "bag", "tags": "bag"},
        **{"words": "bag", "vector": "vector", "released": "dense", "bought": "dense"},
    }
    assert {f.name: f.min_count for f in schema.features if f.min_count > 1} == {"url": 2}
    assert [(f.name, f.kind) for f in schema.of_side("context")] == [("score", "dense")]


def test_columns_that_no_feature_can_hold_are_left_out_aloud(caplog):
    rows = pl.DataFrame({"user": [1], "item": [1], "empty": [None], "nested": [{"a": 1}]})
    assert infer_schema(rows).features == ()
    assert "column 'empty' is empty" in caplog.text and "column 'nested'" in caplog.text


@pytest.mark.parametrize("missing", ["user", "item"])
def test_a_missing_key_is_named_with_the_columns(missing):
    rows = pl.DataFrame({"user": [1], "item": [1]}).rename({missing: "who"})
    with pytest.raises(DataError, match=f"rows.csv: no column holds the {missing}'s id.*'who'"):
        infer_schema(rows, sources={"interactions": "rows.csv"})
