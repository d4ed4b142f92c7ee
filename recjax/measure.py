"""Measures an experiment's model, and what stands beside it, under the experiment's protocol."""

import json
import math
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Int

from recjax.baselines import Ranker, oracle_ranker, popularity_ranker, random_ranker
from recjax.evaluate import Evaluation, evaluate, protocol_record
from recjax.experiment import Experiment
from recjax.files import write_file
from recjax.ranking import Lists, RankedQueries, in_batches, rank_batches

PyTree = Any


def protocol_of(experiment: Experiment) -> dict[str, Any]:
    """What two results must share to be compared: data, split, corpus, policies, metric."""
    config = experiment.config
    validates = not experiment.split.trains_on_valid
    # What is known of a user left one out is what precedes the request, in either form of history.
    last = experiment.split.name == "leave_one_out"
    return {
        "dataset": experiment.dataset.name,
        "dataset_hash": experiment.dataset.hash,
        "split": experiment.split.name,
        "split_params": dict(experiment.split.params),
        "split_hash": experiment.split.hash,
        "history": "past" if last else experiment.history,
        # Users by the lowest hashes of their ids; without it all with something to predict.
        **({"max_queries": config.eval.max_queries} if config.eval.max_queries else {}),
        "selection_metric": f"valid/{config.eval.metric}" if validates else "none: the last step",
        **protocol_record(
            part="test",
            corpus=config.eval.corpus,
            num_candidates=int(experiment.corpus_mask_N.sum()),
            seen=config.eval.seen,
            ks=config.eval.ks,
        ),
    }


def model_ranker(experiment: Experiment, variables: PyTree) -> Ranker:
    """Ranks what the model can score of the corpus."""
    mask_N = experiment.corpus_mask_N & experiment.rankable_mask_N
    return experiment.scorer.ranker(variables, experiment.arrays, mask_N)


def rank_all(
    experiment: Experiment,
    variables: PyTree,
    queries: RankedQueries,
    rows: Int[np.ndarray, "Q"],
    k: int,
    seen: str,
) -> Lists:
    """The model's lists for these rows of the queries, each of which it can serve."""
    size = experiment.config.eval.batch_size
    lists = rank_batches(
        model_ranker(experiment, variables),
        queries,
        in_batches(rows, size),
        k,
        seen=seen,
        batch_size=size,
        at_once=_at_once(experiment),
    )
    none = Lists(np.zeros(0, np.int64), np.zeros((0, k), np.float32), np.zeros((0, k), np.int32))
    return Lists(*(np.concatenate(parts) for parts in zip(none, *lists, strict=True)))


def evaluate_model(
    experiment: Experiment, variables: PyTree, part: str, **settings: Any
) -> Evaluation:
    """Measures the model; queries and items that it cannot score count as misses.

    Args:
      experiment: whose protocol, queries and model.
      variables: what `experiment.model.apply` takes.
      part: `valid` or `test`.
      **settings: of `evaluate`, in place of the config's.
    """
    return evaluate_ranker(
        experiment,
        model_ranker(experiment, variables),
        part,
        servable_Q=experiment.serves(experiment.queries(part)),
        rankable_mask_N=experiment.rankable_mask_N,
        **{"at_once": _at_once(experiment), **settings},
    )


def evaluate_ranker(
    experiment: Experiment,
    ranker: Ranker,
    part: str,
    *,
    history_length: int = 0,
    **settings: Any,
) -> Evaluation:
    """Measures a ranker that can score every query and item; otherwise as `evaluate_model`.

    `history_length` is what the ranker needs, where that is more than the model reads.
    """
    config = experiment.config.eval
    defaults = {
        "ks": config.ks,
        "seen": config.seen,
        "batch_size": config.batch_size,
        "samples": config.bootstrap,
        "rankable_mask_N": experiment.corpus_mask_N,
    }
    return evaluate(
        experiment.queries(part, history_length),
        ranker,
        part=part,
        user_ids_U=experiment.dataset.users.ids,
        corpus_mask_N=experiment.corpus_mask_N,
        popularity_N=experiment.popularity_N,
        **defaults | settings,
    )


def write_test_results(
    experiment: Experiment, variables: PyTree, step: int, workdir: pathlib.Path
) -> dict[str, float]:
    """Measures the model and its baselines on `test`, and writes `eval/test.parquet` and `.json`.

    Args:
      experiment: what was trained.
      variables: of the checkpoint that is tested.
      step: of that checkpoint, for the record.
      workdir: where `eval/` lies.

    Returns:
      Scalars by name: `test/<baseline>/<metric>`, and `test/<metric>` of the model last.

    Raises:
      CheckpointError: a file cannot be written.
      DivergenceError: a score is NaN or infinite.
    """
    mask_N, world = experiment.corpus_mask_N, experiment.dataset.world
    seen = experiment.config.eval.seen
    rankers = {
        "popularity": popularity_ranker(experiment.popularity_N, mask_N),
        "random": random_ranker(mask_N, experiment.config.seed),
    }
    model = evaluate_model(experiment, variables, "test")
    baselines = {
        name: evaluate_ranker(experiment, ranker, "test", samples=0)
        for name, ranker in rankers.items()
    }
    if world is not None:
        baselines["oracle"] = evaluate_ranker(
            experiment,
            oracle_ranker(world, mask_N),
            "test",
            history_length=world.window,
            samples=0,
        )
    model.write(workdir / "eval" / "test.parquet")
    record = {
        "step": step,
        "queries": experiment.queries("test").size,
        "targets_already_seen": int(experiment.queries("test").seen_targets(seen).sum()),
        "rankers": {
            name: {"metrics": one.metrics, "intervals": one.intervals, "slices": one.slices}
            for name, one in {"model": model, **baselines}.items()
        },
    }
    text = json.dumps(_finite(record), indent=2, allow_nan=False)
    write_file(workdir / "eval" / "test.json", text + "\n")
    scalars = {
        f"test/{name}/{metric}": value
        for name, found in baselines.items()
        for metric, value in found.metrics.items()
    }
    return scalars | {f"test/{metric}": value for metric, value in model.metrics.items()}


def _at_once(experiment: Experiment) -> int:
    return experiment.parallel.rankings_at_once(experiment.scorer.num_items)


def _finite(record: Any) -> Any:
    """The record with null in place of the numbers that JSON has no word for."""
    if isinstance(record, dict):
        return {name: _finite(value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [_finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record
