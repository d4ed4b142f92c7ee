"""The model as a probability over the corpus, through `init` and `apply` alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.embedding import lookup, lookup_sum
from recjax.models.retrieval import unit
from tests.tiny import host_arrays, host_batch, tiny_experiment, variables_of, whole_state

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUM_ITEMS = 51
ROWS = {"loss__candidates": "uniform", "tables__mode": "rows"}
CASES = {
    "softmax": {"config": "softmax"},
    "softmax by rows": {"config": "softmax", "model__item__bias": True, **ROWS},
    "two towers": {
        "model__item__activation": "tanh",
        "model__normalize": True,
        "model__temperature": 0.2,
    },
    "two towers by rows": {"model__query__history_table": "item", **ROWS},
}


@functools.cache
def model_of(case):
    """(call: method, *inputs -> output; query inputs of 4 queries; item inputs of the corpus)."""
    experiment = tiny_experiment(**CASES[case])
    encoder, arrays = experiment.encoder, host_arrays(experiment)
    batch = {name: array[:4] for name, array in host_batch(experiment, 0).items()}
    variables = jax.tree.map(lambda x: 2 * x, variables_of(whole_state(experiment)))
    if experiment.config.model.item.bias:
        variables["params"]["item"]["bias"] = jnp.linspace(-1, 1, 64)

    def call(method, *inputs):
        return np.asarray(experiment.model.apply(variables, *inputs, method=method))

    query = encoder.query_inputs(arrays, batch)
    return call, query, encoder.item_inputs(arrays, jnp.arange(NUM_ITEMS))


def every_pair(query, item):
    """Query inputs and item inputs of every pair, query by query."""
    size = len(next(iter(query.values())))
    count = len(item["item"])
    query = {name: jnp.repeat(x, count, axis=0) for name, x in query.items()}
    return query, {name: jnp.concatenate([x] * size) for name, x in item.items()}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_probabilities_over_the_corpus_sum_to_one(case, masked):
    call, query, corpus = model_of(case)
    mask_N = np.arange(NUM_ITEMS) % 3 > 0 if masked else np.ones(NUM_ITEMS, bool)
    mask = jnp.asarray(mask_N) if masked else None
    log_prob = call("log_prob", *every_pair(query, corpus), corpus, mask).reshape(4, -1)
    assert log_prob.std() > 0.1
    np.testing.assert_allclose(np.exp(log_prob[:, mask_N]).sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_score_of_a_pair_is_its_logit_over_the_corpus(case):
    call, query, corpus = model_of(case)
    temperature = CASES[case].get("model__temperature", 1.0)
    logits = call("embed_query", query) @ call("embed_items", corpus).T / temperature
    if "model__item__bias" in CASES[case]:
        logits += call("item_bias")[None, :NUM_ITEMS]
    scores = call("score", *every_pair(query, corpus))
    assert scores.shape == (4 * NUM_ITEMS,)
    np.testing.assert_allclose(scores.reshape(4, -1), logits, rtol=1e-5, atol=1e-5)


def test_normalised_embeddings_have_unit_length():
    call, query, corpus = model_of("two towers")
    for embedding in (call("embed_query", query), call("embed_items", corpus)):
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)
    assert np.ptp(np.linalg.norm(model_of("softmax")[0]("embed_query", query), axis=1)) > 0.01


def test_a_row_of_zeros_has_no_direction():
    np.testing.assert_allclose(unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])


def test_a_table_begins_the_same_in_either_mode():
    dense = tiny_experiment(tables__mode="dense", loss__candidates="uniform")
    rows = tiny_experiment(tables__mode="rows", loss__candidates="uniform")
    tables = variables_of(whole_state(rows))["tables"]
    embedding = variables_of(whole_state(dense))["params"]["embedding"]
    assert set(tables) == set(embedding)
    for name, table in embedding.items():
        np.testing.assert_array_equal(tables[name][: len(table)], table, err_msg=name)


def test_rows_may_stand_in_for_tables():
    """What the train step does: it looks rows up itself and differentiates in them."""
    experiment = tiny_experiment(**CASES["two towers by rows"])
    variables = variables_of(whole_state(experiment))
    inputs = experiment.encoder.item_inputs(host_arrays(experiment), jnp.array([3, 5, -1]))
    rows = {
        "categories": lookup_sum(variables["tables"]["item.categories"], inputs["categories"]),
        "item_id": lookup(variables["tables"]["item_id"], inputs["item_id"]),
    }
    apply = functools.partial(experiment.model.apply, method="embed_items")
    given = apply({"params": variables["params"]}, inputs, rows)
    np.testing.assert_allclose(given, apply(variables, inputs), rtol=1e-6)
