import datetime
import errno
import logging
import os
import re

import numpy as np
import polars as pl
import pytest

from recjax.data.dataset import Dataset
from recjax.data.schema import Feature, Schema
from recjax.data.split import TEST, TRAIN, VALID
from recjax.data.table import load_table
from recjax.errors import ConfigError, DataError

INTERACTIONS = """user_id,movie,timestamp,watch_time,device
u2,10,200,5.5,tv
u1,20,100,,phone
u2,30,100,1.25,tv
u1,10,300,2,
"""
USERS = "user_id,age,country\nu1,24,NL\nu2,,FR\nu3,30,NL\nu4,24,NL\n"
ITEMS = "movie,title,genre,price\n10,Ten,a|b,1.5\n20,,b,\n30,Thirty,,2\n"


def write(directory, **files):
    for name, text in files.items():
        (directory / f"{name}.csv").write_text(text)
    return directory


def frame(**columns):
    return pl.DataFrame({"user": [1, 1, 2], "item": [5, 6, 5], **columns})


def test_csv_files_become_a_data_set(tmp_path):
    write(tmp_path, interactions=INTERACTIONS, users=USERS, items=ITEMS)
    data = load_table(tmp_path)
    assert data.name == tmp_path.name
    assert data.users.ids.tolist() == ["u1", "u2", "u3", "u4"]
    assert data.items.ids.tolist() == [10, 20, 30]
    rows = data.interactions
    assert rows.user.tolist() == [0, 0, 1, 1] and rows.item.tolist() == [1, 0, 2, 0]
    assert rows.time is not None and rows.time.tolist() == [100, 300, 100, 200]
    np.testing.assert_array_equal(rows.columns["watch_time"].values, [np.nan, 2, 1.25, 5.5])
    device = rows.columns["device"]
    assert device.vocab.tolist() == ["phone", "tv"] and device.codes.tolist() == [0, -1, 1, 1]
    np.testing.assert_array_equal(data.users.columns["age"].values, [24, np.nan, 30, 24])
    genre = data.items.columns["genre"]
    assert genre.offsets.tolist() == [0, 2, 3, 3] and genre.vocab[genre.codes].tolist() == [*"abb"]
    assert data.titles is not None and data.titles.tolist() == ["Ten", "20", "Thirty"]


def test_the_inferred_schema_is_written_and_read_back(tmp_path):
    write(tmp_path, interactions=INTERACTIONS, users=USERS, items=ITEMS)
    first = load_table(tmp_path)
    path = tmp_path / "schema.json"
    assert Schema.from_json(path.read_text()) == first.schema
    assert load_table(tmp_path).hash == first.hash
    edited = path.read_text().replace(
        '"categorical",\n      "side": "user"', '"bag",\n"side":"user"'
    )
    path.write_text(edited)
    assert load_table(tmp_path).schema.of_side("user")[1].kind == "bag"
    assert path.read_text() == edited
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("interactions.csv", "items.csv", "schema.json", "users.csv")
    ]


def test_nothing_is_written_where_the_data_are_bad(tmp_path):
    write(tmp_path, interactions="user,item\n1,5\n,6\n")
    with pytest.raises(DataError, match=r"interactions\.csv, column 'user': 1 missing id.*row 2"):
        load_table(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["interactions.csv"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_directory_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, caplog, code):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    write(tmp_path, interactions="user,item\n1,5\n")
    monkeypatch.setattr(os, "replace", fail)
    with caplog.at_level(logging.WARNING):
        assert load_table(tmp_path).interactions.size == 1
    assert "schema.json: the inferred schema could not be written" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["interactions.csv"]


def test_parquet_gives_the_same_data_as_csv(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a", interactions=INTERACTIONS, items=ITEMS)
    for name in ("interactions", "items"):
        pl.read_csv(tmp_path / "a" / f"{name}.csv").write_parquet(
            tmp_path / "b" / f"{name}.parquet"
        )
    assert load_table(tmp_path / "a").hash == load_table(tmp_path / "b").hash


def test_a_user_who_is_not_listed_has_missing_values():
    users = pl.DataFrame(
        {"user": [2], "age": [30.5], "tags": [["x"]], "face": [[1.0, 2.0]], "country": ["NL"]}
    )
    data = Dataset.from_frames(frame(), users)
    assert data.users.ids.tolist() == [2, 1]
    columns = data.users.columns
    np.testing.assert_array_equal(columns["age"].values, [30.5, np.nan])
    np.testing.assert_array_equal(columns["face"].values, [[1, 2], [np.nan, np.nan]])
    assert columns["country"].codes.tolist() == [0, -1]
    assert columns["tags"].offsets.tolist() == [0, 1, 1]


def test_items_that_are_not_listed_are_an_error_or_dropped(caplog):
    items = pl.DataFrame({"item": [5, 7], "price": [1.5, 2.5]})
    rows = frame(time=[3.0, 2.0, 1.0], score=[0.5, 0.25, 0.125])
    message = r"interactions: 1 interaction\(s\) with 1 item.* not in items, the first \[6\]"
    with pytest.raises(DataError, match=message + ".*data.unknown_items=drop"):
        Dataset.from_frames(rows, items=items)
    data = Dataset.from_frames(rows, items=items, unknown_items="drop")
    assert re.search(message, caplog.text)
    assert data.interactions.item.tolist() == [0, 0] and data.items.ids.tolist() == [5, 7]
    assert data.interactions.columns["score"].values.tolist() == [0.5, 0.125]
    with pytest.raises(DataError, match="none of its items is in items"):
        Dataset.from_frames(rows, items=items.tail(1), unknown_items="drop")
    with pytest.raises(ConfigError, match="unknown_items='skip'; it must be 'error' or 'drop'"):
        Dataset.from_frames(rows, unknown_items="skip")


def test_ids_of_digits_match_ids_of_text():
    items = pl.DataFrame({"item": ["5", "6", "x"]})
    data = Dataset.from_frames(frame(), items=items)
    assert data.interactions.item.tolist() == [0, 1, 0]


def test_ids_keep_their_leading_zeros(tmp_path):
    write(
        tmp_path,
        interactions="user,item,zip\n007,0,01\n7,5,02\n010,10,03\n",
        users="user,age\n7,30\n007,20\n010,40\n",
        items="item\n0\n5\n10\n",
    )
    for _ in ("inferred", "read"):
        data = load_table(tmp_path)
        assert data.users.ids.tolist() == ["7", "007", "010"]
        assert data.interactions.user.tolist() == [0, 1, 2]
        assert data.interactions.item.tolist() == [1, 0, 2]
        assert data.items.ids.tolist() == [0, 5, 10]
    write(tmp_path, items="item\n00\n5\n10\n")
    with pytest.raises(DataError, match=r"1 item.* not in .*items\.csv, the first \[0\]"):
        load_table(tmp_path)


SHOWN = """user,item,time,negatives
1,5,9,6|7
1,6,3,
2,5,1,7| 5 |7
"""


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_negatives_are_lists_of_items_beside_each_interaction(tmp_path, suffix):
    write(tmp_path, interactions=SHOWN, items="item,price\n5,1.5\n6,2.5\n7,1\n")
    if suffix == "parquet":
        path = tmp_path / "interactions.csv"
        lists = pl.Series("negatives", [[6, 7], None, [7, 5, None, 7]])
        pl.read_csv(path).with_columns(lists).write_parquet(path.with_suffix(".parquet"))
        path.unlink()
    for _ in ("inferred", "read"):
        data = load_table(tmp_path)
        assert data.schema.negatives == "negatives" and not data.schema.of_side("context")
        negatives = data.interactions.negatives
        assert negatives.offsets.tolist() == [0, 0, 2, 5]
        assert data.items.ids[negatives.items].tolist() == [6, 7, 7, 5, 7]
        kept = data.interactions.select(data.interactions.user == 1).negatives
        assert kept.offsets.tolist() == [0, 3] and kept.items.tolist() == [2, 0, 2]
    other = Dataset.from_frames(
        pl.DataFrame({"user": [1, 1, 2], "item": [5, 6, 5], "time": [9, 3, 1]})
        .with_columns(negatives=pl.Series([[6], [], [7, 5, 7]])),
        items=pl.DataFrame({"item": [5, 6, 7], "price": [1.5, 2.5, 1.0]}),
    )  # fmt: skip
    assert other.hash != data.hash
    assert other.interactions.negatives.offsets.tolist() == [0, 0, 1, 4]


def test_negatives_that_are_not_listed_are_an_error_or_dropped(tmp_path, caplog):
    write(tmp_path, interactions=SHOWN, items="item,price\n5,1.5\n6,2.5\n")
    message = (
        r"interactions\.csv, row 1, column 'negatives': 3 negative\(s\) with 1 item\(s\) that are "
        r"not in .*items\.csv, the first \[7\]"
    )
    with pytest.raises(DataError, match=message + ".*data.unknown_items=drop"):
        load_table(tmp_path)
    data = load_table(tmp_path, unknown_items="drop")
    assert re.search(message, caplog.text)
    assert data.interactions.negatives.offsets.tolist() == [0, 0, 1, 2]
    # Negatives go with the interaction that is dropped.
    write(tmp_path, items="item,price\n5,1.5\n7,1\n")
    data = load_table(tmp_path, unknown_items="drop")
    assert data.interactions.item.tolist() == [0, 0]
    assert data.interactions.negatives.items.tolist() == [1, 1, 0, 1]


def test_negatives_that_nobody_chose_are_items_where_there_is_no_table_of_them():
    shown = Dataset.from_frames(frame(negatives=["7|6", None, "9"]))
    assert shown.items.ids.tolist() == [5, 6, 7, 9]
    assert shown.interactions.negatives.items.tolist() == [2, 1, 3]
    empty = Dataset.from_frames(frame(shown=[None] * 3), schema=Schema(negatives="shown"))
    assert empty.interactions.negatives.offsets.tolist() == [0] * 4
    one_each = Dataset.from_frames(frame(shown=[6, None, 7]), schema=Schema(negatives="shown"))
    assert one_each.interactions.negatives.offsets.tolist() == [0, 1, 1, 2]
    with pytest.raises(DataError, match="column 'shown': each row lists ids.*Float64"):
        Dataset.from_frames(frame(shown=[0.5, 1.0, 2.0]), schema=Schema(negatives="shown"))
    with pytest.raises(DataError, match="no column 'shwn'.*did you mean 'shown'"):
        Dataset.from_frames(frame(shown=["5", "6", "5"]), schema=Schema(negatives="shwn"))


def test_parts_may_be_given_as_words():
    data = Dataset.from_frames(frame(split=["Train", "validation", "test"]))
    assert data.interactions.part is not None
    assert data.interactions.part.tolist() == [TRAIN, VALID, TEST]
    schema = Schema(part="split")
    with pytest.raises(DataError, match="row 2, column 'split': 'dev' is no part of a split.*'tr"):
        Dataset.from_frames(frame(split=["train", "dev", "test"]), schema=schema)


@pytest.mark.parametrize(
    "time",
    [
        pl.Series([datetime.datetime(2024, 1, 1, 0, 0, s) for s in (0, 1, 2)]),
        pl.Series(["2024-01-01T00:00:00Z", "2024-01-01T00:00:01Z", "2024-01-01T00:00:02Z"]),
        pl.Series([1704067200, 1704067201, 1704067202]),
        pl.Series(["1704067200", "1704067201", "1704067202"]),
    ],
)
def test_times_may_be_dates_or_numbers(time):
    data = Dataset.from_frames(frame(time=time))
    assert data.interactions.time is not None
    assert data.interactions.time.tolist() == [1704067200, 1704067201, 1704067202]


@pytest.mark.parametrize("values", [[17, 1704067200123, 18], ["17", "1704067200123", "18"]])
def test_times_in_milliseconds_are_refused(values):
    message = (
        "interactions, column 'time', row 2: 1704067200123 looks like milliseconds .*divide by 1000"
    )
    with pytest.raises(DataError, match=message):
        Dataset.from_frames(frame(time=values))
    data = Dataset.from_frames(frame(time=["2024-01-01", "9999-12-31", "2024-01-02"]))
    assert data.interactions.time is not None and data.interactions.time.max() > 1e11


def test_frames_may_be_dicts_or_lazy():
    columns = frame(time=[1, 2, 3]).to_dict(as_series=False)
    expected = Dataset.from_frames(frame(time=[1, 2, 3])).hash
    assert Dataset.from_frames(columns).hash == expected
    assert Dataset.from_frames(pl.LazyFrame(columns)).hash == expected
    with pytest.raises(DataError, match="users: expected a Polars or pandas frame.*not int"):
        Dataset.from_frames(columns, users=3)
    with pytest.raises(DataError, match="interactions: cannot be made a frame"):
        Dataset.from_frames({"user": [1, 2], "item": [1, 2, 3]})


class PandasLike:
    columns = ("user", "item")

    def to_dict(self):
        return {}


def test_pandas_frames_are_converted(monkeypatch):
    monkeypatch.setattr(pl, "from_pandas", lambda data: frame())
    assert Dataset.from_frames(PandasLike()).interactions.size == 3

    def fail(data):
        raise ModuleNotFoundError("no pyarrow")

    monkeypatch.setattr(pl, "from_pandas", fail)
    with pytest.raises(DataError, match="needs pyarrow.*pip install pyarrow"):
        Dataset.from_frames(PandasLike())


NAN = float("nan")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"score": [1.0, NAN, 2.0]},
            r"column 'score': 1 value\(s\) that are NaN.*row 2; leave the",
        ),
        ({"score": [1.0, 2.0, float("inf")]}, r"column 'score': 1 value.*infinite.*row 3"),
        ({"score": [1.0, 2.0, 1e300]}, r"column 'score', row 3: 1e\+300 does not fit a 32-bit"),
        ({"time": [1.0, NAN, 2.0]}, r"column 'time': 1 value\(s\) that are NaN.*row 2"),
        (
            {"time": [1, None, None]},
            r"column 'time': 2 row\(s\) without a time, the first is row 2",
        ),
        (
            {"time": ["1", "soon", "3"]},
            r"column 'time', row 2: 'soon' is neither a number nor a date",
        ),
        ({"time": ["x", "2024-01-01", "y"]}, r"column 'time', row 1: 'x' is neither a number"),
        ({"time": ["2024-01-01", "", "2024-01-02"]}, r"column 'time': 1 row\(s\) without a time"),
        ({"item": [1, None, 2]}, r"column 'item': 1 missing id\(s\), the first in row 2"),
        ({"item": ["a", "", "b"]}, r"column 'item': 1 missing id\(s\), the first in row 2"),
        ({"user": [1.0, 2.5, 3.0]}, r"column 'user', row 2: 2\.5 is not a whole number; an id is"),
        ({"user": [1.0, NAN, 3.0]}, r"column 'user', row 2: nan is not a whole number"),
        (
            {"user": [True, False, True]},
            r"column 'user': an id is a whole number or text, not Bool",
        ),
        ({"vec": [[1.0, 2.0], [1.0], None]}, r"column 'vec', row 2: a vector of 1 numbers where"),
        ({"vec": [None, [1.0, NAN], None]}, r"column 'vec', row 2: the vector holds NaN"),
    ],
)
def test_bad_values_are_named_by_row(columns, message):
    with pytest.raises(DataError, match=f"interactions, {message}"):
        Dataset.from_frames(frame(**columns))


def test_rows_given_twice_are_refused():
    message = r"items, column 'item': 1 id\(s\) appear more than once, first 5 in rows 1 and 3"
    with pytest.raises(DataError, match=message):
        Dataset.from_frames(frame(), items=pl.DataFrame({"item": [5, 6, 5]}))
    with pytest.raises(DataError, match=r"users, column 'user': 1 id.*first 1 in rows 1 and 2"):
        Dataset.from_frames(frame(), users=pl.DataFrame({"user": [1, 1, 2]}))


def test_no_interactions_are_refused(tmp_path):
    with pytest.raises(DataError, match="interactions: no interactions; it needs at least one row"):
        Dataset.from_frames(frame().clear())
    with pytest.raises(DataError, match=r"interactions\.csv: no interactions"):
        load_table(write(tmp_path, interactions="user,item\n"))


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (Feature("colour", "dense", "context"), r"no column 'colour'.*context feature.*'color'\?"),
        (Feature("age", "dense", "user"), r"user feature 'age' needs a table of users"),
        (Feature("color", "dense", "context"), r"'color', row 1: 'red' is neither a number"),
        (Feature("color", "vector", "context"), r"'color': a vector holds numbers only"),
        (Feature("size", "vector", "context"), r"'size': a vector is a list of numbers.*Float64"),
        (Feature("size", "categorical", "context"), r"'size', row 1: 1\.5 is not a whole number"),
        (Feature("tags", "dense", "context"), r"'tags': a dense column holds numbers, not List"),
        (
            Feature("tags", "categorical", "context"),
            r"'tags': the schema calls it categorical, but",
        ),
        (
            Feature("color", "history", "context"),
            r"'color': kind 'history' is built from the inter",
        ),
    ],
)
def test_a_schema_that_does_not_fit_is_refused(feature, message):
    rows = frame(color=["red", "blue", None], size=[1.5, 2.5, None], tags=[["a"], [], None])
    with pytest.raises(DataError, match=message):
        Dataset.from_frames(rows, schema=Schema((feature,)))


def test_a_schema_file_that_does_not_fit_is_refused(tmp_path):
    write(tmp_path, interactions="user,item\n1,5\n")
    path = tmp_path / "schema.json"
    path.write_text(Schema(time="when").to_json())
    with pytest.raises(
        DataError, match=r"interactions\.csv: no column 'when', which the schema na"
    ):
        load_table(tmp_path)
    path.write_text('{"user": "user",\n oops}')
    with pytest.raises(DataError, match=r"schema\.json, line 2: not JSON"):
        load_table(tmp_path)
    path.write_bytes(b'{"user": "\xff"}')
    with pytest.raises(DataError, match=r"schema\.json, line 1: not UTF-8"):
        load_table(tmp_path)
