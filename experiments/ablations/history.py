r"""History: how should the watch history be pooled, and how much of it is needed?

The tower sees the embeddings of the last items as their mean, as the last one alone, as both side
by side, or as a mean weighted by a learned attention; and it sees the last 5, 20 or 50 of them.

    python -m recjax.sweep --sweep=experiments/ablations/history.py --workdir=WORKDIR \
      --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from experiments.ablations import base


def get_config(data: str = "movielens-100k") -> ConfigDict:
    """The common softmax DNN."""
    return base.get_config(data)


def sweep(add):
    """Poolings of the last 50 items, then lengths of the usual one."""
    poolings = {
        "last + mean": ("last", "mean"),
        "mean": ("mean",),
        "last": ("last",),
        "attention": ("attention",),
        "attention + last + mean": ("attention", "last", "mean"),
    }
    for name, pooling in poolings.items():
        add(f"{name}, 50", **{"model.query.pooling": pooling, "examples.history_length": 50})
    for length in (5, 20):
        add(f"last + mean, {length}", **{"examples.history_length": length})
