"""Matrix factorisation: one vector per user id, one per item id, and nothing else.

    python -m recjax.main --config=configs/mf.py
    python -m recjax.main --config=configs/mf.py:movielens-1m --config.data.dir=DIR

The special case of `softmax.py` whose query tower reads the user id alone and has no layer; it
cannot be asked about a user or an item that training never saw. `two_tower.py` explains the keys.
"""

from ml_collections import ConfigDict

from configs import two_tower


def get_config(data: str = "synthetic") -> ConfigDict:
    """Matrix factorisation on one of the data sets in `two_tower.DATA`."""
    c = two_tower.get_config(data)
    c.model.query.features = ("user_id",)
    c.model.query.hidden = ()
    c.model.query.dropout = 0.0  # which comes after hidden layers
    c.model.query.output = "none"
    c.model.item.side = "softmax"
    c.model.item.bias = True
    if data == "gowalla":
        c.model.item.bias = False
        c.optim.learning_rate = 1e-2
    if data.startswith("movielens"):
        c.train.epochs *= 2  # a user's vector learns from that user's examples alone
    return c
