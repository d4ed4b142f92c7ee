r"""Features: what does each kind of feature add, on the query side and on the item side?

A two-tower model in which one group of features at a time is left out: the user's (age, gender,
occupation, zip), the request's (time since the last watch, hour, day, number of earlier watches),
the watch history, or what the item tower knows beside the id.

    python -m recjax.sweep --sweep=experiments/ablations/features.py --workdir=WORKDIR \
      --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from experiments.ablations import base

REQUEST = ("time_since_last", "hour", "day", "user_count")
USER = {
    "movielens-100k": ("age", "gender", "occupation", "zip"),
    "movielens-1m": ("age", "gender", "occupation", "zip"),
    "synthetic": ("age", "country", "device"),
}


def get_config(data: str = "movielens-100k") -> ConfigDict:
    """The common query tower with an item tower."""
    if data not in USER:
        raise ValueError(f"the features of users are known for {', '.join(USER)}, not {data}")
    c = base.get_config(data)
    c.model.item.side = "tower"
    return c


def sweep(add, config):
    """All features, then all but one group, then the history or the user's id alone."""
    user = USER[config.data.name]
    add("all", **{"model.query.features": (*user, *REQUEST, "history")})
    add("no user features", **{"model.query.features": (*REQUEST, "history")})
    add("no request features", **{"model.query.features": (*user, "history")})
    add("no history", **{"model.query.features": (*user, *REQUEST)})
    add("no item features", **{"model.item.features": ("item_id",)})
    add("history alone", **{"model.query.features": ("history",)})
    add("user id alone", **{"model.query.features": ("user_id",)})
