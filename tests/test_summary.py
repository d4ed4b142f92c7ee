"""What a run says of itself."""

import json
import shutil

import numpy as np
import pytest

from recjax.data.synthetic import make_synthetic
from recjax.experiment import make_experiment
from recjax.summary import describe, report
from tests.runs import never_stopped, small_config, small_experiment


def test_the_plan_names_data_split_model_sizes_loss_and_devices(tmp_path):
    plan = describe(small_experiment("softmax"), tmp_path)
    for text in (
        "data        synthetic: 40 users, 51 items, ",
        "split       predefined: ",
        "query side  age, country, device, history, ",
        "; hidden 8, -> 8\n",
        "item side   softmax head over 51 items\n",
        "head 64 x 8 (rows)",
        "against 16 unigram draws, corrected by logQ\n",
        "optimizer   adam, learning rate ",
        "20 steps of 32 examples (7 an epoch)",
        "51 items (listed), without the user's known ones; chosen by valid/recall@10\n",
        "(cpu), shard_map, data 1 x model 1\n",
        f"workdir     {tmp_path}",
    ):
        assert text in plan


def test_an_item_tower_over_the_id_alone_is_announced(tmp_path):
    note = "note: the item tower reads the item id alone"
    assert note not in describe(small_experiment("two_tower"), tmp_path)
    alone = small_experiment("two_tower", model__item__features=("item_id",))
    assert f"\n{note}" in describe(alone, tmp_path)


def test_a_mixture_and_what_is_biased_in_it_are_announced(tmp_path):
    plan = describe(small_experiment("two_tower"), tmp_path)
    assert (
        "against the batch's 32 items and 48 of earlier batches and 16 uniform draws, corrected "
        "by logQ, frequencies estimated on the way\n"
    ) in plan
    biased = "\nnote: the estimator of the gradient is biased: embeddings of earlier batches are"
    assert biased in plan
    assert "is biased" not in describe(small_experiment("softmax"), tmp_path)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"candidates": "full", "log_prior": 0.5}, "training knows, 0.5 x log popularity"),
        ({"correct_logq": False}, "16 unigram draws, without logQ (biased)\n"),
        ({"correct_positive": True}, "draws, corrected by logQ, the label too (biased)\n"),
        ({"label_smoothing": 0.1}, "draws, corrected by logQ, label smoothing 0.1\n"),
        ({"candidates": "hard", "hard_negatives": 4}, "the hardest 4 of 16 draws\n"),
    ],
)
def test_what_is_done_to_the_loss_is_announced(tmp_path, changes, line):
    experiment = small_experiment("softmax", **{f"loss__{k}": v for k, v in changes.items()})
    assert line in describe(experiment, tmp_path)


def test_an_own_split_that_is_not_used_is_announced(tmp_path):
    notes = describe(small_experiment("two_tower", split__name="leave_one_out"), tmp_path)
    assert "note: the data brings a split of its own" in notes
    assert "split of its own" not in describe(small_experiment("two_tower"), tmp_path)


def test_targets_that_the_user_knew_already_are_counted_and_announced(tmp_path):
    repeated = make_synthetic(users=80, items=40, interactions_per_user=8, repeats=True)
    experiment = make_experiment(small_config("two_tower"), repeated)
    queries = experiment.queries("test")
    rows = np.arange(queries.size)
    seen_QxS = queries.seen(rows, "known")
    firsts = queries.target_items[queries.target_offsets[:-1]]  # one target each
    count = int((seen_QxS == firsts[:, None]).any(axis=1).sum())
    assert 0 < count < queries.size
    assert f"note: {count:,} of {queries.size:,} test targets are items" in describe(
        experiment, tmp_path
    )


def test_the_report_shows_the_model_beside_baselines_in_few_rows(tmp_path):
    run = never_stopped("mf")
    lines = report(run.experiment, run.workdir).splitlines()
    assert lines[0].startswith("test, 120 queries, the model of step ")
    assert lines[1].split() == ["metric", "model", "popularity", "random", "oracle", "of", "oracle"]
    rows = [line.split()[0] for line in lines[3 : lines.index("")]]
    assert rows == [
        *("recall@10", "ndcg@10", "mrr@10", "hit_rate@10"),
        *("coverage@10", "gini@10", "popularity_lift@10", "novelty@10"),
    ]
    recall = run.metrics["test/recall@10"]
    assert f"{recall:.4f} ± " in lines[3]
    assert lines[-1].startswith(f"Everything lies in {run.workdir}: metrics.jsonl")


def test_a_number_that_is_not_there_is_a_dash(tmp_path):
    run = never_stopped("mf")
    file = shutil.copytree(run.workdir / "eval", tmp_path / "eval") / "test.json"
    record = json.loads(file.read_text())
    record["rankers"]["model"]["metrics"]["novelty@10"] = None
    file.write_text(json.dumps(record))
    (line,) = (x for x in report(run.experiment, tmp_path).splitlines() if "novelty@10" in x)
    assert line.split()[1] == "-"
