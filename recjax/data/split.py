"""How interactions are divided into what is trained on, tuned on and tested on."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from recjax.data.dataset import Dataset, Interactions
from recjax.data.hashing import mix, to_uniform
from recjax.errors import ConfigError, DataError

TRAIN, VALID, TEST, FOLD_IN, UNUSED = range(5)
FITS = ("train", "train_and_valid")

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
        return np.isin(self.part_M, _KNOWN[_check_part(part)])

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
    part_M = rule(dataset, **params).astype(np.int8)
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
    digest.update(part_M.tobytes())
    return Split(name=name, part_M=part_M, params=params, hash=digest.hexdigest()[:16])


def _random(dataset: Dataset, valid: float, test: float, seed: int) -> np.ndarray:
    return _by_share(to_uniform(_pair_hash(dataset, seed)), valid, test)


def _leave_one_out(dataset: Dataset) -> np.ndarray:
    inter = dataset.interactions
    _require_time(dataset, "leave_one_out")
    last = inter.offsets[1:][np.diff(inter.offsets) >= 3] - 1
    part_M = np.full(inter.size, TRAIN)
    part_M[last] = TEST
    part_M[last - 1] = VALID
    return part_M


def _global_time(dataset: Dataset, valid: float, test: float) -> np.ndarray:
    time_M = _require_time(dataset, "global_time")
    if time_M.size == 0:
        return np.zeros(0)
    cuts = np.sort(time_M)[[int(time_M.size * (1 - valid - test)), int(time_M.size * (1 - test))]]
    return np.array([TRAIN, VALID, TEST])[np.searchsorted(cuts, time_M, side="right")]


def _strong_generalisation(
    dataset: Dataset, valid: float, test: float, fold_in: float, seed: int
) -> np.ndarray:
    inter = dataset.interactions
    count_U = np.diff(inter.offsets)
    part_U = _by_share(to_uniform(mix(_id_hash(dataset.users.ids), seed)), valid, test)
    part_U[count_U < 2] = TRAIN
    if inter.time is None:
        rank_M = _rank_in_user(inter, _pair_hash(dataset, seed))
    else:
        rank_M = np.arange(inter.size) - inter.offsets[inter.user]
    known_U = np.clip(np.rint(fold_in * count_U), 1, np.maximum(count_U - 1, 1))
    part_M = part_U[inter.user]
    part_M[(part_M != TRAIN) & (rank_M < known_U[inter.user])] = FOLD_IN
    return part_M


def _predefined(dataset: Dataset, valid: float, seed: int) -> np.ndarray:
    inter = dataset.interactions
    if inter.part is None:
        raise DataError(
            f"data set {dataset.name!r} came without a split; name its column as `part` in"
            " schema.json, or choose another split.name"
        )
    if inter.size and not (TRAIN <= inter.part.min() and inter.part.max() <= UNUSED):
        raise DataError(
            f"data set {dataset.name!r}: parts must be codes {TRAIN} to {UNUSED}; found"
            f" {inter.part.min()} to {inter.part.max()}"
        )
    part_M = inter.part.copy()
    if np.any(part_M == VALID):
        return part_M
    train_M = part_M == TRAIN
    train = inter.select(train_M)
    count_U = np.diff(train.offsets)
    # Rounded up or down by a hash of the user, so that short users are validated in proportion.
    chance_U = to_uniform(mix(_id_hash(dataset.users.ids), seed))
    valid_U = np.minimum(np.floor(valid * count_U + chance_U), np.maximum(count_U - 1, 0))
    rank = _rank_in_user(train, _pair_hash(dataset, seed)[train_M])
    part_M[train_M] = np.where(rank < valid_U[train.user], VALID, TRAIN)
    return part_M


def _train_on_valid(inter: Interactions, part_M: np.ndarray) -> np.ndarray:
    """VALID as TRAIN, and FOLD_IN too where its user has VALID and nothing to test."""
    valid_U, test_U = (
        np.bincount(inter.user[part_M == part], minlength=inter.num_users) > 0
        for part in (VALID, TEST)
    )
    of_valid_M = (part_M == FOLD_IN) & (valid_U & ~test_U)[inter.user]
    return np.where((part_M == VALID) | of_valid_M, np.int8(TRAIN), part_M)


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
    return np.array([TEST, VALID, TRAIN])[np.searchsorted([test, test + valid], uniform, "right")]


def _rank_in_user(inter: Interactions, key_M: np.ndarray) -> np.ndarray:
    """Each interaction's place among its user's when they are sorted by key."""
    order = np.lexsort((key_M, inter.user))
    rank_M = np.empty(inter.size, np.int64)
    rank_M[order] = np.arange(inter.size) - inter.offsets[inter.user]
    return rank_M


def _pair_hash(dataset: Dataset, seed: int) -> np.ndarray:
    """A hash of each interaction's user id, item id and how often the pair occurred before."""
    inter = dataset.interactions
    pair_M = inter.user.astype(np.int64) * dataset.items.size + inter.item
    order = np.argsort(pair_M, kind="stable")
    first = np.r_[True, np.diff(pair_M[order]) != 0][: inter.size]
    place = np.arange(inter.size)
    repeat_M = np.empty(inter.size, np.int64)
    repeat_M[order] = place - np.maximum.accumulate(np.where(first, place, 0))
    user_M = mix(_id_hash(dataset.users.ids), seed)[inter.user]
    return mix(mix(user_M, _id_hash(dataset.items.ids)[inter.item]), repeat_M)


def _id_hash(ids: np.ndarray) -> np.ndarray:
    """uint64 per id: of its value for integers, of its characters for strings."""
    if ids.dtype.kind in "iu":
        return mix(ids.astype(np.uint64), 0)
    text = np.ascontiguousarray(ids, dtype=np.str_)
    state = np.zeros(len(text), np.uint64)
    for characters in text.view(np.uint32).reshape(len(text), text.itemsize // 4).T:
        # Padding is skipped: an id's hash must not depend on the longest id of the table.
        state = np.where(characters == 0, state, mix(state, characters))
    return state
