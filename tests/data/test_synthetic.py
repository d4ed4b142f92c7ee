"""The planted data: drawn from the world's p(i | x), and each knob moves what it names."""

import dataclasses

import numpy as np
import pytest

from recjax.data.split import FOLD_IN, TEST, TRAIN, VALID, make_split
from recjax.data.synthetic import make_synthetic
from recjax.errors import ConfigError

SMALL = {"users": 200, "items": 120, "interactions_per_user": 12}


@pytest.fixture(scope="module")
def data():
    return make_synthetic(**SMALL)


def _row(*history: int) -> np.ndarray:
    return np.array([history], np.int32)


@pytest.mark.parametrize("knobs", [{}, {"user_features": 0.0, "history": 1.0, "window": 1}])
def test_the_data_are_drawn_from_log_prob(knobs):
    data = make_synthetic(**SMALL, **knobs)
    world, inter = data.world, data.interactions
    place_M = np.arange(inter.size) - inter.offsets[inter.user]
    history_MxL = np.full((inter.size, place_M.max()), -1, np.int32)
    for row, place in enumerate(place_M):
        history_MxL[row, history_MxL.shape[1] - place :] = inter.item[row - place : row]
    train_MxN = np.exp(world.log_prob(inter.user, history_MxL, released="train"))
    all_MxN = np.exp(world.log_prob(inter.user, history_MxL))
    test_M = inter.part == TEST
    p_MxN = np.where(test_M[:, None], all_MxN, train_MxN)
    np.testing.assert_allclose(p_MxN.sum(1), 1, rtol=1e-12)
    # The chance given to what was drawn, and each item's count, within 4 standard errors.
    excess_M = p_MxN[np.arange(inter.size), inter.item] - np.sum(p_MxN**2, axis=1)
    variance_M = np.sum(p_MxN**3, axis=1) - np.sum(p_MxN**2, axis=1) ** 2
    for part_M in (test_M, ~test_M):
        assert abs(excess_M[part_M].sum()) < 4 * np.sqrt(variance_M[part_M].sum())
    count_N = np.bincount(inter.item, minlength=data.items.size)
    error_N = np.sqrt(np.sum(p_MxN * (1 - p_MxN), axis=0))
    assert np.all(np.abs(count_N - p_MxN.sum(0)) < 4 * error_N)


def test_unobserved_1_is_popularity_alone():
    world = make_synthetic(**SMALL, unobserved=1.0, repeats=True).world
    p_BxN = world.log_prob(np.arange(5), np.arange(10, dtype=np.int32).reshape(5, 2))
    np.testing.assert_allclose(p_BxN, np.tile(world.log_popularity_N, (5, 1)), rtol=1e-12)


def test_history_0_makes_the_history_irrelevant():
    user = np.array([3])
    p = [
        make_synthetic(**SMALL, history=share, user_features=0.4, repeats=True).world.log_prob
        for share in (0.0, 0.6)
    ]
    np.testing.assert_array_equal(p[0](user, _row(1, 2)), p[0](user, _row(8, 9)))
    assert np.any(p[1](user, _row(1, 2)) != p[1](user, _row(8, 9)))


def test_user_features_0_makes_the_user_irrelevant():
    history = np.repeat(_row(1, 2), 2, axis=0)
    for share, same in ((0.0, True), (0.4, False)):
        world = make_synthetic(**SMALL, user_features=share, history=1 - share).world
        first, second = world.log_prob(np.array([3, 4]), history)
        assert np.array_equal(first, second) == same


def test_user_features_are_a_function_of_the_columns():
    data = make_synthetic(**SMALL | {"users": 2000})
    columns = data.users.columns
    rows = np.stack([columns["age"].values, columns["country"].codes, columns["device"].codes])
    distinct, row_U = np.unique(rows, axis=1, return_inverse=True)
    assert distinct.shape[1] < 1800
    latent_UxD = data.world.user_latent_UxD
    _, first = np.unique(row_U, return_index=True)
    np.testing.assert_allclose(latent_UxD, latent_UxD[first][row_U], atol=1e-12)


def test_what_features_and_history_leave_is_a_taste_of_the_users_own():
    world = make_synthetic(**SMALL, user_features=0.0, history=0.0).world
    z_BxD = world.interest(np.arange(200), np.zeros((200, 0), np.int32))
    np.testing.assert_allclose(z_BxD, world.taste_UxD)
    shared = dataclasses.replace(world, user_features=0.5, history=0.5)
    assert not np.any(shared.interest(np.arange(2), np.zeros((2, 0), np.int32)) == z_BxD[:2])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_item_features_is_the_share_of_the_latents_that_categories_explain(share):
    data = make_synthetic(**SMALL | {"items": 2000}, item_features=share)
    bag, latent_NxD = data.items.columns["categories"], data.world.item_latent_NxD
    np.testing.assert_allclose(np.cov(latent_NxD.T, bias=True), np.eye(8), atol=1e-9)
    count_N = np.diff(bag.offsets)
    many_NxK = np.zeros((2000, len(bag.vocab)))
    many_NxK[np.repeat(np.arange(2000), count_N), bag.codes] = np.repeat(count_N**-0.5, count_N)
    design = np.column_stack([many_NxK, np.ones(2000)])
    fit, *_ = np.linalg.lstsq(design, latent_NxD, rcond=None)
    explained = 1 - np.mean((latent_NxD - design @ fit) ** 2)
    assert explained == pytest.approx(share, abs=0.03)
    if share == 1.0:
        assert explained == pytest.approx(1.0, abs=1e-9)


def test_popularity_is_a_power_law():
    data = make_synthetic(**SMALL | {"users": 3000}, unobserved=1.0, repeats=True, new_items=0.0)
    log_popularity = np.sort(data.world.log_popularity_N)[::-1]
    slope = np.polyfit(np.log(np.arange(1, 121)), log_popularity, 1)[0]
    assert slope == pytest.approx(-0.8)
    count = np.sort(np.bincount(data.interactions.item, minlength=120))[::-1]
    assert np.polyfit(np.log(np.arange(1, 121)), np.log(count), 1)[0] == pytest.approx(
        -0.8, abs=0.05
    )


def test_new_users_and_new_items_appear_only_in_test(data):
    inter, world = data.interactions, data.world
    new_user_M = inter.user >= 190
    assert set(inter.part[new_user_M]) == {FOLD_IN, TEST}
    assert set(inter.part[~new_user_M]) == {TRAIN, VALID, TEST}
    new_item_M = ~world.released_N[inter.item]
    assert np.sum(~world.released_N) == 12 and np.any(new_item_M)
    assert set(inter.part[new_item_M]) == {TEST}


def test_each_user_ends_in_valid_and_test(data):
    inter = data.interactions
    last = inter.offsets[1:] - 1
    assert np.all(inter.part[last] == TEST) and np.sum(inter.part == TEST) == 200
    assert np.all(inter.part[last[:190] - 1] == VALID) and np.sum(inter.part == VALID) == 190


def test_time_grows_within_a_user_and_test_is_later_than_all_else(data):
    inter = data.interactions
    same_user = inter.user[1:] == inter.user[:-1]
    assert np.all(np.diff(inter.time)[same_user] > 0)
    latest = [inter.time[inter.part == part] for part in (TRAIN, VALID, FOLD_IN, TEST)]
    assert latest[3].min() > max(time.max() for time in latest[:3])
    assert latest[2].min() > max(latest[0].max(), latest[1].max())
    np.testing.assert_array_equal(inter.time, np.floor(inter.time))


def test_no_item_is_met_twice_unless_repeats(data):
    def repeated(inter):
        return inter.size - len(np.unique(inter.user * 120 + inter.item))

    assert repeated(data.interactions) == 0
    assert repeated(make_synthetic(**SMALL, repeats=True).interactions) > 0


def test_watch_time_is_longer_where_the_interest_is_higher(data):
    inter, world = data.interactions, data.world
    row = inter.offsets[1:] - 1
    history = [inter.item[start:end] for start, end in zip(inter.offsets[:-1], row, strict=True)]
    z = np.concatenate([world.interest(np.array([u]), h[None]) for u, h in enumerate(history)])
    score = np.sum(z * world.item_latent_NxD[inter.item[row]], axis=1)
    watch_time = inter.columns["watch_time"].values[row]
    share = watch_time / data.items.columns["length"].values[inter.item[row]]
    assert np.all((share >= 0) & (share <= 1.01))
    assert np.corrcoef(score, share)[0, 1] > 0.7


def test_the_schema_names_every_column(data):
    for side, columns in (
        ("user", data.users.columns),
        ("item", data.items.columns),
        ("context", data.interactions.columns),
    ):
        assert {f.name for f in data.schema.of_side(side)} == set(columns)
    assert len(data.titles) == len(set(data.titles)) == 120
    categories = data.items.columns["categories"]
    first = "/".join(categories.vocab[categories.codes[: categories.offsets[1]]])
    assert data.titles[0] == f"{first} 1"


def test_the_seed_decides_everything(data):
    again, other = make_synthetic(**SMALL), make_synthetic(**SMALL, seed=1)
    assert again.hash == data.hash != other.hash
    np.testing.assert_array_equal(again.world.item_latent_NxD, data.world.item_latent_NxD)


def test_impressions_are_items_that_could_have_been_chosen_and_were_not(data):
    shown = make_synthetic(**SMALL, impressions=5)
    inter, world = shown.interactions, shown.world
    negatives = inter.negatives
    np.testing.assert_array_equal(negatives.offsets, 5 * np.arange(inter.size + 1))
    for row, one in enumerate(negatives.items.reshape(-1, 5)):
        met = inter.item[inter.offsets[inter.user[row]] : row + 1]
        assert len(set(one)) == 5 and not set(one) & set(met)
        assert inter.part[row] == TEST or world.released_N[one].all()
    assert not world.released_N[negatives.items].all()
    assert shown.schema == dataclasses.replace(data.schema, negatives="negatives")
    assert shown.hash != data.hash and data.interactions.negatives is None
    for name in ("user", "item", "time", "part"):
        np.testing.assert_array_equal(getattr(inter, name), getattr(data.interactions, name))


def test_the_hash_of_a_known_world_does_not_change():
    assert make_synthetic(users=300, items=200, interactions_per_user=12, seed=3).hash == (
        "c3a2aaa55db4237d"
    ), "results are published by this hash: change it on purpose only"


def test_the_predefined_split_is_the_worlds(data):
    np.testing.assert_array_equal(make_split(data, "predefined").part_M, data.interactions.part)


def test_the_oracle_is_far_above_popularity():
    data = make_synthetic(users=600, items=400, interactions_per_user=15)
    inter = data.interactions
    test = np.flatnonzero(inter.part == TEST)
    history_QxL = np.full((600, np.diff(inter.offsets).max()), -1, np.int32)
    for user, row in enumerate(test):
        known = inter.item[inter.offsets[user] : row]
        history_QxL[user, history_QxL.shape[1] - len(known) :] = known

    def recall(score_QxN):
        target_Q = score_QxN[np.arange(600), inter.item[test]]
        return np.mean(np.sum(score_QxN > target_Q[:, None], axis=1) < 10)

    oracle_QxN = data.world.log_prob(np.arange(600), history_QxL)
    popularity_N = np.bincount(inter.item[inter.part == TRAIN], minlength=400)
    popularity_QxN = np.where(np.isfinite(oracle_QxN), popularity_N, -1)
    assert recall(oracle_QxN) > 2 * recall(popularity_QxN) > 0


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"user_features": 0.7, "history": 0.6}, "user_features \\+ history is 1.3"),
        ({"unobserved": -0.1}, "unobserved is -0.1"),
        ({"interactions_per_user": 2}, "interactions_per_user is 2; here it must be at least 4"),
        ({"items": 50}, "items is 50, of which new_items=0.1 leaves 45 .* at least 120"),
        ({"impressions": -1}, "impressions is -1; here it must be at least 0"),
        ({"impressions": 2000}, "items is 1500, .* leaves 1350 .* at least 2092"),
    ],
)
def test_a_knob_out_of_range_is_named(knobs, message):
    with pytest.raises(ConfigError, match=message):
        make_synthetic(**knobs)
