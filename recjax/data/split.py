"""How interactions are divided into what is trained on, tuned on and tested on."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from recjax.data.blocks import BLOCK, by_user_block
from recjax.data.dataset import Dataset, Interactions
from recjax.data.hashing import mix, to_uniform
from recjax.errors import ConfigError, DataError

TRAIN, VALID, TEST, FOLD_IN, UNUSED = range(5)
FITS = ("train", "train_and_valid")

_SAMPLE = 1 << 16
_PARTS = {"valid": VALID, "test": TEST}
_KNOWN = {"valid": (TRAIN, FOLD_IN), "test": (TRAIN, FOLD_IN, VALID)}


@dataclasses.dataclass(frozen=True)
class Split:
    """A division of a data set's interactions.

    Attributes:
      name: the kind of split (a key of `SPLITS`).
      part_M: int8, the part of each interaction: TRAIN, VALID, TEST, FOLD_IN or UNUSED.
      params: the fractions and the seed that it depends on.
      hash: 16 hex digits over the name, the params and every interaction's part.
    """

    name: str
    part_M: np.ndarray
    params: Mapping[str, Any]
    hash: str

    def known_M(self, part: str) -> np.ndarray:
        """Which interactions are known when `part` ('valid' or 'test') is asked for: bool [M].

        A query reads its own user's only. For 'test' those of VALID are known too.
        """
        known_M = np.zeros(len(self.part_M), bool)
        for code in _KNOWN[_check_part(part)]:
            known_M |= self.part_M == code
        return known_M

    def target_M(self, part: str) -> np.ndarray:
        """Which interactions are to be predicted in `part` ('valid' or 'test'): bool [M]."""
        return self.part_M == _PARTS[_check_part(part)]

    @property
    def trains_on_valid(self) -> bool:
        """Whether VALID was made TRAIN (`fit='train_and_valid'`), so that nothing validates."""
        return self.params.get("fit") == "train_and_valid"


def make_split(
    dataset: Dataset,
    name: str,
    *,
    valid: float = 0.1,
    test: float = 0.1,
    fold_in: float = 0.8,
    seed: int = 0,
    fit: str = "train",
) -> Split:
    """Divides the interactions of a data set by a named rule.

    What is random is a hash of the seed and of the ids, so it depends neither on the order of the
    file nor on which other users and items the data holds.

    * `random`: each interaction by itself, whatever its time.
    * `leave_one_out`: each user's last interaction is TEST and the one before VALID; users with
      fewer than 3 are all TRAIN.
    * `global_time`: the latest share `test` is TEST, the share `valid` before it VALID;
      interactions of one time stay together, on the later side of the cut.
    * `strong_generalisation`: a share of the users is held out for VALID and another for TEST;
      the first share `fold_in` of their interactions (by time, or random where there is no time)
      is FOLD_IN. Users with fewer than 2 interactions are all TRAIN. (Marlin, 2004.)
    * `predefined`: the parts that the data came with; where none is VALID, a random share `valid`
      of each user's TRAIN becomes VALID.

    Args:
      dataset: the data.
      name: one of the above.
      valid: share of VALID, above 0 and below 1.
      test: share of TEST, likewise; valid + test must be below 1.
      fold_in: strong_generalisation: share of a held-out user's interactions that is known.
      seed: of the hash.
      fit: `train`, or `train_and_valid` for a last fit once everything is chosen: the rule divides
        as ever, then VALID becomes TRAIN, and with it the FOLD_IN of users held out for VALID.

    Raises:
      ConfigError: if the name or `fit` is unknown or a share is out of range.
      DataError: if the data lacks what the rule needs, or TRAIN, VALID or TEST is left empty.
    """
    if name not in SPLITS:
        near = difflib.get_close_matches(name, SPLITS, n=3) or list(SPLITS)
        raise ConfigError(f"unknown split {name!r}; did you mean one of {near}?")
    rule, reads = SPLITS[name]
    given = {"valid": valid, "test": test, "fold_in": fold_in, "seed": seed}
    params = {key: given[key] for key in reads}
    for key in ("valid", "test", "fold_in"):
        if key in params and not 0 < params[key] < 1:
            raise ConfigError(f"split.{key} is {params[key]}; it must lie between 0 and 1")
    if {"valid", "test"} <= params.keys() and valid + test >= 1:
        raise ConfigError(f"split.valid + split.test is {valid + test:g}; it must be below 1")
    if fit not in FITS:
        raise ConfigError(f"split.fit is {fit!r}; it must be one of {FITS}")
    part_M = rule(dataset, **params)
    wanted = {"TRAIN": TRAIN, "VALID": VALID, "TEST": TEST}
    if fit == "train_and_valid":
        params["fit"] = fit
        part_M = _train_on_valid(dataset.interactions, part_M)
        del wanted["VALID"]
    for label, part in wanted.items():
        if not np.any(part_M == part):
            raise DataError(
                f"data set {dataset.name!r}: split {name!r} leaves {label} empty"
                f" ({dataset.interactions.size} interactions); use more data, another split.name"
                " or other shares"
            )
    digest = hashlib.sha256(json.dumps([name, params], sort_keys=True).encode())
    digest.update(part_M.data)
    return Split(name=name, part_M=part_M, params=params, hash=digest.hexdigest()[:16])


def _random(dataset: Dataset, valid: float, test: float, seed: int) -> np.ndarray:
    hash_of = _pair_hash(dataset, seed)
    return by_user_block(
        dataset.interactions,
        lambda inter, users: _by_share(to_uniform(hash_of(inter, users)), valid, test),
    )


def _leave_one_out(dataset: Dataset) -> np.ndarray:
    inter = dataset.interactions
    _require_time(dataset, "leave_one_out")
    last = inter.offsets[1:][np.diff(inter.offsets) >= 3] - 1
    part_M = np.full(inter.size, TRAIN, np.int8)
    part_M[last] = TEST
    part_M[last - 1] = VALID
    return part_M


def _global_time(dataset: Dataset, valid: float, test: float) -> np.ndarray:
    time_M = _require_time(dataset, "global_time")
    if time_M.size == 0:
        return np.zeros(0, np.int8)
    places = [int(time_M.size * (1 - valid - test)), int(time_M.size * (1 - test))]
    cuts = np.array([_nth(time_M, place) for place in places])
    codes = np.array([TRAIN, VALID, TEST], np.int8)

    def part_of(inter: Interactions, users: slice) -> np.ndarray:
        assert inter.time is not None
        return codes[np.searchsorted(cuts, inter.time, side="right")]

    return by_user_block(dataset.interactions, part_of)


def _strong_generalisation(
    dataset: Dataset, valid: float, test: float, fold_in: float, seed: int
) -> np.ndarray:
    every = dataset.interactions
    count_U = np.diff(every.offsets)
    part_U = _by_share(to_uniform(mix(hash_ids(dataset.users.ids), seed)), valid, test)
    part_U[count_U < 2] = TRAIN
    known_U = np.clip(np.rint(fold_in * count_U), 1, np.maximum(count_U - 1, 1))
    hash_of = _pair_hash(dataset, seed)

    def part_of(inter: Interactions, users: slice) -> np.ndarray:
        if every.time is None:
            rank_M = _rank_in_user(inter, hash_of(inter, users))
        else:
            rank_M = np.arange(inter.size) - inter.offsets[inter.user]
        part_M = part_U[users][inter.user]
        part_M[(part_M != TRAIN) & (rank_M < known_U[users][inter.user])] = FOLD_IN
        return part_M

    return by_user_block(every, part_of)


def _predefined(dataset: Dataset, valid: float, seed: int) -> np.ndarray:
    every = dataset.interactions
    if every.part is None:
        raise DataError(
            f"data set {dataset.name!r} came without a split; name its column as `part` in"
            " schema.json, or choose another split.name"
        )
    if every.size and not (TRAIN <= every.part.min() and every.part.max() <= UNUSED):
        raise DataError(
            f"data set {dataset.name!r}: parts must be codes {TRAIN} to {UNUSED}; found"
            f" {every.part.min()} to {every.part.max()}"
        )
    if np.any(every.part == VALID):
        return every.part.copy()
    # Rounded up or down by a hash of the user, so that short users are validated in proportion.
    chance_U = to_uniform(mix(hash_ids(dataset.users.ids), seed))
    hash_of = _pair_hash(dataset, seed)

    def part_of(inter: Interactions, users: slice) -> np.ndarray:
        assert inter.part is not None
        train_M = inter.part == TRAIN
        train = inter.select(train_M)
        count_U = np.diff(train.offsets)
        valid_U = np.floor(valid * count_U + chance_U[users])
        valid_U = np.minimum(valid_U, np.maximum(count_U - 1, 0))
        rank = _rank_in_user(train, hash_of(inter, users)[train_M])
        part_M = inter.part.copy()
        part_M[train_M] = np.where(rank < valid_U[train.user], VALID, TRAIN)
        return part_M

    return by_user_block(every, part_of)


def _train_on_valid(inter: Interactions, part_M: np.ndarray) -> np.ndarray:
    """VALID as TRAIN, and FOLD_IN too where its user has VALID and nothing to test."""

    def part_of(block: Interactions, users: slice) -> np.ndarray:
        part = part_M[int(inter.offsets[users.start]) : int(inter.offsets[users.stop])]
        valid_U, test_U = (
            np.bincount(block.user[part == code], minlength=block.num_users) > 0
            for code in (VALID, TEST)
        )
        of_valid = (part == FOLD_IN) & (valid_U & ~test_U)[block.user]
        return np.where((part == VALID) | of_valid, np.int8(TRAIN), part)

    return by_user_block(inter, part_of)


# Each rule, and the parameters that it reads.
SPLITS: dict[str, tuple[Callable[..., np.ndarray], tuple[str, ...]]] = {
    "random": (_random, ("valid", "test", "seed")),
    "leave_one_out": (_leave_one_out, ()),
    "global_time": (_global_time, ("valid", "test")),
    "strong_generalisation": (_strong_generalisation, ("valid", "test", "fold_in", "seed")),
    "predefined": (_predefined, ("valid", "seed")),
}


def _check_part(part: str) -> str:
    if part not in _PARTS:
        raise ConfigError(f"part is {part!r}; it must be one of {list(_PARTS)}")
    return part


def _require_time(dataset: Dataset, name: str) -> np.ndarray:
    if dataset.interactions.time is None:
        raise DataError(
            f"data set {dataset.name!r} has no time, which split {name!r} needs; use split.name"
            " 'random' or 'strong_generalisation', or name its column as `time` in schema.json"
        )
    return dataset.interactions.time


def _by_share(uniform: np.ndarray, valid: float, test: float) -> np.ndarray:
    """TEST for the lowest share `test` of the unit interval, VALID for the next, else TRAIN."""
    codes = np.array([TEST, VALID, TRAIN], np.int8)
    return codes[np.searchsorted([test, test + valid], uniform, "right")]


def _rank_in_user(inter: Interactions, key_M: np.ndarray) -> np.ndarray:
    """Each interaction's place among its user's when they are sorted by key."""
    order = np.lexsort((key_M, inter.user))
    rank_M = np.empty(inter.size, np.int64)
    rank_M[order] = np.arange(inter.size) - inter.offsets[inter.user]
    return rank_M


def _nth(values: np.ndarray, place: int) -> float:
    """The value at a place of the sorted values."""
    if len(values) > 4 * BLOCK:  # most lie outside of bounds that a sample gives
        sample = np.sort(values[:: len(values) // _SAMPLE])
        middle, margin = place * len(sample) // len(values), len(sample) // 32
        low = sample[max(middle - margin, 0)]
        high = sample[min(middle + margin, len(sample) - 1)]
        blocks = [values[first : first + BLOCK] for first in range(0, len(values), BLOCK)]
        below = sum(int((block < low).sum()) for block in blocks)
        inside = np.concatenate([block[(block >= low) & (block <= high)] for block in blocks])
        if below <= place < below + len(inside):
            return np.partition(inside, place - below)[place - below]
    return np.partition(values, place)[place]


def _pair_hash(dataset: Dataset, seed: int) -> Callable[[Interactions, slice], np.ndarray]:
    """Of the interactions of a run of users, a hash of each.

    It is of the user's id, the item's id and how often the pair occurred before.
    """
    user_U, item_N = mix(hash_ids(dataset.users.ids), seed), hash_ids(dataset.items.ids)

    def hash_of(inter: Interactions, users: slice) -> np.ndarray:
        pair_M = inter.user.astype(np.int64) * len(item_N) + inter.item
        order = np.argsort(pair_M, kind="stable")
        first = np.r_[True, np.diff(pair_M[order]) != 0][: inter.size]
        place = np.arange(inter.size)
        repeat_M = np.empty(inter.size, np.int64)
        repeat_M[order] = place - np.maximum.accumulate(np.where(first, place, 0))
        return mix(mix(user_U[users][inter.user], item_N[inter.item]), repeat_M)

    return hash_of


def hash_ids(ids: np.ndarray) -> np.ndarray:
    """uint64 per id: of its value for integers, of its characters for strings."""
    if ids.dtype.kind in "iu":
        return mix(ids.astype(np.uint64), 0)
    text = np.ascontiguousarray(ids, dtype=np.str_)
    state = np.zeros(len(text), np.uint64)
    for characters in text.view(np.uint32).reshape(len(text), text.itemsize // 4).T:
        # Padding is skipped: an id's hash must not depend on the longest id of the table.
        state = np.where(characters == 0, state, mix(state, characters))
    return state
