"""Gathering finished runs: which they are, what they are called, whether they may be compared."""

import json
import math

import pytest

from recjax.errors import ReportError
from recjax.reports.collect import load_results
from tests.reports.small import ARMS, write_run, write_sweep

TWO = {name: ARMS[name] for name in ("full", "64 negatives")}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("collect") / "sweep", TWO, seeds=(0, 1), size=30)


def edit(file, **keys):
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def test_a_sweep_is_gathered_by_arm_and_seed(sweep):
    results = load_results(sweep)
    assert [(arm.name, arm.seeds) for arm in results.arms] == [
        ("full", (0, 1)),
        ("64 negatives", (0, 1)),
    ]
    assert results.title == "How many negatives does a softmax need?"
    assert results.metric == "recall@10"
    assert results.unfinished == () and results.notes == ()
    run = results.arm("64 negatives").results[1]
    assert (run.config.loss.num_sampled, run.config.seed, run.step) == (64, 1, 14)
    record = json.loads((run.workdir / "eval" / "test.json").read_text())["rankers"]
    assert run.metrics == record["model"]["metrics"]
    assert run.baselines["popularity"] == record["popularity"]["metrics"]
    assert run.intervals["recall@10"] == tuple(record["model"]["intervals"]["recall@10"])
    assert run.slices["items/head"] == record["model"]["slices"]["items/head"]
    with pytest.raises(ReportError, match="no arm is named 'none'; there are 'full', '64 neg"):
        results.arm("none")


def test_a_run_brings_its_queries_and_its_curves(sweep):
    run = load_results(sweep).runs[0]
    assert run.per_query["recall@10"].mean() == pytest.approx(run.metrics["recall@10"])
    assert set(run.curves["metric"]) == {"train/loss"} | {
        f"valid/{name}@{k}" for name in ("recall", "ndcg") for k in (5, 10)
    }
    loss = run.curves.filter(metric="train/loss")
    assert loss["step"].to_list() == [4, 8, 12, 16, 20]
    assert loss["value"].is_sorted(descending=True)


def test_the_frame_has_a_row_for_each_run(sweep):
    frame = load_results(sweep).frame()
    assert frame.select("arm", "seed", "steps").rows() == [
        ("full", 0, 20), ("full", 1, 20), ("64 negatives", 0, 20), ("64 negatives", 1, 20),
    ]  # fmt: skip
    assert {"recall@10", "gini@5", "query_ms", "search_trials"} < set(frame.columns)


def test_one_run_a_folder_of_seeds_and_a_folder_of_runs(tmp_path):
    single = write_run(tmp_path / "single", size=20)
    for seed in (1, 0):
        write_run(tmp_path / "many" / f"seed{seed}", seed=seed, size=20)
    assert [(arm.name, arm.seeds) for arm in load_results(single).arms] == [("single", (0,))]
    assert [(arm.name, arm.seeds) for arm in load_results([tmp_path]).arms] == [
        ("many", (0, 1)),
        ("single", (0,)),
    ]


def test_a_name_in_two_folders_is_told_apart(tmp_path, sweep):
    one_arm = {"full": TWO["full"]}
    other = write_sweep(tmp_path / "b" / "sweep", one_arm, seeds=(0, 1), size=30)
    folder = sweep.parent.name
    names = [arm.name for arm in load_results([sweep, other, sweep]).arms]
    assert names == [f"full ({folder}/sweep)", "64 negatives", "full (b/sweep)"]
    for letter in "cd":
        write_run(tmp_path / letter / "run", size=20)
    runs = load_results([tmp_path / "c" / "run", tmp_path / "d" / "run"])
    assert [arm.name for arm in runs.arms] == ["c/run", "d/run"]


def test_what_is_not_finished_is_listed(tmp_path):
    missing = [("full", 1), ("64 negatives", 0), ("64 negatives", 1)]
    folder = write_sweep(tmp_path / "s", TWO, seeds=(0, 1), unfinished=missing, size=20)
    runs = {path.name: path for path in folder.iterdir() if path.is_dir()}
    failed = next(path for name, path in runs.items() if name.startswith("full-seed1"))
    (failed / "failure.json").write_text(json.dumps({"error": "Trace\nValueError: no\n"}))
    edit(folder / "sweep.json", trials=[*runs, "64-negatives-seed2-00000000"])
    results = load_results(folder)
    assert [arm.name for arm in results.arms] == ["full"]
    assert len(results.unfinished) == 4
    notes = "\n".join(results.notes)
    assert f"{failed.name} failed: ValueError: no" in notes
    assert "64-negatives-seed2-00000000" in notes
    assert "Arm '64 negatives' has no finished run." in notes


def test_single_trials_of_a_sweep_have_not_lost_its_other_arms(sweep):
    trials = sorted(path for path in sweep.iterdir() if path.name.startswith("full"))
    results = load_results(trials)
    assert [(arm.name, arm.seeds) for arm in results.arms] == [("full", (0, 1))]
    assert results.notes == ()


def test_a_baseline_that_an_arm_is_named_like_is_told_apart(tmp_path):
    arms = {"popularity": ARMS["full"]}
    results = load_results(write_sweep(tmp_path / "s", arms, seeds=(0,), size=20))
    known = results.runs[0].baselines
    assert results.baseline_means("recall@10") == {
        "popularity (baseline)": known["popularity"]["recall@10"],
        "random": known["random"]["recall@10"],
    }


def test_arms_with_fewer_seeds_are_noted(tmp_path):
    folder = write_sweep(tmp_path / "s", TWO, seeds=(0, 1), unfinished=[("full", 0)], size=20)
    assert "Arm 'full' has 1 of 2 seeds: 1." in load_results(folder).notes


def test_an_arm_whose_runs_are_not_alike_is_noted(tmp_path):
    for seed, steps in enumerate((20, 30)):
        write_run(tmp_path / f"seed{seed}", seed=seed, overrides={"train.steps": steps}, size=20)
    notes = load_results(tmp_path).notes
    assert notes == (f"Runs of arm {tmp_path.name!r} differ in more than the seed: train.steps.",)


def test_runs_that_a_sweep_no_longer_plans_are_left_out(tmp_path):
    folder = write_sweep(tmp_path / "s", TWO, seeds=(0,), size=20)
    kept = [path.name for path in folder.iterdir() if path.name.startswith("full")]
    edit(folder / "sweep.json", trials=kept, arms=["full"])
    assert [arm.name for arm in load_results(folder).arms] == ["full"]
    edit(folder / "sweep.json", trials=[])  # a search is under way
    with pytest.raises(ReportError, match="no finished run"):
        load_results(folder)


def test_different_protocols_are_refused_by_their_difference(tmp_path):
    write_run(tmp_path / "a", size=20)
    write_run(tmp_path / "b", size=20, protocol={"corpus": "rated", "candidates": 55})
    with pytest.raises(ReportError, match="corpus is 'listed' in .*a and 'rated' in .*b; cand"):
        load_results(tmp_path)


def test_cut_offs_may_differ_and_the_common_ones_are_used(tmp_path):
    write_run(tmp_path / "a", size=20)
    other = write_run(tmp_path / "b", size=20, protocol={"ks": [10, 50]})
    record = json.loads((other / "eval" / "test.json").read_text())
    metrics = record["rankers"]["model"]["metrics"]
    record["rankers"]["model"]["metrics"] = {
        name: value for name, value in metrics.items() if name.endswith("@10")
    }
    (other / "eval" / "test.json").write_text(json.dumps(record))
    results = load_results(tmp_path)
    assert results.protocol["ks"] == [10]
    assert "recall@10" in results.metrics and "recall@5" not in results.metrics
    edit(other / "protocol.json", ks=[50])
    with pytest.raises(ReportError, match="no cut-off"):
        load_results(tmp_path)


def test_one_arm_and_seed_cannot_stand_twice(tmp_path):
    folder = write_sweep(tmp_path / "s", {"full": TWO["full"]}, seeds=(0,), size=20)
    copy = write_run(folder / "copy", size=20)
    (copy / "trial.json").write_text(json.dumps({"arm": "full", "seed": 0}))
    with pytest.raises(ReportError, match="arm 'full', seed 0 stands twice"):
        load_results(folder)


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(ReportError, match="not a folder"):
        load_results(tmp_path / "none")
    with pytest.raises(ReportError, match="no finished run in"):
        load_results(tmp_path)
    write_run(tmp_path / "begun", finished=False)
    with pytest.raises(ReportError, match="not finished: .*begun"):
        load_results(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    run = write_run(tmp_path / "run", size=20)
    (run / "eval" / "test.json").write_text('{"step": 3}')
    with pytest.raises(ReportError, match=r"run: eval/test.json is not .*rankers"):
        load_results(run)
    (run / "eval" / "test.json").write_text('{"step"')
    with pytest.raises(ReportError, match=r"test.json, line 1: not JSON"):
        load_results(run)
    (run / "protocol.json").write_text('{"dataset": "synthetic"}')
    (run / "eval" / "test.json").write_text("{}")
    with pytest.raises(ReportError, match=r"run: protocol.json has no dataset_hash, split, .*more"):
        load_results(run)


def test_a_metric_that_is_not_defined_is_nan(tmp_path):
    run = write_run(tmp_path / "run", size=20)
    file = run / "eval" / "test.json"
    record = json.loads(file.read_text())
    record["rankers"]["model"]["metrics"]["popularity_lift@10"] = None
    file.write_text(json.dumps(record))
    assert math.isnan(load_results(run).runs[0].metrics["popularity_lift@10"])
