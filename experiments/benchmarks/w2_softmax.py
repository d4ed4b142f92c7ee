"""W2, recjax: W1's query tower and an exact softmax over 50,000 or 500,000 items, B 512, Adam.

    python -m experiments.benchmarks.w2_softmax [--items=big] [--smoke]

The examples, the arithmetic and the loss at the start, log n, are the peers'; the head has a bias.
What differs is what differs in `w1_two_tower.py`, and that items without an interaction, which
recjax leaves out of a softmax, have one that is no example (`datasets.make_dataset`). Adam is lazy
for the user table, which is in mode `rows`.

The maths of an example needs 6 n d + 6 (weights of the tower) operations: `flops.softmax`.
"""

import time

import numpy as np

from experiments.benchmarks import datasets, harness, workload


def main() -> None:
    """Times training and prints the result."""
    parser = harness.make_parser(__doc__)
    parser.add_argument("--items", choices=("small", "big"), default="small")
    flags = parser.parse_args()
    arrays = workload.load(flags.data, "interactions", smoke=flags.smoke)
    sizes = workload.sizes_of(flags.smoke)
    label, num_items = arrays["item"], sizes.items
    if flags.items == "big":
        label = workload.load(flags.data, "labels_big", smoke=flags.smoke)["label"]
        num_items = sizes.big
    began = time.perf_counter()
    dataset = datasets.make_dataset(arrays, label, num_items)
    experiment = datasets.build(
        "softmax.py",
        dataset,
        **{
            **datasets.softmax_dnn(dataset, len(label)),
            "loss.candidates": "full",
            "optim.name": "adam",
            "optim.learning_rate": 1e-3,
            "optim.eps": 1e-7,
            "train.batch_size": 512,
        },
    )
    datasets.time_training(experiment, flags, began, expected_loss=float(np.log(num_items)))


if __name__ == "__main__":
    main()
