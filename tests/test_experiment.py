"""A config and a data set become an experiment, or one message says why not."""

import jax
import numpy as np
import pytest

from recjax.config import config_differences
from recjax.errors import ConfigError, DataError
from tests.runs import assert_same_state, small_experiment
from tests.tiny import tiny_dataset


def names(features):
    return [spec.name for spec in features]


@pytest.mark.parametrize(("epochs", "steps"), [(0.01, 1), (0.7, 5), (2.5, 18), (3.0, 21)])
def test_epochs_may_be_fractions(epochs, steps):
    experiment = small_experiment("mf", train__steps=0, train__epochs=epochs)
    assert (experiment.steps_per_epoch, experiment.total_steps) == (7, steps)


def test_all_features_are_the_users_the_history_and_the_derived_context():
    query = small_experiment("softmax").model.query
    assert names(query.features) == [
        *("age", "country", "device", "history"),
        *("time_since_last", "hour", "day", "user_count", "last_watch_time"),
    ]


def test_a_query_tower_over_the_user_id_alone_serves_users_of_training_only():
    alone, beside = small_experiment("mf"), small_experiment("softmax")
    queries = alone.queries("test")
    assert 0 < alone.serves(queries).sum() < queries.size
    np.testing.assert_array_equal(alone.serves(queries), queries.user_in_training_Q)
    assert beside.serves(queries).all()


def test_a_head_or_an_item_id_ranks_items_of_training_only():
    trained_N = small_experiment("softmax").train_mask_N
    assert 0 < trained_N.sum() < 51
    for name, features in (("softmax", ("all",)), ("two_tower", ("item_id",))):
        experiment = small_experiment(name, model__item__features=features)
        np.testing.assert_array_equal(experiment.rankable_mask_N, trained_N)
    assert small_experiment("two_tower").rankable_mask_N.all()


def test_the_corpus_is_what_the_config_names():
    rated = np.unique(tiny_dataset().interactions.item)
    for name, size in (("listed", 51), ("rated", len(rated)), ("seen", None)):
        experiment = small_experiment("mf", eval__corpus=name)
        assert experiment.corpus_mask_N.sum() == (size or experiment.train_mask_N.sum())


def test_the_first_state_is_a_function_of_the_seed():
    def leaves(seed):
        return jax.tree.leaves(small_experiment("mf", seed=seed).init_state().params)

    first, again, other = leaves(0), leaves(0), leaves(1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_another_seed_shares_all_but_the_random_numbers():
    experiment = small_experiment("mf", seed=1)
    other = experiment.with_seed(2**32 - 1)
    assert config_differences(experiment.config, other.config) == ["seed"]
    assert experiment.config.seed == 1
    for name in ("dataset", "encoder", "step", "train_step", "scorer", "popularity_N"):
        assert getattr(other, name) is getattr(experiment, name)
    assert other.queries("test") is experiment.queries("test")
    fresh = small_experiment("mf", seed=2**32 - 1).init_state()
    assert_same_state(other.init_state(), fresh)
    assert not np.array_equal(fresh.key, experiment.init_state().key)
    with pytest.raises(ConfigError, match="config.seed=-1: it must be in 0"):
        experiment.with_seed(-1)


def test_queries_are_made_once_for_each_experiment():
    one, other = small_experiment("mf"), small_experiment("mf", split__name="leave_one_out")
    assert one.queries("test") is one.queries("test")
    assert one.queries("test").size != other.queries("test").size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__query__features": ("user_id", "agee")}, "no feature 'agee'.*'age'"),
        ({"parallel__data": 3}, "batch_size=32 is not divisible by the 3 devices"),
        ({"parallel__model": 2, "optim__clip_norm": 1.0}, "clip_norm needs"),
        (
            {"loss__candidates": "mixed", "loss__mixed": ("in_batch", "unifrom")},
            "config.loss.mixed=.*: no 'unifrom': there are in_batch, .*did you mean 'uniform'",
        ),
        ({"loss__margin": 0.5}, "loss.margin=0.5 is for ccl; with loss.name=softmax it must"),
    ],
)
def test_what_cannot_be_names_the_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        small_experiment("mf", **changes)


@pytest.mark.parametrize(
    "candidates",
    [{"loss__candidates": "explicit"}, {"loss__candidates": "mixed"}],
    ids=["explicit", "mixed"],
)
def test_explicit_negatives_need_data_that_name_them(candidates):
    with pytest.raises(DataError, match="name under 'negatives' in schema.json the column"):
        small_experiment("mf", **candidates, loss__mixed=("in_batch", "explicit"))
