"""Training and ranking in bfloat16: near float32, and one policy everywhere."""

import functools
import itertools
import re

import jax
import numpy as np
import pytest

from recjax.errors import ConfigError
from tests.ops.test_precision import exact
from tests.tiny import host_batch, tiny_experiment, variables_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

CASES = {
    "softmax": {"config": "softmax", "model__item__bias": True, "loss__label_smoothing": 0.1},
    "towers": {
        "model__normalize": True,
        "model__temperature": 0.2,
        "model__query__pooling": ("mean", "attention"),
        "model__query__normalization": "layer",
        "loss__candidates": "in_batch",
        "tables__mode": "rows",
    },
}


@functools.cache
def made(case, dtype="bfloat16", model=1):
    """(experiment, its first state)."""
    experiment = tiny_experiment(
        **CASES[case], model__compute_dtype=dtype, parallel__model=model, eval__seen="none"
    )
    return experiment, experiment.init_state()


def after(experiment, state, steps):
    """(variables after so many steps, the last loss)."""
    state = jax.tree.map(lambda x: x.copy(), state)  # a step is given its buffers
    for step in range(steps):
        batch = experiment.parallel.put_batch(host_batch(experiment, step))
        state, metrics = experiment.train_step(state, batch, experiment.arrays)
    return variables_of(state), float(metrics["loss"])


def gradient(experiment, state):
    """What one step of SGD takes off parameters and tables, as one vector."""
    before, after_it = variables_of(state), after(experiment, state, 1)[0]
    differences = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), before, after_it)
    assert {leaf.dtype for leaf in jax.tree.leaves(differences)} == {np.dtype("float32")}
    return np.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(differences)])


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_training_are_near_those_of_float32(case):
    low, high = made(case), made(case, "float32")
    found, expected = gradient(*low), gradient(*high)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 1e-2
    first, last = after(*high, 1)[1], after(*high, 40)[1]
    assert last < first - 0.05
    assert after(*low, 40)[1] == pytest.approx(last, abs=0.02)


@pytest.mark.parametrize("case", CASES)
def test_on_an_accelerator_every_layer_and_logit_multiplies_bfloat16(case):
    experiment, state = made(case)
    batch = experiment.parallel.put_batch(host_batch(experiment, 0))
    traced = experiment.train_step.trace(state, batch, experiment.arrays)
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    products = [
        re.findall(r"tensor<\d+x\d+x(\w+)>, tensor<\d+x\d+x(\w+)>\) -> tensor<\d+x\d+x(\w+)>", line)
        for line in program.splitlines()
        if "dot_general" in line and "batching" not in line
    ]
    matrices = list(itertools.chain(*products))
    assert len(matrices) > 8 and set(matrices) == {("bf16", "bf16", "f32")}


def test_devices_that_share_the_corpus_take_the_step_of_one():
    one, two = gradient(*made("softmax")), gradient(*made("softmax", model=2))
    assert np.linalg.norm(two - one) < 1e-3 * np.linalg.norm(one)


@pytest.mark.parametrize(("case", "model"), [("softmax", 1), ("softmax", 2), ("towers", 1)])
def test_rankings_are_of_rounded_embeddings_whatever_the_block(case, model):
    experiment, state = made(case, model=model)
    variables, queries = variables_of(state), experiment.queries("test")
    scorer, rows = experiment.scorer, np.arange(12)
    query = np.asarray(scorer.embed_queries(variables, experiment.arrays, queries.batch(rows)))
    item = np.asarray(scorer.embed_corpus(variables, experiment.arrays))
    for embedding in (query, item):
        np.testing.assert_array_equal(embedding, exact(embedding))
    logits = query.astype(np.float64) @ item.T / experiment.model.temperature
    expected = np.argsort(-logits, axis=1)[:, :10]
    ranker = scorer.ranker(variables, experiment.arrays, np.ones(51, bool))
    for size in (12, 5):
        for first in range(0, 12, size):
            block = rows[first : first + size]
            scores, ids = ranker(queries.batch(block), queries.seen(block, "none"), 10)
            np.testing.assert_array_equal(ids, expected[block])
            np.testing.assert_allclose(
                scores, np.take_along_axis(logits, expected, axis=1)[block], rtol=1e-5, atol=1e-6
            )


def test_another_dtype_is_refused():
    with pytest.raises(ConfigError, match="compute_dtype='float16' is none of .*bfloat16"):
        tiny_experiment(model__compute_dtype="float16")
