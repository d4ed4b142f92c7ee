r"""Optimizers: dense updates against updates of the touched rows, for SGD, Adagrad and Adam.

Row-wise SGD and Adagrad are the dense rules; row-wise ("lazy") Adam leaves the moments of rows that
a batch does not touch as they were, and is another rule. A sampled softmax, since the exact one
touches every row. Learning rates were searched first, with the same number of tries for each arm.

    python -m recjax.sweep --sweep=experiments/ablations/optimizer.py --workdir=WORKDIR \
      --config.data.dir=DIR --search=optuna --search_trials=6
"""

from ml_collections import ConfigDict

from experiments.ablations import base


def get_config(data: str = "movielens-100k") -> ConfigDict:
    """The common softmax DNN on 256 draws."""
    c = base.get_config(data)
    c.loss.candidates = "uniform"
    c.loss.num_sampled = 256
    return c


def sweep(add):
    """Three rules, each on whole tables and on touched rows."""
    for rule in ("adam", "adagrad", "sgd"):
        for mode in ("dense", "rows"):
            add(f"{rule}, {mode}", **{"optim.name": rule, "tables.mode": mode})


def search(suggest):
    """The range of learning rates, wide enough for all three."""
    suggest("optim.learning_rate", low=1e-3, high=10.0, log=True)
