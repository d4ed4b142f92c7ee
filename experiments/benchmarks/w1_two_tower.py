"""W1, recjax: two towers, in-batch softmax with logQ, B 4096, Adagrad.

    python -m experiments.benchmarks.w1_two_tower [--history=past] [--smoke]

As in the peers' programs: both sides embed ids, three (two) categories and a list in 32 dimensions,
join them with 4 (3) numbers, and go through 256 and 128 ReLU units to 64; logQ corrects labels and
candidates alike (`loss.correct_positive`), and Adagrad sees the sum of the losses
(`datasets.adagrad_of_a_sum`). So the loss begins at 10.33, as theirs.

`--history=watched` (the default) reads the peers' examples exactly: what a user watched is a bag of
up to 50 items among the user's features, with a table of its own, pooled by the mean. With `past`
the tower reads recjax's own history in its place, the user's latest 50 interactions before the
example, sliced out on the host: as many lookups and the same arithmetic, on other items.

What differs: a candidate that is the example's own label is masked (peers keep it), probabilities
have no floor of 1e-6, the user table is updated by rows and the others densely (`tables.mode` is
`auto`), tables begin normally distributed with the peers' deviation, layers as Flax does (LeCun),
tables of categories have two rows more, and the order of the examples is recjax's.

The maths of an example needs 6 B d + 6 (weights of both towers) operations: `flops.two_tower`.
"""

import time

import numpy as np

from experiments.benchmarks import datasets, harness, workload


def main() -> None:
    """Times training and prints the result."""
    parser = harness.make_parser(__doc__)
    parser.add_argument("--history", choices=("watched", "past"), default="watched")
    parser.add_argument("--batch_size", type=int, default=0)
    flags = parser.parse_args()
    arrays = workload.load(flags.data, "interactions", smoke=flags.smoke)
    began = time.perf_counter()
    batch_size = flags.batch_size or (512 if flags.smoke else 4096)
    past = flags.history == "past"
    experiment = datasets.build(
        "two_tower.py",
        datasets.make_dataset(arrays),
        **{
            "examples.history_length": workload.HISTORY if past else 0,
            "examples.min_history": 0,
            "model.dim": workload.DIM,
            "model.feature_dim": workload.FEATURE_DIM,
            "model.query.features": (*datasets.USER_FEATURES, "history" if past else "watched"),
            "model.query.hidden": workload.HIDDEN,
            "model.item.features": datasets.ITEM_FEATURES,
            "model.item.hidden": workload.HIDDEN,
            "loss.candidates": "in_batch",
            "loss.correct_positive": True,
            "train.batch_size": batch_size,
            **datasets.adagrad_of_a_sum(batch_size),
        },
    )
    rows = next(workload.orders(len(arrays["item"]), batch_size))
    expected = workload.in_batch_loss(arrays["item_log_p"][arrays["item"][rows]])
    lengths = np.sum(arrays["user_watched"] >= 0, axis=1)[arrays["user"]]
    if past:
        first_A = experiment.examples.first_example_A
        place = np.arange(experiment.examples.size) - np.repeat(first_A[:-1], np.diff(first_A))
        lengths = np.minimum(place, workload.HISTORY)
    datasets.time_training(
        experiment, flags, began, expected_loss=expected, mean_history=float(lengths.mean())
    )


if __name__ == "__main__":
    main()
