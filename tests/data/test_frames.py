"""Files that cannot be read are refused, by file and line."""

import pytest

from recjax.data.table import load_table
from recjax.errors import DataError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "user;item\n1;2\n",
            r"line 1: one column 'user;item'; columns must be separated by ','.*';'",
        ),
        ("user\titem\n1\t2\n", r"line 1: one column.*separated by ','.*'\\t'"),
        ("user,item,time\n1,2,3\n1,2\n", r"line 3: 2 field\(s\), where the header has 3"),
        ("user,item\n1,2\n1,2,3\n", r"line 3: 3 field\(s\), where the header has 2"),
        ("user,item,time\n1,2\n1,2,3,4\n", r"line 2: 2 field\(s\), where the header has 3"),
        ('user,item\n"a,b",2\n"c"\n', r"line 3: 1 field\(s\), where the header has 2"),
        ("user,item,item\n1,2,3\n", r"line 1: the column 'item' appears twice"),
        ("", r"line 1: empty; the first line must name the columns"),
        (
            "user,item,score\n1,2,0.5\n1,3,NaN\n",
            r"column 'score': 1 value\(s\) that are NaN.*row 2",
        ),
        ("user,item,time\n1,2,5\n1,3,nan\n", r"column 'time': 1 value\(s\) that are NaN.*row 2"),
    ],
)
def test_bad_csv_files_are_named_by_line(tmp_path, text, message):
    (tmp_path / "interactions.csv").write_text(text)
    with pytest.raises(DataError, match=r"interactions\.csv.*" + message):
        load_table(tmp_path)


def test_csv_text_must_be_utf8_and_may_have_a_mark_and_quotes(tmp_path):
    path = tmp_path / "interactions.csv"
    path.write_bytes('﻿user,item,note\n1,"a, b","two\nlines"\n\n'.encode())
    data = load_table(tmp_path)
    assert data.items.ids.tolist() == ["a, b"] and data.users.ids.tolist() == [1]
    path.write_bytes(b"user,item\n1,caf\xe9\n")
    with pytest.raises(DataError, match=r"interactions\.csv, line 2: not UTF-8"):
        load_table(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no interactions\.parquet or .*\.csv.*is no directory"):
        load_table(tmp_path / "absent")
    (tmp_path / "ratings.csv").write_text("a")
    with pytest.raises(DataError, match=r"no interactions.*holds \['ratings\.csv'\]"):
        load_table(tmp_path)
    (tmp_path / "interactions.csv").write_text("user,item\n1,2\n")
    (tmp_path / "interactions.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(DataError, match=r"both interactions\.parquet and interactions\.csv"):
        load_table(tmp_path)
    (tmp_path / "interactions.csv").unlink()
    with pytest.raises(DataError, match=r"interactions\.parquet: cannot be read as a Parquet file"):
        load_table(tmp_path)
