"""The synthetic data that recjax and its peers are measured on: W1 to W5, the same for everyone.

    python experiments/benchmarks/workload.py --data=DIR

Needs NumPy alone, so that a peer's own environment can read it. Drawn once from fixed seeds and
kept as .npz files, in `DIR/full` or `DIR/smoke`:

| file | what |
|---|---|
| interactions.npz | W1, W2, W4: users, items, their features, interactions; held-out pairs for W4 |
| labels_big.npz, labels_huge.npz | labels of the same queries in larger catalogues: W2, W3 |
| ranking.npz | W5: query and item vectors, and the items that each query has seen |

Popularity falls as 1 / (rank + 10), and an item's id is its rank. Users and items belong to 50
clusters: 60 % of a user's items come from its own. Lists are padded with -1 on the right.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

SEED = 20240607
DIM, FEATURE_DIM, HIDDEN = 64, 32, (256, 128)
HISTORY = 50
USER_CATEGORIES, USER_NUMBERS = (100, 10, 250), 4
ITEM_CATEGORIES, ITEM_NUMBERS = (1000, 20), 3
TAGS, TAGS_PER_ITEM = 500, 6
TOP_K = 100
_CLUSTERS, _OWN = 50, 0.6
_HELD_OUT = 100_000


class Sizes(NamedTuple):
    """How much of everything there is."""

    users: int
    items: int
    interactions: int
    big: int  # items of W2's larger catalogue
    huge: int  # items of W3
    queries: int  # W5
    corpus: int  # W5


FULL = Sizes(200_000, 50_000, 2_000_000, 500_000, 1_000_000, 20_000, 100_000)
SMOKE = Sizes(2_000, 1_000, 20_000, 4_000, 8_000, 1_024, 10_000)

Arrays = dict[str, np.ndarray]


def default_folder() -> Path:
    """Where data is kept unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recjax-benchmarks"


def sizes_of(smoke: bool) -> Sizes:
    """The sizes of the whole workload or of a quick try."""
    return SMOKE if smoke else FULL


def load(folder: Path, name: str, *, smoke: bool = False) -> Arrays:
    """One of the files, drawn first if it is not there yet.

    Args:
      folder: the data folder.
      name: `interactions`, `labels_big`, `labels_huge` or `ranking`.
      smoke: the small data.
    """
    place = folder / ("smoke" if smoke else "full")
    path = place / f"{name}.npz"
    if not path.exists():
        place.mkdir(parents=True, exist_ok=True)
        arrays = _MAKERS[name](sizes_of(smoke), folder, smoke)
        part = place / f"{name}.{os.getpid()}.part.npz"
        np.savez(part, **arrays)
        part.replace(path)
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def orders(size: int, batch_size: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Endless batches of row numbers, each epoch in another order; a last short one is dropped."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(size)
        for start in range(0, size - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def in_batch_loss(log_p_B: np.ndarray) -> float:
    """The in-batch softmax loss with logQ where every score is 0, of one batch of labels."""
    logits_B = -log_p_B.astype(np.float64)
    top = logits_B.max()
    return float(top + np.log(np.exp(logits_B - top).sum()) - logits_B.mean())


def pairwise_accuracy(
    user_UxD: np.ndarray, item_NxD: np.ndarray, user_T: np.ndarray, item_T: np.ndarray
) -> float:
    """Share of (user, item, random item) in which the item has the higher score; ties are lost."""
    other_T = np.random.default_rng(1).integers(0, len(item_NxD), len(user_T))
    query_TxD = user_UxD[user_T]
    positive_T = np.einsum("td,td->t", query_TxD, item_NxD[item_T])
    return float((positive_T > np.einsum("td,td->t", query_TxD, item_NxD[other_T])).mean())


def training_pairs(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Users and items of 200,000 random interactions, on which W4 measures its accuracy."""
    rows = np.random.default_rng(2).integers(0, len(arrays["user"]), 200_000)
    return arrays["user"][rows], arrays["item"][rows]


def _popularity(size: int, power: float = 1.0) -> np.ndarray:
    mass = (np.arange(size) + 10.0) ** -power
    return mass / mass.sum()


def _draw(rng: np.random.Generator, cumulative: np.ndarray, count: int) -> np.ndarray:
    place = np.searchsorted(cumulative, rng.random(count))
    return np.minimum(place, len(cumulative) - 1).astype(np.int32)


def _pad(values: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    padded = np.full((len(lengths), width), -1, np.int32)
    padded[np.arange(width) < lengths[:, None]] = values
    return padded


def _make_interactions(sizes: Sizes, folder: Path, smoke: bool) -> Arrays:
    rng = np.random.default_rng(SEED)
    share_N = _popularity(sizes.items)
    cumulative_N = np.cumsum(share_N)
    cluster_N = rng.integers(0, _CLUSTERS, sizes.items)
    members = [np.flatnonzero(cluster_N == c).astype(np.int32) for c in range(_CLUSTERS)]
    inside = [np.cumsum(share_N[of]) / share_N[of].sum() for of in members]
    cluster_U = rng.integers(0, _CLUSTERS, sizes.users)
    activity_U = np.cumsum(_popularity(sizes.users, 0.7)[rng.permutation(sizes.users)])

    def items_of(user: np.ndarray) -> np.ndarray:
        is_own = rng.random(len(user)) < _OWN
        item = _draw(rng, cumulative_N, len(user))
        for c in range(_CLUSTERS):
            rows = np.flatnonzero(is_own & (cluster_U[user] == c))
            item[rows] = members[c][_draw(rng, inside[c], len(rows))]
        return item

    user_M = _draw(rng, activity_U, sizes.interactions)
    item_M = items_of(user_M)
    watched_U = np.clip(rng.geometric(1 / 25, sizes.users), 1, HISTORY)
    watched = items_of(np.repeat(np.arange(sizes.users), watched_U))
    first = (2 * cluster_U + rng.integers(0, 2, sizes.users)) % USER_CATEGORIES[0]
    others = [rng.integers(0, count, sizes.users) for count in USER_CATEGORIES[1:]]
    user_numbers = rng.standard_normal((sizes.users, USER_NUMBERS)).astype(np.float32)
    item_first = rng.integers(0, ITEM_CATEGORIES[0], sizes.items)
    tags_N = rng.integers(1, TAGS_PER_ITEM + 1, sizes.items)
    tags = rng.integers(0, TAGS, (sizes.items, TAGS_PER_ITEM)).astype(np.int32)
    tags[:, 0] = cluster_N * (TAGS // _CLUSTERS) + rng.integers(0, TAGS // _CLUSTERS, sizes.items)
    tags[np.arange(TAGS_PER_ITEM) >= tags_N[:, None]] = -1
    item_numbers = rng.standard_normal((sizes.items, ITEM_NUMBERS)).astype(np.float32)
    count_N = np.bincount(item_M, minlength=sizes.items)
    # After everything else, so that what stands above does not depend on how many there are.
    test_user = _draw(rng, activity_U, min(_HELD_OUT, sizes.interactions))
    return {
        "user": user_M,
        "item": item_M,
        "user_categories": np.stack([first, *others], axis=1).astype(np.int32),
        "user_numbers": user_numbers,
        "user_watched": _pad(watched, watched_U, HISTORY),
        "item_categories": np.stack([item_first, cluster_N % ITEM_CATEGORIES[1]], 1).astype("i4"),
        "item_tags": tags,
        "item_numbers": item_numbers,
        # TFRS and Keras-RS take no probability below 1e-6, so the others are given none.
        "item_log_p": np.log(np.maximum(count_N / count_N.sum(), 1e-6)).astype(np.float32),
        "test_user": test_user,
        "test_item": items_of(test_user),
    }


def _make_labels(items: int, seed: int, folder: Path, smoke: bool) -> Arrays:
    rng = np.random.default_rng(seed)
    known = load(folder, "interactions", smoke=smoke)
    cluster_M = known["user_categories"][known["user"], 0] // 2
    label_M = _draw(rng, np.cumsum(_popularity(items)), len(cluster_M)).astype(np.int64)
    is_own_M = rng.random(len(cluster_M)) < _OWN
    snapped_M = label_M - label_M % _CLUSTERS + cluster_M
    return {"label": np.minimum(np.where(is_own_M, snapped_M, label_M), items - 1).astype("i4")}


def _make_ranking(sizes: Sizes, folder: Path, smoke: bool) -> Arrays:
    rng = np.random.default_rng(SEED + 5)
    centres = rng.standard_normal((256, DIM)).astype(np.float32)

    def around(count: int) -> np.ndarray:
        centre = centres[rng.integers(0, len(centres), count)]
        return (centre + rng.standard_normal((count, DIM))).astype(np.float32) / DIM**0.5

    items, queries = around(sizes.corpus), around(sizes.queries)
    seen_Q = np.clip(rng.geometric(1 / 40, sizes.queries), 1, 500)
    offsets = np.concatenate([[0], np.cumsum(seen_Q)]).astype(np.int64)
    seen = _draw(rng, np.cumsum(_popularity(sizes.corpus)), int(offsets[-1]))
    # Half of what a query has seen is among its best 200, so that leaving it out matters.
    for start in range(0, sizes.queries, 1000):
        scores = queries[start : start + 1000] @ items.T
        best = np.argpartition(-scores, 200, axis=1)[:, :200]
        for row, best_row in enumerate(best, start):
            half = min(int(seen_Q[row]) // 2, 200)
            chosen = rng.choice(best_row, half, replace=False)
            seen[offsets[row] : offsets[row] + half] = chosen
    return {"queries": queries, "items": items, "seen_offsets": offsets, "seen": seen}


_MAKERS: dict[str, Callable[[Sizes, Path, bool], Arrays]] = {
    "interactions": _make_interactions,
    "labels_big": lambda s, folder, smoke: _make_labels(s.big, SEED + 2, folder, smoke),
    "labels_huge": lambda s, folder, smoke: _make_labels(s.huge, SEED + 3, folder, smoke),
    "ranking": _make_ranking,
}


def main() -> None:
    """Draws what is not there yet, and says what there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=default_folder())
    parser.add_argument("--smoke", action="store_true", help="the small data")
    flags = parser.parse_args()
    for name in _MAKERS:
        began = time.perf_counter()
        arrays = load(flags.data, name, smoke=flags.smoke)
        print(f"{name}: {time.perf_counter() - began:.1f} s")
        for key, array in arrays.items():
            print(f"  {key} {array.dtype} {list(array.shape)}")


if __name__ == "__main__":
    main()
