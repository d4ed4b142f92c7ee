"""One step of training: the same on any devices, whatever the batch's order and padding."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.data.synthetic import make_synthetic
from tests.tiny import host_batch, tiny_dataset, tiny_experiment, whole_state

ONE, EIGHT, SHARDED = (1, 1), (8, 1), (4, 2)  # (data, model) devices
STEPS = range(5, 15)  # the epoch's last batch, which is padded, among them

SAMPLED = {"loss__candidates": "uniform", "loss__num_sampled": 16, "tables__mode": "rows"}
MULTI_HOT = {"examples__labels": "multi_hot"}


@functools.cache
def shown_dataset():
    """As `tiny_dataset`, with four items that were shown at each interaction and not chosen."""
    return make_synthetic(users=40, items=51, interactions_per_user=8, impressions=4)


CASES = {
    "softmax": {"config": "softmax", "model__item__bias": True, "model__query__dropout": 0.3},
    "shared_head": {
        "config": "softmax",
        "model__query__history_table": "item",
        "model__normalize": True,
        "model__temperature": 0.5,
        "model__learn_temperature": True,
        "loss__label_smoothing": 0.1,
        "loss__log_prior": 1.0,
    },
    "tower": {
        "model__item__dropout": 0.3,
        "model__item__embedding_dropout": 0.2,
        "model__item__id_dropout": 0.2,
        "model__query__history_table": "item",
        "model__learn_temperature": True,
        "loss__corpus_chunk": 16,
    },
    "in_batch": {"loss__candidates": "in_batch", "model__normalize": True},
    "in_batch_bpr": {"loss__candidates": "in_batch", "loss__name": "bpr", **MULTI_HOT},
    "in_batch_multi_hot": {"loss__candidates": "in_batch", **MULTI_HOT},
    "mixed": {
        **SAMPLED,
        "dataset": shown_dataset,
        "loss__candidates": "mixed",
        "loss__mixed": ("memory", "uniform", "explicit"),
        "loss__memory": 24,  # the batch and a half
        "loss__frequency": "streaming",
        "model__item__embedding_dropout": 0.2,
        "model__item__id_dropout": 0.2,
        "model__learn_temperature": True,
    },
    "hard": {
        "config": "softmax",
        "loss__candidates": "hard",
        "loss__num_sampled": 24,
        "loss__hard_negatives": 4,
        "loss__hard_refresh": 3,
        "model__item__bias": True,
        "tables__mode": "rows",
    },
    "sampled": {"model__query__history_table": "item", **SAMPLED, **MULTI_HOT},
    "sampled_softmax": {"config": "softmax", "model__item__bias": True, **SAMPLED},
}
OPTIMIZERS = {
    "sgd": {},
    "adagrad": {"optim__name": "adagrad", "optim__learning_rate": 0.1},
    "row_adagrad": {"optim__name": "row_adagrad", "optim__learning_rate": 0.1},
    "adam": {"optim__name": "adam", "optim__learning_rate": 0.01, "optim__eps": 1e-4},
}
# Gradients agree to about 1e-8, and SGD and Adagrad (whose accumulator begins at 0.1) move an entry
# by no more than that. Adam divides a gradient by its own size: near 0 its slope is learning_rate /
# eps = 100, so ten steps may differ by 1e-5 and a bit. With its usual eps of 1e-8 an entry whose
# gradient is 0 but for rounding (the item tower's last bias, which shifts all logits alike) would
# move by the whole learning rate, either way.
TOLERANCE = {"sgd": 1e-5, "adagrad": 1e-5, "row_adagrad": 1e-5, "adam": 3e-5}


pytestmark = pytest.mark.usefixtures("quick_compilation")


class Counted:
    """A step that counts how often it is traced."""

    def __init__(self, step):
        self.step, self.traces = step, 0

    def __call__(self, *arguments):
        self.traces += 1
        return self.step(*arguments)


def compiled(case, optimizer="sgd", devices=ONE, mapper="shard_map", mode=None):
    """(experiment, its compiled step, the counted step in it), made once."""
    return _compiled(case, optimizer, devices, mapper, mode)


@functools.cache
def _compiled(case, optimizer, devices, mapper, mode):
    settings = CASES[case] | OPTIMIZERS[optimizer] | ({"tables__mode": mode} if mode else {})
    settings |= {"parallel__data": devices[0], "parallel__model": devices[1]}
    dataset = settings.pop("dataset", tiny_dataset)()
    experiment = tiny_experiment(**settings, dataset=dataset, parallel__mapper=mapper)
    counted = Counted(experiment.step)
    return experiment, experiment.parallel.compile(counted, experiment.state_specs), counted


def take(experiment, step, batches, state=None):
    """The state (on the devices) and the loss after the batches, from the first state or another.

    Each step is waited for: fake devices deadlock when several are queued.
    """
    state, metrics = measured(experiment, step, batches, state)
    return state, float(metrics["loss"])


def measured(experiment, step, batches, state=None):
    """As `take`, with all the metrics of the last step."""
    state = whole_state(experiment) if state is None else state
    state = jax.device_put(state, experiment.parallel.shardings(experiment.state_specs))
    metrics = {}
    for batch in batches:
        state, metrics = step(state, experiment.parallel.put_batch(batch), experiment.arrays)
        jax.block_until_ready(state)
    return state, metrics


def trained(case, optimizer="sgd", devices=ONE, mapper="shard_map", mode=None):
    """`take` of ten batches, made once; arguments as `compiled` has them."""
    return _trained(case, optimizer, devices, mapper, mode)


@functools.cache
def _trained(*arguments):
    experiment, step, _ = compiled(*arguments)
    return take(experiment, step, [host_batch(experiment, i) for i in STEPS])


def assert_close(got, want, tolerance):
    """Two states (or parts of them) are equal; entries beyond 1 by their ratio."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(got))
    for (path, a), b in zip(leaves, jax.tree.leaves(jax.device_get(want)), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


def tables_of(state):
    """Every table, in either mode, on the host."""
    return jax.device_get(state.tables | state.params["embedding"])


def assert_copies_are_equal(state, devices):
    """What two devices hold of the same part of an array is the same, bit by bit."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        assert len(leaf.addressable_shards) == devices
        first = {}
        for shard in leaf.addressable_shards:
            copy = np.asarray(shard.data)
            known = first.setdefault(str(shard.index), copy)
            np.testing.assert_array_equal(copy, known, err_msg=jax.tree_util.keystr(path))


# Every source, side, mode and mesh is in one of these; the other combinations are slow tests.
FAST = {
    ("softmax", "sgd", EIGHT),
    ("softmax", "sgd", SHARDED),
    ("shared_head", "sgd", SHARDED),
    ("tower", "sgd", SHARDED),
    ("in_batch", "sgd", EIGHT),
    ("in_batch_bpr", "sgd", EIGHT),
    ("mixed", "sgd", SHARDED),
    ("hard", "sgd", SHARDED),
    ("sampled", "sgd", SHARDED),
    ("sampled_softmax", "adagrad", SHARDED),
    ("sampled_softmax", "row_adagrad", SHARDED),
    ("sampled_softmax", "adam", SHARDED),
}
# An optimizer sees gradients alone, so all of them go with one case of dense tables, one of rows.
ALL_OPTIMIZERS = {"softmax", "sampled_softmax"}
COMBINATIONS = [
    pytest.param(*one, marks=() if one in FAST else pytest.mark.slow)
    for one in itertools.product(CASES, OPTIMIZERS, (EIGHT, SHARDED))
    if one[0] in ALL_OPTIMIZERS or one[1] == "sgd"
]


@pytest.mark.parametrize(("case", "optimizer", "devices"), COMBINATIONS)
def test_one_device_equals_eight(case, optimizer, devices):
    one, one_loss = trained(case, optimizer)
    eight, eight_loss = trained(case, optimizer, devices)
    assert_close(eight, one, TOLERANCE[optimizer])
    assert eight_loss == pytest.approx(one_loss, abs=TOLERANCE[optimizer])
    assert_copies_are_equal(eight, 8)
    first = tables_of(whole_state(compiled(case, optimizer)[0]))
    assert all(np.abs(tables_of(one)[name] - first[name]).max() > 0.01 for name in first)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c == "softmax" else pytest.mark.slow) for c in CASES]
)
def test_pmap_equals_shard_map(case):
    mapped, _ = trained(case, "sgd", EIGHT, "pmap")
    assert_close(mapped, trained(case, "sgd", EIGHT)[0], 1e-6)
    assert_copies_are_equal(mapped, 8)


def test_the_model_axis_splits_row_tables_and_the_head():
    def rows_per_device(table):
        return {len(shard.data) / len(table) for shard in table.addressable_shards}

    head, _ = trained("softmax", "sgd", SHARDED)
    assert rows_per_device(head.params["embedding"]["head"]) == {0.5}
    assert rows_per_device(head.params["embedding"]["history"]) == {1.0}
    shared, _ = trained("shared_head", "sgd", SHARDED)  # histories need all of it everywhere
    assert rows_per_device(shared.params["embedding"]["head"]) == {1.0}
    for optimizer in ("adagrad", "row_adagrad"):
        rows, _ = trained("sampled_softmax", optimizer, SHARDED)
        for name in ("head", "history", "user.country"):
            assert rows_per_device(rows.tables[name]) == {0.5}
            assert rows_per_device(rows.table_state[name]["accumulator"]) == {0.5}


@pytest.mark.parametrize("mapper", ["shard_map", "pmap"])
def test_a_second_step_compiles_nothing_and_takes_over_the_state(mapper):
    experiment, step, counted = compiled("softmax", "sgd", EIGHT, mapper)
    first, _ = take(experiment, step, [host_batch(experiment, 0)])
    traces = counted.traces
    take(experiment, step, [host_batch(experiment, i) for i in (1, 2)], first)
    assert counted.traces == traces
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))


@pytest.mark.parametrize(
    ("case", "optimizer"),
    [("sampled", "sgd"), ("sampled_softmax", "adagrad"), ("sampled_softmax", "row_adagrad")],
)
def test_tables_updated_by_rows_equal_dense_ones(case, optimizer):
    """In `sampled` a history shares the item's table, and history, bags and labels have padding."""
    rows, rows_loss = trained(case, optimizer)
    dense, dense_loss = trained(case, optimizer, mode="dense")
    assert rows_loss == pytest.approx(dense_loss, abs=1e-6)
    first = whole_state(compiled(case, optimizer)[0]).tables
    assert set(rows.tables) == set(dense.params["embedding"])
    for name, table in tables_of(dense).items():
        filled = np.asarray(rows.tables[name])  # up to a multiple of 64 rows, never touched
        np.testing.assert_allclose(filled[: len(table)], table, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(filled[len(table) :], first[name][len(table) :])


@pytest.mark.parametrize("case", ["softmax", "in_batch"])
def test_padding_changes_nothing(case):
    experiment, step, _ = compiled(case)
    batch = host_batch(experiment, 0)
    real = {name: array[:12] for name, array in batch.items()}
    padded = batch | {"weight": np.where(np.arange(16) < 12, 1, 0).astype(np.float32)}
    want, want_loss = take(experiment, step, [real])
    got, got_loss = take(experiment, step, [padded])
    assert_close(got, want, 1e-6)
    assert got_loss == pytest.approx(want_loss, abs=1e-6)


@pytest.mark.parametrize("case", ["softmax", "in_batch", "sampled"])
def test_the_order_of_a_batch_changes_nothing(case):
    experiment, step, _ = compiled(case)
    batch = host_batch(experiment, 0)
    order = np.random.default_rng(0).permutation(16)
    turned = {name: array[order] for name, array in batch.items()}
    assert_close(take(experiment, step, [turned])[0], take(experiment, step, [batch])[0], 1e-6)


@pytest.mark.parametrize("case", ["softmax", "tower"])
def test_the_loss_at_zero_is_the_log_of_the_number_of_items_in_training(case):
    experiment, step, _ = compiled(case)
    state = whole_state(experiment)
    state = dataclasses.replace(state, params=jax.tree.map(jnp.zeros_like, state.params))
    _, loss = take(experiment, step, [host_batch(experiment, 0)], state)
    assert loss == pytest.approx(np.log(experiment.train_mask_N.sum()), rel=1e-6)


@pytest.mark.parametrize("candidates", ["full", "in_batch", "memory"])
def test_one_device_runs_no_collective(candidates):
    experiment = tiny_experiment(loss__candidates=candidates, tables__mode="rows")
    step = experiment.parallel.compile(experiment.step, experiment.state_specs)
    batch = experiment.parallel.put_batch(host_batch(experiment, 0))
    program = step.lower(experiment.abstract_state, batch, experiment.arrays).as_text()
    assert "stablehlo.add" in program
    assert not any(name in program for name in ("all_reduce", "all_gather", "reduce_scatter"))


def test_a_user_id_without_layers_beside_a_head_is_matrix_factorisation():
    experiment = tiny_experiment(
        "mf",
        model__query__features=("user_id",),
        model__query__hidden=(),
        model__item__bias=False,
        model__temperature=0.5,
        model__learn_temperature=True,
        optim__learning_rate=1.0,
    )
    step = experiment.parallel.compile(experiment.step, experiment.state_specs)
    batch = host_batch(experiment, 0)
    before = whole_state(experiment)
    assert set(before.params) == {"embedding", "log_temperature"} and not before.tables
    assert before.params["log_temperature"] == pytest.approx(np.log(0.5))
    before = jax.tree.map(np.float64, before.params["embedding"])
    after, metrics = measured(experiment, step, [batch])

    rows = np.arange(16)
    query_BxD = before["user_id"][batch["user"]]
    logits_BxN = query_BxD @ before["head"][:51].T / 0.5
    exp_BxN = np.exp(logits_BxN) * experiment.train_mask_N
    p_BxN = exp_BxN / exp_BxN.sum(axis=1, keepdims=True)
    excess_BxN = p_BxN - np.eye(51)[batch["label"][:, 0]]
    d_user, d_item = np.zeros_like(before["user_id"]), np.zeros_like(before["head"])
    np.add.at(d_user, batch["user"], excess_BxN @ before["head"][:51] / 0.5 / 16)
    d_item[:51] = excess_BxN.T @ query_BxD / 0.5 / 16
    label_BxD = before["head"][batch["label"][:, 0]]
    loss = -np.log(p_BxN[rows, batch["label"][:, 0]]).mean()
    length = (np.linalg.norm(query_BxD, axis=1) * np.linalg.norm(label_BxD, axis=1)).mean()
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-6)
    assert float(metrics["logit_scale"]) == pytest.approx(length / 0.5, rel=1e-6)
    # A logit is a product over e^log_temperature, so its slope in that is the logit, less its sign.
    d_log_temperature = -(excess_BxN * logits_BxN).sum(axis=1).mean()
    moved = np.log(0.5) - float(after.params["log_temperature"])
    assert moved == pytest.approx(d_log_temperature, abs=1e-6)
    assert abs(moved) > 1e-3
    after = after.params["embedding"]
    np.testing.assert_allclose(before["user_id"] - after["user_id"], d_user, atol=1e-7)
    np.testing.assert_allclose(before["head"] - after["head"], d_item, atol=1e-7)


def test_the_logit_scale_of_unit_vectors_is_one_over_the_temperature():
    experiment, step, _ = compiled("shared_head", "sgd", SHARDED)
    _, metrics = measured(experiment, step, [host_batch(experiment, 12)])
    assert float(metrics["logit_scale"]) == pytest.approx(2, rel=1e-5)


def test_the_logged_loss_is_the_mean_over_examples_since_the_last_log():
    experiment, step, _ = compiled("in_batch")
    full, padded = host_batch(experiment, 0), host_batch(experiment, 12)
    assert (full["weight"].sum(), padded["weight"].sum()) == (16, 9)

    def at(step_number, state):
        return dataclasses.replace(state, step=jnp.int32(step_number))

    every = experiment.config.log.every
    used = dataclasses.replace(whole_state(experiment), loss_sum=jnp.float32(1e6))
    state, first = take(experiment, step, [full], at(every, used))
    _, second = take(experiment, step, [padded], at(every, jax.device_get(state)))
    _, both = take(experiment, step, [padded], at(every + 1, jax.device_get(state)))
    assert both == pytest.approx((16 * first + 9 * second) / 25, rel=1e-6)


def test_a_step_remembers_its_batch_and_counts_it():
    experiment, step, _ = compiled("mixed")
    batches = [host_batch(experiment, i) for i in (0, 1)]
    state, _ = take(experiment, step, batches)
    ids_M, cursor = (state.source["memory"][name] for name in ("ids_M", "cursor"))
    labels = np.concatenate([batch["label"][:, 0] for batch in batches])
    np.testing.assert_array_equal(ids_M, np.concatenate([labels[24:], labels[8:24]]))
    assert int(cursor) == 8
    times_N = state.source["frequency"]["times_KxH"][0]
    np.testing.assert_array_equal(np.flatnonzero(times_N), np.unique(labels))


def test_the_first_step_without_a_finite_loss_is_kept():
    experiment, step, _ = compiled("in_batch")
    batches = [host_batch(experiment, i) for i in (0, 1)]
    state, _ = take(experiment, step, batches[:1])
    assert int(state.bad_step) == -1
    broken = jax.tree.map(lambda x: x * jnp.nan, state.params)
    state, _ = take(experiment, step, batches, dataclasses.replace(state, params=broken))
    assert int(state.bad_step) == 2


def test_the_positive_is_corrected_too_only_where_asked():
    losses = []
    for correct_positive in (False, True):
        experiment = tiny_experiment(**CASES["in_batch"], loss__correct_positive=correct_positive)
        step = experiment.parallel.compile(experiment.step, experiment.state_specs)
        losses.append(take(experiment, step, [host_batch(experiment, 0)])[1])
    # Of 16 examples the others hold an item less than once, so -log q lifts the label's score.
    assert losses[0] > losses[1] + 0.1
