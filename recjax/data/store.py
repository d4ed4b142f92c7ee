"""A prepared data set: one file a column in a folder, read where it lies.

FOLDER holds `prepared.json` (the name, schema and hash of the data, and the type and shape of every
array) and each array as a `.npy` file: `users/ids.npy`, `users/0.codes.npy` (of the first user
feature of the schema), `interactions/item.npy`, ... The operating system brings in what is read.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recjax.data.dataset import (
    Bag,
    Categorical,
    Column,
    Dataset,
    Dense,
    Interactions,
    Table,
    Vector,
)
from recjax.data.files import decode, describe, read_bytes
from recjax.data.lists import ItemLists
from recjax.data.schema import Feature, Schema
from recjax.errors import DataError

MANIFEST = "prepared.json"
FORMAT = 1

_KINDS = {"dense": Dense, "categorical": Categorical, "bag": Bag, "vector": Vector}
_FIELDS = {
    "dense": ("values",),
    "categorical": ("codes", "vocab"),
    "bag": ("offsets", "codes", "vocab"),
    "vector": ("values",),
}
_CHUNK = 1 << 24  # bytes that are hashed at a time


def load_prepared(directory: str | Path) -> Dataset:
    """The data set in a folder that `recjax.prepare_dataset` made; its arrays stay on disk.

    Raises:
      DataError: the folder holds none, or a file is missing or cut short, naming it.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if not path.exists():
        raise DataError(
            f"{directory}: no {MANIFEST} there: it {describe(directory)}; data.dir must name a "
            "finished --out of python -m recjax.prepare --source=DIR --out=DIR"
        )
    try:
        record = json.loads(decode(read_bytes(path), path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"{path}: not of format {FORMAT}; prepare the data again")
    arrays = {}
    for name, (kind, shape) in record["arrays"].items():
        file = directory / f"{name}.npy"
        array = open_array(file)
        if (array.dtype.str, list(array.shape)) != (kind, shape):
            raise DataError(
                f"{file}: {array.dtype.str} {array.shape}, where {MANIFEST} says {kind} "
                f"{tuple(shape)}; prepare the data again"
            )
        arrays[name] = array
    schema = Schema.from_json(json.dumps(record["schema"]), str(path))
    dataset = make_dataset(record["name"], schema, arrays)
    vars(dataset)["hash"] = record["hash"]
    return dataset


def make_dataset(name: str, schema: Schema, arrays: Mapping[str, np.ndarray]) -> Dataset:
    """The data set of arrays by their names in the folder."""
    lists = arrays.get("interactions/negatives.offsets")
    return Dataset(
        name=name,
        schema=schema,
        users=Table(arrays["users/ids"], _columns(schema, "user", arrays)),
        items=Table(arrays["items/ids"], _columns(schema, "item", arrays)),
        interactions=Interactions(
            user=arrays["interactions/user"],
            item=arrays["interactions/item"],
            offsets=arrays["interactions/offsets"],
            time=arrays.get("interactions/time"),
            columns=_columns(schema, "context", arrays),
            part=arrays.get("interactions/part"),
            negatives=(
                None if lists is None else ItemLists(lists, arrays["interactions/negatives.items"])
            ),
        ),
        titles=arrays.get("items/titles"),
    )


def write_manifest(
    directory: Path, name: str, schema: Schema, names: Sequence[str], source: Mapping[str, Any]
) -> str:
    """Seals the folder with the hash of the arrays of these names, and returns the hash."""
    arrays = {name: open_array(directory / f"{name}.npy") for name in names}
    dataset = make_dataset(name, schema, arrays)
    files = {id(array): directory / f"{name}.npy" for name, array in arrays.items()}

    def update(digest: "hashlib._Hash", array: np.ndarray) -> None:
        with open(files[id(array)], "rb") as file:
            file.seek(-array.nbytes, os.SEEK_END)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)

    record = {
        "format": FORMAT,
        "name": name,
        "hash": dataset.digest(update),
        "users": dataset.users.size,
        "items": dataset.items.size,
        "interactions": dataset.interactions.size,
        "schema": json.loads(schema.to_json()),
        "source": source,
        "arrays": {name: [x.dtype.str, list(x.shape)] for name, x in arrays.items()},
    }
    with open(directory / MANIFEST, "w") as file:
        json.dump(record, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    return record["hash"]


def column_arrays(folder: str, place: int, column: Column) -> dict[str, np.ndarray]:
    """A column's arrays by their names in the folder; `place` counts the features of its side."""
    return {f"{folder}/{place}.{field}": array for field, array in vars(column).items()}


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an array as a `.npy` file."""
    create_array(path, array.dtype, array.shape)
    write_rows(path, 0, array)


def create_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Makes a `.npy` file of zeros, and takes its room on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size:
            os.posix_fallocate(file.fileno(), file.tell(), size)


def write_rows(path: Path, first: int, rows: np.ndarray) -> None:
    """Writes rows first.. of a `.npy` file, through to the disk."""
    with open(path, "r+b") as file:
        _, _, dtype = _read_header(file)
        assert dtype == rows.dtype, (path, dtype, rows.dtype)
        width = int(np.prod(rows.shape[1:], dtype=np.int64)) * dtype.itemsize
        file.seek(first * width, os.SEEK_CUR)
        if rows.size:
            file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path, first: int, end: int) -> np.ndarray:
    """Rows first..end-1 of a `.npy` file, in memory."""
    with open(path, "rb") as file:
        shape, _, dtype = _read_header(file)
        width = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        file.seek(first * width, os.SEEK_CUR)
        data = file.read((end - first) * width)
    return np.frombuffer(data, dtype).reshape(end - first, *shape[1:])


def open_array(path: Path) -> np.ndarray:
    """A `.npy` file as an array that cannot be written, its bytes read from the disk when used.

    Raises:
      DataError: it is missing or cut short.
    """
    try:
        with open(path, "rb") as file:
            shape, _, dtype = _read_header(file)
            start, count = file.tell(), int(np.prod(shape, dtype=np.int64))
            size = os.fstat(file.fileno()).st_size
            if size != start + count * dtype.itemsize:
                raise DataError(
                    f"{path}: {size} bytes, where its header announces "
                    f"{start + count * dtype.itemsize}; prepare the data again"
                )
            if not count:
                return np.zeros(shape, dtype)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {reason}; prepare the data again") from error
    if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
        mapped.madvise(mmap.MADV_RANDOM)  # what would be read ahead is gone before it is used
    return np.frombuffer(mapped, dtype, count, start).reshape(shape)


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"a .npy file of version {version}")
    return np.lib.format.read_array_header_1_0(file)


def _columns(schema: Schema, side: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Column]:
    folder = "interactions" if side == "context" else f"{side}s"

    def column(place: int, feature: Feature) -> Column:
        fields = {f: arrays[f"{folder}/{place}.{f}"] for f in _FIELDS[feature.kind]}
        return _KINDS[feature.kind](**fields)

    # A table that there is no file of has no columns.
    features = [
        (place, feature)
        for place, feature in enumerate(schema.of_side(side))
        if f"{folder}/{place}.{_FIELDS[feature.kind][0]}" in arrays
    ]
    return {feature.name: column(place, feature) for place, feature in features}
