"""Item embeddings in the format of TensorBoard's embedding projector."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from recjax.data.dataset import Bag, Categorical, Column, Dataset
from recjax.experiment import Experiment
from recjax.files import write_file

LARGEST = 10_000  # what a browser moves smoothly

_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})

PyTree = Any


def write_projector(experiment: Experiment, variables: PyTree, folder: pathlib.Path) -> None:
    """Writes the embeddings of the most popular items that the model can score, and what they are.

    Args:
      experiment: whose items and model.
      variables: of the model.
      folder: a run's folder of TensorBoard files, gets `projector_config.pbtxt`, `items.tsv` and
        `items.bytes`.

    Raises:
      CheckpointError: a file cannot be written.
    """
    popularity_N = experiment.popularity_N
    rows = np.flatnonzero(experiment.rankable_mask_N)
    rows = rows[np.argsort(-popularity_N[rows], kind="stable")[:LARGEST]]
    embed = experiment.scorer.embed_items
    item_CxD = np.asarray(embed(variables, experiment.arrays, rows.astype(np.int32)))
    columns = item_columns(experiment.dataset, rows, popularity_N)
    lines = [columns, *zip(*columns.values(), strict=True)]
    text = "".join("\t".join(map(_escaped, line)) + "\n" for line in lines)
    write_file(folder / "items.tsv", text)
    write_file(folder / "items.bytes", _tensor_bytes(item_CxD))
    write_file(folder / "projector_config.pbtxt", _config(len(rows), item_CxD.shape[1]))


def item_columns(
    dataset: Dataset, rows: np.ndarray, popularity_N: np.ndarray
) -> Mapping[str, list[Any]]:
    """What the projector says of items and colours them by, a value an item in each column.

    Titles, where there are any, ids, categories and popularity; of a bag also its first value
    alone, since the projector colours by no more than 50 values.
    """
    columns = {}
    if dataset.titles is not None:
        columns["title"] = dataset.titles[rows].tolist()
    columns["id"] = dataset.items.ids[rows].tolist()
    for name, column in dataset.items.columns.items():
        columns |= _categories(name, column, rows)
    return columns | {"popularity": popularity_N[rows].tolist()}


def _categories(name: str, column: Column, rows: np.ndarray) -> dict[str, list[str]]:
    if isinstance(column, Categorical):
        values = np.append(column.vocab.astype(str), "")  # the last for the code -1
        return {name: values[column.codes[rows]].tolist()}
    if isinstance(column, Bag):
        taken, vocab = column.take(rows), column.vocab.astype(str)
        bounds = zip(taken.offsets[:-1], taken.offsets[1:], strict=True)
        bags = [vocab[taken.codes[start:end]].tolist() for start, end in bounds]
        first = [bag[0] if bag else "" for bag in bags]
        return {name: ["|".join(bag) for bag in bags], f"{name} (first)": first}
    return {}


def _escaped(value: Any) -> str:
    return str(value).translate(_ESCAPES)


def _tensor_bytes(item_KxD: np.ndarray) -> bytes:
    content = bytearray(item_KxD.astype("<f4").tobytes())
    # TensorBoard takes whatever is UTF-8 for text, which this byte, the least of a number, is not.
    content[0] = 0xFF
    return bytes(content)


def _config(rows: int, dim: int) -> str:
    return (
        'embeddings {\n  tensor_name: "items"\n  tensor_path: "items.bytes"\n'
        f'  tensor_shape: {rows}\n  tensor_shape: {dim}\n  metadata_path: "items.tsv"\n}}\n'
    )
