r"""Depth and width: what do hidden layers give, and what do they cost?

Towers without a hidden layer (one linear map), with one of 64 to 1,024 units, and with two and
three, beside the time of a training step and the latency of a query.

    python -m recjax.sweep --sweep=experiments/ablations/tower.py --workdir=WORKDIR \
      --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from experiments.ablations import base


def get_config(data: str = "movielens-100k") -> ConfigDict:
    """The common softmax DNN."""
    return base.get_config(data)


def sweep(add):
    """Hidden layers from none to three."""
    add("128", **{"model.query.hidden": (128,)})
    add("none", **{"model.query.hidden": (), "model.query.dropout": 0.0})
    for hidden in ((32,), (512,), (2048,), (128, 128), (512, 256), (512, 256, 128)):
        add("-".join(map(str, hidden)), **{"model.query.hidden": hidden})
