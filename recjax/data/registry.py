"""The data sets that a config can name."""

import difflib
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from recjax.data.dataset import Dataset
from recjax.data.download import locate_dataset
from recjax.data.lightgcn import load_lightgcn
from recjax.data.movielens import load_movielens
from recjax.data.store import load_prepared
from recjax.data.synthetic import make_synthetic
from recjax.data.table import load_table
from recjax.errors import ConfigError


def _read_synthetic(name, directory, *, download, unknown_items, synthetic) -> Dataset:
    if directory or download:
        key = "data.dir" if directory else "data.download"
        raise ConfigError(
            f"{key} is set, but data.name is 'synthetic', which reads no files; name the data set "
            f"after the config's colon (--config=FILE.py:NAME): one of {_file_names()}"
        )
    knobs = dict(synthetic or {})
    legal = list(inspect.signature(make_synthetic).parameters)
    for knob in knobs:
        if knob not in legal:
            near = difflib.get_close_matches(knob, legal, n=3) or legal
            raise ConfigError(f"data.synthetic: unknown key {knob!r}; did you mean one of {near}?")
    return make_synthetic(**knobs)


def _read_movielens(name, directory, *, download, unknown_items, synthetic) -> Dataset:
    path = locate_dataset(name, directory, download=download)
    return load_movielens(name, path, unknown_items=unknown_items)


def _read_lightgcn(name, directory, *, download, unknown_items, synthetic) -> Dataset:
    return load_lightgcn(name, locate_dataset(name, directory, download=download))


def _read_table(name, directory, *, download, unknown_items, synthetic) -> Dataset:
    if download:
        raise ConfigError("data.download is set, but data.name is 'table', which has no address")
    if not directory:
        raise ConfigError(
            "data.dir is empty; --config.data.dir=DIR must name the directory that holds "
            "interactions.parquet or interactions.csv"
        )
    return load_table(directory, unknown_items=unknown_items)


def _read_prepared(name, directory, *, download, unknown_items, synthetic) -> Dataset:
    if download:
        raise ConfigError("data.download is set, but data.name is 'prepared', which has no address")
    if not directory:
        raise ConfigError(
            "data.dir is empty; --config.data.dir=DIR must name the --out of python -m "
            "recjax.prepare --source=DIR --out=DIR"
        )
    return load_prepared(directory)


READERS: dict[str, Callable[..., Dataset]] = {
    "synthetic": _read_synthetic,
    "movielens-100k": _read_movielens,
    "movielens-1m": _read_movielens,
    "movielens-20m": _read_movielens,
    "movielens-25m": _read_movielens,
    "movielens-32m": _read_movielens,
    "gowalla": _read_lightgcn,
    "table": _read_table,
    "prepared": _read_prepared,
}


def load_dataset(
    name: str,
    dir: str | os.PathLike[str] = "",
    *,
    download: bool = False,
    unknown_items: str = "error",
    synthetic: Mapping[str, Any] | None = None,
) -> Dataset:
    """The data set of a name.

    Args:
      name: a key of `READERS`.
      dir: the directory with its files; for a public set, empty means recjax's cache.
      download: whether a public set may be fetched from its official address.
      unknown_items: `error` or `drop`, for interactions and negatives not in the item table.
      synthetic: the knobs of `make_synthetic`, for `synthetic`.

    Raises:
      ConfigError: an unknown name or knob, or a setting that the named data set cannot use.
      DataError: what is wrong with the files, naming file, line or column.
    """
    if name not in READERS:
        near = difflib.get_close_matches(name, READERS, n=3, cutoff=0.4) or list(READERS)
        raise ConfigError(f"data.name={name!r} is no data set; did you mean one of {near}?")
    if unknown_items not in ("error", "drop"):
        raise ConfigError(f"data.unknown_items={unknown_items!r}; it must be 'error' or 'drop'")
    return READERS[name](
        name, os.fspath(dir), download=download, unknown_items=unknown_items, synthetic=synthetic
    )


def _file_names() -> list[str]:
    return [name for name in READERS if name != "synthetic"]
