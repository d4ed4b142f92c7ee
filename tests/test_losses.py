import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from recjax.candidates import Candidates
from recjax.errors import ConfigError
from recjax.losses import make_loss

BATCH, ITEMS, DIM = 8, 13, 5
COUNT = ITEMS
BY_ROW = ("query", "own", "own_bias", "ids", "y", "own_log_q", "weight")
SETTINGS = {
    "softmax": {},
    "smoothed": {"label_smoothing": 0.1},
    "bpr": {},
    "bce": {"negative_weight": 2.5},
    "ccl": {"negative_weight": 2.5, "margin": -0.3},
    "bsl": {"positive_scale": 0.6},
}
every_loss = pytest.mark.parametrize("name", SETTINGS)


@functools.cache
def loss_named(name):
    return make_loss("softmax" if name == "smoothed" else name, **SETTINGS[name])


def problem(labels=3, negatives=2) -> tuple[dict[str, Any], dict[str, Any]]:
    """Own items, padding among them, and candidates: a duplicate, two hits, one that is none."""
    rng = np.random.default_rng(0)
    own = labels + negatives
    ids = np.stack([rng.permutation(ITEMS)[:own] for _ in range(BATCH)]).astype(np.int32)
    y = np.where(np.arange(own) < labels, rng.random((BATCH, own)) + 0.1, 0)
    if labels > 1:
        ids[::2, labels - 1] = ids[1::2, own - 1] = -1
    y = np.where(ids < 0, 0, y)
    ids_C = rng.integers(0, ITEMS, size=COUNT).astype(np.int32)
    ids_C[:4] = ids_C[4], ids_C[5], ids[0, 0], max(ids[0, own - 1], 0)
    log_q = rng.normal(size=COUNT).astype(np.float32)
    ids_C[-1], log_q[-1] = -1, np.inf
    shapes = {
        "query": (BATCH, DIM),
        "own": (BATCH, own, DIM),
        "candidate": (COUNT, DIM),
        "own_bias": (BATCH, own),
        "candidate_bias": (COUNT,),
        "scale": (),
    }
    inputs = {
        name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()
    }
    rest = {
        "ids": ids,
        "y": (y / y.sum(1, keepdims=True)).astype(np.float32),
        "own_log_q": np.where(y > 0, 0, rng.normal(size=y.shape)).astype(np.float32),
        "ids_C": ids_C,
        "log_q": log_q,
        "weight": np.where(np.arange(BATCH) == 2, 0, rng.random(BATCH) + 0.5).astype(np.float32),
    }
    return inputs | {"scale": np.float32(1.7)}, rest


def sampled(name, inputs, rest, **kwargs):
    return loss_named(name).sampled(
        inputs["query"],
        inputs["own"],
        inputs["candidate"],
        rest["ids"],
        rest["y"],
        Candidates(rest["ids_C"], rest["log_q"]),
        rest["weight"],
        scale=inputs["scale"],
        own_bias_BxP=inputs["own_bias"],
        candidate_bias_C=inputs["candidate_bias"],
        own_log_q_BxP=rest["own_log_q"],
        tile=3,
        **kwargs,
    )


@functools.cache
def compiled(name):
    return jax.jit(jax.value_and_grad(functools.partial(sampled, name), has_aux=True))


def value_and_grads(name, inputs, rest):
    """(weighted sum, loss of each example), and the gradient of the sum."""
    return compiled(name)(*jax.tree.map(jnp.asarray, (inputs, rest)))


def softplus(x):
    return np.log1p(np.exp(x))


def row_loss(name, s_own, s_all, ids, y, own_log_q, rest):
    """The loss of one example in float64, of its scores."""
    settings, y = SETTINGS[name], y.astype(np.float64)
    is_label, is_negative = y > 0, (y == 0) & (ids >= 0)
    kept = np.isfinite(rest["log_q"]) & ~np.isin(rest["ids_C"], ids[ids >= 0])
    s = np.concatenate([s_own[is_negative], s_all[kept]])
    w = np.exp(-np.concatenate([own_log_q[is_negative], rest["log_q"][kept]], dtype=np.float64))
    v = w / w.sum()
    y, s_p, log_q_p = y[is_label], s_own[is_label], own_log_q[is_label]
    match name:
        case "softmax" | "smoothed":
            eps = settings.get("label_smoothing", 0)
            z = np.exp(s_p - log_q_p).sum() + (w * np.exp(s)).sum()
            mean = (s_p.sum() + (w * s).sum()) / (len(s_p) + w.sum())
            return np.log(z) - (1 - eps) * (y * (s_p - log_q_p)).sum() - eps * mean
        case "bpr":
            return (y[:, None] * v * softplus(s - s_p[:, None])).sum()
        case "bce":
            negative = (v * softplus(s)).sum()
            return (y * softplus(-s_p)).sum() + settings["negative_weight"] * negative
        case "ccl":
            negative = (v * np.maximum(0, s - settings["margin"])).sum()
            return (y * (1 - s_p)).sum() + settings["negative_weight"] * negative
        case _:
            r = settings["positive_scale"]
            return np.log((v * np.exp(s)).sum()) - r * np.log((y * np.exp(s_p / r)).sum())


def reference(name, inputs, rest):
    """The loss of each example, and the gradients of the weighted sum, in float64."""
    inputs = {key: x.astype(np.float64) for key, x in inputs.items()}
    query, own, candidate, scale = (inputs[k] for k in ("query", "own", "candidate", "scale"))
    dots = np.concatenate([np.einsum("bd,bpd->bp", query, own), query @ candidate.T], axis=1)
    shared_bias = np.broadcast_to(inputs["candidate_bias"], (BATCH, COUNT))
    scores = scale * dots + np.concatenate([inputs["own_bias"], shared_bias], axis=1)
    num_own = own.shape[1]
    losses, slopes = np.zeros(BATCH), np.zeros_like(scores)
    for b in range(BATCH):

        def loss(score, b=b):
            ids, y, log_q = (rest[key][b] for key in ("ids", "y", "own_log_q"))
            return row_loss(name, score[:num_own], score[num_own:], ids, y, log_q, rest)

        losses[b] = loss(scores[b])
        steps = 1e-6 * np.eye(scores.shape[1])
        slopes[b] = [(loss(scores[b] + d) - loss(scores[b] - d)) / 2e-6 for d in steps]
    slopes *= rest["weight"].astype(np.float64)[:, None]
    d_own, d_shared = slopes[:, :num_own], slopes[:, num_own:]
    grads = {
        "query": scale * (np.einsum("bp,bpd->bd", d_own, own) + d_shared @ candidate),
        "own": scale * d_own[:, :, None] * query[:, None],
        "candidate": scale * d_shared.T @ query,
        "own_bias": d_own,
        "candidate_bias": d_shared.sum(0),
        "scale": (slopes * dots).sum(),
    }
    return losses, grads


def assert_close(got, expected, relative):
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=relative * np.abs(expected).max())


def assert_is_reference(name, inputs, rest):
    (total, loss), grads = value_and_grads(name, inputs, rest)
    expected, expected_grads = reference(name, inputs, rest)
    weighted = rest["weight"] * expected
    np.testing.assert_allclose(total, weighted.sum(), rtol=0, atol=1e-6 * np.abs(weighted).sum())
    assert_close(loss, expected, 1e-6)
    assert grads.keys() == expected_grads.keys()
    for key, grad in grads.items():
        assert_close(grad, expected_grads[key], 1e-5)


@every_loss
def test_a_loss_and_its_gradients_are_those_of_the_float64_reference(name):
    assert_is_reference(name, *problem())


def test_bpr_with_one_label():
    assert_is_reference("bpr", *problem(1, 0))


def test_the_positive_can_be_corrected_too():
    inputs, rest = problem()
    log_q = np.linspace(-1, 1, rest["ids"].size, dtype=np.float32).reshape(rest["ids"].shape)
    assert_is_reference("softmax", inputs, rest | {"own_log_q": log_q})


def test_without_correction_log_q_is_dropped_but_what_is_no_candidate_stays_out():
    inputs, rest = problem()
    dropped = rest | {"log_q": np.where(np.isinf(rest["log_q"]), np.inf, 0).astype(np.float32)}
    (_, expected), _ = value_and_grads("bce", inputs, dropped)
    _, loss = sampled("bce", *jax.tree.map(jnp.asarray, (inputs, rest)), correct=False)
    assert_close(loss, expected, 1e-6)


def corpus_problem(labels, negatives=0):
    """Every item once as a candidate."""
    inputs, rest = problem(labels, negatives)
    rest["ids"][rest["y"] == 0] = -1
    row = np.maximum(rest["ids"], 0)
    inputs["own"], inputs["own_bias"] = inputs["candidate"][row], inputs["candidate_bias"][row]
    rest |= {"ids_C": np.arange(ITEMS, dtype=np.int32), "log_q": np.zeros(ITEMS, np.float32)}
    return inputs, rest | {"own_log_q": np.zeros_like(rest["own_log_q"])}


@functools.cache
def compiled_full(name):
    def full(inputs, rest):
        return loss_named(name).full(
            inputs["query"],
            inputs["candidate"],
            rest["ids"],
            rest["y"],
            rest["weight"],
            bias_N=inputs["candidate_bias"],
            mask_N=jnp.ones(ITEMS, bool),
            scale=inputs["scale"],
        )

    return jax.jit(jax.value_and_grad(full, has_aux=True))


def full_value_and_grads(name, inputs, rest):
    return compiled_full(name)(*jax.tree.map(jnp.asarray, (inputs, rest)))


@pytest.mark.parametrize(
    "name, shape", [*((name, (3, 2)) for name in SETTINGS), ("softmax", (1,)), ("bpr", (1,))]
)
def test_the_whole_corpus_as_candidates_is_the_full_loss(name, shape):
    inputs, rest = corpus_problem(*shape)
    (total, loss), grads = value_and_grads(name, inputs, rest)
    (full_total, full_loss), full_grads = full_value_and_grads(name, inputs, rest)
    np.testing.assert_allclose(total, full_total, rtol=1e-6)
    assert_close(loss, full_loss, 1e-6)
    grads = jax.tree.map(np.array, grads)
    own_rows = np.maximum(rest["ids"], 0)
    np.add.at(grads["candidate"], own_rows, grads["own"])
    np.add.at(grads["candidate_bias"], own_rows, grads["own_bias"])
    for key in ("query", "candidate", "candidate_bias", "scale"):
        assert_close(grads[key], full_grads[key], 1e-6)


@every_loss
def test_with_all_scores_0_a_loss_has_its_theoretical_value(name):
    inputs, rest = problem()
    is_own = (rest["ids"][:, :, None] == rest["ids_C"]).any(1)
    w_own = np.where(rest["ids"] < 0, 0, np.exp(-rest["own_log_q"].astype(np.float64)))
    w_shared = np.where(is_own, 0, np.exp(-rest["log_q"].astype(np.float64)))
    expected = {
        "softmax": np.log(w_own.sum(1) + w_shared.sum(1)),
        "bpr": np.log(2),
        "bce": np.log(2) * (1 + 2.5),
        "ccl": 1 + 2.5 * 0.3,
        "bsl": 0.0,
    }
    expected["smoothed"] = expected["softmax"]
    (_, loss), _ = value_and_grads(name, jax.tree.map(np.zeros_like, inputs), rest)
    np.testing.assert_allclose(loss, np.broadcast_to(expected[name], BATCH), rtol=3e-7)
    inputs, rest = corpus_problem(3, 2)
    (_, loss), _ = full_value_and_grads(name, jax.tree.map(np.zeros_like, inputs), rest)
    expected |= {"softmax": np.log(ITEMS), "smoothed": np.log(ITEMS)}
    np.testing.assert_allclose(loss, np.full(BATCH, expected[name]), rtol=3e-7)


def take_rows(inputs, rest, rows):
    return tuple(
        {name: x[rows] if name in BY_ROW else x for name, x in part.items()}
        for part in (inputs, rest)
    )


@every_loss
def test_permuting_the_batch_changes_nothing(name):
    case = problem()
    order = np.random.default_rng(2).permutation(BATCH)
    (total, loss), _ = value_and_grads(name, *case)
    (permuted_total, permuted), _ = value_and_grads(name, *take_rows(*case, order))
    np.testing.assert_allclose(permuted_total, total, rtol=1e-6)
    np.testing.assert_allclose(permuted, loss[order], rtol=1e-6)


@every_loss
def test_a_batch_is_the_sum_of_its_parts_each_padded(name):
    inputs, rest = problem()
    whole = value_and_grads(name, inputs, rest)
    totals, losses, sums = [], [], []
    for rows in (np.arange(5), np.arange(5, 8)):
        part, part_rest = take_rows(inputs, rest, np.resize(rows, BATCH))
        is_padding = np.arange(BATCH) >= len(rows)
        for key, filler in {"ids": -1, "y": 0, "weight": 0}.items():
            part_rest[key][is_padding] = filler
        part["query"][is_padding] = 7
        (total, loss), grads = value_and_grads(name, part, part_rest)
        assert not any(grads[key][len(rows) :].any() for key in ("query", "own", "own_bias"))
        totals.append(total)
        losses.append(loss[: len(rows)])
        sums.append({key: grads[key] for key in ("candidate", "candidate_bias", "scale")})
    (total, loss), grads = whole
    np.testing.assert_allclose(sum(totals), total, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate(losses), loss, rtol=1e-6)
    for key in sums[0]:
        assert_close(sums[0][key] + sums[1][key], grads[key], 1e-6)


@every_loss
def test_eight_devices_give_what_one_gives(name):
    case = problem()
    (total, loss), _ = value_and_grads(name, *case)
    specs = [{key: P("data") if key in BY_ROW else P() for key in part} for part in case]

    def one_device(inputs, rest):
        total, loss_B = sampled(name, inputs, rest)
        return jax.lax.psum(total, "data"), loss_B

    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    run = jax.shard_map(
        one_device, mesh=mesh, in_specs=tuple(specs), out_specs=(P(), P("data")), check_vma=False
    )
    got_total, got = jax.jit(run)(*jax.tree.map(jnp.asarray, case))
    np.testing.assert_allclose(got_total, total, rtol=1e-6)
    np.testing.assert_allclose(got, loss, rtol=1e-6)


@every_loss
def test_no_nan_where_there_is_nothing_or_the_scores_are_huge(name):
    inputs, rest = problem()
    none = rest | {"log_q": np.full(COUNT, np.inf, np.float32)}
    empty = none | {"ids": np.full_like(rest["ids"], -1), "y": np.zeros_like(rest["y"])}
    (total, loss), grads = value_and_grads(name, inputs, empty)
    assert total == 0 and not loss.any()
    assert not any(grad.any() for grad in grads.values())
    huge = inputs | {"scale": np.float32(1e4)}
    for case in ((inputs, none), (huge, rest), (inputs, empty | {"log_q": rest["log_q"]})):
        results = value_and_grads(name, *case)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))


@pytest.mark.parametrize("name", ["softmax", "smoothed", "bpr", "bsl"])
def test_a_shift_of_all_scores_costs_nothing(name):
    inputs, rest = problem()
    rest["own_log_q"] *= 0
    shifted = {key: x - 30 if key.endswith("bias") else x for key, x in inputs.items()}
    (_, loss_B), _ = value_and_grads(name, inputs, rest)
    (_, shifted_B), _ = value_and_grads(name, shifted, rest)
    np.testing.assert_allclose(shifted_B, loss_B, atol=2e-5)


def test_a_full_loss_other_than_softmax_has_no_axis():
    ones = jnp.ones((2, 1))
    label = jnp.zeros((2, 1), jnp.int32)
    with pytest.raises(ValueError, match="split over an axis \\('model'\\)"):
        make_loss("bpr").full(ones, ones, label, ones, jnp.ones(2), axis="model")


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"name": "bprr"}, "'bprr'.*mean 'bpr'"),
        ({"name": "bsl", "positive_scale": 0.0}, "positive_scale=0.0: it must be more than 0"),
        ({"name": "ccl", "margin": 2.0}, "margin=2.0: .*-1 to 1"),
        ({"name": "softmax", "margin": 0.5}, "margin=0.5 is for ccl; with loss.name=softmax.* 0.0"),
        ({"name": "bpr", "negative_weight": 2.0}, "is for bce and ccl"),
    ],
)
def test_what_cannot_be_a_loss_is_an_error(kwargs, words):
    with pytest.raises(ConfigError, match=words):
        make_loss(**kwargs)
