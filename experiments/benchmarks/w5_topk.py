"""W5, recjax: the exact 100 best of 100,000 items for 20,000 queries, without what each has seen.

    python -m experiments.benchmarks.w5_topk [--block=256] [--smoke]

Matrix factorisation whose vectors are the workload's, ranked as evaluation and recommending do, by
`rank_batches`: one batch a core at a time. Queries are looked up by user, and what was seen is
gathered on the host, in the timing.

The maths of a query needs 2 n d operations: `flops.ranking`.
"""

import itertools
import time

import numpy as np

from experiments.benchmarks import datasets, harness, workload
from recjax.data.dataset import Dataset, Interactions, Table
from recjax.data.schema import Schema
from recjax.data.split import TEST, TRAIN, VALID
from recjax.ranking import rank_batches


def main() -> None:
    """Times ranking and prints the result."""
    parser = harness.make_parser(__doc__)
    parser.add_argument("--block", type=int, default=256, help="queries ranked at a time")
    flags = parser.parse_args()
    arrays = workload.load(flags.data, "ranking", smoke=flags.smoke)
    began = time.perf_counter()
    experiment = datasets.build(
        "mf.py",
        _make_dataset(arrays),
        **{
            "examples.history_length": 0,
            "examples.min_history": 0,
            "model.dim": workload.DIM,
            "model.item.bias": False,
            "tables.mode": "dense",
        },
    )
    params = dict(experiment.init_state().params)
    rows = params["embedding"]["head"].shape[0]
    head = np.zeros((rows, workload.DIM), np.float32)
    head[: len(arrays["items"])] = arrays["items"]
    params["embedding"] = {"user_id": arrays["queries"], "head": head}
    every = np.ones(len(arrays["items"]), bool)
    variables = experiment.parallel.replicate({"params": params})
    blocks = range(0, len(arrays["queries"]) - flags.block + 1, flags.block)
    lists = rank_batches(
        experiment.scorer.ranker(variables, experiment.arrays, every),
        experiment.queries("test"),
        itertools.cycle(np.arange(start, start + flags.block) for start in blocks),
        workload.TOP_K,
        seen="known",
        batch_size=flags.block,
        at_once=experiment.parallel.rankings_at_once(len(arrays["items"])),
    )

    def ids(start: int, end: int) -> np.ndarray:
        found = next(lists)  # of the same blocks in the same order
        assert (found.rows[0], found.rows[-1] + 1) == (start, end)
        return found.ids_BxK

    setup = time.perf_counter() - began
    result = harness.time_ranking(ids, flags, arrays, workload.TOP_K, flags.block)
    harness.report(datasets.PACKAGES, **result, setup_s=setup)


def _make_dataset(arrays: workload.Arrays) -> Dataset:
    """A user for each query, with what it has seen; one interaction of each to be predicted."""
    num_users = len(arrays["queries"])
    user = np.repeat(np.arange(num_users), np.diff(arrays["seen_offsets"]))
    last = np.arange(num_users)
    part = np.full(len(user) + num_users + 1, TRAIN, np.int8)
    part[len(user) :], part[-1] = TEST, VALID
    item = np.concatenate([arrays["seen"], np.zeros(num_users + 1, np.int32)])
    return Dataset(
        name="ranking",
        schema=Schema(time="time", part="part"),
        users=Table(np.arange(num_users)),
        items=Table(np.arange(len(arrays["items"]))),
        interactions=Interactions.build(
            np.concatenate([user, last, [0]]),
            item,
            num_users,
            time=np.arange(len(part), dtype=np.float64),
            part=part,
        ),
    )


if __name__ == "__main__":
    main()
