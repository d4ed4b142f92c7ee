import dataclasses
import json
import os

import numpy as np
import polars as pl
import pytest

from recjax.data import prepare
from recjax.data.dataset import Dataset
from recjax.data.prepare import prepare_dataset
from recjax.data.schema import Schema
from recjax.data.shards import csv_to_parquet
from recjax.data.store import load_prepared
from recjax.data.table import load_table
from recjax.errors import ConfigError, DataError


def random_rows(count=60, seed=0, text=False):
    """Interactions with every kind of column, full of ties in time, in no order."""
    draw = np.random.default_rng(seed)
    users, items = draw.integers(1, 12, count), draw.integers(100, 120, count)
    words = np.array(["", "a", "bb", "ccc", " ", "ä|b", "x|y|zz"])
    vectors = [None if v % 5 == 0 else [float(v), 0.5] for v in draw.integers(0, 9, count)]
    return pl.DataFrame(
        {
            "user": [f"u{x}" for x in users] if text else users,
            "item": items,
            "time": draw.integers(0, 9, count) * 1.5,
            "split": draw.choice(["train", "valid", "test"], count),
            "rating": [None if x == 0 else float(x) for x in draw.integers(0, 5, count)],
            "device": draw.choice(["tv", "phone", ""], count),
            "tags": draw.choice(words, count),
            "face": vectors,
            "negatives": [list(map(int, draw.integers(95, 130, n % 4))) for n in items],
        }
    )


def assert_same_data(found, wanted):
    """Every array, its type and the hash are equal."""
    assert found.hash == wanted.hash and found.name == wanted.name
    assert found.schema == wanted.schema
    flat_found, flat_wanted = flatten(found), flatten(wanted)
    assert flat_found.keys() == flat_wanted.keys()
    for name, array in flat_wanted.items():
        assert flat_found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(flat_found[name], array, err_msg=name)
    del vars(found)["hash"]
    assert found.hash == wanted.hash  # the stored one is that of the arrays


def flatten(value, name=""):
    """Every array of a data set, by its path."""
    if isinstance(value, np.ndarray):
        return {name: value}
    if isinstance(value, dict):
        parts = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, Schema):
        parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    else:
        return {}
    return {k: v for key, part in parts.items() for k, v in flatten(part, f"{name}/{key}").items()}


def source_of(folder, rows, users=None, items=None):
    folder.mkdir(parents=True)
    for stem, frame in (("interactions", rows), ("users", users), ("items", items)):
        if frame is not None:
            frame.write_parquet(folder / f"{stem}.parquet")
    return folder


USERS = pl.DataFrame({"user": [11, 3, 5, 77], "age": [1.0, None, 3.0, 4.0], "tags": ["a|b"] * 4})
ITEMS = pl.DataFrame({"item": [*range(95, 130)], "title": ["t", *["ü"] * 34], "price": [0.5] * 35})


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("shard_rows", [19, 1000])
@pytest.mark.parametrize("tables", [False, True])
def test_prepared_data_equal_what_reading_the_files_gives(tmp_path, text, shard_rows, tables):
    more = (USERS.with_columns(pl.col("user").cast(pl.String)) if text else USERS, ITEMS)
    source = source_of(tmp_path / "source", random_rows(text=text), *(more if tables else ()))
    out = prepare_dataset(source, tmp_path / "out", shard_rows=shard_rows)
    assert (source / "schema.json").exists()
    assert_same_data(load_prepared(out), load_table(source))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("drop", ["item", "user"])
def test_what_the_item_table_lacks_is_dropped_or_the_same_error(tmp_path, drop, caplog):
    rows, items = random_rows(), ITEMS.filter(pl.col("item") % 3 != 0)
    if drop == "user":  # whose every row goes
        rows = rows.with_columns(
            item=pl.when(pl.col("user") == 5).then(102).otherwise(pl.col("item"))
        )
    source = source_of(tmp_path / "source", rows, items=items)
    with pytest.raises(DataError) as wanted:
        load_table(source)
    with pytest.raises(DataError) as found:
        prepare_dataset(source, tmp_path / "out", shard_rows=14)
    assert str(found.value) == str(wanted.value)
    prepare_dataset(source, tmp_path / "out", shard_rows=14, unknown_items="drop")
    warnings = caplog.text
    caplog.clear()
    assert_same_data(load_prepared(tmp_path / "out"), load_table(source, unknown_items="drop"))
    assert all(line.split(" ", 3)[-1] in warnings for line in caplog.text.splitlines())


def test_a_folder_of_parquet_files_is_one_table(tmp_path):
    rows = random_rows()
    folder = tmp_path / "source" / "interactions.parquet"
    folder.mkdir(parents=True)
    for number, part in enumerate((rows[:25], rows[25:26], rows[26:])):
        part.write_parquet(folder / f"part-{number}.parquet")
    out = prepare_dataset(tmp_path / "source", tmp_path / "out", shard_rows=10)
    assert_same_data(load_prepared(out), load_table(tmp_path / "source"))
    rows[:3].rename({"item": "thing"}).write_parquet(folder / "part-9.parquet")
    with pytest.raises(DataError, match=r"part-9\.parquet: its columns are"):
        prepare_dataset(tmp_path / "source", tmp_path / "other")


CSV = """user,item,date,note,score,flag,zip
007,5,2024-05-01,"two
lines, one cell",,true,01
7,6,2024-05-02,b,1,,02
10,5,2024-05-01,,2.5,false,3
 8,9,2024-06-01,c,,true,
"""


@pytest.mark.parametrize("block", [1, 40, 1 << 20])
@pytest.mark.parametrize("tail", ["", "\n\n", "1,5,2024-05-01,x,7,x,04"])
def test_csv_text_is_read_in_blocks_as_if_it_were_whole(tmp_path, monkeypatch, block, tail):
    monkeypatch.setattr(csv_to_parquet, "__defaults__", (block,))
    source = tmp_path / "source"
    source.mkdir()
    (source / "interactions.csv").write_bytes(f"\ufeff{CSV}{tail}".encode())
    prepare_dataset(source, tmp_path / "out", shard_rows=2)
    assert_same_data(load_prepared(tmp_path / "out"), load_table(source))


BAD = {
    "no user": ("user,item,time\n1,5,1\n2,6,2\n,6,3\n", None),
    "bad time": ("user,item,time\n1,5,1\n2,6,2\n1,6,1e14\n", None),
    "dates and numbers": ("user,item,time\n1,5,2024-01-01\n2,6,2024-01-02\n1,6,7\n", None),
    "two kinds of dates": ("user,item,time\n1,5,2024-01-01\n2,6,2024-01-02T12:00:00Z\n", None),
    "nan": ("user,item,x\n1,5,1\n2,6,2\n1,6,nan\n", None),
    "blank line": ("user,item,x\n1,5,1\n\n1,6,3\n", None),
    "ragged": ("user,item,time\n1,5,1\n2,6,2\n1,6\n", None),
    "latin": (b"user,item,time\n1,5,1\n2,6,2\n1,caf\xe9,1\n", None),
    "bad part": ("user,item,split\n1,5,train\n2,6,test\n1,6,tst\n", {"part": "split"}),
    "no column": ("user,item\n1,5\n", {"time": "time"}),
    "no id": ("user,thing\n1,5\n", None),
    "empty": ("user,item\n", None),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_as_reading_the_files_says_it(tmp_path, monkeypatch, case):
    monkeypatch.setattr(csv_to_parquet, "__defaults__", (12,))
    text, keys = BAD[case]
    source = tmp_path / "source"
    source.mkdir()
    (source / "interactions.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    if keys:
        (source / "schema.json").write_text(json.dumps(keys))
    messages = []
    for read in (load_table, lambda path: prepare_dataset(path, tmp_path / "out", shard_rows=2)):
        with pytest.raises(DataError) as error:
            read(source)
        messages.append(str(error.value).replace("--source", "--config.data.dir"))
    assert messages[0] == messages[1]
    assert not (tmp_path / "out").exists()


class Killed(BaseException):
    """What no `except` of the program catches."""


def test_a_preparation_stopped_anywhere_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    source = source_of(tmp_path / "source", random_rows(40), USERS, ITEMS)
    whole = prepare_dataset(source, tmp_path / "whole", shard_rows=14)
    wanted = {p.relative_to(whole): p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    rename, calls = os.rename, []

    def die_at_the_next(*args):
        """Every stage ends in a rename; one is let through, and the next never happens."""
        calls.append(args)
        if len(calls) == 2:
            raise Killed
        rename(*args)

    monkeypatch.setattr(os, "rename", die_at_the_next)
    deaths = 0
    while not (tmp_path / "out").exists():
        calls.clear()
        try:
            prepare_dataset(source, tmp_path / "out", shard_rows=14)
        except Killed:
            deaths += 1
    assert deaths >= 9
    found = {
        p.relative_to(tmp_path / "out"): p.read_bytes()
        for p in (tmp_path / "out").rglob("*")
        if p.is_file()
    }
    assert found == wanted


def test_other_files_under_way_start_anew_and_a_finished_folder_is_kept(tmp_path, monkeypatch):
    source = source_of(tmp_path / "source", random_rows(40))
    monkeypatch.setattr(prepare, "_gather", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare_dataset(source, tmp_path / "out", shard_rows=14)
    monkeypatch.undo()
    random_rows(50, seed=1).write_parquet(source / "interactions.parquet")
    (source / "schema.json").unlink(missing_ok=True)
    lines = []
    prepare_dataset(source, tmp_path / "out", shard_rows=14, report=lines.append)
    assert not any("going on" in line for line in lines)
    assert_same_data(load_prepared(tmp_path / "out"), load_table(source))
    prepare_dataset(source, tmp_path / "out", report=lines.append)
    assert "prepared already" in lines[-1]
    random_rows(30).write_parquet(source / "interactions.parquet")
    with pytest.raises(ConfigError, match="prepared of other files"):
        prepare_dataset(source, tmp_path / "out")
    with pytest.raises(ConfigError, match="is no prepared data set"):
        prepare_dataset(source, source)


def test_a_full_disk_is_one_error_and_what_is_finished_stays(tmp_path, monkeypatch):
    source = source_of(tmp_path / "source", random_rows(40))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match="No space left on device.*the same command goes on"):
        prepare_dataset(source, tmp_path / "out")
    monkeypatch.undo()
    assert_same_data(load_prepared(prepare_dataset(source, tmp_path / "out")), load_table(source))


def test_a_damaged_folder_is_an_error_that_names_the_file(tmp_path):
    source = source_of(tmp_path / "source", random_rows(40))
    out = prepare_dataset(source, tmp_path / "out")
    item = out / "interactions" / "item.npy"
    item.write_bytes(item.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"item\.npy: \d+ bytes, where its header announces"):
        load_prepared(out)
    item.unlink()
    with pytest.raises(DataError, match=r"item\.npy: cannot be read: No such file"):
        load_prepared(out)
    with pytest.raises(DataError, match="no prepared.json there.*python -m recjax.prepare"):
        load_prepared(source)


def test_arrays_stay_on_disk(tmp_path):
    source = source_of(tmp_path / "source", random_rows(40))
    data = load_prepared(prepare_dataset(source, tmp_path / "out"))
    assert isinstance(data, Dataset)
    assert not data.interactions.item.flags.owndata and not data.interactions.item.flags.writeable
