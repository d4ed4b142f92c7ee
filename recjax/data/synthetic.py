"""A planted world: a data set drawn from a p(i | x) that is known in closed form."""

import dataclasses

import numpy as np

from recjax.data.dataset import Bag, Categorical, Dataset, Dense, Interactions, Table
from recjax.data.lists import ItemLists
from recjax.data.schema import Feature, Schema
from recjax.data.split import FOLD_IN, TEST, TRAIN, VALID
from recjax.data.world import World, unit
from recjax.errors import ConfigError

GENRES = (
    "Action", "Adventure", "Animation", "Biography", "Comedy", "Crime", "Documentary", "Drama",
    "Family", "Fantasy", "History", "Horror", "Music", "Mystery", "Romance", "Science", "Sport",
    "Thriller", "War", "Western",
)  # fmt: skip
COUNTRIES = ("BR", "CA", "DE", "FR", "GB", "IN", "JP", "KE", "MX", "NG", "NO", "US")
DEVICES = ("desktop", "phone", "tv")

_DAY = 86_400
_START = 1_704_067_200  # 2024-01-01 00:00 UTC
_CUT = _START + 90 * _DAY  # TRAIN and VALID before it, FOLD_IN and TEST after it
_RELEASE = _CUT + 3 * _DAY  # new items are out; TEST begins
_END = _RELEASE + 7 * _DAY

_SCHEMA = Schema(
    features=(
        Feature("age", "dense", "user"),
        Feature("country", "categorical", "user"),
        Feature("device", "categorical", "user"),
        Feature("categories", "bag", "item"),
        Feature("length", "dense", "item", transform="log"),
        Feature("watch_time", "dense", "context", transform="log"),
    ),
    time="time",
    part="part",
    title="title",
)


def make_synthetic(
    *,
    users: int = 4000,
    items: int = 1500,
    interactions_per_user: int = 30,
    user_features: float = 0.4,
    history: float = 0.6,
    item_features: float = 0.7,
    unobserved: float = 0.1,
    new_users: float = 0.05,
    new_items: float = 0.1,
    popularity_exponent: float = 0.8,
    strength: float = 2.0,
    window: int = 5,
    dim: int = 8,
    categories: int = 20,
    repeats: bool = False,
    impressions: int = 0,
    seed: int = 0,
) -> Dataset:
    """Draws a world and its users' interactions, one after the other.

    Every user's last interaction is TEST, the one before VALID and the rest TRAIN; new users have
    0 to `window` FOLD_IN interactions in place of the latter two. Every TEST interaction is later
    than every other one. `Dataset.world` holds the truth. Each of users, items and draws has a
    random stream of its own, so a knob of one leaves the others as they were.

    Args:
      users: users in all.
      items: items in all.
      interactions_per_user: mean over the users that are not new; at least 4.
      user_features: share of the interest explained by user features.
      history: share explained by the last `window` items; what it and `user_features` leave of 1
        is a taste of each user that no column shows (so that only a user id can learn it).
      item_features: share of the item latents explained by the items' categories.
      unobserved: share of interactions drawn by popularity alone, explained by nothing observable.
      new_users: share of the users that appear only in TEST.
      new_items: share of the items that only TEST interactions can draw (of middling popularity).
      popularity_exponent: the item of rank r has a popularity proportional to r ** -exponent.
      strength: standard deviation over the items of an interest's effect on log p.
      window: how many of the last items matter.
      dim: dimensions of the latents.
      categories: categories in all, of which an item has 1 to 3.
      repeats: whether a user can meet an item twice.
      impressions: items shown with each interaction and not chosen, by popularity (`World.show`):
        the column `negatives`; 0 for no such column.
      seed: of everything.

    Raises:
      ConfigError: if a knob is out of range.
    """
    for key, share in (
        ("user_features", user_features),
        ("history", history),
        ("item_features", item_features),
        ("unobserved", unobserved),
        ("new_users", new_users),
        ("new_items", new_items),
        ("user_features + history", round(user_features + history, 9)),
    ):
        if not 0 <= share <= 1:
            raise ConfigError(f"synthetic: {key} is {share:g}; it is a share, from 0 to 1")
    for key, value, least in (
        ("users", users, 1),
        ("interactions_per_user", interactions_per_user, 4),
        ("window", window, 1),
        ("dim", dim, 1),
        ("categories", categories, max(3, dim + 1)),
        ("impressions", impressions, 0),
    ):
        if value < least:
            raise ConfigError(f"synthetic: {key} is {value:g}; here it must be at least {least}")
    # A user meets at most 3 times the mean; beyond them there must be others to show.
    least = max(2 * dim + 2, 4 * interactions_per_user, 3 * interactions_per_user + impressions + 2)
    if items * (1 - new_items) < least:
        raise ConfigError(
            f"synthetic: items is {items}, of which new_items={new_items:g} leaves "
            f"{items * (1 - new_items):g} to training; here it must leave at least {least}"
        )
    user_rng, item_rng, draw_rng, shown_rng = np.random.default_rng(seed).spawn(4)
    user_columns, user_latent_UxD = _make_users(user_rng, users, dim)
    bag, titles, item_latent_NxD = _make_items(item_rng, items, categories, dim, item_features)
    length_N = np.rint(item_rng.lognormal(np.log(600), 0.6, items)).astype(np.float32)
    released_N = np.arange(items) < items - round(new_items * items)
    popularity_N = (_ranks(item_rng, released_N) + 1.0) ** -popularity_exponent
    world = World(
        user_latent_UxD=user_latent_UxD,
        taste_UxD=unit(user_rng.standard_normal((users, dim))),
        item_latent_NxD=item_latent_NxD,
        log_popularity_N=np.log(popularity_N / popularity_N.sum()),
        released_N=released_N,
        user_features=user_features,
        history=history,
        item_features=item_features,
        unobserved=unobserved,
        strength=strength,
        window=window,
        repeats=repeats,
    )
    new_U = np.arange(users) >= users - round(new_users * users)
    return Dataset(
        name="synthetic",
        schema=dataclasses.replace(_SCHEMA, negatives="negatives" if impressions else None),
        users=Table(np.arange(1, users + 1), user_columns),
        items=Table(np.arange(1, items + 1), {"categories": bag, "length": Dense(length_N)}),
        interactions=_draw(
            world, new_U, interactions_per_user, length_N, impressions, draw_rng, shown_rng
        ),
        titles=titles,
        world=world,
    )


def _make_users(
    rng: np.random.Generator, users: int, dim: int
) -> tuple[dict[str, Dense | Categorical], np.ndarray]:
    """The user columns, and F: a direction that is a smooth function of age plus two lookups."""
    age_U = np.floor(rng.triangular(16, 25, 75, users))
    country_U = rng.choice(len(COUNTRIES), users, p=_falling(len(COUNTRIES)))
    device_U = rng.choice(len(DEVICES), users, p=_falling(len(DEVICES)))
    phase_U = np.pi * (age_U - 16) / 60
    wave_Ux3 = np.stack([np.cos(phase_U), np.sin(phase_U), np.cos(2 * phase_U)], axis=1)
    latent_UxD = (
        wave_Ux3 @ rng.standard_normal((3, dim))
        + rng.standard_normal((len(COUNTRIES), dim))[country_U]
        + 0.5 * rng.standard_normal((len(DEVICES), dim))[device_U]
    )
    columns = {
        "age": Dense(age_U.astype(np.float32)),
        "country": Categorical(country_U.astype(np.int32), np.array(COUNTRIES)),
        "device": Categorical(device_U.astype(np.int32), np.array(DEVICES)),
    }
    return columns, unit(latent_UxD)


def _make_items(
    rng: np.random.Generator, items: int, categories: int, dim: int, explained: float
) -> tuple[Bag, np.ndarray, np.ndarray]:
    """The items' categories, titles and latents."""
    count_N = rng.choice([1, 2, 3], items, p=[0.4, 0.4, 0.2])
    order_NxK = np.argsort(rng.random((items, categories)), axis=1)
    chosen_NxK = np.zeros((items, categories), bool)
    np.put_along_axis(chosen_NxK, order_NxK[:, :3], np.arange(3) < count_N[:, None], axis=1)
    vocab = np.array(
        [GENRES[k % len(GENRES)] + str(k // len(GENRES) + 1) * (k >= len(GENRES))
         for k in range(categories)]
    )  # fmt: skip
    shown_NxD = _whiten(
        chosen_NxK @ rng.standard_normal((categories, dim)) / np.sqrt(count_N)[:, None]
    )
    hidden_NxD = rng.standard_normal((items, dim))
    # Uncorrelated with the shown part, so that the shares of the two add up to 1.
    hidden_NxD = _whiten(hidden_NxD - shown_NxD @ (shown_NxD.T @ hidden_NxD) / items)
    latent_NxD = np.sqrt(explained) * shown_NxD + np.sqrt(1 - explained) * hidden_NxD
    codes = np.nonzero(chosen_NxK)[1].astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(count_N)]).astype(np.int64)
    titles = np.array(
        [f"{'/'.join(vocab[codes[offsets[i] : offsets[i + 1]]])} {i + 1}" for i in range(items)]
    )
    return Bag(offsets, codes, vocab), titles, latent_NxD


def _ranks(rng: np.random.Generator, released_N: np.ndarray) -> np.ndarray:
    """A popularity rank for each item; new items share the middle ones, so that none dominates."""
    rank_N = np.arange(len(released_N))
    new = np.count_nonzero(~released_N)
    start = (len(rank_N) - new) // 2
    middle_N = (rank_N >= start) & (rank_N < start + new)
    rank_N[released_N] = rng.permutation(np.flatnonzero(~middle_N))
    rank_N[~released_N] = rng.permutation(np.flatnonzero(middle_N))
    return rank_N


def _draw(
    world: World,
    new_U: np.ndarray,
    mean: int,
    length_N: np.ndarray,
    impressions: int,
    rng: np.random.Generator,
    shown_rng: np.random.Generator,
) -> Interactions:
    """Every user's items one after the other, then their times and watch times."""
    users = len(new_U)
    # Of each user: how many interactions come before the TEST one.
    known_U = np.floor(2.5 + rng.gamma(2.0, (mean - 3) / 2, users)).clip(max=3 * mean)
    few_U = rng.integers(0, world.window, users, endpoint=True)
    known_U = np.where(new_U, few_U, known_U).astype(np.int64)
    item_UxT = np.full((users, known_U.max() + 1), -1, np.int32)
    eager_UxT = np.zeros(item_UxT.shape)
    shown_UxTxE = np.zeros((*item_UxT.shape, impressions), np.int32)

    def step(user_B, history_BxL, place_B, released):
        item_B = world.sample(user_B, history_BxL, rng, released=released)
        item_UxT[user_B, place_B] = item_B
        z_BxD = world.interest(user_B, history_BxL)
        eager_UxT[user_B, place_B] = np.sum(z_BxD * world.item_latent_NxD[item_B], axis=1)
        if impressions:
            shown_UxTxE[user_B, place_B] = world.show(
                item_B, history_BxL, impressions, shown_rng, released=released
            )

    for t in range(item_UxT.shape[1] - 1):
        user_B = np.flatnonzero(known_U > t)
        step(user_B, item_UxT[user_B, :t], np.full(len(user_B), t), "train")
    place_UxT = np.arange(item_UxT.shape[1])
    left_UxT = place_UxT[:-1] - (place_UxT[-1] - known_U[:, None])
    known_UxL = np.where(
        left_UxT >= 0, np.take_along_axis(item_UxT, np.maximum(left_UxT, 0), axis=1), -1
    )
    step(np.arange(users), known_UxL, known_U, "all")

    user_M, place_M = np.nonzero(place_UxT <= known_U[:, None])
    item_M, eager_M = item_UxT[user_M, place_M], eager_UxT[user_M, place_M]
    part_M = np.where(new_U[user_M], FOLD_IN, TRAIN)
    part_M[(place_M == known_U[user_M] - 1) & ~new_U[user_M]] = VALID
    part_M[place_M == known_U[user_M]] = TEST
    start_M = np.choose(part_M, [_START, _START, _RELEASE, _CUT])
    end_M = np.choose(part_M, [_CUT, _CUT, _END, _RELEASE]) - item_UxT.shape[1]
    time_M = np.floor(start_M + rng.random(len(user_M)) * (end_M - start_M))
    # A user's places stay in order and, each later by its place, no two times are equal.
    time_M = time_M[np.lexsort((time_M, user_M))] + place_M
    watched_M = 1 / (1 + np.exp(0.5 - eager_M - 0.5 * rng.standard_normal(len(user_M))))
    columns = {"watch_time": Dense(np.rint(length_N[item_M] * watched_M).astype(np.float32))}
    negatives = None
    if impressions:
        offsets = np.arange(len(user_M) + 1) * impressions
        negatives = ItemLists(offsets, shown_UxTxE[user_M, place_M].ravel())
    return Interactions.build(
        user_M, item_M, users, time=time_M, columns=columns, part=part_M, negatives=negatives
    )


def _whiten(values_NxD: np.ndarray) -> np.ndarray:
    """The rows shifted and turned to zero mean and unit covariance."""
    values_NxD = values_NxD - values_NxD.mean(0)
    scale_D, turn_DxD = np.linalg.eigh(values_NxD.T @ values_NxD / len(values_NxD))
    return values_NxD @ (turn_DxD / np.sqrt(scale_D)) @ turn_DxD.T


def _falling(count: int) -> np.ndarray:
    """Shares that fall as 1 / (rank + 1)."""
    share = 1.0 / np.arange(2, count + 2)
    return share / share.sum()
