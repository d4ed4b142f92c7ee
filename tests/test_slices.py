"""Slices on a table worked out by hand."""

import numpy as np

from recjax import slices


def test_history_classes_have_the_named_ends():
    counts = np.array([0, 1, 5, 6, 20, 21, 50, 51, 9999])
    labels = slices.HISTORY_LABELS[slices.history_class(counts)]
    assert labels.tolist() == ["0", "1-5", "1-5", "6-20", "6-20", "21-50", "21-50", ">50", ">50"]


def test_item_classes_hold_a_third_of_interactions_each():
    # 36 interactions; by popularity: item 3 (12) | 0 (6), 5 (6) | 2 (5), 1 (4), 6 (3); 4 is cold
    popularity = np.array([6, 4, 5, 12, 0, 6, 3])
    names = np.array(slices.ITEM_CLASSES)[slices.item_class(popularity)]
    assert names.tolist() == ["middle", "tail", "tail", "head", "cold", "middle", "tail"]


def test_an_item_across_the_border_belongs_to_the_upper_class():
    names = np.array(slices.ITEM_CLASSES)[slices.item_class(np.array([10, 1, 1], np.uint8))]
    assert names.tolist() == ["head", "tail", "tail"]


def test_all_items_cold():
    assert slices.item_class(np.zeros(3)).tolist() == [3, 3, 3]


def make(served, scored):
    # 4 queries; targets: q0: head at rank 0, tail missed; q1: head at rank 1; q2: cold; q3: tail
    targets = slices.Targets(
        query=np.array([0, 0, 1, 2, 3]),
        rank=np.array([0, 2, 1, 2, 0]),
        kind=np.array([0, 2, 0, 3, 2]),
        scored=np.array(scored),
    )
    return slices.make_slices(
        targets,
        {"mrr@2": np.array([1.0, 0.5, 0.0, 1.0])},
        [1, 2],
        history_count_Q=np.array([0, 3, 3, 60]),
        cold_user_Q=np.array([True, False, False, False]),
        served_Q=np.array(served),
    )


def test_slices_equal_the_table():
    got = make([True] * 4, [True] * 5)
    common = {"not_scored": 0, "status": "scored"}
    assert got == {
        "all": {"queries": 4, "targets": 5, **common, "mrr@2": 2.5 / 4},
        "history/0": {"queries": 1, "targets": 2, **common, "mrr@2": 1.0},
        "history/1-5": {"queries": 2, "targets": 2, **common, "mrr@2": 0.25},
        "history/6-20": {"queries": 0, "targets": 0, "not_scored": 0, "status": "empty"},
        "history/21-50": {"queries": 0, "targets": 0, "not_scored": 0, "status": "empty"},
        "history/>50": {"queries": 1, "targets": 1, **common, "mrr@2": 1.0},
        "users/warm": {"queries": 3, "targets": 3, **common, "mrr@2": 0.5},
        "users/cold": {"queries": 1, "targets": 2, **common, "mrr@2": 1.0},
        "items/head": {"queries": 2, "targets": 2, **common, "recall@1": 0.5, "recall@2": 1.0},
        "items/middle": {"queries": 0, "targets": 0, "not_scored": 0, "status": "empty"},
        "items/tail": {"queries": 2, "targets": 2, **common, "recall@1": 0.5, "recall@2": 0.5},
        "items/cold": {"queries": 1, "targets": 1, **common, "recall@1": 0.0, "recall@2": 0.0},
    }


def test_what_a_model_cannot_score_has_no_metric_instead_of_a_zero():
    got = make([False, True, True, True], [False, False, True, False, True])
    unscored = {"status": slices.NOT_SCORED}
    assert got["users/cold"] == {"queries": 1, "targets": 2, "not_scored": 1, **unscored}
    assert got["items/cold"] == {"queries": 1, "targets": 1, "not_scored": 1, **unscored}
    assert got["all"]["not_scored"] == 1 and got["items/head"]["not_scored"] == 1
