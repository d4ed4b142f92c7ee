"""The loss of a batch against float64: what is scored, what is added, and what is not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.candidates import Candidates, Draw
from recjax.objective import own_items
from tests.tiny import host_arrays, host_batch, tiny_experiment, variables_of, whole_state

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(3)
NUM_ITEMS = 51
MF = {
    "config": "mf",
    "model__query__features": ("user_id",),
    "model__query__hidden": (),
    "model__temperature": 0.5,
}
ADDED = {"loss__label_smoothing": 0.1, "loss__log_prior": 0.7}
HARD = {"loss__candidates": "hard", "loss__num_sampled": 30, "loss__hard_negatives": 5}


@functools.cache
def matrix_factorisation(**changes):
    """(experiment, objective of one device, arrays, variables with item biases, batch)."""
    experiment = tiny_experiment(**MF, **changes)
    objective = dataclasses.replace(experiment.step.objective, data_axis=None)
    variables = variables_of(whole_state(experiment))
    variables["params"]["item"]["bias"] = jnp.sin(jnp.arange(64.0))[
        : objective.model.item.num_items
    ]
    arrays, batch = host_arrays(experiment), host_batch(experiment, 0)
    return experiment, objective, jax.tree.map(jnp.asarray, arrays), variables, batch


def scores(variables, batch):
    """The logits [B, N] in float64."""
    embedding = jax.tree.map(np.float64, variables["params"]["embedding"])
    query_BxD, item_NxD = embedding["user_id"][batch["user"]], embedding["head"][:NUM_ITEMS]
    return query_BxD @ item_NxD.T / 0.5 + np.sin(np.arange(NUM_ITEMS))[None, :]


def asked(objective, arrays, variables, batch):
    batch = jax.tree.map(jnp.asarray, batch)
    return objective.ask(variables, {}, KEY, jnp.int32(0), batch, arrays)[0]


def mean_loss(objective, arrays, variables, batch):
    @jax.jit
    def total(variables):
        question = asked(objective, arrays, variables, batch)
        rows = objective.look_up(variables["tables"], question)
        return objective(variables["params"], rows, question, KEY, arrays)[0]

    return float(total(variables)) / batch["weight"].sum()


def log_prior(experiment):
    share_N = experiment.popularity_N / experiment.popularity_N.sum()
    return np.log(np.where(share_N > 0, share_N, 1.0))


def test_smoothing_and_the_prior_enter_the_full_loss_as_their_formula_says():
    experiment, *rest = matrix_factorisation(**ADDED)
    _, _, variables, batch = rest
    score_BxN = scores(variables, batch) + 0.7 * log_prior(experiment)[None, :]
    score_BxN = score_BxN[:, experiment.train_mask_N]
    column_N = np.cumsum(experiment.train_mask_N) - 1
    label_B = score_BxN[np.arange(16), column_N[batch["label"][:, 0]]]
    log_z_B = np.log(np.exp(score_BxN).sum(axis=1))
    want = log_z_B - 0.9 * label_B - 0.1 * score_BxN.mean(axis=1)
    assert mean_loss(*rest) == pytest.approx(want.mean(), rel=1e-6)


def test_smoothing_and_the_prior_enter_the_sampled_loss_as_their_formula_says():
    sampled = {"loss__candidates": "uniform", "loss__num_sampled": 20, "tables__mode": "dense"}
    experiment, *rest = matrix_factorisation(**ADDED, **sampled)
    _, _, variables, batch = rest
    ids_C, log_q_C = map(np.asarray, asked(*rest).draw.shared)
    score_BxN = scores(variables, batch) + 0.7 * log_prior(experiment)[None, :]
    label_B = batch["label"][:, 0]
    weight_BxC = np.exp(-np.float64(log_q_C))[None, :] * (label_B[:, None] != ids_C[None, :])
    label_score_B, score_BxC = score_BxN[np.arange(16), label_B], score_BxN[:, ids_C]
    z_B = np.exp(label_score_B) + (weight_BxC * np.exp(score_BxC)).sum(axis=1)
    mean_B = label_score_B + (weight_BxC * score_BxC).sum(axis=1)
    mean_B /= 1 + weight_BxC.sum(axis=1)
    want = np.log(z_B) - 0.9 * label_score_B - 0.1 * mean_B
    assert mean_loss(*rest) == pytest.approx(want.mean(), rel=1e-6)


def test_the_prior_is_no_part_of_the_ranking():
    experiment, _, _, variables, batch = matrix_factorisation(**ADDED)
    rank = experiment.scorer.ranker(variables, experiment.arrays, np.ones(NUM_ITEMS, bool))
    found, item_BxK = rank(batch, np.full((16, 1), -1, np.int32), 5)
    want_BxN = scores(variables, batch)
    np.testing.assert_array_equal(item_BxK, np.argsort(-want_BxN, axis=1)[:, :5])
    np.testing.assert_allclose(found, -np.sort(-want_BxN, axis=1)[:, :5], rtol=1e-5)


def test_hard_negatives_are_the_pools_best_under_the_model_as_it_stands():
    _, *rest = matrix_factorisation(**HARD)
    _, _, variables, batch = rest
    draw = asked(*rest).draw
    pool = [i for i in np.asarray(draw.pool) if i >= 0]
    assert len(set(pool)) == len(pool) > 10
    for score_N, label, ids_K in zip(
        scores(variables, batch), batch["label"][:, 0], draw.negative.ids_C, strict=True
    ):
        rest = [i for i in pool if i != label]
        assert list(ids_K) == sorted(rest, key=lambda i: -score_N[i])[:5]


def test_negatives_stand_behind_the_labels_without_label_mass():
    batch = {"label": jnp.array([[4, -1]]), "label_weight": jnp.array([[1.0, 0.0]])}
    negative = Candidates(jnp.array([[7, -1, 8]]), jnp.full((1, 3), 0.5))
    draw = Draw(None, None, None, None, negative, None, jnp.array([[-2.0, -3.0]]))
    for correct_positive, log_q_P in ((False, [0, 0]), (True, [-2, -3])):
        ids_BxP, y_BxP, log_q_BxP = own_items(batch, draw, correct_positive)
        np.testing.assert_array_equal(ids_BxP, [[4, -1, 7, -1, 8]])
        np.testing.assert_array_equal(y_BxP, [[1, 0, 0, 0, 0]])
        np.testing.assert_array_equal(log_q_BxP, [[*log_q_P, 0.5, 0.5, 0.5]])
    assert own_items(batch, draw._replace(negative=None), False)[2] is None
