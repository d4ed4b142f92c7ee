"""Softmax DNN: a query tower over features, and a softmax over a matrix of item embeddings.

    python -m recjax.main --config=configs/softmax.py
    python -m recjax.main --config=configs/softmax.py:movielens-1m --config.data.dir=DIR

One learned mapping from features to psi(x) in place of one vector per user (Covington et al.,
RecSys 2016). Differs from `two_tower.py`, where every key is explained, in the item side alone.
"""

from ml_collections import ConfigDict

from configs import two_tower


def get_config(data: str = "synthetic") -> ConfigDict:
    """The softmax DNN on one of the data sets in `two_tower.DATA`."""
    c = two_tower.get_config(data)
    c.model.item.side = "softmax"
    return c
