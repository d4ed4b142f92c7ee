"""Reader of the text format of NGCF and LightGCN: each line a user and then that user's items.

He et al., "LightGCN", SIGIR 2020. The format has no time and no features, and it is its own split:
`train.txt` and `test.txt`. `valid.txt`, where there is one, holds out a part of train for choosing
hyperparameters (Lee et al., "LightGCN++", RecSys 2024).
"""

from pathlib import Path

import numpy as np
import polars as pl

from recjax.data.dataset import Dataset, Interactions, Table
from recjax.data.files import describe, read_bytes
from recjax.data.schema import Schema
from recjax.data.split import TEST, TRAIN, VALID
from recjax.errors import DataError


def load_lightgcn(name: str, directory: str | Path) -> Dataset:
    """The data set in `train.txt`, `test.txt` and, optionally, `valid.txt`.

    The pairs of `valid.txt` are VALID, be they also in `train.txt` or not; the others of
    `train.txt` are TRAIN. A user without items keeps its place in the user table.

    Args:
      name: what the data set is called.
      directory: where the files are.

    Raises:
      DataError: a file is missing or empty, a line holds what is no id, some pairs of `valid.txt`
        are in `train.txt` and others not, or a pair of `test.txt` is in one of these.
    """
    directory = Path(directory)
    paths = {part: directory / f"{part}.txt" for part in ("train", "valid", "test")}
    pairs = {part: _read_pairs(path) for part, path in paths.items() if _is_there(path)}
    users = _distinct([listed for listed, _, _ in pairs.values()])
    items = _distinct([item for _, _, item in pairs.values()])
    if len(items) == 0:
        raise DataError(f"{paths['train']}: no interactions; each line is a user and its items")
    key = {
        part: np.searchsorted(users, user) * len(items) + np.searchsorted(items, item)
        for part, (_, user, item) in pairs.items()
    }
    train, test = key["train"], key["test"]
    valid = key.get("valid", train[:0])
    leaked = _is_in(test, np.concatenate([train, valid])).sum()
    if leaked:
        raise DataError(
            f"{paths['test']}: {leaked} of its {len(test)} pairs are also in train.txt or "
            "valid.txt; a pair must be in one only"
        )
    held_out = _is_in(train, valid)
    both = _is_in(valid, train).sum()
    if both == 0:
        held_out = np.arange(len(train) + len(valid)) >= len(train)
        train = np.concatenate([train, valid])
    elif both < len(valid):
        raise DataError(
            f"{paths['valid']}: {len(valid) - both} of its {len(valid)} pairs are not in "
            "train.txt; it must be a part of train.txt, or wholly apart from it"
        )
    part_M = np.concatenate([np.where(held_out, VALID, TRAIN), np.full(len(test), TEST)])
    key_M = np.concatenate([train, test])
    interactions = Interactions.build(
        key_M // len(items), key_M % len(items), len(users), part=part_M
    )
    return Dataset(name, Schema(part="part"), Table(users), Table(items), interactions)


def _distinct(arrays: list[np.ndarray]) -> np.ndarray:
    return pl.Series(np.concatenate(arrays)).unique().sort().to_numpy()


def _is_in(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    # np.isin took ten times as long on Gowalla's million keys (numpy 2.4).
    return pl.Series(keys).is_in(pl.Series(others).implode()).to_numpy()


def _is_there(path: Path) -> bool:
    if path.is_file():
        return True
    if path.stem == "valid":
        return False
    raise DataError(
        f"{path}: no such file; --config.data.dir must name the directory with train.txt and "
        f"test.txt; {path.parent} {describe(path.parent)}"
    )


def _read_pairs(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users listed [lines], and the user and item of each pair, int64."""
    lines = pl.Series(read_bytes(path).decode("latin-1").splitlines(), dtype=pl.String)
    words = lines.str.extract_all(r"\S+")
    counts = words.list.len().to_numpy().astype(np.int64)
    flat = words.filter(words.list.len() > 0).explode()
    ids = flat.cast(pl.Int64, strict=False)
    bad = (ids.is_null() | (ids < 0)).fill_null(True)
    if bad.any():
        place = int(np.argmax(bad.to_numpy()))
        line = int(np.searchsorted(np.cumsum(counts), place, side="right")) + 1
        raise DataError(
            f"{path}, line {line}: {flat[place]!r} is no id; a line is a user and then its items, "
            "whole numbers from 0, separated by spaces"
        )
    values = ids.to_numpy()
    counts = counts[counts > 0]
    first = np.cumsum(counts) - counts
    users = values[first]
    is_item = np.ones(len(values), bool)
    is_item[first] = False
    return users, np.repeat(users, counts - 1), values[is_item]
