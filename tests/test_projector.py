"""Item embeddings lie beside the scalars as TensorBoard's projector reads them."""

import numpy as np
import pytest

from recjax import projector
from recjax.data.dataset import Bag, Categorical, Dataset, Dense, Interactions, Table
from recjax.data.schema import Schema
from tests.runs import never_stopped


def dataset_of(ids, columns, titles=None):
    none = np.zeros(0, np.int64)
    interactions = Interactions.build(none, none, 1)
    return Dataset(
        "mine", Schema(()), Table(np.zeros(1, int)), Table(ids, columns), interactions, titles
    )


def test_the_items_of_a_run_are_those_it_can_score_the_most_popular_first(monkeypatch, tmp_path):
    run = never_stopped("mf")
    monkeypatch.setattr(projector, "LARGEST", 7)
    projector.write_projector(run.experiment, run.variables, tmp_path)
    header, *lines = (tmp_path / "items.tsv").read_text().splitlines()
    rows = [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]
    popularity = [int(row["popularity"]) for row in rows]
    assert popularity == sorted(run.experiment.popularity_N, reverse=True)[:7]
    items = run.experiment.dataset.items.index_of([int(row["id"]) for row in rows])
    found = np.frombuffer((tmp_path / "items.bytes").read_bytes(), "<f4").reshape(7, 8)
    np.testing.assert_allclose(found, run.item_embeddings()[items], rtol=1e-4)


def test_a_finished_run_has_all_that_the_config_names():
    folder = never_stopped("mf").workdir / "tensorboard"
    shown = 'tensor_path: "items.bytes"', "tensor_shape: 8", 'metadata_path: "items.tsv"'
    assert all(text in (folder / "projector_config.pbtxt").read_text() for text in shown)
    size = len((folder / "items.tsv").read_text().splitlines()) - 1
    assert (folder / "items.bytes").stat().st_size == 4 * 8 * size


def test_embeddings_are_never_taken_for_text():
    with pytest.raises(UnicodeDecodeError):
        projector._tensor_bytes(np.zeros((2, 3), np.float32)).decode()


def test_items_have_titles_ids_categories_and_popularity():
    columns = {
        "kind": Categorical(np.array([1, -1, 0], np.int32), np.array(["a", "b"])),
        "tags": Bag(np.array([0, 2, 2, 3]), np.array([2, 0, 1], np.int32), np.array(list("xyz"))),
        "year": Dense(np.ones(3, np.float32)),
    }
    dataset = dataset_of(np.array([7, 8, 9]), columns, np.array(["Seven", "Eight", "Nine"]))
    assert projector.item_columns(dataset, np.array([2, 0, 1]), np.array([5, 4, 30])) == {
        "title": ["Nine", "Seven", "Eight"],
        "id": [9, 7, 8],
        "kind": ["a", "b", ""],
        "tags": ["y", "z|x", ""],
        "tags (first)": ["y", "z", ""],
        "popularity": [30, 5, 4],
    }
    bare = projector.item_columns(dataset_of(np.array(["i"]), {}), np.array([0]), np.array([2]))
    assert bare == {"id": ["i"], "popularity": [2]}


def test_a_title_stays_on_its_line_and_in_its_column():
    assert projector._escaped("a\tb\r\nc") == r"a\tb\r\nc"
