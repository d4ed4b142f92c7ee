"""Evaluation end to end, against a slow evaluation written out query by query."""

import dataclasses
import errno
import math
import os
import threading

import numpy as np
import polars as pl
import pytest

from recjax import baselines, slices
from recjax.errors import CheckpointError, DataError, DivergenceError
from recjax.evaluate import Evaluation, evaluate, protocol_record

NUM_ITEMS = 30
KS = [1, 5]


@dataclasses.dataclass
class TinyQueries:
    """Queries of random users; `calls` records what was asked of them."""

    user_Q: np.ndarray
    target_offsets: np.ndarray
    target_items: np.ndarray
    history_count_Q: np.ndarray
    user_in_training_Q: np.ndarray
    seen_items: list
    calls: list = dataclasses.field(default_factory=list)

    @property
    def size(self):
        return len(self.user_Q)

    def batch(self, rows):
        self.calls.append(len(rows))
        return {"user": self.user_Q[rows]}

    def seen(self, rows, policy):
        if policy == "none":
            return np.full((len(rows), 1), -1, np.int32)
        width = 1 << max(0, max(len(self.seen_items[r]) for r in rows) - 1).bit_length()
        rows = [self.seen_items[r] + [-1] * (width - len(self.seen_items[r])) for r in rows]
        return np.array(rows, np.int32)


def make_queries(size=11, seed=0):
    rng = np.random.default_rng(seed)
    targets, seen = [], []
    for _ in range(size):
        items = rng.permutation(NUM_ITEMS)
        count, known = rng.integers(1, 5), rng.integers(0, 9)
        targets.append(items[:count].tolist())
        seen.append(items[count : count + known].tolist())
    return TinyQueries(
        user_Q=rng.permutation(100)[:size].astype(np.int32),
        target_offsets=np.cumsum([0] + [len(t) for t in targets]),
        target_items=np.concatenate(targets).astype(np.int32),
        history_count_Q=np.array([len(s) for s in seen]),
        user_in_training_Q=np.array([len(s) > 1 for s in seen]),
        seen_items=seen,
    )


SCORES = np.random.default_rng(7).integers(0, 12, size=(100, NUM_ITEMS))  # many ties
POPULARITY = np.random.default_rng(8).integers(0, 20, size=NUM_ITEMS) * (np.arange(NUM_ITEMS) > 3)
CORPUS = np.arange(NUM_ITEMS) != 29
RANKABLE = np.arange(NUM_ITEMS) > 1


def numpy_ranker(mask_N):
    def rank(batch, seen_BxS, k):
        scores, ids = (
            np.full((len(seen_BxS), k), -np.inf, np.float32),
            np.full((len(seen_BxS), k), -1),
        )
        for b, user in enumerate(batch["user"]):
            left = [i for i in range(NUM_ITEMS) if mask_N[i] and i not in seen_BxS[b]]
            best = sorted(left, key=lambda i: (-SCORES[user, i], i))[:k]
            scores[b, : len(best)], ids[b, : len(best)] = SCORES[user, best], best
        return scores, ids

    return rank


def run(queries, ranker=None, **overrides):
    arguments = {
        "part": "test",
        "ks": KS,
        "corpus_mask_N": CORPUS,
        "rankable_mask_N": RANKABLE,
        "popularity_N": POPULARITY,
        "seen": "known",
        "batch_size": 4,
        "samples": 50,
    }
    mask = overrides.get("rankable_mask_N", RANKABLE) & CORPUS
    return evaluate(queries, ranker or numpy_ranker(mask), **(arguments | overrides))


def brute_force(queries, served=None):
    """Per-query metrics, one query and one rank at a time."""
    rows = []
    for q in range(queries.size):
        start, stop = queries.target_offsets[q : q + 2]
        targets = set(queries.target_items[start:stop].tolist())
        left = [i for i in np.flatnonzero(CORPUS & RANKABLE) if i not in queries.seen_items[q]]
        order = sorted(left, key=lambda i: (-SCORES[queries.user_Q[q], i], i))
        if served is not None and not served[q]:
            order = []
        row = {}
        for k in KS:
            ranks = [r for r, i in enumerate(order[:k], start=1) if i in targets]
            n = min(k, len(targets))
            row[f"recall@{k}"] = len(ranks) / len(targets)
            row[f"hit_rate@{k}"] = float(len(ranks) > 0)
            row[f"precision@{k}"] = len(ranks) / k
            row[f"mrr@{k}"] = 1 / ranks[0] if ranks else 0.0
            row[f"map@{k}"] = sum((j + 1) / r for j, r in enumerate(ranks)) / n
            gain = sum(1 / math.log2(r + 1) for r in ranks)
            row[f"ndcg@{k}"] = gain / sum(1 / math.log2(r + 1) for r in range(1, n + 1))
        rows.append(row)
    return pl.DataFrame(rows)


def assert_equals_brute_force(got: Evaluation, want: pl.DataFrame):
    for name in want.columns:
        np.testing.assert_allclose(got.per_query[name], want[name], rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(got.metrics[name], want[name].mean(), rtol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_equals_a_brute_force_evaluation(batch_size, at_once):
    queries = make_queries()
    got = run(queries, batch_size=batch_size, at_once=at_once)
    assert_equals_brute_force(got, brute_force(queries))
    assert set(queries.calls) == {batch_size}


def test_intervals_lie_around_the_means():
    got = run(make_queries(60), samples=500)
    for name, (low, high) in got.intervals.items():
        assert low <= got.metrics[name] <= high
        assert low < high
    assert run(make_queries(), samples=0).intervals == {}


def test_permuting_queries_changes_nothing():
    queries, order = make_queries(), np.random.default_rng(0).permutation(11)
    rows = np.split(queries.target_items, queries.target_offsets[1:-1])
    permuted = TinyQueries(
        user_Q=queries.user_Q[order],
        target_offsets=np.cumsum([0] + [len(rows[q]) for q in order]),
        target_items=np.concatenate([rows[q] for q in order]),
        history_count_Q=queries.history_count_Q[order],
        user_in_training_Q=queries.user_in_training_Q[order],
        seen_items=[queries.seen_items[q] for q in order],
    )
    got, want = run(permuted), run(queries)
    np.testing.assert_array_equal(got.top_QxK, want.top_QxK[order])
    for name, value in want.metrics.items():
        np.testing.assert_allclose(got.metrics[name], value, rtol=1e-12)


def test_slices_agree_with_the_per_query_frame():
    got = run(make_queries(100))
    frame = got.per_query
    assert got.slices["all"]["recall@5"] == pytest.approx(got.metrics["recall@5"])
    for label in slices.HISTORY_LABELS:
        rows = frame.filter(pl.col("history") == label)
        assert got.slices[f"history/{label}"]["queries"] == len(rows)
        if len(rows):
            want = rows["ndcg@5"].mean()
            assert got.slices[f"history/{label}"]["ndcg@5"] == pytest.approx(want)
    counts = {name: frame[f"targets_{name}"].sum() for name in slices.ITEM_CLASSES}
    assert {n: got.slices[f"items/{n}"]["targets"] for n in counts} == counts
    assert sum(counts.values()) == frame["num_targets"].sum()
    hits = sum(
        record["recall@5"] * record["targets"]
        for name, record in got.slices.items()
        if name.startswith("items/")
    )
    assert hits == pytest.approx((frame["recall@5"] * frame["num_targets"]).sum())


def test_queries_a_model_cannot_serve_are_misses_and_are_never_asked():
    queries = make_queries()
    served = queries.user_in_training_Q
    assert 0 < served.sum() < queries.size
    asked = []

    def ranker(batch, seen_BxS, k):
        asked.extend(batch["user"].tolist())
        return numpy_ranker(CORPUS & RANKABLE)(batch, seen_BxS, k)

    got = run(queries, ranker, servable_Q=served)
    assert set(asked) == set(queries.user_Q[served].tolist())
    assert_equals_brute_force(got, brute_force(queries, served))
    assert (got.top_QxK[~served] == -1).all()
    assert got.slices["users/cold"]["status"] == slices.NOT_SCORED
    assert "recall@5" not in got.slices["users/cold"]
    assert got.slices["all"]["not_scored"] == (~served).sum()


def test_no_query_served_at_all():
    queries = make_queries()
    got = run(queries, servable_Q=np.zeros(queries.size, bool))
    assert got.metrics["recall@5"] == 0 and got.slices["all"]["status"] == slices.NOT_SCORED


def test_items_a_model_cannot_score_are_misses_and_their_slice_says_so():
    warm = POPULARITY > 0
    queries = make_queries(100)
    got = run(queries, rankable_mask_N=warm)
    record = got.slices["items/cold"]
    assert record["status"] == slices.NOT_SCORED and record["targets"] == record["not_scored"] > 0
    assert "recall@5" not in record
    assert got.slices["items/head"]["status"] == "scored"


def test_baselines_run_through_the_same_code():
    queries, mask = make_queries(40), CORPUS & RANKABLE
    got = run(queries, baselines.popularity_ranker(POPULARITY, mask))
    order = sorted(np.flatnonzero(mask), key=lambda i: (-POPULARITY[i], i))
    for row, seen in zip(got.top_QxK, queries.seen_items, strict=True):
        assert row.tolist() == [i for i in order if i not in seen][:5]
    assert got.metrics["popularity_lift@5"] > 1
    chance = run(queries, baselines.random_ranker(mask, seed=0))
    assert chance.metrics["coverage@5"] > got.metrics["coverage@5"]
    assert chance.metrics["novelty@5"] > got.metrics["novelty@5"]


def test_written_results_read_back_with_the_users_ids(tmp_path):
    queries = make_queries()
    ids = np.array([f"u{i}" for i in range(100)])
    got = run(queries, user_ids_U=ids)
    got.write(tmp_path / "eval" / "test.parquet")
    frame = pl.read_parquet(tmp_path / "eval" / "test.parquet")
    assert frame.equals(got.per_query)
    assert frame["user"].to_list() == ids[queries.user_Q].tolist()
    assert frame.columns[:6] == [
        "user", "num_targets", "history_count", "history", "cold_user", "served"
    ]  # fmt: skip
    assert [p.name for p in (tmp_path / "eval").iterdir()] == ["test.parquet"]


def test_a_full_disk_leaves_the_earlier_file_and_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "test.parquet"
    run(make_queries()).write(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="test.parquet cannot be written: No space left"):
        run(make_queries(5)).write(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_part_without_queries_is_refused():
    empty = make_queries(1)
    empty.user_Q = empty.user_Q[:0]
    with pytest.raises(DataError, match="part 'test' has no queries"):
        run(empty)


@pytest.mark.parametrize("at_once", [1, 3])
def test_scores_that_are_not_finite_are_refused_and_no_more_is_ranked(at_once):
    before = threading.active_count()

    def ranker(batch, seen_BxS, k):
        return np.full((4, k), np.nan, np.float32), np.tile(np.arange(2, 2 + k), (4, 1))

    with pytest.raises(DivergenceError, match="NaN") as caught:
        run(make_queries(), ranker, at_once=at_once)
    assert caught.tb and threading.active_count() == before


@pytest.mark.parametrize("item", [0, 29, NUM_ITEMS])
def test_a_ranker_that_leaves_the_corpus_is_refused(item):
    def ranker(batch, seen_BxS, k):
        return np.ones((4, k), np.float32), np.full((4, k), item)

    with pytest.raises(ValueError, match=f"item {item}, which is outside"):
        run(make_queries(), ranker)


def test_the_protocol_names_all_that_makes_results_comparable():
    record = protocol_record(corpus="rated", num_candidates=29, seen="known", part="test", ks=KS)
    assert record["candidates"] == 29 and record["ties"] == "lower item index first"
    assert record["denominators"]["recall"] == "number of targets of the query"
    assert record != protocol_record(
        corpus="rated", num_candidates=29, seen="train", part="test", ks=KS
    )
