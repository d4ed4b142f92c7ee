import numpy as np
import pytest

from recjax.data import loader
from recjax.data.loader import Batches
from recjax.data.shuffle import shuffled
from tests.data.test_loader import examples_of


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 1000, 4097])
def test_every_example_has_one_place(size):
    places = np.arange(size)
    np.testing.assert_array_equal(np.sort(shuffled(places, size, 3, 1)), places)


def test_places_are_independent_of_their_neighbours_and_of_other_epochs():
    size = 10_000
    order = shuffled(np.arange(size), size, 0, 0)
    np.testing.assert_array_equal(shuffled(np.arange(70, 90), size, 0, 0), order[70:90])
    for seed, epoch in ((0, 1), (1, 0)):
        other = shuffled(np.arange(size), size, seed, epoch)
        assert np.mean(other == order) < 0.01
        assert abs(np.corrcoef(other, order)[0, 1]) < 0.05
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.05


def test_an_order_that_is_not_kept_holds_every_example_once_an_epoch(monkeypatch):
    monkeypatch.setattr(loader, "_KEPT", 10)
    batches = Batches(examples_of(23), 5, 0)
    seen = [batches(step) for step in range(batches.per_epoch)]
    labels = np.concatenate([b["label"][b["weight"] > 0, 0] for b in seen])
    everything = batches.examples.batch(np.arange(batches.examples.size), seed=0, epoch=0)
    np.testing.assert_array_equal(np.sort(labels), np.sort(everything["label"][:, 0]))
    assert not np.array_equal(labels, everything["label"][:, 0])
