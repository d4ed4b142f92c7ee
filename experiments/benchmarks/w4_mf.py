"""W4, recjax: matrix factorisation by BPR, d 64, and how accurate it is after how many seconds.

    python -m experiments.benchmarks.w4_mf [--epochs=3] [--smoke]

Accuracy is the peers': the share of (user, item of a training interaction, uniform item) that is
ranked rightly, and beside it the same for interactions that nobody trained on. Seconds are those of
training, from the second step on, batches included: not of loading the data, of compilation or of
measuring accuracy.

What differs: torch draws one negative for each example; recjax draws some for a whole batch, each
example has all but its own label, and its loss is their mean (`loss.candidates=uniform`). The
items have no bias, and Adagrad sees the sum of the losses, as in the torch program. Rate and first
accumulator of both are from a small search on these data, for seconds to 90 %, and so are recjax's
negatives, its batch (torch has 8,192; half or a quarter of that makes no difference there) and its
one accumulator a row, which torch lacks.
A batch takes less to make than to hand over, so no thread makes it ahead.
"""

import contextlib
import time

import numpy as np

from experiments.benchmarks import datasets, harness, workload


def main() -> None:
    """Trains epoch by epoch and prints the result."""
    parser = harness.make_parser(__doc__)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--points", type=int, default=16, help="accuracies taken in an epoch")
    parser.add_argument("--batch_size", type=int, default=4096)
    parser.add_argument("--negatives", type=int, default=8)
    parser.add_argument("--optimizer", choices=("adagrad", "row_adagrad"), default="row_adagrad")
    parser.add_argument("--rate", type=float, default=0.25)
    parser.add_argument("--accumulator", type=float, default=0.001, help="what it begins with")
    parser.add_argument("--tables", choices=("auto", "rows", "dense"), default="rows")
    flags = parser.parse_args()
    arrays = workload.load(flags.data, "interactions", smoke=flags.smoke)
    if flags.smoke:
        flags.batch_size, flags.epochs, flags.points = 512, 2.0, 2
    began = time.perf_counter()
    experiment = datasets.build(
        "mf.py",
        datasets.make_dataset(arrays),
        **{
            "examples.history_length": 0,
            "examples.min_history": 0,
            "model.dim": workload.DIM,
            "model.item.bias": False,
            "tables.mode": flags.tables,
            "loss.name": "bpr",
            "loss.candidates": "uniform",
            "loss.num_sampled": flags.negatives,
            "train.batch_size": flags.batch_size,
            "train.prefetch": 0,
            **datasets.adagrad_of_a_sum(flags.batch_size, flags.rate, flags.accumulator),
            "optim.name": flags.optimizer,
        },
    )
    with contextlib.closing(datasets.Trainer(experiment)) as trainer:
        setup = time.perf_counter() - began
        began = time.perf_counter()
        first = float(trainer.step())
        first_step = time.perf_counter() - began
        curve = harness.Accuracy(arrays)
        for _ in range(round(flags.epochs * flags.points)):
            began = time.perf_counter()
            for _ in range(experiment.steps_per_epoch // flags.points):
                loss = trainer.step()
            float(loss)
            seconds = time.perf_counter() - began
            tables = {**trainer.state.params["embedding"], **trainer.state.tables}
            # Copies: the next step could not write over tables that somebody still looks at.
            user_UxD, item_NxD = np.array(tables["user_id"]), np.array(tables["head"])
            curve.add(seconds, user_UxD, item_NxD[: experiment.dataset.items.size])
    harness.report(
        datasets.PACKAGES,
        **curve.result(1 / flags.points),
        first_loss=first,
        expected_loss=float(np.log(2)),
        first_step_s=first_step,
        warmup_s=first_step,
        setup_s=setup,
    )


if __name__ == "__main__":
    main()
