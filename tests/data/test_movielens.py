import gzip

import numpy as np
import pytest

from recjax.data.movielens import load_movielens
from recjax.errors import DataError
from tests.real_data import real_data

ML_1M = {
    "ratings.dat": "1::20::5::300\n2::10::4::100\n1::10::3::200\n1::30::4::300\n",
    "users.dat": "1::F::1::10::48067\n2::M::56::16::V1N\n3::M::25::15::55117\n",
    "movies.dat": (
        "10::Toy Story (1995)::Animation|Comedy\n20::Les Misérables (1998)::Drama\n"
        "30::Seven (a.k.a. Se7en) (1995)::Crime\n40::Never Rated::Drama\n"
    ),
}
ML_100K = {
    "u.data": "1\t2\t3\t200\n2\t1\t5\t100\n1\t1\t4\t100\n",
    "u.user": "1|24|M|technician|85711\n2|53|F|other|94043\n",
    "u.item": "1|Toy Story (1995)|01-Jan-1995||url|0|0|1\n2|Amélie|05-Feb-2001||url|0|1|1\n"
    "3|unknown||||1|0|0\n",
    "u.genre": "unknown|0\nAction|1\nComedy|2\n\n",
}
ML_CSV = {
    "ratings.csv": "userId,movieId,rating,timestamp\n7,2,3.5,200\n3,2,4.0,150\n7,1,5.0,100\n",
    "movies.csv": 'movieId,title,genres\n1,"Matrix, The (1999) ",Action|Sci-Fi\n'
    "2,Big Wave (2006-2007),(no genres listed)\n",
}


def write(directory, files, **changed):
    for name, text in {**files, **{k.replace("_", "."): v for k, v in changed.items()}}.items():
        (directory / name).write_text(text, encoding="utf-8" if "csv" in name else "latin-1")
    return directory


def words(column, row):
    return column.vocab[column.codes[column.offsets[row] : column.offsets[row + 1]]].tolist()


def test_1m_reads_users_movies_and_ratings(tmp_path):
    data = load_movielens("movielens-1m", write(tmp_path, ML_1M))
    assert data.name == "movielens-1m"
    assert data.users.ids.tolist() == [1, 2, 3]
    assert data.items.ids.tolist() == [10, 20, 30, 40]
    rows = data.interactions
    assert rows.item.tolist() == [0, 1, 2, 0]  # by time; the tie keeps the order of the file
    assert rows.time is not None and rows.time.tolist() == [200, 300, 300, 100]
    assert rows.offsets.tolist() == [0, 3, 4, 4]
    assert rows.columns["rating"].values.tolist() == [3, 5, 4, 4]
    assert data.titles is not None and data.titles[1] == "Les Misérables (1998)"
    assert words(data.items.columns["genres"], 0) == ["Animation", "Comedy"]
    np.testing.assert_array_equal(data.items.columns["year"].values, [1995, 1998, 1995, np.nan])
    age, zipcode = data.users.columns["age"], data.users.columns["zip"]
    assert age.vocab[age.codes].tolist() == ["1", "56", "25"]
    assert zipcode.vocab[zipcode.codes].tolist() == ["480", "V1N", "551"]
    assert data.schema.title == "title" and data.schema.time == "time"


def test_1m_reads_gzip_blank_last_lines_and_windows_line_ends(tmp_path):
    plain = write(tmp_path, ML_1M)
    expected = load_movielens("movielens-1m", plain)
    packed = tmp_path / "packed"
    packed.mkdir()
    for name, text in ML_1M.items():
        data = text.replace("\n", "\r\n").encode("latin-1") + b"\r\n"
        (packed / f"{name}.gz").write_bytes(gzip.compress(data))
    assert load_movielens("movielens-1m", packed).hash == expected.hash


def test_100k_reads_ages_as_numbers_and_flags_as_genres(tmp_path):
    data = load_movielens("movielens-100k", write(tmp_path, ML_100K))
    assert data.users.columns["age"].values.tolist() == [24, 53]
    genres = data.items.columns["genres"]
    assert [words(genres, row) for row in range(3)] == [["Comedy"], ["Action", "Comedy"], []]
    np.testing.assert_array_equal(data.items.columns["year"].values, [1995, 2001, np.nan])
    assert data.interactions.item.tolist() == [0, 1, 0]


@pytest.mark.parametrize("name", ["movielens-20m", "movielens-25m", "movielens-32m"])
def test_csv_sets_have_quoted_titles_and_no_user_table(tmp_path, name):
    data = load_movielens(name, write(tmp_path, ML_CSV))
    assert data.users.ids.tolist() == [3, 7] and not data.users.columns
    assert data.titles is not None and data.titles[0] == "Matrix, The (1999) "
    np.testing.assert_array_equal(data.items.columns["year"].values, [1999, 2006])
    assert words(data.items.columns["genres"], 1) == []
    assert data.interactions.columns["rating"].values.tolist() == [4.0, 5.0, 3.5]


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ("1::10::5::300\n1::20::4\n", r"ratings\.dat, line 2: 3 field\(s\).*expected 4.*'::'"),
        ("1::10::5::300\n1::20::4::1::2\n", r"line 2: 5 field\(s\)"),
        ("1,10,5,300\n", r"ratings\.dat, line 1: 1 field\(s\).*separated by '::'"),
        ("1\t10\t5\t300\n", r"ratings\.dat, line 1: 1 field\(s\).*separated by '::'"),
        ("x1::10::5::300\n", r"line 1: user id 'x1'; MovieLens ids are whole numbers"),
        ("1::10::5::300\n1::-20::5::300\n", r"line 2: item id '-20'; MovieLens ids are whole"),
        ("1::10::5::300\n1::1.5::5::300\n", r"line 2: item id '1\.5'"),
        ("1::99999999999::5::300\n", r"line 1: item id '99999999999'"),
        ("1::10::good::300\n", r"line 1: rating 'good' is not a number"),
        ("1::10::nan::300\n", r"line 1: rating 'nan' is not a number"),
        ("1::10::5::nan\n", r"line 1: timestamp 'nan' is not a whole number of seconds"),
        ("1::10::5::\n", r"line 1: timestamp '' is not a whole number of seconds"),
        ("", r"ratings\.dat: no ratings; it needs at least one line"),
        ("1::10::5::300\n1::98::5::300\n", r"1 interaction\(s\) with 1 item.*movies\.dat.*\[98\]"),
    ],
)
def test_bad_ratings_are_named_by_line(tmp_path, ratings, message):
    write(tmp_path, ML_1M, ratings_dat=ratings)
    with pytest.raises(DataError, match=message):
        load_movielens("movielens-1m", tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("users.dat", "1::F::1::10\n", r"users\.dat, line 1: 4 field\(s\).*expected 5"),
        ("users.dat", "1::F::1::1::1\nu2::F::1::1::1\n", r"users\.dat, line 2: id 'u2'"),
        ("users.dat", "1::F::1::1::1\n" * 2, r"users\.dat, column 'user'.* 1 in rows 1 and 2"),
        ("movies.dat", "10::A::B\n10::A::B\n", r"movies\.dat.*more than once, first 10 in rows 1"),
        ("movies.dat", "10::A\n", r"movies\.dat, line 1: 2 field\(s\)"),
    ],
)
def test_bad_tables_are_named_by_line(tmp_path, name, text, message):
    write(tmp_path, ML_1M)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_movielens("movielens-1m", tmp_path)


def test_a_user_who_is_not_listed_has_missing_values(tmp_path):
    data = load_movielens("movielens-1m", write(tmp_path, ML_1M, users_dat="2::M::56::16::100\n"))
    assert data.users.ids.tolist() == [2, 1]
    assert data.users.columns["gender"].codes.tolist() == [0, -1]


def test_ratings_of_unknown_movies_are_dropped_on_request(tmp_path):
    write(tmp_path, ML_1M, movies_dat="10::Toy Story (1995)::Comedy\n")
    data = load_movielens("movielens-1m", tmp_path, unknown_items="drop")
    assert data.interactions.size == 2 and data.interactions.item.tolist() == [0, 0]


def test_a_missing_file_is_named_with_what_is_there(tmp_path):
    write(tmp_path, ML_1M)
    (tmp_path / "users.dat").unlink()
    with pytest.raises(DataError, match=r"users\.dat: no such file.*holds \['movies\.dat'"):
        load_movielens("movielens-1m", tmp_path)
    with pytest.raises(DataError, match=r"absent.*is no directory"):
        load_movielens("movielens-1m", tmp_path / "absent")


def test_truncated_gzip_is_named(tmp_path):
    write(tmp_path, ML_1M)
    (tmp_path / "ratings.dat").unlink()
    packed = gzip.compress(ML_1M["ratings.dat"].encode() * 50)
    (tmp_path / "ratings.dat.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"ratings\.dat\.gz: truncated gzip"):
        load_movielens("movielens-1m", tmp_path)
    (tmp_path / "ratings.dat.gz").write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match=r"ratings\.dat\.gz: not a sound gzip"):
        load_movielens("movielens-1m", tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ratings.csv", "user;item\n1;2\n", r"ratings\.csv, line 1: header 'user;item'; expected"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n1,2,3\n", r"ratings\.csv, line 2: 3 fi"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n", r"ratings\.csv: no ratings"),
        ("movies.csv", "movieId,title,genres\n1,A\n", r"movies\.csv, line 2: 2 field\(s\)"),
        ("movies.csv", "movieId,title,genres\nx,A,B\n", r"movies\.csv, line 2: id 'x'"),
    ],
)
def test_bad_csv_files_are_named_by_line(tmp_path, name, text, message):
    write(tmp_path, ML_CSV)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_movielens("movielens-25m", tmp_path)


def test_bad_100k_files_are_named_by_line(tmp_path):
    write(tmp_path, ML_100K, u_user="1|old|M|technician|85711\n")
    with pytest.raises(DataError, match=r"u\.user, line 1: age 'old' is not a number"):
        load_movielens("movielens-100k", tmp_path)
    write(tmp_path, ML_100K, u_item="1|Toy Story (1995)|01-Jan-1995||url|0|0\n")
    with pytest.raises(DataError, match=r"u\.item, line 1: 7 field\(s\).*expected 8"):
        load_movielens("movielens-100k", tmp_path)


def test_real_100k():
    data = load_movielens("movielens-100k", real_data("movielens-100k"))
    assert (data.interactions.size, data.users.size, data.items.size) == (100_000, 943, 1_682)
    assert set(data.users.columns) == {"age", "gender", "occupation", "zip"}


def test_real_1m_keeps_movies_that_nobody_rated():
    data = load_movielens("movielens-1m", real_data("movielens-1m"))
    assert (data.interactions.size, data.users.size, data.items.size) == (1_000_209, 6_040, 3_883)
    assert (np.bincount(data.interactions.item) > 0).sum() == 3_706
