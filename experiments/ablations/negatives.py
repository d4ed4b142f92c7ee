r"""Number of negatives: how many draws does a sampled softmax need?

The gradient of a sampled softmax comes near the exact one as the draws grow; the question is where
the ranking no longer gains, for draws from the uniform distribution and from the items' frequency
to the power 3/4.

    python -m recjax.sweep --sweep=experiments/ablations/negatives.py --workdir=WORKDIR \
      --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from experiments.ablations import base


def get_config(data: str = "movielens-100k") -> ConfigDict:
    """The common softmax DNN."""
    return base.get_config(data)


def sweep(add):
    """Two distributions, each with 16 to 1,024 draws a step, and all items."""
    add("full", **{"loss.candidates": "full"})
    for source in ("uniform", "unigram"):
        for count in (16, 64, 256, 1024):
            add(f"{source} {count}", **{"loss.candidates": source, "loss.num_sampled": count})
