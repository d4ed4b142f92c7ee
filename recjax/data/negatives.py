"""Negatives that an example has of its own: items that were shown to the user and not chosen."""

import dataclasses

import numpy as np
from jaxtyping import Int, Int32

from recjax.data.dataset import Interactions
from recjax.data.lists import ItemLists
from recjax.errors import ConfigError, DataError

_STREAM = 2  # of random bits, beside those of examples.py


@dataclasses.dataclass(frozen=True)
class NegativeReader:
    """Reads the negatives of examples.

    Attributes:
      lists: the negatives of each owner: distinct, none of them its label; None: not asked for.
      width: E, the most of one example; where there are more, others are drawn every epoch.
    """

    lists: ItemLists | None = None
    width: int = 0

    @classmethod
    def build(
        cls,
        train: Interactions,
        owner_M: Int[np.ndarray, "M"],
        num_items: int,
        max_negatives: int,
        source: str,
    ) -> "NegativeReader":
        """A reader of what the training interactions list.

        Args:
          train: the training interactions, whose items are labels of their owners.
          owner_M: to whom each interaction's negatives belong: its own position, or its user.
          num_items: N.
          max_negatives: the most of one example.
          source: what the data set is called in messages.

        Raises:
          ConfigError: `max_negatives` is below 1.
          DataError: the data has no column of negatives, or none is left in training.
        """
        if max_negatives < 1:
            raise ConfigError(
                f"config.examples.max_negatives={max_negatives}: it must be 1 or more where "
                "examples have negatives of their own"
            )
        if train.negatives is None:
            raise DataError(
                f"{source}: this data has no negatives of its own; name under 'negatives' in "
                "schema.json the column of the interactions that lists the ids of items that were "
                "shown with each and not chosen (in CSV: 7|12|31), or use other candidates"
            )
        owner_T = np.repeat(owner_M, np.diff(train.negatives.offsets)).astype(np.int64)
        pair = np.sort(owner_T * num_items + train.negatives.items)
        pair = pair[np.diff(pair, prepend=-1) > 0]
        label = np.sort(owner_M.astype(np.int64) * num_items + train.item)
        place = np.searchsorted(label, pair)
        pair = pair[label.take(place, mode="clip") != pair]
        if not pair.size:
            raise DataError(
                f"{source}: no training interaction lists a negative that is not a label as well; "
                "fill the column that schema.json names under 'negatives', or use other candidates"
            )
        owner, item = np.divmod(pair, num_items)
        count = np.bincount(owner, minlength=int(owner_M.max()) + 1)
        offsets = np.concatenate([[0], np.cumsum(count)])
        lists = ItemLists(offsets, item.astype(np.int32))
        return cls(lists, min(max_negatives, int(count.max())))

    def read(
        self,
        owner_B: Int[np.ndarray, "B"],
        example_B: Int[np.ndarray, "B"],
        *,
        seed: int,
        epoch: int,
    ) -> dict[str, Int32[np.ndarray, "B E"]]:
        """{`negative`: int32 [B, E], -1 on the right}, or {} where they are not asked for."""
        if self.lists is None:
            return {}
        return {
            "negative": self.lists.draw(
                owner_B, self.width, example_B, stream=_STREAM, seed=seed, epoch=epoch
            )
        }
