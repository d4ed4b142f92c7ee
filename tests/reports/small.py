"""Workdirs of runs and sweeps as recjax leaves them, made up in a moment: nothing is trained."""

import dataclasses
import hashlib
import json
import math
import pathlib
import zlib

import numpy as np

from recjax import load_config
from recjax.config import config_to_json
from recjax.evaluate import evaluate, protocol_record

ROOT = pathlib.Path(__file__).parents[2]
KS = (5, 10)
NUM_ITEMS = 60
STEPS = 20
VALID_AT = (7, 14, 20)

# By arm: overrides, and how much the score of a target is raised above those of other items.
ARMS = {
    "full": ({}, 1.6),
    "64 negatives": ({"loss.candidates": "uniform", "loss.num_sampled": 64}, 1.2),
    "in batch & no_logq": ({"loss.candidates": "in_batch", "loss.correct_logq": False}, 0.7),
    "wide": ({"model.query.hidden": (512, 256), "model.dim": 128}, 1.6),
}


@dataclasses.dataclass
class FakeQueries:
    """A query per user, one or two targets each."""

    user_Q: np.ndarray
    target_offsets: np.ndarray
    target_items: np.ndarray
    history_count_Q: np.ndarray
    user_in_training_Q: np.ndarray

    @property
    def size(self):
        return len(self.user_Q)

    def batch(self, rows):
        return {"row": np.asarray(rows)}

    def seen(self, rows, policy):
        return np.full((len(rows), 1), -1, np.int32)


def make_queries(size=120):
    rng = np.random.default_rng(5)
    count_Q = rng.integers(1, 3, size)
    popularity_N = np.arange(NUM_ITEMS, 0.0, -1.0) ** 2
    popularity_N[-5:] = 0
    chance = (popularity_N + 40) / (popularity_N + 40).sum()
    targets = [rng.choice(NUM_ITEMS, n, replace=False, p=chance) for n in count_Q]
    history_Q = rng.integers(1, 80, size)
    history_Q[:6] = 0
    queries = FakeQueries(
        user_Q=np.arange(size, dtype=np.int32),
        target_offsets=np.concatenate([[0], np.cumsum(count_Q)]),
        target_items=np.concatenate(targets).astype(np.int32),
        history_count_Q=history_Q,
        user_in_training_Q=history_Q > 0,
    )
    return queries, popularity_N


def evaluate_fake(lift, *noise_seed, samples=200, popular=False, size=120):
    """An `Evaluation` of a ranker that raises targets' scores by `lift`."""
    queries, popularity_N = make_queries(size)
    noise = np.random.default_rng(9).normal(size=(size, NUM_ITEMS))  # of the data, all seeds'
    noise = noise + 0.5 * np.random.default_rng(noise_seed).normal(size=noise.shape)
    query_T = np.repeat(np.arange(size), np.diff(queries.target_offsets))
    noise[query_T, queries.target_items] += lift
    scores_QxN = np.broadcast_to(popularity_N, noise.shape) if popular else noise

    def rank(batch, seen_BxS, k):
        scores = scores_QxN[batch["row"]]
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, ids, axis=1), ids.astype(np.int32)

    everything = np.ones(NUM_ITEMS, bool)
    return evaluate(
        queries,
        rank,
        part="test",
        ks=KS,
        corpus_mask_N=everything,
        rankable_mask_N=everything,
        popularity_N=popularity_N,
        seen="known",
        user_ids_U=np.arange(1000, 1000 + size),
        samples=samples,
    )


def write_run(workdir, *, lift=1.0, seed=0, overrides=None, protocol=None, finished=True, size=120):
    """A run's workdir without its checkpoints; `protocol` replaces keys of protocol.json."""
    workdir = pathlib.Path(workdir)
    (workdir / "eval").mkdir(parents=True)
    keys = {"seed": seed, "train.steps": STEPS, "train.batch_size": 32, "eval.ks": KS}
    config = load_config(str(ROOT / "configs" / "softmax.py"), **keys | (overrides or {}))
    (workdir / "config.json").write_text(config_to_json(config))
    record = {
        "dataset": "synthetic",
        "dataset_hash": "0123456789abcdef",
        "split": "predefined",
        "split_params": {},
        "split_hash": "fedcba9876543210",
        "history": "past",
        "selection_metric": "valid/recall@10",
        **protocol_record(
            part="test", corpus="listed", num_candidates=NUM_ITEMS, seen="known", ks=KS
        ),
        **(protocol or {}),
    }
    _write_json(workdir / "protocol.json", record)
    _write_lines(workdir / "metrics.jsonl", _curves(lift, seed))
    speeds = [{"step": step, "train/examples_per_second": 4e3 + 9 * step} for step in (4, 8, 12)]
    _write_lines(workdir / "timings.jsonl", [*speeds, {"step": 7, "valid/seconds": 0.02}])
    if not finished:
        return workdir
    name = zlib.crc32(json.dumps(overrides, sort_keys=True).encode())  # of this arm's own
    model = evaluate_fake(lift, seed, name, size=size)
    popularity = evaluate_fake(0.0, 0, samples=0, popular=True, size=size)
    random = evaluate_fake(0.0, 77, samples=0, size=size)
    model.write(workdir / "eval" / "test.parquet")
    rankers = {"model": model, "popularity": popularity, "random": random}
    _write_json(
        workdir / "eval" / "test.json",
        {
            "step": 14,
            "queries": size,
            "targets_already_seen": 0,
            "rankers": {
                name: {"metrics": one.metrics, "intervals": one.intervals, "slices": one.slices}
                for name, one in rankers.items()
            },
        },
    )
    scalars = {f"test/{name}": value for name, value in model.metrics.items()}
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": STEPS, **_finite(scalars)}) + "\n")
    dim = config.model.dim
    _write_json(
        workdir / "cost.json",
        {
            "parameters": NUM_ITEMS * dim * 3 + 64 * sum(config.model.query.hidden),
            "steps": config.train.steps,
            "examples": config.train.steps * config.train.batch_size,
            "train_seconds": 1.5 + dim / 100 + 0.1 * seed,
            "step_ms": 4.0 + dim / 50 + 0.1 * seed,
            "examples_per_second": 8000.0 - 10 * dim,
            "query_ms": 0.02 + dim / 6400,
            "query_batch": 256,
            "devices": "1 x cpu (cpu)",
            "jax": "0.10.2",
        },
    )
    return workdir


def write_sweep(folder, arms=None, seeds=(0, 1, 2), *, unfinished=(), search_trials=0, **run):
    """A sweep's workdir: every arm with every seed.

    Args:
      folder: its workdir, made here.
      arms: name -> (overrides, lift) as in ARMS.
      seeds: of each arm.
      unfinished: (arm, seed) of the runs to be left without a result.
      search_trials: of each trial.
      **run: for `write_run`.
    """
    folder, arms = pathlib.Path(folder), ARMS if arms is None else arms
    folder.mkdir(parents=True)
    _write_json(
        folder / "sweep.json",
        {
            "sweep": "experiments/ablations/fake.py",
            "words": ["--sweep=experiments/ablations/fake.py", "--config.data.dir=my data"],
            "title": "How many negatives does a softmax need?",
            "about": "Made up: every arm ranks the same items for the same users.",
            "arms": list(arms),
            "seeds": {name: list(seeds) for name in arms},
        },
    )
    for name, (overrides, lift) in arms.items():
        for seed in seeds:
            slug = "-".join("".join(c if c.isalnum() else " " for c in name).split())
            digest = hashlib.sha256(json.dumps([name, seed]).encode()).hexdigest()[:8]
            workdir = write_run(
                folder / f"{slug}-seed{seed}-{digest}",
                lift=lift,
                seed=seed,
                overrides=overrides,
                finished=(name, seed) not in unfinished,
                **run,
            )
            trial = {"arm": name, "seed": seed, "overrides": overrides}
            _write_json(workdir / "trial.json", trial | {"search_trials": search_trials})
    return folder


def _curves(lift, seed):
    rng = np.random.default_rng(seed)
    for step in range(1, STEPS + 1):
        if step in VALID_AT:
            value = 0.3 * lift * (1 - math.exp(-step / 6)) + 0.01 * rng.normal()
            names = ("recall", "ndcg")
            scalars = {f"valid/{name}@{k}": value * k / 10 for name in names for k in KS}
            yield {"step": step, **scalars}
        if step % 4 == 0:
            yield {"step": step, "train/loss": 4 * math.exp(-step * lift / 30)}


def _finite(record):
    if isinstance(record, dict):
        return {name: _finite(value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [_finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def _write_json(path, record):
    path.write_text(json.dumps(_finite(record), indent=2, allow_nan=False) + "\n")


def _write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
