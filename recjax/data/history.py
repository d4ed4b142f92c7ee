"""Histories as slices of the users' own interactions."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

_SORTED = 1 << 24  # rows


@dataclasses.dataclass(frozen=True)
class Histories:
    """Rows of items in which the L before any position are one slice.

    Attributes:
      item_M: int32, the items; at least L.
      windows: int32 [M - L + 1, L], a view: row p holds items p..p+L-1, whoever they belong to.
    """

    item_M: np.ndarray
    windows: np.ndarray

    @classmethod
    def build(cls, item_M: Int32[np.ndarray, "M"], length: int) -> "Histories":
        """Histories of up to `length` of the items, which are not copied."""
        if length == 0:
            return cls(item_M, np.zeros((len(item_M) + 1, 0), np.int32))
        if len(item_M) < length:
            item_M = np.concatenate([item_M, np.full(length - len(item_M), -1, np.int32)])
        return cls(item_M, np.lib.stride_tricks.sliding_window_view(item_M, length))

    def before(
        self, start_B: Int[np.ndarray, "B"], end_B: Int[np.ndarray, "B"]
    ) -> Int32[np.ndarray, "B L"]:
        """The latest L items of positions start..end-1: the oldest first, -1 on the left."""
        length = self.windows.shape[1]
        first_B = end_B - length
        history_BxL = self.windows[np.maximum(first_B, 0)]
        column_L = np.arange(length)
        early = np.flatnonzero(first_B < 0)  # their windows would begin before the first item
        if early.size and length:
            place = first_B[early][:, None] + column_L[None, :]
            history_BxL[early] = self.item_M.take(place, mode="clip")
        absent_B = length - (end_B - start_B)
        np.copyto(history_BxL, np.int32(-1), where=column_L[None, :] < absent_B[:, None])
        return history_BxL


def drop_items(
    history_BxL: Int32[np.ndarray, "B L"], uniform_BxL: Float[np.ndarray, "B L"], rate: float
) -> Int32[np.ndarray, "B L"]:
    """Drops each item whose uniform number is below `rate` and closes the gaps to the right."""
    keep_BxL = (history_BxL >= 0) & (uniform_BxL >= rate)
    at_or_after_BxL = np.cumsum(keep_BxL[:, ::-1], axis=1, dtype=np.int64)[:, ::-1]
    row, column = np.nonzero(keep_BxL)
    packed_BxL = np.full_like(history_BxL, -1)
    packed_BxL[row, -at_or_after_BxL[row, column]] = history_BxL[row, column]
    return packed_BxL


def distinct_rows(
    user_M: Int[np.ndarray, "M"], item_M: Int[np.ndarray, "M"], *, keep: str
) -> Bool[np.ndarray, "M"]:
    """True at one row of each (user, item): the `first` or the `last` of its rows.

    Users are sorted, and more than memory should sort at once go in parts.
    """
    if len(user_M) > _SORTED and user_M[0] != user_M[-1]:
        middle = user_M[len(user_M) // 2]
        cut = int(np.searchsorted(user_M, middle)) or int(np.searchsorted(user_M, middle, "right"))
        halves = (slice(0, cut), slice(cut, len(user_M)))
        return np.concatenate([distinct_rows(user_M[h], item_M[h], keep=keep) for h in halves])
    pair_M = user_M.astype(np.int64) * (int(item_M.max(initial=0)) + 1) + item_M
    order_M = np.argsort(pair_M, kind="stable")
    sorted_M = pair_M[order_M]
    changes = sorted_M[1:] != sorted_M[:-1]
    edge_M = np.ones(len(pair_M), bool)
    if keep == "first":
        edge_M[1:] = changes
    else:
        edge_M[:-1] = changes
    mask_M = np.zeros(len(pair_M), bool)
    mask_M[order_M[edge_M]] = True
    return mask_M
