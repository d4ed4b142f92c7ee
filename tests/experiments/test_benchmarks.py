"""The benchmarks measure what they say: the same examples for everyone, medians, honest ratios."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.benchmarks import (
    datasets,
    flops,
    gemm,
    harness,
    launch,
    programs,
    run,
    scaling,
    workload,
)
from tests.runs import ROOT

FOLDER = ROOT / "experiments" / "benchmarks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmark-data")


@pytest.fixture(scope="module")
def arrays(folder):
    return workload.load(folder, "interactions", smoke=True)


def windows(**changes):
    words = [f"--{key}={value}" for key, value in changes.items()]
    return harness.make_parser("").parse_args(["--seconds=0", *words])


def printed(rate, peer=False, **more):
    result = {"rates": rate, "unit": "examples/s", "is_peer": peer, "others": 0.01, "versions": {}}
    return {**result, "peak_bytes": 1, "curve": {"5": 2.0, "10": 1.0}, **more}


def test_the_data_is_drawn_once_and_is_the_same_for_everyone(arrays, folder, tmp_path):
    again = workload.load(tmp_path, "interactions", smoke=True)
    for name, array in workload.load(folder, "interactions", smoke=True).items():
        np.testing.assert_array_equal(array, again[name])
    assert [path.name for path in (folder / "smoke").iterdir()] == ["interactions.npz"]
    batch = next(workload.orders(len(arrays["item"]), 512))
    log_p_B = arrays["item_log_p"][arrays["item"][batch]].astype(np.float64)
    plain = np.mean([np.log(np.exp(own - log_p_B).sum()) for own in log_p_B])
    assert workload.in_batch_loss(log_p_B) == pytest.approx(plain)


def test_recjax_trains_on_the_workload_s_examples_and_knows_every_item(arrays, folder):
    label = workload.load(folder, "labels_huge", smoke=True)["label"]
    num_items = workload.SMOKE.huge
    assert len(np.unique(label)) < num_items
    dataset = datasets.make_dataset(arrays, label, num_items)
    experiment = datasets.build(
        "softmax.py",
        dataset,
        **{
            "examples.min_history": datasets.leads(dataset, len(label)),
            "examples.history_length": 0,
            "model.query.features": ("watched",),
        },
    )
    assert experiment.train_mask_N.all()
    batch = experiment.examples.batch(np.arange(experiment.examples.size), seed=0, epoch=0)
    pairs = np.stack([batch["user"], batch["label"][:, 0]], axis=1)
    expected = np.stack([arrays["user"], label], axis=1)
    np.testing.assert_array_equal(np.unique(pairs, axis=0), np.unique(expected, axis=0))
    assert len(pairs) == len(expected)
    # A user's bag is what the user watched, padded alike.
    ids_UxL = experiment.encoder.arrays["user"]["watched"]
    np.testing.assert_array_equal(ids_UxL >= 0, arrays["user_watched"] >= 0)


def test_adagrad_of_the_mean_loss_is_the_peers_adagrad_of_the_sum():
    batch_size, grads = 64, np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    settings = datasets.adagrad_of_a_sum(batch_size)
    accumulator, eps = settings["optim.initial_accumulator"], settings["optim.eps"]
    ours, theirs = optax.scale_by_rss(accumulator, eps), optax.scale_by_rss(0.1, 1e-10)
    our_state, their_state = ours.init(jnp.zeros(5)), theirs.init(jnp.zeros(5))
    for grad in jnp.asarray(grads):
        our_update, our_state = ours.update(grad, our_state)
        their_update, their_state = theirs.update(batch_size * grad, their_state)
        np.testing.assert_allclose(our_update, their_update, rtol=1e-5)


def test_a_stopwatch_wants_warm_up_windows_and_enough_steps_to_compare():
    taken = []
    result = harness.time_steps(
        lambda: taken.append(0) or float(len(taken)), windows(warmup=2, windows=3, min_steps=4), 10
    )
    assert len(taken) == result["steps"] == 2 + 3 * 4
    assert len(result["rates"]) == 3 and min(result["rates"]) > 0
    assert result["first_loss"] == 1.0
    assert result["curve"] == {5: 3.0, 10: 8.0}
    assert harness.time_steps(lambda: 0.0, windows(steps=40), 1)["steps"] == 40


def test_a_ranking_that_is_wrong_is_found_out():
    rng = np.random.default_rng(0)
    arrays = {
        "queries": rng.normal(size=(4, 8)).astype(np.float32),
        "items": rng.normal(size=(50, 8)).astype(np.float32),
        "seen_offsets": np.arange(5) * 3,
        "seen": rng.integers(0, 50, 12),
    }

    def exact(start, end):
        scores = arrays["queries"][start:end] @ arrays["items"].T
        scores[harness.seen_pairs(arrays, start, end)] = -np.inf
        return np.argsort(-scores, axis=1)[:, :5]

    def blind(start, end):
        return np.argsort(-arrays["queries"][start:end] @ arrays["items"].T, axis=1)[:, ::-1][:, :5]

    good = harness.time_ranking(exact, windows(), arrays, 5, 4)
    assert good["recall"] == 1.0 and good["leaked"] == 0
    assert harness.time_ranking(blind, windows(), arrays, 5, 4)["recall"] < 0.5


def test_a_row_has_the_median_of_all_windows_and_its_ratio_to_the_best_peer():
    case = programs.Case("w1", "a case", ())
    rows = run.summarize(
        case,
        {
            "recjax": [printed([30.0, 10.0]), printed([20.0, 40.0])],
            "slow": [printed([5.0], peer=True)],
            "fast": [printed([12.5], peer=True, curve={"5": 3.0})],
            "broken": [{"error": "no such thing"}],
        },
    )
    recjax, slow, fast, broken = rows
    assert (recjax["value"], recjax["low"], recjax["high"]) == (25.0, 10.0, 40.0)
    assert recjax["of_best_peer"] == 2.0 and slow["of_best_peer"] == 0.4
    assert recjax["best_peer"] == "fast"
    assert recjax["later"] == "2.000 at 5" and fast["later"] == "3.000 at 5"
    assert broken["error"] == "no such thing"
    assert run.make_table(rows).row_count == 4


def test_in_factorisation_less_time_to_the_accuracy_is_better():
    points = [{"seconds": s, "accuracy": a, "held_out": a} for s, a in ((1, 0.5), (2, 0.95))]
    assert run.seconds_to(points, "accuracy", 0.9) == 2
    assert run.seconds_to(points, "held_out", 0.99) is None
    late = [{**point, "seconds": 4 * point["seconds"]} for point in points]
    rows = run.summarize(
        programs.Case("w4", "a case", ()),
        {
            "recjax": [printed([1.0], points=points)],
            "peer": [printed([1.0], peer=True, points=late)],
            "never": [printed([1.0], peer=True, points=points[:1])],
        },
        "held_out",
    )
    assert [row.get("of_best_peer") for row in rows] == [4.0, 1.0, None]


def test_the_share_of_others_leaves_out_what_is_ours(monkeypatch):
    monkeypatch.setattr(launch.os, "sysconf", lambda name: 100)
    assert launch.share_of_others((0, 0), (60, 200), 0.4) == pytest.approx(0.1)
    assert launch.share_of_others((0, 0), (60, 200), 0.9) == 0.0


def test_a_program_that_fails_is_named_with_what_it_said_last():
    words = [sys.executable, "-c", "raise SystemExit('the disk is full')"]
    assert launch.run(words, {}) == {"error": "the disk is full"}


def test_a_point_of_a_curve_is_measured_in_a_process_and_compared_with_the_first(monkeypatch):
    monkeypatch.setitem(scaling.CURVES, "history", (1, 5))
    rates = {"1": [10.0, 20.0, 30.0], "5": [5.0, 10.0, 15.0]}

    def run_it(command, environment):
        return [printed(rates[command[command.index("--one") + 3]], batch_size=64)]

    monkeypatch.setattr(scaling.launch, "run_many", run_it)
    rows = scaling.measure_all(scaling.parse(["--curves=history"]))
    assert [(row["curve"], row["value"], row["ms"]) for row in rows] == [
        ("history", 1, 3200.0),
        ("history", 5, 6400.0),
    ]
    table = scaling.make_table("history", rows)
    assert list(table.columns[3].cells) == ["1.00", "2.00"]


def test_a_quick_try_takes_every_setting_in_one_process_of_two_devices(monkeypatch):
    asked = []

    def run_it(command, environment):
        asked.append(environment)
        return [{"error": "no room"}]

    monkeypatch.setattr(scaling.launch, "run_many", run_it)
    rows = scaling.measure_all(scaling.parse(["--smoke"]))
    assert asked == [{"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}]
    settings = [(curve, one) for curve, of in scaling.SETTINGS.items() for one in of]
    assert [(row["curve"], row["setting"]) for row in rows] == settings
    assert all(row["error"] == "no room" for row in rows)


def test_the_operations_of_the_maths_are_counted_by_hand():
    counts = {}
    for case in programs.CASES:
        if case.flops:
            counts[case.name] = case.flops(workload.FULL, 4096)
    query, item = 164 * 256 + 256 * 128 + 128 * 64, 131 * 256 + 256 * 128 + 128 * 64
    assert counts == {
        "two-tower, in-batch": 6 * 64 * 4096 + 6 * query + 6 * item,
        "softmax, 50 k items": 6 * 64 * 50_000 + 6 * query,
        "softmax, 500 k items": 6 * 64 * 500_000 + 6 * query,
        "sampled, 1,024 negatives": 6 * 64 * 1025 + 6 * query,
        "sampled, 8,192 negatives": 6 * 64 * 8193 + 6 * query,
        "top 100 of 100 k": 2 * 64 * 100_000,
    }


def test_the_towers_that_are_counted_are_those_that_are_trained(arrays):
    experiment = datasets.build(
        "two_tower.py",
        datasets.make_dataset(arrays),
        **{
            "examples.history_length": 0,
            "examples.min_history": 0,
            "model.dim": workload.DIM,
            "model.feature_dim": workload.FEATURE_DIM,
            "model.query.features": (*datasets.USER_FEATURES, "watched"),
            "model.query.hidden": workload.HIDDEN,
            "model.item.features": datasets.ITEM_FEATURES,
            "model.item.hidden": workload.HIDDEN,
            "loss.candidates": "in_batch",
        },
    )
    params = {k: v for k, v in experiment.abstract_state.params.items() if k != "embedding"}
    kernels = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
    assert flops.two_tower(0) == 6 * kernels


def test_a_rate_is_compared_with_that_of_the_machine_s_products():
    one, none = (
        programs.Case("w9", "a case", (), flops=count)
        for count in (lambda sizes, batch_size: sizes.users + batch_size, None)
    )
    sizes = workload.SMOKE._replace(users=6)
    runs = {"recjax": [printed([50.0], batch_size=4)], "broken": [{"error": "no such thing"}]}
    for case, gemm_flops, share in ((one, 1000.0, 0.5), (one, None, None), (none, 1000.0, None)):
        rows = run.summarize(case, runs)
        run.add_share_of_gemm(rows, case, sizes, gemm_flops)
        assert [row.get("of_gemm") for row in rows] == [share, None]
        cells = {column.header: list(column.cells) for column in run.make_table(rows).columns}
        assert cells["of GEMM"][0] == ("0.50" if share else "")


def test_the_floor_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gemm", "--smoke"])
    gemm.main()
    result = json.loads(capsys.readouterr().out.partition(harness.RESULT)[2])
    whats = [row["what"] for row in result["rows"]]
    assert whats[: len(gemm.shapes(smoke=True))] == list(gemm.shapes(smoke=True))
    assert whats[-5:] == ["copy", "gather", "scatter-add", "gather", "scatter-add"]
    assert result["gemm"] == 1e9 * result["rows"][0]["best"]
    assert all(row["best"] >= row["median"] > 0 for row in result["rows"])
    assert gemm.shapes(smoke=False)["product"] == (2048, 2048, 2048)


def test_options_are_checked(capsys):
    flags = run.parse(["--only=w1,w5", "--peer", "--smoke"])
    assert flags.peers and flags.rounds == 1 and not flags.scripts
    assert {case.workload for case in run.choose(flags.only, smoke=True)} == {"w1", "w5"}
    assert run.parse([]).rounds == 3
    assert run.parse(["--smoke"]).scripts.keys() == {"scaling", "larger_than_memory"}
    alone = run.parse(["--scaling=items,rows", "--larger_than_memory"])
    assert alone.only is None
    assert alone.scripts == {
        "scaling": ("--curves=items,rows", "--seconds=3.0"),
        "larger_than_memory": ("--rows=10000000",),
    }
    with pytest.raises(SystemExit):
        run.parse(["--scaling=moon"])
    assert "'moon'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run.parse(["--only=w9"])
    assert "w1, w2, w3, w4, w5" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scaling.parse(["--curves=moon"])
    assert "'moon'" in capsys.readouterr().err


def test_every_program_is_there():
    for case in programs.CASES:
        assert not case.programs[0].is_peer
        for program in case.programs:
            assert (FOLDER / f"{program.module.replace('.', '/')}.py").exists()


@pytest.fixture
def result_of(folder, capsys, monkeypatch):
    """What a program prints when it runs in this process, as short as it can be."""

    def run_main(program, *words):
        words = [f"--data={folder}", "--smoke", "--seconds=0", "--windows=1", *words]
        monkeypatch.setattr(sys, "argv", [program.__name__, *words])
        program.main()
        return json.loads(capsys.readouterr().out.removeprefix(harness.RESULT))

    return run_main


def test_ranking_runs(result_of):
    from experiments.benchmarks import w5_topk

    result = result_of(w5_topk)
    assert result["recall"] == 1.0 and result["leaked"] == 0


def test_two_towers_train_on_histories_of_their_own(arrays, result_of, quick_compilation):
    from experiments.benchmarks import w1_two_tower

    result = result_of(w1_two_tower, "--history=past", "--batch_size=64", "--warmup=1")
    assert result["first_loss"] == pytest.approx(result["expected_loss"], abs=0.3)
    count_U = np.bincount(arrays["user"])
    watched = [np.minimum(np.arange(count), workload.HISTORY) for count in count_U]
    assert result["mean_history"] == pytest.approx(np.concatenate(watched).mean())


@pytest.mark.slow
def test_everything_runs_through_one_script(folder, tmp_path):
    out = tmp_path / "out.json"
    words = ["--only=w1,w4", "--scaling=history,devices", "--larger_than_memory", "--smoke"]
    command = [sys.executable, str(FOLDER / "run.py"), *words, f"--data={folder}", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert [row["workload"] for row in report["rows"]] == ["w1", "w4", "w4"]
    assert [row["curve"] for row in report["scaling"]["rows"]] == ["history", "devices", "devices"]
    assert report["larger_than_memory"]["rows"] == 100_000
    assert report["floor"]["gemm"] > 0 and "of_gemm" in report["rows"][0]
    for title in ("the machine's floor", "of GEMM", "history", "prepared over memory"):
        assert title in done.stdout
