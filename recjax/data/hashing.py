"""Random numbers that are a function of what they are for: counter hashes of 64-bit words."""

import numpy as np
from jaxtyping import Float64, Int, UInt64


def mix(state: UInt64[np.ndarray, "..."], value: np.ndarray | int) -> UInt64[np.ndarray, "..."]:
    """SplitMix64's step (Steele et al., OOPSLA 2014) on two 64-bit words, order mattering.

    The two broadcast against each other; state has at least one axis.
    """
    mixed = state * np.uint64(0xD1342543DE82EF95) + np.asarray(value).astype(np.uint64)
    mixed += np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def random_bits(
    seed: int,
    epoch: int,
    stream: int,
    example: Int[np.ndarray, "*#S"],
    slot: Int[np.ndarray, "*#S"],
) -> UInt64[np.ndarray, "*S"]:
    """64 random bits for each (example, slot), the two broadcast against each other.

    What an example gets depends on the arguments alone, so not on the batch that it is in.
    """
    state = np.zeros(1, np.uint64)
    for part in (seed % 2**64, epoch, stream, example, slot):
        state = mix(state, part)
    return state


def to_uniform(bits: UInt64[np.ndarray, "*S"]) -> Float64[np.ndarray, "*S"]:
    """Random bits as numbers in [0, 1)."""
    return (bits >> np.uint64(11)) * 2.0**-53
