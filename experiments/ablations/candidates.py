r"""Candidates and logQ: what does it cost to score fewer items, and to leave the correction out?

Every arm trains on the same examples with the softmax loss. The exact softmax scores the whole
corpus; the others a sample of 256, or the other items of the batch, with log q subtracted from the
sampled logits or not. Without it, an item that is drawn often is pushed down in proportion.

    python -m recjax.sweep --sweep=experiments/ablations/candidates.py --workdir=WORKDIR \
      --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from experiments.ablations import base


def get_config(data: str = "movielens-100k") -> ConfigDict:
    """The common softmax DNN."""
    return base.get_config(data)


def sweep(add):
    """Sources, with and without their correction."""
    add("full", **{"loss.candidates": "full"})
    for source in ("uniform", "unigram", "in_batch"):
        drawn = {"loss.candidates": source, "loss.num_sampled": 256}
        add(source, **drawn)
        if source != "uniform":  # whose log q is one number, which a softmax does not see
            add(f"{source}, no logQ", **drawn, **{"loss.correct_logq": False})
    both = {"loss.candidates": "in_batch", "loss.correct_positive": True}
    add("in_batch, logQ of the label too", **both, **{"loss.num_sampled": 256})
    add("in_batch + uniform", **{"loss.candidates": "mixed", "loss.num_sampled": 256})
