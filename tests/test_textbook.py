"""The textbook's claims about the three models, shown on planted data.

Each claim has knobs that plant what it speaks of, and where it can a control without it. It is a
difference of recall@10 over the same queries, whose 99 % interval must lie beyond a margin.
"""

import functools
import math

import polars as pl
import pytest

import recjax
from recjax.baselines import oracle_ranker, popularity_ranker, random_ranker
from recjax.data.synthetic import make_synthetic
from recjax.measure import evaluate_ranker
from recjax.metrics import paired_bootstrap
from recjax.slices import NOT_SCORED
from tests.runs import ROOT

EVERY_QUERY = pl.lit(True)
COLD_USER = pl.col("cold_user")
COLD_ITEM = pl.col("targets_cold") > 0

KNOBS = {
    "user features and history": {"user_features": 0.4, "history": 0.6, "new_users": 0.2},
    "user features": {"user_features": 0.9, "history": 0.1, "new_users": 0.2},
    "no user features": {"user_features": 0.0, "history": 0.1, "new_users": 0.2},
    "new items": {"item_features": 1.0, "new_items": 0.3},
}

COMMON = {
    "examples.history_length": 5,
    "model.dim": 16,
    "model.feature_dim": 16,
    "model.query.features": ("history", "age", "country", "device"),
    "model.query.hidden": (64,),
    "optim.learning_rate": 1e-2,
    "train.batch_size": 512,
    "train.epochs": 8.0,
    "eval.every": 10_000,
    "eval.ks": (10,),
    "eval.batch_size": 1024,
    "eval.bootstrap": 0,
    "log.tensorboard": False,
    "parallel.data": 1,
}
MODELS = {
    "softmax": ("softmax", {}),
    "softmax on history alone": ("softmax", {"model.query.features": ("history",)}),
    "two-tower": ("two_tower", {"model.item.features": ("all",), "model.item.hidden": (64,)}),
    # The best of what was tried: dim 8 to 64, learning rate 0.005 to 0.02, up to 20 epochs.
    "mf": (
        "mf",
        {
            "model.dim": 64,
            "model.query.features": ("user_id",),
            "model.query.hidden": (),
            "optim.learning_rate": 5e-3,
        },
    ),
}


@functools.cache
def world(knobs):
    """A data set with these knobs; new users and new items only where they say so."""
    size = {"users": 4000, "items": 400, "interactions_per_user": 12, "window": 3}
    return make_synthetic(**size | {"new_users": 0.0, "new_items": 0.0} | KNOBS[knobs])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(model, knobs) -> its run, trained when it is first asked for."""

    @functools.cache
    def train(model, knobs):
        config, own = MODELS[model]
        loaded = recjax.load_config(str(ROOT / "configs" / f"{config}.py"), **COMMON | own)
        workdir = tmp_path_factory.mktemp(config)
        return recjax.train(loaded, workdir, dataset=world(knobs), quiet=True)

    return train


def baseline(run, ranker):
    """What a baseline achieves where the run was tested."""
    return evaluate_ranker(run.experiment, ranker, "test", samples=0)


def gain(a, b, chosen=EVERY_QUERY):
    """Recall@10 of a less that of b over the chosen queries: the ends of its 99 % interval."""
    a, b = (evaluation.per_query.filter(chosen) for evaluation in (a, b))
    assert a["user"].equals(b["user"])
    recall = (frame["recall@10"].to_numpy() for frame in (a, b))
    return paired_bootstrap(*recall, samples=4000, level=0.99)[1:]


def test_softmax_dnn_beats_mf_where_features_and_history_matter(trained):
    dnn, mf = (trained(m, "user features and history").evaluate() for m in ("softmax", "mf"))
    low, _ = gain(dnn, mf, ~COLD_USER)
    assert low > 0.06


def test_softmax_dnn_serves_cold_users_where_mf_cannot(trained):
    dnn = trained("softmax", "user features")
    found, mf = dnn.evaluate(), trained("mf", "user features").evaluate()
    assert mf.slices["users/cold"]["status"] == NOT_SCORED
    assert mf.per_query.filter(COLD_USER)["recall@10"].sum() == 0
    x = dnn.experiment
    popularity = baseline(dnn, popularity_ranker(x.popularity_N, x.corpus_mask_N))
    low, _ = gain(found, popularity, COLD_USER)
    assert low > 0.06


@pytest.mark.slow
def test_two_tower_ranks_cold_items_far_above_chance_where_a_softmax_head_cannot(trained):
    tower = trained("two-tower", "new items")
    head = trained("softmax", "new items").evaluate()
    assert head.slices["items/cold"]["status"] == NOT_SCORED
    assert head.per_query.filter(COLD_ITEM)["recall@10"].sum() == 0
    x = tower.experiment
    new_N = ~x.train_mask_N
    among_all = tower.evaluate(), baseline(tower, random_ranker(x.corpus_mask_N, seed=0))
    among_new = [
        evaluate_ranker(x, ranker, "test", samples=0, rankable_mask_N=new_N)
        for ranker in (
            x.scorer.ranker(tower.variables, x.arrays, new_N),
            random_ranker(new_N, seed=0),
        )
    ]
    assert new_N.sum() == 120
    for pair, margin in ((among_all, 0.25), (among_new, 0.4)):
        low, _ = gain(*pair, COLD_ITEM)
        assert low > margin


@pytest.mark.slow
@pytest.mark.parametrize("knobs", ["user features", "no user features"])
def test_side_features_raise_recall_where_they_explain_interest(trained, knobs):
    on, off = (trained(m, knobs).evaluate() for m in ("softmax", "softmax on history alone"))
    low, high = gain(on, off)
    if knobs == "user features":
        assert low > 0.04
    else:
        assert high < 0.02


@pytest.mark.parametrize("model", ["mf", "softmax", "two-tower"])
def test_popularity_lift_is_reported_for_all_and_no_model_beats_the_oracle(trained, model):
    run = trained(model, "user features and history")
    names = ("random/", "", "oracle/", "popularity/")
    lift = {name: run.metrics[f"test/{name}popularity_lift@10"] for name in names}
    assert all(map(math.isfinite, lift.values()))
    assert lift["random/"] < 1 < lift[""] < lift["popularity/"]
    x = run.experiment
    oracle = baseline(run, oracle_ranker(x.dataset.world, x.corpus_mask_N))
    low, _ = gain(oracle, run.evaluate())
    assert low > 0.02
