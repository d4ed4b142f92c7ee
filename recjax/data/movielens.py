"""Readers of the MovieLens sets of GroupLens: 100K, 1M, and the CSV format of 20M, 25M and 32M.

Harper and Konstan, "The MovieLens Datasets", ACM TiiS 5(4), 2015. Every rating is an interaction;
its value is the context column `rating`, which is known only once the movie was watched: a model
may read it of earlier interactions, never of the one to be predicted. Movies that nobody rated stay
in the item table. Ages and occupations of 1M are the codes of its README (18 means 18 to 24).
"""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl

from recjax.data.dataset import Dataset
from recjax.data.files import decode, describe, read_bytes
from recjax.data.schema import Feature, Schema
from recjax.data.table import dataset_from_frames
from recjax.errors import DataError

_RATING_TYPES = {"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "time": pl.Int64}
_LARGEST_ID = 2**31 - 1
_YEAR = re.compile(r"\((\d{4})[^()]*\)\s*$")  # the last parenthesis: "(1995)", "(2006-2007)"
_NO_GENRE = ("unknown", "(no genres listed)")

_ITEM_FEATURES = (Feature("genres", "bag", "item"), Feature("year", "dense", "item"))
_CONTEXT_FEATURES = (Feature("rating", "dense", "context"),)

_Frames = tuple[pl.DataFrame, pl.DataFrame | None, pl.DataFrame, dict[str, str]]


def load_movielens(name: str, directory: str | Path, *, unknown_items: str = "error") -> Dataset:
    """The MovieLens set in a directory that holds its unpacked files.

    Args:
      name: `movielens-` and one of 100k, 1m, 20m, 25m, 32m.
      directory: where the files are; each may also be there as `.gz`.
      unknown_items: `error` or `drop`, for ratings of movies that are not listed.

    Raises:
      DataError: a file is missing or truncated, or a line of it is wrong.
    """
    read, user_features = _FORMATS[name]
    directory = Path(directory)
    ratings, users, movies, sources = read(directory)
    schema = Schema(
        features=(*user_features, *_ITEM_FEATURES, *_CONTEXT_FEATURES), time="time", title="title"
    )
    return dataset_from_frames(
        ratings, users, movies, schema, name=name, unknown_items=unknown_items, sources=sources
    )


def _read_100k(directory: Path) -> _Frames:
    sources = _locate(directory, interactions="u.data", users="u.user", items="u.item")
    genre_path = _locate(directory, genres="u.genre")["genres"]
    genre_names = [name for name, _ in _read_lines(genre_path, "|", 2)]
    users = {"user": [], "age": [], "gender": [], "occupation": [], "zip": []}
    for number, fields in enumerate(_read_lines(sources["users"], "|", 5), start=1):
        if not fields[1].isascii() or not fields[1].isdigit():
            raise DataError(f"{sources['users']}, line {number}: age {fields[1]!r} is not a number")
        age = int(fields[1])
        _append(users, _read_id(fields[0], sources["users"], number), age, *fields[2:4], fields[4])
    movies = {"item": [], "title": [], "genres": [], "year": []}
    rows = _read_lines(sources["items"], "|", 5 + len(genre_names))
    for number, (item, title, date, _, _, *flags) in enumerate(rows, start=1):
        genres = [g for g, flag in zip(genre_names, flags, strict=True) if flag == "1"]
        year = _year(title) or (int(date[-4:]) if date[-4:].isdecimal() else None)
        _append(movies, _read_id(item, sources["items"], number), title, genres, year)
    return _read_ratings(sources["interactions"], "\t"), _users(users), _movies(movies), sources


def _read_1m(directory: Path) -> _Frames:
    sources = _locate(directory, interactions="ratings.dat", users="users.dat", items="movies.dat")
    users = {"user": [], "gender": [], "age": [], "occupation": [], "zip": []}
    for number, fields in enumerate(_read_lines(sources["users"], "::", 5), start=1):
        _append(users, _read_id(fields[0], sources["users"], number), *fields[1:])
    movies = {"item": [], "title": [], "genres": [], "year": []}
    for number, fields in enumerate(_read_lines(sources["items"], "::", 3), start=1):
        item, title, genres = fields
        item = _read_id(item, sources["items"], number)
        _append(movies, item, title, genres.split("|"), _year(title))
    return _read_ratings(sources["interactions"], "::"), _users(users), _movies(movies), sources


def _read_csv(directory: Path) -> _Frames:
    sources = _locate(directory, interactions="ratings.csv", items="movies.csv")
    movies = {"item": [], "title": [], "genres": [], "year": []}
    text = io.StringIO(decode(read_bytes(sources["items"]), sources["items"]), newline="")
    reader = csv.reader(text)
    _check_header(",".join(next(reader, [])), "movieId,title,genres", sources["items"])
    for fields in reader:
        if len(fields) != 3:
            raise DataError(
                f"{sources['items']}, line {reader.line_num}: {len(fields)} field(s); expected 3: "
                "movieId,title,genres"
            )
        item = _read_id(fields[0], sources["items"], reader.line_num)
        _append(movies, item, fields[1], fields[2].split("|"), _year(fields[1]))
    ratings = _read_ratings(sources["interactions"], ",", header="userId,movieId,rating,timestamp")
    return ratings, None, _movies(movies), sources


def _user_features(age_kind: str) -> tuple[Feature, ...]:
    return (
        Feature("age", age_kind, "user"),
        Feature("gender", "categorical", "user"),
        Feature("occupation", "categorical", "user"),
        Feature("zip", "categorical", "user", min_count=5),
    )


_FORMATS: dict[str, tuple[Callable[[Path], _Frames], tuple[Feature, ...]]] = {
    "movielens-100k": (_read_100k, _user_features("dense")),
    "movielens-1m": (_read_1m, _user_features("categorical")),
    "movielens-20m": (_read_csv, ()),
    "movielens-25m": (_read_csv, ()),
    "movielens-32m": (_read_csv, ()),
}


def _read_ratings(source: str, separator: str, header: str | None = None) -> pl.DataFrame:
    """Ratings by one vectorised pass; only where that fails are lines looked at one by one."""
    data = read_bytes(source)
    if header is not None:
        first = data[: data.find(b"\n")] if b"\n" in data else data
        _check_header(decode(first, source).rstrip("\r"), header, source)
    clean, plain = True, data
    if len(separator) > 1:
        clean, plain = b"\t" not in data, data.replace(separator.encode(), b"\t")
    frame, reason = None, ""
    try:
        frame = pl.read_csv(
            plain,
            separator="\t" if len(separator) > 1 else separator,
            has_header=False,
            skip_rows=0 if header is None else 1,
            quote_char=None,
            schema=_RATING_TYPES,
        )
        clean = clean and frame.null_count().sum_horizontal().item() == 0
        clean = clean and bool(frame["rating"].is_finite().all())
        clean = clean and not (frame["user"] < 0).any() and not (frame["item"] < 0).any()
    except pl.exceptions.NoDataError:
        frame = pl.DataFrame(schema=_RATING_TYPES)
    except pl.exceptions.PolarsError as error:
        clean, reason = False, str(error).splitlines()[0]
    if not clean:
        _check_ratings(io.BytesIO(data), source, separator, skip=header is not None)
        if frame is None:
            raise DataError(f"{source}: cannot be read: {reason}")
        frame = frame.drop_nulls()  # blank lines
    if frame is None or frame.is_empty():
        raise DataError(f"{source}: no ratings; it needs at least one line")
    return frame


def _check_ratings(lines: Iterable[bytes], source: str, separator: str, *, skip: bool) -> None:
    """Raises for the first line that is no rating; blank lines are let pass."""
    layout = separator.join(("user", "item", "rating", "timestamp"))
    for number, raw in enumerate(lines, start=1):
        line = raw.decode("latin-1").strip("\r\n")
        if not line.strip() or (skip and number == 1):
            continue
        fields = line.split(separator)
        if len(fields) != 4:
            raise DataError(
                f"{source}, line {number}: {len(fields)} field(s) in {line[:60]!r}; expected 4, "
                f"separated by {separator!r}: {layout!r}"
            )
        _read_id(fields[0], source, number, "user id")
        _read_id(fields[1], source, number, "item id")
        try:
            if not math.isfinite(float(fields[2])):
                raise ValueError
        except ValueError:
            raise DataError(
                f"{source}, line {number}: rating {fields[2]!r} is not a number"
            ) from None
        if not re.fullmatch(r"-?[0-9]{1,18}", fields[3]):
            raise DataError(
                f"{source}, line {number}: timestamp {fields[3]!r} is not a whole number of seconds"
            )


def _read_id(text: str, source: str, line: int, what: str = "id") -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= _LARGEST_ID):
        raise DataError(
            f"{source}, line {line}: {what} {text!r}; MovieLens ids are whole numbers from 0 to "
            f"{_LARGEST_ID}"
        )
    return int(text)


def _read_lines(source: str, separator: str, width: int) -> list[list[str]]:
    """The fields of every line; blank lines at the end are let pass."""
    lines = read_bytes(source).decode("latin-1").rstrip().split("\n")
    rows = [line.rstrip("\r").split(separator) for line in lines]
    for number, fields in enumerate(rows, start=1):
        if len(fields) != width:
            raise DataError(
                f"{source}, line {number}: {len(fields)} field(s) in {lines[number - 1][:60]!r}; "
                f"expected {width}, separated by {separator!r}"
            )
    return rows


def _locate(directory: Path, **names: str) -> dict[str, str]:
    """{role: path of the file of that name, or of its .gz}."""
    found = {}
    for role, name in names.items():
        paths = [path for path in (directory / name, directory / f"{name}.gz") if path.exists()]
        if not paths:
            raise DataError(
                f"{directory / name}: no such file (nor {name}.gz); --config.data.dir must name "
                f"the directory of the unpacked files; {directory} {describe(directory)}"
            )
        found[role] = str(paths[0])
    return found


def _check_header(found: str, expected: str, source: str) -> None:
    if found != expected:
        raise DataError(f"{source}, line 1: header {found[:80]!r}; expected {expected!r}")


def _append(columns: dict[str, list], *values) -> None:
    for column, value in zip(columns.values(), values, strict=True):
        column.append(value)


def _users(columns: dict[str, list]) -> pl.DataFrame:
    # Three digits of a zip code name a region; the whole code is nearly one per user.
    return pl.DataFrame(columns).with_columns(pl.col("zip").str.slice(0, 3))


def _movies(columns: dict[str, list]) -> pl.DataFrame:
    genres = [[g for g in row if g not in _NO_GENRE] for row in columns["genres"]]
    types = {"item": pl.Int64, "title": pl.String, "genres": pl.List(pl.String), "year": pl.Int64}
    return pl.DataFrame({**columns, "genres": genres}, schema=types)


def _year(title: str) -> int | None:
    match = _YEAR.search(title)
    return int(match[1]) if match else None
