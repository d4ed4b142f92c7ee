r"""Temperature and normalisation: inner products, or cosines divided by a temperature?

An inner product lets the length of an item embedding say how popular the item is. A cosine cannot,
and needs a temperature, since a softmax over numbers between -1 and 1 is nearly flat.

    python -m recjax.sweep --sweep=experiments/ablations/temperature.py --workdir=WORKDIR \
      --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from experiments.ablations import base


def get_config(data: str = "movielens-100k") -> ConfigDict:
    """The common softmax DNN."""
    return base.get_config(data)


def sweep(add):
    """Inner products, cosines at four temperatures, and a temperature that is learned."""
    add("inner product")
    for temperature in (0.05, 0.1, 0.2, 0.5):
        cosine = {"model.normalize": True, "model.temperature": temperature}
        add(f"cosine / {temperature:g}", **cosine)
    learned = {"model.normalize": True, "model.temperature": 0.1, "model.learn_temperature": True}
    add("cosine / learned from 0.1", **learned)
