import dataclasses

import numpy as np
import pytest

from recjax.data.dataset import Bag, Categorical, Dataset, Dense, Interactions, Table
from recjax.data.schema import Schema
from recjax.reports.collect import load_results
from recjax.reports.inside import categories, item_names, look_inside, nearest, place_items
from tests.runs import never_stopped


def dataset_of(columns, titles=None, size=4):
    nobody = Interactions.build(np.zeros(1, int), np.zeros(1, int), 1)
    items = Table(np.arange(10, 10 + size), columns)
    return Dataset("small", Schema(), Table(np.arange(1)), items, nobody, titles)


def test_neighbours_are_of_the_highest_cosine_and_never_the_item_itself():
    angles = np.radians([0, 10, 30, 180])
    ids, cosines = nearest(np.stack([np.cos(angles), np.sin(angles)], axis=1), 2)
    assert ids.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert cosines[0] == pytest.approx(np.cos(np.radians([10, 30])))


def test_a_map_is_the_same_every_time():
    unit_NxD = np.random.default_rng(0).normal(size=(40, 4))
    unit_NxD /= np.linalg.norm(unit_NxD, axis=1, keepdims=True)
    (first, method), (second, _) = place_items(unit_NxD), place_items(unit_NxD)
    assert method == "t-SNE"
    np.testing.assert_array_equal(first, second)


def test_few_items_lie_at_their_principal_components():
    line = np.array([[-1.0], [0.0], [3.0]]) * np.array([[0.6, 0.8, 0.0]])
    place, method = place_items(line)
    assert method == "Principal components"
    assert place.shape == (3, 2)
    assert np.abs(np.diff(place[:, 0])) == pytest.approx([1, 3])
    assert place[:, 1] == pytest.approx(0)
    place, method = place_items(np.where(np.arange(40) < 30, 1.0, -1.0)[:, None])
    assert method == "Principal components"
    assert place.shape == (40, 2)
    assert np.ptp(place[:30], axis=0) == pytest.approx(0)
    assert np.ptp(place[:, 0]) == pytest.approx(2)


def test_an_item_counts_to_its_rarest_category():
    words = np.array(["drama", "comedy", "war"])
    bag = Bag(np.array([0, 1, 3, 5, 5]), np.array([0, 0, 2, 0, 1]), words)
    kind = Categorical(np.array([1, 1, -1, 0], np.int32), np.array(["film", "series"]))
    dataset = dataset_of({"genres": bag, "kind": kind, "year": Dense(np.ones(4, np.float32))})
    found = categories(dataset, np.array([0, 1, 2, 3]))
    assert list(found) == ["genres", "kind"]
    assert found["genres"][0].tolist() == ["drama", "war", "comedy", "other"]
    assert found["genres"][1].tolist() == ["drama", "drama, war", "drama, comedy", ""]
    assert found["kind"][0].tolist() == ["series", "series", "other", "film"]


def test_an_item_without_a_title_goes_by_its_id():
    assert item_names(dataset_of({}, np.array(["A", "", "C", "D"]))).tolist() == list("A") + [
        "11",
        "C",
        "D",
    ]
    assert item_names(dataset_of({})).tolist() == ["10", "11", "12", "13"]


@pytest.mark.slow
def test_users_see_what_the_test_measured():
    run = never_stopped("two_tower")
    result = load_results(run.workdir).runs[0]
    inside = look_inside(result)
    queries = run.experiment.queries("test")
    recall_Q = result.per_query["hit_rate@10"].to_numpy()
    assert (
        result.per_query["user"].to_list()
        == run.experiment.dataset.users.ids[queries.user_Q].tolist()
    )
    users = run.experiment.dataset.users.ids[queries.user_Q]
    cards = inside.users.split("<article")[1:]
    assert len(cards) == 12
    for card in cards:
        user = card.partition("<h3>User ")[2].partition(" <small>")[0]
        is_hit = recall_Q[users.astype(str) == user][0] > 0
        assert ("✓" in card) == is_hit
    assert len(inside.near["titles"]) == len(inside.figures[0].rows)
    assert inside.figures[0].groups["by popularity"][0] == "head"
    titles = dataclasses.replace(run.experiment.dataset, titles=None)
    assert "Held out" in look_inside(result, titles).users
