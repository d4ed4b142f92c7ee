"""Rankings of the corpus, against every pair scored and sorted with numpy."""

import functools

import jax
import numpy as np
import pytest

from recjax.scoring import Scorer
from tests.tiny import tiny_experiment, variables_of, whole_state

pytestmark = pytest.mark.usefixtures("quick_compilation")

CASES = {
    "softmax": {"config": "softmax", "model__item__bias": True},
    "two towers": {"model__temperature": 0.5},
    "rows": {"tables__mode": "rows", "loss__candidates": "uniform"},
}


@functools.cache
def made(case, data=1, model=1):
    """(experiment, its first variables on its devices, queries)."""
    experiment = tiny_experiment(**CASES[case], parallel__data=data, parallel__model=model)
    state = jax.device_put(
        whole_state(experiment), experiment.parallel.shardings(experiment.state_specs)
    )
    return experiment, variables_of(state), experiment.queries("test")


@pytest.mark.parametrize("case", CASES)
def test_the_corpus_is_ranked_by_the_models_scores(case):
    experiment, variables, queries = made(case)
    model, scorer = experiment.model, experiment.scorer
    rows, mask_N = np.arange(6), np.arange(51) % 5 > 0
    batch, seen = queries.batch(rows), queries.seen(rows, "known")
    ranker = scorer.ranker(variables, experiment.arrays, mask_N)
    scores, ids = jax.device_get(ranker(batch, seen, 4))

    query = np.asarray(scorer.embed_queries(variables, experiment.arrays, batch))
    item = np.asarray(scorer.embed_corpus(variables, experiment.arrays))
    logits = query @ item.T / model.temperature
    if experiment.config.model.item.bias:
        logits += np.asarray(variables["params"]["item"]["bias"])[None, :51]
    for b in range(6):
        allowed = np.setdiff1d(np.flatnonzero(mask_N), seen[b])
        best = allowed[np.argsort(-logits[b, allowed], kind="stable")[:4]]
        assert ids[b].tolist() == best.tolist()
        np.testing.assert_allclose(scores[b], logits[b, best], rtol=1e-5)


def test_chunks_change_no_embedding():
    experiment, variables, _ = made("two towers")
    chunked = Scorer(experiment.model, experiment.encoder, 51, chunk=20)
    np.testing.assert_allclose(
        chunked.embed_corpus(variables, experiment.arrays),
        experiment.scorer.embed_corpus(variables, experiment.arrays),
        rtol=1e-6,
    )


@pytest.mark.parametrize("case", ["softmax", "rows"])
def test_a_device_holds_a_quarter_of_the_tables_and_of_the_corpus(case):
    experiment, variables, _ = made(case, 2, 4)
    item_MxD = experiment.scorer._on_shards.embed_corpus(variables, experiment.arrays)
    tables = {**variables["tables"], **variables["params"]["embedding"], "corpus": item_MxD}
    split = [*experiment.step.objective.sharded, "corpus"]
    assert len(split) > 1
    for name in split:
        for shard in tables[name].addressable_shards:
            assert 4 * shard.data.nbytes == tables[name].nbytes, name
    expected = experiment.scorer.embed_corpus(variables, experiment.arrays)
    np.testing.assert_allclose(np.asarray(item_MxD)[:51], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", ["softmax", "rows"])
def test_tables_split_over_devices_rank_alike(case):
    rankings = []
    for devices in ((1, 1), (4, 2)):
        experiment, variables, queries = made(case, *devices)
        rows = np.arange(6)
        ranker = experiment.scorer.ranker(variables, experiment.arrays, np.ones(51, bool))
        rankings.append(jax.device_get(ranker(queries.batch(rows), queries.seen(rows, "none"), 4)))
    (scores, ids), (split_scores, split_ids) = rankings
    np.testing.assert_allclose(split_scores, scores, rtol=1e-5)
    np.testing.assert_array_equal(split_ids, ids)
