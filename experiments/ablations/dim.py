r"""Embedding dimension: how wide must psi(x) and the item embeddings be?

The width of the dot product is all that changes; parameters and the cost of ranking grow with it.

    python -m recjax.sweep --sweep=experiments/ablations/dim.py --workdir=WORKDIR \
      --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from experiments.ablations import base


def get_config(data: str = "movielens-100k") -> ConfigDict:
    """The common softmax DNN."""
    return base.get_config(data)


def sweep(add):
    """From 4 to 256."""
    for dim in (64, 4, 8, 16, 32, 128, 256):
        add(f"d = {dim}", **{"model.dim": dim})
