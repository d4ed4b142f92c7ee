"""W5 with NumPy, torch, faiss, implicit, ScaNN and TFRS: the 100 best that a query has not seen.

    python -m experiments.benchmarks.peers.rank torch

faiss and ScaNN cannot leave out other items for each query of a batch: they are asked for as many
more as a query of the block has seen, and those are taken out after.
"""

import os

import numpy as np

from experiments.benchmarks import harness, workload

K = workload.TOP_K


def main() -> None:
    """Times ranking and prints the result."""
    parser = harness.make_parser(__doc__)
    parser.add_argument("library", choices=_RANKERS)
    parser.add_argument("--block", type=int, default=256, help="queries ranked at a time")
    flags = parser.parse_args()
    arrays = workload.load(flags.data, "ranking", smoke=flags.smoke)
    packages, make = _RANKERS[flags.library]
    result = harness.time_ranking(make(arrays), flags, arrays, K, flags.block)
    harness.report((*packages, "numpy"), **result)


def _numpy(arrays):
    queries, items = arrays["queries"], arrays["items"].T

    def rank(start, end):
        scores = queries[start:end] @ items
        scores[harness.seen_pairs(arrays, start, end)] = -np.inf
        best = np.argpartition(scores, -K, axis=1)[:, -K:]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        return np.take_along_axis(best, order, 1)

    return rank


def _torch(arrays):
    import torch

    queries, items = torch.from_numpy(arrays["queries"]), torch.from_numpy(arrays["items"])

    @torch.inference_mode()
    def rank(start, end):
        scores = queries[start:end] @ items.T
        rows, seen = harness.seen_pairs(arrays, start, end)
        scores[torch.from_numpy(rows), torch.from_numpy(seen).long()] = -torch.inf
        return torch.topk(scores, K).indices.numpy()

    return rank


def _faiss(arrays):
    import faiss

    index = faiss.IndexFlatIP(workload.DIM)
    index.add(arrays["items"])
    return _filtered(arrays, lambda queries, count: index.search(queries, count)[1])


def _scann(arrays):
    import scann

    builder = scann.scann_ops_pybind.builder(arrays["items"], K, "dot_product")
    searcher = builder.score_brute_force().build()

    def search(queries, count):
        return searcher.search_batched_parallel(queries, final_num_neighbors=count)[0]

    return _filtered(arrays, search)


def _implicit(arrays):
    import scipy.sparse
    from implicit.cpu.topk import topk

    ones = np.ones(len(arrays["seen"]), np.float32)
    shape = len(arrays["queries"]), len(arrays["items"])
    seen = scipy.sparse.csr_matrix((ones, arrays["seen"].copy(), arrays["seen_offsets"]), shape)

    def rank(start, end):
        block = arrays["queries"][start:end]
        threads = os.cpu_count()
        found = topk(
            arrays["items"], block, K, filter_query_items=seen[start:end], num_threads=threads
        )
        return found[0]

    return rank


def _tfrs(arrays):
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf
    import tensorflow_recommenders as tfrs

    index = tfrs.layers.factorized_top_k.BruteForce(k=K).index(tf.constant(arrays["items"]))
    search = tf.function(lambda query, seen: index.query_with_exclusions(query, seen, k=K)[1])

    def rank(start, end):
        rows, items = harness.seen_pairs(arrays, start, end)
        lengths = np.bincount(rows, minlength=end - start)
        # The layer needs a width that it knows; few widths mean few traces.
        width = -(-int(lengths.max()) // 128) * 128
        seen = np.full((end - start, width), -1, np.int32)
        seen[np.arange(width) < lengths[:, None]] = items
        return search(tf.constant(arrays["queries"][start:end]), tf.constant(seen)).numpy()

    return rank


def _filtered(arrays, search):
    """Ranks with a search that knows nothing of what was seen."""
    num_items = len(arrays["items"])

    def rank(start, end):
        longest = int(np.diff(arrays["seen_offsets"][start : end + 1]).max())
        found = search(arrays["queries"][start:end], K + longest).astype(np.int64)
        rows, items = harness.seen_pairs(arrays, start, end)
        seen = np.sort(rows * num_items + items)
        key = np.arange(len(found))[:, None] * num_items + found
        place = np.minimum(np.searchsorted(seen, key), len(seen) - 1)
        order = np.argsort(seen[place] == key, axis=1, kind="stable")[:, :K]
        return np.take_along_axis(found, order, 1)

    return rank


_RANKERS = {
    "numpy": ((), _numpy),
    "torch": (("torch",), _torch),
    "faiss": (("faiss-cpu",), _faiss),
    "scann": (("scann",), _scann),
    "implicit": (("implicit",), _implicit),
    "tfrs": (("tensorflow", "tensorflow-recommenders"), _tfrs),
}


if __name__ == "__main__":
    main()
