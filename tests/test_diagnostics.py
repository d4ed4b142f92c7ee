"""What is said of an estimator, against float64 over the same draws, and of each source."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.data.synthetic import make_synthetic
from recjax.diagnostics import GROUPS, EstimatorError
from tests.tiny import host_arrays, tiny_dataset, tiny_experiment, variables_of, whole_state

DRAWS = 24
MF = {
    "config": "mf",
    "model__query__features": ("user_id",),
    "model__query__hidden": (),
    "tables__mode": "dense",
}
UNIFORM = {"loss__candidates": "uniform"}


pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def steep_dataset():
    """A few items have most of the interactions; four more were shown at each."""
    return make_synthetic(
        users=40, items=51, interactions_per_user=8, popularity_exponent=1.5, impressions=4
    )


def measure(dataset=None, queries=16, draws=DRAWS, **settings):
    """(what is said of the estimator, the experiment, its first state with larger parameters)."""
    dataset = dataset or tiny_dataset()
    experiment = tiny_experiment(dataset=dataset, **settings)
    state = whole_state(experiment)
    state = dataclasses.replace(state, params=jax.tree.map(lambda x: 2 * x, state.params))
    errors = EstimatorError(
        experiment.step.objective,
        experiment.examples,
        jax.tree.map(jnp.asarray, host_arrays(experiment)),
        batch_size=experiment.config.train.batch_size,
        queries=queries,
        draws=draws,
    )
    found = errors(variables_of(state), state.source, 3)
    assert set(found) == {
        f"{group}/{name}"
        for group in GROUPS
        for name in ("bias", "bias_noise", "variance", "cosine")
    }
    assert np.isfinite(list(found.values())).all()
    return found, experiment, state


def test_bias_variance_and_cosine_are_their_formulas_over_the_same_draws():
    """Every example is a query, so their order is of no effect."""
    found, experiment, state = measure(**MF, **UNIFORM, loss__num_sampled=8, queries=10**6)
    batch = experiment.examples.batch(np.arange(experiment.examples.size), seed=0, epoch=0)
    label_B, size = batch["label"][:, 0], experiment.examples.size
    embedding = jax.tree.map(np.float64, state.params["embedding"])
    query_BxD, item_NxD = embedding["user_id"][batch["user"]], embedding["head"][:51]
    exp_BxN = np.exp(query_BxD @ item_NxD.T)
    one_hot_BxN = np.eye(51)[label_B]

    def gradients(weight_BxN):
        """Where every item counts so many times in Z, and the label once."""
        weight_BxN = np.where(one_hot_BxN > 0, 1.0, weight_BxN)
        z_BxN = weight_BxN * exp_BxN
        excess_BxN = (z_BxN / z_BxN.sum(axis=1, keepdims=True) - one_hot_BxN) / size
        d_item = (excess_BxN.T @ query_BxD).ravel()
        head = np.concatenate([d_item, excess_BxN.sum(axis=0)])
        return {"query": (excess_BxN @ item_NxD).ravel(), "items": d_item, "head": head}

    exact = gradients(np.broadcast_to(experiment.train_mask_N, one_hot_BxN.shape).astype(float))
    drawn = []
    for number in range(DRAWS):
        key = jax.random.fold_in(jax.random.key(0), number)
        rows = {k: jnp.asarray(v[:1]) for k, v in batch.items()}
        shared = experiment.arrays["source"].draw({}, key, rows, 3)[0].shared
        weight_N = np.zeros(51)
        np.add.at(weight_N, np.asarray(shared.ids_C), np.exp(-np.float64(shared.log_q_C)))
        drawn.append(gradients(np.broadcast_to(weight_N, one_hot_BxN.shape)))
    for group in GROUPS:
        g_RxM, g_M = np.stack([each[group] for each in drawn]), exact[group]
        length = np.linalg.norm(g_M)
        variance = g_RxM.var(axis=0, ddof=1).sum()
        noise = variance / DRAWS
        bias = np.sqrt(max(np.sum((g_RxM.mean(axis=0) - g_M) ** 2) - noise, 0)) / length
        cosine = (g_RxM @ g_M / np.linalg.norm(g_RxM, axis=1) / length).mean()
        assert found[f"{group}/bias"] == pytest.approx(bias, rel=1e-3), group
        assert found[f"{group}/bias_noise"] == pytest.approx(np.sqrt(noise) / length, rel=1e-4)
        assert found[f"{group}/variance"] == pytest.approx(variance / length**2, rel=1e-4)
        assert found[f"{group}/cosine"] == pytest.approx(cosine, rel=1e-5)


def test_many_draws_from_the_whole_corpus_come_close_to_the_exact_gradient():
    """Of an item tower with dropout, which is off here."""
    settings = {**UNIFORM, "model__query__dropout": 0.5, "tables__mode": "rows"}
    few, *_ = measure(**settings, loss__num_sampled=8)
    many, *_ = measure(**settings, loss__num_sampled=4096)
    for group in GROUPS:
        assert many[f"{group}/cosine"] > 0.999 > few[f"{group}/cosine"]
        assert many[f"{group}/bias"] < 0.02
        assert many[f"{group}/variance"] < few[f"{group}/variance"] / 100


def test_without_logq_the_bias_is_larger_where_popularity_is_steep():
    in_batch = {"dataset": steep_dataset(), "loss__candidates": "in_batch", **MF}
    with_logq, *_ = measure(**in_batch)
    without, *_ = measure(**in_batch, loss__correct_logq=False)
    for group in GROUPS:
        assert without[f"{group}/bias"] > with_logq[f"{group}/bias"] + 0.1, group


@pytest.mark.parametrize("stale", [False, True])
def test_a_memory_is_biased_by_its_age_and_not_by_what_it_holds(stale):
    """It holds one item alone, which every draw replaces by others, or all items, outdated."""
    settings = {"loss__candidates": "memory", "loss__memory": 1020, **MF}
    _, experiment, state = measure(**settings, draws=2)
    item_NxD = state.params["embedding"]["head"][:51]
    ids_M = jnp.arange(1020) % 51 if stale else jnp.zeros(1020, jnp.int32)
    embedding_MxD = (0 if stale else 1) * item_NxD[ids_M]
    arrays = jax.tree.map(jnp.asarray, host_arrays(experiment))
    filled = arrays["source"].push(state.source, ids_M, embedding_MxD)
    objective, examples = experiment.step.objective, experiment.examples
    errors = EstimatorError(objective, examples, arrays, batch_size=16, queries=16, draws=DRAWS)
    bias = errors(variables_of(state), filled, 3)["query/bias"]
    assert bias > 0.3 if stale else bias < 0.05


@pytest.mark.parametrize(
    "settings",
    [
        {
            "loss__candidates": "mixed",
            "loss__mixed": ("memory", "explicit"),
            "loss__frequency": "streaming",
            "loss__memory": 24,
            "examples__labels": "multi_hot",
        },
        {"loss__candidates": "hard", "loss__num_sampled": 24, "loss__hard_negatives": 4, **MF},
    ],
    ids=["memory_and_explicit", "hard"],
)
def test_sources_of_every_kind_are_measured(settings):
    found, *_ = measure(dataset=steep_dataset(), draws=4, **settings)
    assert 0.1 < found["items/cosine"] < 1
