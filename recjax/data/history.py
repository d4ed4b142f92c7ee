"""Histories as slices of the users' own interactions."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, Int32


@dataclasses.dataclass(frozen=True)
class Histories:
    """Rows of items in which the L before any position are one slice.

    Attributes:
      windows: int32 [M + 1, L], a view: row p is the L items before position p, whoever they
        belong to, -1 before the first.
    """

    windows: np.ndarray

    @classmethod
    def build(cls, item_M: Int32[np.ndarray, "M"], length: int) -> "Histories":
        """Histories of up to `length` of the items; memory is one copy of item_M."""
        if length == 0:
            return cls(np.zeros((len(item_M) + 1, 0), np.int32))
        padded = np.concatenate([np.full(length, -1, np.int32), item_M])
        return cls(np.lib.stride_tricks.sliding_window_view(padded, length))

    def before(
        self, start_B: Int[np.ndarray, "B"], end_B: Int[np.ndarray, "B"]
    ) -> Int32[np.ndarray, "B L"]:
        """The latest L items of positions start..end-1: the oldest first, -1 on the left."""
        history_BxL = self.windows[end_B]
        absent_B = history_BxL.shape[1] - (end_B - start_B)
        column_L = np.arange(history_BxL.shape[1])
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
    """True at one row of each (user, item): the `first` or the `last` of its rows."""
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
