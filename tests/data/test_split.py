"""Splits: complete, seeded, independent of the file's order, and honest about time."""

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recjax.data.dataset import Dataset, Interactions, Table
from recjax.data.schema import Schema
from recjax.data.split import FOLD_IN, SPLITS, TEST, TRAIN, UNUSED, VALID, make_split
from recjax.errors import ConfigError, DataError


def _dataset(user, item, time=None, part=None, user_ids=None, item_ids=None) -> Dataset:
    user, item = np.asarray(user, np.int64), np.asarray(item, np.int64)
    user_ids = np.arange(user.max(initial=-1) + 1) if user_ids is None else user_ids
    item_ids = np.arange(item.max(initial=-1) + 1) if item_ids is None else item_ids
    return Dataset(
        name="toy",
        schema=Schema(),
        users=Table(user_ids),
        items=Table(item_ids),
        interactions=Interactions.build(
            user,
            item,
            len(user_ids),
            time=None if time is None else np.asarray(time, np.float64),
            part=None if part is None else np.asarray(part),
        ),
    )


def _random_dataset(seed: int, size: int = 600, *, timed: bool = True) -> Dataset:
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 60, size), rng.integers(0, 30, size)
    # Few distinct times, so that ties are common; the first rows make every user appear.
    user[:60] = np.arange(60)
    return _dataset(user, item, time=rng.integers(0, 200, size) if timed else None)


seeds = st.integers(0, 2**32 - 1)
fast = settings(max_examples=25, deadline=None)


@fast
@given(data_seed=seeds, seed=seeds, name=st.sampled_from(sorted(SPLITS.keys() - {"predefined"})))
def test_every_interaction_is_in_one_part_and_targets_are_never_known(data_seed, seed, name):
    data = _random_dataset(data_seed)
    split = make_split(data, name, valid=0.2, test=0.2, seed=seed)
    assert split.part_M.dtype == np.int8 and split.part_M.shape == (600,)
    assert set(split.part_M) <= {TRAIN, VALID, TEST, FOLD_IN}
    for part in ("valid", "test"):
        assert np.any(split.target_M(part))
        assert not np.any(split.target_M(part) & split.known_M(part))
    assert not np.any(split.target_M("valid") & split.target_M("test"))
    assert not np.any(split.known_M("valid") & split.target_M("test"))
    again = make_split(data, name, valid=0.2, test=0.2, seed=seed)
    np.testing.assert_array_equal(split.part_M, again.part_M)
    assert split.hash == again.hash


@fast
@given(data_seed=seeds, timed=st.booleans(), name=st.sampled_from(["random", "strong", "parts"]))
def test_hashed_splits_depend_on_ids_and_not_on_the_order_of_the_file(data_seed, timed, name):
    rng = np.random.default_rng(data_seed)
    size, users, items = 400, 40, 25
    # Pairs are distinct, and so are times, for nothing else tells equal rows apart.
    pair = rng.choice(users * items, size, replace=False)
    user, item, when = pair // items, pair % items, rng.permutation(size)
    user_ids = np.array([f"u{'x' * (u % 7)}{u}" for u in range(users)])

    def parts(order, user_order):
        position = np.argsort(user_order)
        data = _dataset(
            position[user[order]],
            item[order],
            time=when[order] if timed else None,
            part=np.zeros(size) if name != "parts" else np.where(item[order] == 0, TEST, TRAIN),
            user_ids=user_ids[user_order],
            item_ids=np.arange(100, 100 + items),
        )
        full = {"strong": "strong_generalisation", "parts": "predefined"}.get(name, name)
        split = make_split(data, full, valid=0.25, test=0.25, seed=3)
        inter = data.interactions
        ids = data.users.ids[inter.user]
        return set(zip(ids.tolist(), inter.item.tolist(), split.part_M.tolist(), strict=True))

    shuffled = parts(rng.permutation(size), rng.permutation(users))
    assert parts(np.arange(size), np.arange(users)) == shuffled


@fast
@given(data_seed=seeds)
def test_leave_one_out_holds_out_the_last_two_by_time(data_seed):
    data = _random_dataset(data_seed)
    inter = data.interactions
    part_M = make_split(data, "leave_one_out").part_M
    for start, end in zip(inter.offsets[:-1], inter.offsets[1:], strict=True):
        mine = part_M[start:end].tolist()
        assert mine == ([TRAIN] * (len(mine) - 2) + [VALID, TEST] if len(mine) >= 3 else
                        [TRAIN] * len(mine))  # fmt: skip


def test_leave_one_out_breaks_ties_in_time_by_the_order_of_the_file():
    data = _dataset([0, 0, 0, 0], [3, 1, 2, 0], time=[5, 5, 5, 4])
    assert data.interactions.item.tolist() == [0, 3, 1, 2]
    assert make_split(data, "leave_one_out").part_M.tolist() == [TRAIN, TRAIN, VALID, TEST]


@fast
@given(data_seed=seeds, valid=st.floats(0.05, 0.45), test=st.floats(0.05, 0.45))
def test_global_time_has_no_training_after_the_cut_and_parts_no_tie(data_seed, valid, test):
    data = _random_dataset(data_seed)
    part_M = make_split(data, "global_time", valid=valid, test=test).part_M
    time_M = data.interactions.time
    assert time_M[part_M == TRAIN].max() < time_M[part_M == VALID].min()
    assert time_M[part_M == VALID].max() < time_M[part_M == TEST].min()
    # Ties go to the later side, so a part can only grow, by less than one tie at its start.
    assert np.mean(part_M == TEST) >= test - 1e-9
    assert np.mean(part_M == TEST) < test + np.unique(time_M, return_counts=True)[1].max() / 600


@fast
@given(data_seed=seeds, timed=st.booleans(), fold_in=st.floats(0.05, 0.95))
def test_strong_generalisation_never_trains_on_a_held_out_user(data_seed, timed, fold_in):
    data = _random_dataset(data_seed, timed=timed)
    inter = data.interactions
    split = make_split(data, "strong_generalisation", valid=0.2, test=0.2, fold_in=fold_in)
    for start, end in zip(inter.offsets[:-1], inter.offsets[1:], strict=True):
        mine = split.part_M[start:end]
        assert set(mine) in ({TRAIN}, {FOLD_IN, VALID}, {FOLD_IN, TEST})
        if TRAIN not in mine:
            known = np.clip(np.rint(fold_in * len(mine)), 1, len(mine) - 1)
            assert np.sum(mine == FOLD_IN) == known
            if timed:
                assert np.all(mine[: int(known)] == FOLD_IN)


def test_strong_generalisation_trains_on_users_of_one_interaction():
    user = np.concatenate([np.arange(100), np.repeat(np.arange(100, 200), 2)])
    part_M = make_split(_dataset(user, user % 7), "strong_generalisation", test=0.4).part_M
    assert set(part_M[:100]) == {TRAIN}


def test_held_out_users_stay_held_out_when_users_are_added():
    part_U = [
        make_split(
            _dataset(np.repeat(np.arange(users), 4), np.tile(np.arange(4), users)),
            "strong_generalisation",
        ).part_M
        for users in (200, 300)
    ]
    np.testing.assert_array_equal(part_U[0], part_U[1][:800])


@pytest.mark.parametrize("name", ["random", "strong_generalisation"])
def test_shares_are_met_and_the_seed_matters(name):
    rng = np.random.default_rng(0)
    data = _dataset(np.repeat(np.arange(2000), 10), rng.integers(0, 500, 20_000))
    first, second = (make_split(data, name, valid=0.1, test=0.2, seed=s) for s in (0, 1))
    held_out = 0.2 if name == "strong_generalisation" else 1.0  # all but the fold-in
    assert np.mean(first.part_M == VALID) == pytest.approx(0.1 * held_out, abs=0.015)
    assert np.mean(first.part_M == TEST) == pytest.approx(0.2 * held_out, abs=0.015)
    assert first.hash != second.hash
    # Two seeds agree as often as independent draws do.
    agree = np.mean((first.part_M == TEST) & (second.part_M == TEST))
    expected = np.mean(first.part_M == TEST) * np.mean(second.part_M == TEST)
    assert agree == pytest.approx(expected, abs=0.02)


def test_repeated_pairs_are_split_one_by_one():
    data = _dataset(np.zeros(1000, int), np.zeros(1000, int))
    part_M = make_split(data, "random").part_M
    assert np.mean(part_M == TEST) == pytest.approx(0.1, abs=0.04)


def test_predefined_is_taken_as_it_is():
    part = [TRAIN, FOLD_IN, UNUSED, VALID, TEST, TRAIN]
    data = _dataset([0, 0, 0, 1, 1, 1], range(6), part=part)
    split = make_split(data, "predefined")
    assert split.part_M.tolist() == part
    assert split.known_M("valid").tolist() == [True, True, False, False, False, True]
    assert split.known_M("test").tolist() == [True, True, False, True, False, True]
    assert split.target_M("valid").tolist() == [False, False, False, True, False, False]
    assert split.target_M("test").tolist() == [False, False, False, False, True, False]


def test_predefined_without_valid_takes_a_share_of_each_users_training():
    size = 50
    user = np.repeat(np.arange(200), size)
    part = np.tile(np.where(np.arange(size) < 10, TEST, TRAIN), 200)
    data = _dataset(user, np.tile(np.arange(size), 200), part=part)
    part_UxT = make_split(data, "predefined", valid=0.1).part_M.reshape(200, size)
    assert np.all(part_UxT[:, :10] == TEST)
    assert set(np.sum(part_UxT == VALID, axis=1)) == {4}
    assert np.mean(part_UxT[:, 10] == VALID) == pytest.approx(0.1, abs=0.07)


def test_predefined_validates_short_users_in_proportion_and_leaves_each_some_training():
    part = np.tile([TRAIN, TRAIN, TEST], 3000)
    data = _dataset(np.repeat(np.arange(3000), 3), np.tile(np.arange(3), 3000), part=part)
    part_UxT = make_split(data, "predefined", valid=0.1).part_M.reshape(3000, 3)
    assert np.mean(part_UxT[:, :2] == VALID) == pytest.approx(0.1, abs=0.015)
    assert np.all(np.any(part_UxT == TRAIN, axis=1))


def test_string_ids_hash_by_their_text_whatever_the_longest_is():
    def parts(ids):
        user = np.repeat(np.arange(len(ids)), 3)
        data = _dataset(user, np.tile(np.arange(3), len(ids)), user_ids=np.array(ids))
        return make_split(data, "random", valid=0.3, test=0.3).part_M

    ids = [f"user-{u}" for u in range(50)]
    np.testing.assert_array_equal(parts(ids), parts([*ids, "x" * 40])[:150])


def test_the_hash_of_a_known_split_does_not_change():
    data = _dataset(np.repeat(np.arange(20), 5), np.tile(np.arange(5), 20))
    got = make_split(data, "random", valid=0.1, test=0.1, seed=0).hash
    assert got == "a8951e4c123a2c8f", (
        "results are published by this hash: change it on purpose only"
    )


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_the_last_fit_trains_on_what_validated_and_tests_on_the_same(name):
    data = _random_dataset(3)
    if name == "predefined":
        part_M = make_split(data, "random").part_M
        part_M[part_M == VALID] = TRAIN
        inter = dataclasses.replace(data.interactions, part=part_M)
        data = dataclasses.replace(data, interactions=inter)
    chosen = make_split(data, name, valid=0.2, test=0.2)
    last = make_split(data, name, valid=0.2, test=0.2, fit="train_and_valid")
    np.testing.assert_array_equal(last.target_M("test"), chosen.target_M("test"))
    np.testing.assert_array_equal(last.known_M("test"), chosen.known_M("test"))
    assert not last.target_M("valid").any() and chosen.target_M("valid").any()
    assert np.all(last.part_M[(chosen.part_M == TRAIN) | (chosen.part_M == VALID)] == TRAIN)
    of_test = np.isin(data.interactions.user, data.interactions.user[chosen.part_M == TEST])
    folded = chosen.part_M == FOLD_IN
    assert np.all(last.part_M[folded] == np.where(of_test[folded], FOLD_IN, TRAIN))
    assert last.trains_on_valid and not chosen.trains_on_valid
    assert last.params == {**chosen.params, "fit": "train_and_valid"}
    assert last.hash != chosen.hash


def test_the_last_fit_needs_no_validation():
    data = _dataset([0, 0], [0, 1], part=[TRAIN, TEST])
    split = make_split(data, "predefined", fit="train_and_valid")
    assert split.part_M.tolist() == [TRAIN, TEST]


@pytest.mark.parametrize("name", ["leave_one_out", "global_time"])
def test_a_split_by_time_of_data_without_time_names_the_remedy(name):
    with pytest.raises(DataError, match="'toy' has no time.*'random'"):
        make_split(_dataset([0, 0, 0], [0, 1, 2]), name)


def test_predefined_without_parts_names_the_remedy():
    with pytest.raises(DataError, match="'toy' came without a split.*schema.json"):
        make_split(_dataset([0, 0, 0], [0, 1, 2]), "predefined")


def test_predefined_refuses_other_codes():
    with pytest.raises(DataError, match="codes 0 to 4; found 0 to 7"):
        make_split(_dataset([0, 0], [0, 1], part=[0, 7]), "predefined")


@pytest.mark.parametrize(
    ("data", "name", "empty"),
    [
        (_dataset([0, 0, 1], [0, 1, 2], time=[1, 2, 3]), "leave_one_out", "VALID"),
        (_dataset([0, 0, 1], [0, 1, 2], time=[5, 5, 5]), "global_time", "TRAIN"),
        (_dataset([0, 0], [0, 1], part=[TRAIN, VALID]), "predefined", "TEST"),
        (_dataset([], [], time=[]), "global_time", "TRAIN"),
        (_dataset([], []), "random", "TRAIN"),
        (_dataset([], []), "strong_generalisation", "TRAIN"),
    ],
)
def test_an_empty_part_is_an_error(data, name, empty):
    with pytest.raises(DataError, match=f"'toy': split '{name}' leaves {empty} empty"):
        make_split(data, name)


def test_bad_parameters_are_named():
    data = _random_dataset(0)
    with pytest.raises(ConfigError, match="did you mean one of \\['leave_one_out'\\]"):
        make_split(data, "leave_one")
    with pytest.raises(ConfigError, match="split.test is 0.0"):
        make_split(data, "random", test=0.0)
    with pytest.raises(ConfigError, match="valid \\+ split.test is 1.1"):
        make_split(data, "random", valid=0.6, test=0.5)
    with pytest.raises(ConfigError, match="split.fit is 'all'.*'train_and_valid'"):
        make_split(data, "random", fit="all")
    with pytest.raises(ConfigError, match="part is 'train'"):
        make_split(data, "random").known_M("train")


def test_a_million_interactions_split_in_seconds():
    rng = np.random.default_rng(0)
    size = 1_000_000
    data = _dataset(
        rng.integers(0, 6000, size), rng.integers(0, 4000, size), time=rng.integers(0, 10**9, size)
    )
    for name in SPLITS.keys() - {"predefined"}:
        start = time.perf_counter()
        make_split(data, name)
        assert time.perf_counter() - start < 3  # about 0.2 s where nothing else runs
