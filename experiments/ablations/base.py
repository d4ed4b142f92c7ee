"""What the ablations have in common: a softmax DNN that MovieLens-100K trains in half a minute.

The word after the colon of `--sweep=FILE.py:DATA` is one of `configs/two_tower.py`: movielens-100k
(the default), movielens-1m or synthetic. Each ablation changes one thing in this.
"""

from ml_collections import ConfigDict

from configs import softmax


def get_config(data: str = "movielens-100k") -> ConfigDict:
    """A softmax DNN over history, user features and time, on one data set."""
    c = softmax.get_config(data)
    c.model.feature_dim = 32
    c.model.query.hidden = (128,)
    c.model.query.dropout = 0.2
    c.model.query.pooling = ("last", "mean")
    c.train.batch_size = 512
    c.train.epochs = 2.0 if data == "movielens-1m" else 6.0
    c.eval.ks = (10, 20)
    return c
