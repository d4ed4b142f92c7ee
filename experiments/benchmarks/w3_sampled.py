"""W3, recjax: W1's query tower, 1,000,000 items, log-uniform negatives, B 1024, Adagrad.

    python -m experiments.benchmarks.w3_sampled --negatives=8192 [--smoke]

The arithmetic is that of `tf.nn.sampled_softmax_loss`: labels and negatives are corrected by the
log of their expected count, and a negative that is the label is left out. The negatives are drawn
with replacement, as in the torch program; TensorFlow draws them without, so that its loss begins
elsewhere. recjax ranks items by how often they are labels, where peers take an item's id for its
rank. The head's bias is a dense parameter. Else as in `w1_two_tower.py` and `w2_softmax.py`.

The maths of an example needs 6 (K + 1) d + 6 (weights of the tower) operations, of K negatives:
`flops.softmax`.
"""

import time

from experiments.benchmarks import datasets, harness, workload


def main() -> None:
    """Times training and prints the result."""
    parser = harness.make_parser(__doc__)
    parser.add_argument("--negatives", type=int, default=1024)
    flags = parser.parse_args()
    arrays = workload.load(flags.data, "interactions", smoke=flags.smoke)
    label = workload.load(flags.data, "labels_huge", smoke=flags.smoke)["label"]
    num_items = workload.sizes_of(flags.smoke).huge
    began = time.perf_counter()
    batch_size = 256 if flags.smoke else 1024
    dataset = datasets.make_dataset(arrays, label, num_items)
    experiment = datasets.build(
        "softmax.py",
        dataset,
        **{
            **datasets.softmax_dnn(dataset, len(label)),
            "loss.candidates": "log_uniform",
            "loss.num_sampled": flags.negatives,
            "loss.correct_positive": True,
            "train.batch_size": batch_size,
            **datasets.adagrad_of_a_sum(batch_size),
        },
    )
    datasets.time_training(experiment, flags, began)


if __name__ == "__main__":
    main()
