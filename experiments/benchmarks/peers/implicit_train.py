"""W4 with implicit: alternating least squares or BPR, 64 factors, in compiled code on all cores.

    python -m experiments.benchmarks.peers.implicit_train --model=als

implicit's BPR merges repeated pairs and takes an SGD step for each pair without locks (Hogwild).
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # implicit's own threads take the cores

import time

import numpy as np
import scipy.sparse
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking

from experiments.benchmarks import harness, workload


def main() -> None:
    """Trains epoch by epoch and prints the result."""
    parser = harness.make_parser(__doc__)
    parser.add_argument("--model", choices=("als", "bpr"), default="als")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.01, help="bpr")
    flags = parser.parse_args()
    arrays = workload.load(flags.data, "interactions", smoke=flags.smoke)
    epochs = flags.epochs or (2 if flags.smoke else 5 if flags.model == "als" else 60)
    shape = len(arrays["user_categories"]), len(arrays["item_categories"])
    ones = np.ones(len(arrays["user"]), np.float32)
    pairs = scipy.sparse.csr_matrix((ones, (arrays["user"], arrays["item"])), shape=shape)
    settings = {"factors": workload.DIM, "iterations": epochs, "random_state": 0}
    if flags.model == "als":
        model = AlternatingLeastSquares(**settings, calculate_training_loss=False)
    else:
        model = BayesianPersonalizedRanking(**settings, learning_rate=flags.rate)
    curve = harness.Accuracy(arrays)
    began = time.perf_counter()

    def after_epoch(*_):
        nonlocal began
        seconds = time.perf_counter() - began
        curve.add(seconds, np.asarray(model.user_factors), np.asarray(model.item_factors))
        began = time.perf_counter()

    model.fit(pairs, show_progress=False, callback=after_epoch)
    harness.report(("implicit", "scipy", "numpy"), **curve.result(), pairs=pairs.nnz)


if __name__ == "__main__":
    main()
