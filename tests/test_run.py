"""The library's face: a run is asked for metrics, items and embeddings, and loaded again."""

import datetime
import json
import shutil

import numpy as np
import polars as pl
import pytest

from recjax import Dataset, load_config, load_run, train
from recjax.data.split import TRAIN
from recjax.errors import CheckpointError, ConfigError, DataError
from tests.runs import ROOT, never_stopped, small_config


@pytest.fixture(scope="module")
def run():
    return never_stopped("mf")


def seen_by(run, user):
    """Ids of the items that a user, by id, interacted with."""
    data = run.experiment.dataset
    mask = data.interactions.user == data.users.index_of([user])[0]
    return set(data.items.ids[data.interactions.item[mask]])


def users_of(run, count):
    """Ids of some users that training knows."""
    queries = run.experiment.queries("test")
    return run.experiment.dataset.users.ids[queries.user_Q[queries.user_in_training_Q][:count]]


def test_evaluating_again_gives_the_metrics_of_the_run(run):
    found = run.evaluate("test")
    assert {
        f"test/{name}": value for name, value in found.metrics.items()
    }.items() <= run.metrics.items()
    assert found.intervals == {
        name: tuple(pair)
        for name, pair in json.loads((run.workdir / "eval" / "test.json").read_text())["rankers"][
            "model"
        ]["intervals"].items()
    }
    assert found.per_query.equals(pl.read_parquet(run.workdir / "eval" / "test.parquet"))


def test_evaluation_may_have_other_settings(run):
    metrics = run.evaluate("valid", ks=(3,), samples=0, seen="none").metrics
    assert 0 <= metrics["recall@3"] <= 1
    assert "recall@10" not in metrics


def test_recommendations_are_ranked_and_leave_out_what_is_known(run):
    users = users_of(run, 70)  # more than a batch
    frame = run.recommend(users, k=7)
    assert frame.columns == ["user", "rank", "item", "score", "title"]
    assert frame["user"].to_list() == np.repeat(users, 7).tolist()
    assert frame["rank"].to_list() == list(range(1, 8)) * len(users)
    for (user,), items in frame.group_by("user"):
        assert not set(items["item"]) & seen_by(run, user)
        assert items["score"].is_sorted(descending=True)
    titles = dict(zip(run.experiment.dataset.items.ids, run.experiment.dataset.titles, strict=True))
    assert all(
        titles[item] == title for item, title in zip(frame["item"], frame["title"], strict=True)
    )


def test_scores_are_products_of_the_embeddings(run):
    users = users_of(run, 3)
    query_QxD, item_NxD = run.query_embeddings(users), run.item_embeddings()
    assert (query_QxD.shape, item_NxD.shape) == ((3, 8), (60, 8))
    assert run.query_embeddings().shape == (120, 8)
    bias_N = np.asarray(run.variables["params"]["item"]["bias"])[:60]
    score_QxN = query_QxD @ item_NxD.T / run.config.model.temperature + bias_N
    frame = run.recommend(users, k=50, seen="none")
    items = run.experiment.dataset.items.index_of(frame["item"].to_numpy())
    rows = np.searchsorted(users, frame["user"].to_numpy())
    np.testing.assert_allclose(frame["score"], score_QxN[rows, items], rtol=1e-5)


def test_only_as_many_items_are_recommended_as_there_are(run):
    (user,) = users_of(run, 1)
    frame = run.recommend([user], k=100)
    can_be = set(run.experiment.dataset.items.ids[run.experiment.rankable_mask_N])
    assert set(frame["item"]) == can_be - seen_by(run, user)


def test_a_user_whom_the_model_cannot_serve_gets_nothing(run):
    data = run.experiment.dataset
    known = data.interactions.user[run.experiment.split.part_M == TRAIN]
    cold = np.setdiff1d(np.arange(data.users.size), known)
    assert len(cold)
    assert run.recommend(data.users.ids[cold]).is_empty()
    assert run.recommend([]).is_empty()


def test_unknown_users_are_named(run):
    known = users_of(run, 1).tolist()
    message = r"2 of 3 user ids are not in the data, the first \[-5, 10000\]; ids are such as"
    with pytest.raises(DataError, match=message):
        run.recommend([*known, -5, 10_000])
    with pytest.raises(DataError, match=r"the first \['1'\]"):
        run.query_embeddings(["1"])


def test_a_length_below_one_is_refused(run):
    with pytest.raises(ValueError, match="k=0"):
        run.recommend(users_of(run, 1), 0)


def test_a_loaded_run_gives_equal_results(run):
    loaded = load_run(run.workdir)
    assert loaded.step == run.step
    assert loaded.metrics == run.metrics
    assert loaded.evaluate("test").metrics == run.evaluate("test").metrics
    users = users_of(run, 5)
    assert loaded.recommend(users).equals(run.recommend(users))
    np.testing.assert_array_equal(loaded.item_embeddings(), run.item_embeddings())


@pytest.mark.slow
def test_a_run_of_eight_devices_gives_equal_results_on_one(tmp_path):
    run = train(small_config("mf", **{"parallel.data": 0}), tmp_path, quiet=True)
    assert run.experiment.parallel.data == 8
    loaded = load_run(tmp_path)
    assert loaded.experiment.parallel.data == 1
    assert loaded.evaluate("test").metrics == run.evaluate("test").metrics
    assert {
        f"test/{k}": v for k, v in run.evaluate().metrics.items()
    }.items() <= run.metrics.items()


def test_no_run_or_none_validated_is_one_message(run, tmp_path):
    with pytest.raises(CheckpointError, match="holds no run"):
        load_run(tmp_path)
    for name in ("config.json", "protocol.json"):
        shutil.copy(run.workdir / name, tmp_path / name)
    with pytest.raises(CheckpointError, match="no finished validation"):
        load_run(tmp_path, run.experiment.dataset)


def frames():
    """Users who alternate between two kinds of items, with dates for times."""
    rng = np.random.default_rng(0)
    day = datetime.datetime(2024, 5, 1)
    rows = [
        (
            f"u{user}",
            f"i{2 * rng.integers(15) + (user + place) % 2}",
            day + datetime.timedelta(days=place),
        )
        for user in range(40)
        for place in range(8)
    ]
    interactions = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    kinds = pl.DataFrame({"item": [f"i{i}" for i in range(30)], "kind": ["even", "odd"] * 15})
    return interactions, None, kinds


def test_own_frames_are_trained_on_and_recommended_from(tmp_path):
    config = load_config(
        str(ROOT / "configs" / "two_tower.py:table"),
        **{"train.steps": 3, "model.query.hidden": (), "model.item.hidden": (), "parallel.data": 1},
    )
    dataset = Dataset.from_frames(*frames(), name="mine")
    run = train(config, tmp_path, dataset, quiet=True)
    assert run.recommend(["u0", "u7"], k=4).shape == (8, 4)
    with pytest.raises(CheckpointError, match="'mine'.*pass the data .* as dataset="):
        load_run(tmp_path)
    other = Dataset.from_frames(*frames()[:2], name="mine")
    with pytest.raises(CheckpointError, match="trained on other data.*as dataset="):
        load_run(tmp_path, other)
    assert load_run(tmp_path, dataset).metrics == run.metrics


def test_nothing_is_made_where_the_config_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match="eval.metric='recall@7'"):
        train(small_config("mf", **{"eval.metric": "recall@7"}), tmp_path / "new")
    assert not (tmp_path / "new").exists()
