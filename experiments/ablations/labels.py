r"""Label kind: the next item, or the distribution over all of a user's items?

One example an interaction with its next item as the label, or one example a user whose label is the
normalised multi-hot distribution over the training items, each user weighing the same, by the root
of the number of items, or by that number. All take the same number of steps and read the same
features: the user's and the history as a bag. With one item left out, both know the same of a user.

    python -m recjax.sweep --sweep=experiments/ablations/labels.py --workdir=WORKDIR \
      --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from experiments.ablations import base


def get_config(data: str = "movielens-100k") -> ConfigDict:
    """The common softmax DNN without the order and time of what was watched."""
    c = base.get_config(data)
    c.model.query.features = ("history", "age", "country", "device")
    if data.startswith("movielens"):
        c.model.query.features = ("history", "age", "gender", "occupation", "zip")
    c.model.query.pooling = ("mean",)
    c.split.name = "leave_one_out"
    c.train.steps = 1000
    c.eval.every = 100
    return c


def sweep(add):
    """Next item, then three weights of the users' distributions."""
    add("next item", **{"examples.labels": "next_item"})
    for power in (0.0, 0.5, 1.0):
        add(
            f"multi-hot, items^{power:g}",
            **{
                "examples.labels": "multi_hot",
                "examples.history_dropout": 0.5,
                "examples.weight_power": power,
            },
        )
