"""Lists of items of different lengths, held side by side in two arrays."""

import dataclasses

import numpy as np
from jaxtyping import Int, Int32, Int64

from recjax.data.hashing import random_bits


@dataclasses.dataclass(frozen=True)
class ItemLists:
    """List r is items[offsets[r]:offsets[r + 1]].

    Attributes:
      offsets: int64 [R + 1].
      items: int32, positions in the item table.
    """

    offsets: np.ndarray
    items: np.ndarray

    def take(self, rows: np.ndarray) -> "ItemLists":
        """The lists of the given rows (integers or a mask)."""
        offsets, places = take_lists(self.offsets, rows)
        return ItemLists(offsets, self.items[places])

    def draw(
        self,
        rows_B: Int[np.ndarray, "B"],
        width: int,
        example_B: Int[np.ndarray, "B"],
        *,
        stream: int,
        seed: int,
        epoch: int,
    ) -> Int32[np.ndarray, "B W"]:
        """Up to `width` items of each of the given lists, -1 on the right.

        Of a longer list so many are drawn, every subset equally likely: a function of the list,
        the example, the stream, the seed and the epoch alone.
        """
        start_B = self.offsets[rows_B]
        count_B = self.offsets[rows_B + 1] - start_B
        slot_BxW = np.tile(np.arange(width), (len(rows_B), 1))
        over = np.flatnonzero(count_B > width)
        first = np.concatenate([[0], np.cumsum(count_B[over])])
        slot = np.arange(first[-1]) - np.repeat(first[:-1], count_B[over])
        example = np.repeat(example_B[over], count_B[over])
        bits = random_bits(seed, epoch, stream, example, slot)
        for row, start, end in zip(over, first[:-1], first[1:], strict=True):
            own = bits[start:end]  # a sort of all rows at once takes ten times as long
            lowest = np.argpartition(own, width - 1)[:width]
            slot_BxW[row] = lowest[np.argsort(own[lowest])]
        item_BxW = self.items.take(start_B[:, None] + slot_BxW, mode="clip")
        return np.where(slot_BxW < count_B[:, None], item_BxW, np.int32(-1))


def take_lists(
    offsets: Int64[np.ndarray, "R"], rows: np.ndarray
) -> tuple[Int64[np.ndarray, "S"], Int64[np.ndarray, "T"]]:
    """Offsets of the lists of the given rows (integers or a mask), and where their values are."""
    rows = np.arange(len(offsets) - 1)[rows]
    lengths = np.diff(offsets)[rows]
    taken = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(taken[-1]) - np.repeat(taken[:-1], lengths)
    return taken, np.repeat(offsets[rows], lengths) + within
