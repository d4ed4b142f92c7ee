"""Interactions block by block, so that what is computed of them needs no memory of their size."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int8, Int64

from recjax.data.dataset import Interactions

BLOCK = 1 << 22  # interactions


def user_blocks(
    offsets: Int64[np.ndarray, "_"], rows: int | None = None
) -> Iterator[tuple[slice, slice]]:
    """Runs of whole users with up to so many interactions, or one user: slices (users, rows)."""
    rows, first = rows or BLOCK, 0
    while first < len(offsets) - 1:
        end = int(np.searchsorted(offsets, offsets[first] + rows, side="right")) - 1
        end = max(end, first + 1)
        yield slice(first, end), slice(int(offsets[first]), int(offsets[end]))
        first = end


def owners(offsets: Int64[np.ndarray, "_"], users: slice) -> Int64[np.ndarray, "_"]:
    """Of each interaction of a block, its user, counted from the block's first."""
    counts = np.diff(offsets[users.start : users.stop + 1])
    return np.repeat(np.arange(len(counts)), counts)


def by_user_block(
    interactions: Interactions, function: Callable[[Interactions, slice], np.ndarray]
) -> Int8[np.ndarray, "M"]:
    """int8 of each interaction, from a function of a block's interactions and its users.

    The block's users are counted from 0 on.
    """
    part_M = np.empty(interactions.size, np.int8)
    for users, rows in user_blocks(interactions.offsets):
        part_M[rows] = function(interactions.between(users, rows), users)
    return part_M


def count_by_user_and_item(
    interactions: Interactions, mask_M: np.ndarray, num_items: int
) -> tuple[Int64[np.ndarray, "U"], Int64[np.ndarray, "N"]]:
    """How many of the interactions where the mask is true each user has, and each item."""
    count_U = np.zeros(interactions.num_users, np.int64)
    count_N = np.zeros(num_items, np.int64)
    for users, rows in user_blocks(interactions.offsets):
        mask = mask_M[rows]
        owner = owners(interactions.offsets, users)[mask]
        count_U[users] = np.bincount(owner, minlength=users.stop - users.start)
        count_N += np.bincount(interactions.item[rows][mask], minlength=num_items)
    return count_U, count_N
