r"""Batch size with in-batch candidates: more negatives a step, fewer steps.

With in-batch candidates the batch is the sample of negatives too. Every arm sees the same number of
examples; the learning rate stays, or grows with the root of the batch size.

    python -m recjax.sweep --sweep=experiments/ablations/batch_size.py --workdir=WORKDIR \
      --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from experiments.ablations import base

BATCH, RATE = 512, 2e-3


def get_config(data: str = "movielens-100k") -> ConfigDict:
    """The common softmax DNN with in-batch candidates."""
    c = base.get_config(data)
    c.loss.candidates = "in_batch"
    return c


def sweep(add):
    """Batches of 64 to 4,096 at one learning rate, then at one that grows with them."""
    add(f"B = {BATCH}", **{"train.batch_size": BATCH, "optim.learning_rate": RATE})
    for size in (64, 128, 2048, 4096):
        add(f"B = {size}", **{"train.batch_size": size, "optim.learning_rate": RATE})
        scaled = RATE * (size / BATCH) ** 0.5
        add(f"B = {size}, scaled", **{"train.batch_size": size, "optim.learning_rate": scaled})
