"""What a run cost: its size, its speed and how long a query takes."""

import json
import math
import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np

from recjax.experiment import Experiment
from recjax.files import write_file
from recjax.measure import model_ranker
from recjax.processes import largest
from recjax.writer import RATE, STARTED

COST = "cost.json"
_REPEATS, _SECONDS = 10, 1.0  # of timing a query: as many as fit

PyTree = Any


def count_parameters(experiment: Experiment) -> int:
    """Trained numbers, those of embedding tables included."""
    state = experiment.abstract_state
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves((state.params, state.tables)))


def write_cost(
    experiment: Experiment, variables: PyTree, steps: int, workdir: pathlib.Path
) -> None:
    """Writes `cost.json`: that it is there says that the run is finished.

    Args:
      experiment: what was trained and has been evaluated, so that its ranker is compiled.
      variables: of the checkpoint that was tested.
      steps: that were trained.
      workdir: which holds the run's timings.jsonl.

    Raises:
      CheckpointError: the file cannot be written.
    """
    size, batch_size = experiment.examples.size, experiment.config.train.batch_size
    epochs, rest = divmod(steps, experiment.steps_per_epoch)
    record = {
        "parameters": count_parameters(experiment),
        "steps": steps,
        "examples": epochs * size + min(rest * batch_size, size),
        **training_speed(workdir / "timings.jsonl", steps, batch_size),
        "query_ms": 1e3 * seconds_per_query(experiment, variables),
        "query_batch": experiment.config.eval.batch_size,
        "devices": experiment.parallel.describe(),
        "jax": jax.__version__,
    }
    write_file(workdir / COST, json.dumps(record, indent=2) + "\n")


def training_speed(timings: pathlib.Path, steps: int, batch_size: int) -> dict[str, float | None]:
    """Speed of training by a run's timings.jsonl, or None for what it does not hold.

    Args:
      timings: the file, of one start or, where the run was resumed, of several.
      steps: that were trained; those that no line counts, lost in a stop, took the median time.
      batch_size: examples of a step.

    Returns:
      `train_seconds`, those of compiling included, of validating and testing not; `step_ms` and
      `examples_per_second`, medians over the logged intervals but the first of each start, which
      holds the compiling, where there are others.
    """
    first, later = [], []
    seconds, counted, begin, is_first = 0.0, 0, 0, True
    for line in timings.read_text().splitlines() if timings.exists() else ():
        record = json.loads(line)
        if STARTED in record:
            begin, is_first = record["step"], True
        elif record.get(RATE):
            interval = record["step"] - begin
            seconds += interval * batch_size / record[RATE]
            counted += interval
            (first if is_first else later).append(record[RATE])
            begin, is_first = record["step"], False
    if not first:
        return {"train_seconds": None, "step_ms": None, "examples_per_second": None}
    rate = statistics.median(later or first)
    return {
        "train_seconds": seconds + (steps - counted) * batch_size / rate,
        "step_ms": 1e3 * batch_size / rate,
        "examples_per_second": rate,
    }


def seconds_per_query(experiment: Experiment, variables: PyTree) -> float:
    """One query's share of a full batch that is encoded and ranked against the encoded corpus."""
    config, queries = experiment.config.eval, experiment.queries("test")
    rank = model_ranker(experiment, variables)
    served = np.flatnonzero(experiment.serves(queries))
    rows = np.resize(served[: config.batch_size], config.batch_size)
    batch, seen = queries.batch(rows), queries.seen(rows, config.seen)
    jax.block_until_ready(rank(batch, seen, max(config.ks)))
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _SECONDS:
        began = time.perf_counter()
        jax.block_until_ready(rank(batch, seen, max(config.ks)))
        times.append(largest(time.perf_counter() - began))  # all repeat it as often
    return statistics.median(times) / config.batch_size
