"""Orders of very many examples that need no memory: a place is turned into an example by itself."""

import numpy as np
from jaxtyping import Int, Int64

from recjax.data.hashing import mix

_ROUNDS = 6


def shuffled(
    place_B: Int[np.ndarray, "B"], size: int, seed: int, epoch: int
) -> Int64[np.ndarray, "B"]:
    """The examples at these places of the epoch's order, a permutation of 0..size-1.

    A Feistel network on the next power of four, walked along until it is back in the range
    (Black and Rogaway, CT-RSA 2002): every example has one place.
    """
    half = np.uint64((max(size - 1, 1).bit_length() + 1) // 2)
    low = (np.uint64(1) << half) - np.uint64(1)
    key = mix(mix(np.zeros(1, np.uint64), seed % 2**64), epoch)

    def network(value: np.ndarray) -> np.ndarray:
        left, right = value >> half, value & low
        for number in range(_ROUNDS):
            left, right = right, left ^ (mix(mix(key, number), right) >> (np.uint64(64) - half))
        return (left << half) | right

    value_B = network(place_B.astype(np.uint64))
    while (outside := value_B >= size).any():
        value_B[outside] = network(value_B[outside])
    return value_B.astype(np.int64)
