"""Fixed distributions over items, drawn from on the device."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from recjax.errors import ConfigError, DataError

Leaf = Any  # an array, or what stands for one: a shape, a sharding


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("support_T", "bound_T", "log_p_N"),
    meta_fields=("count",),
)
@dataclasses.dataclass(frozen=True)
class Distribution:
    """`count` draws with replacement from a distribution p over the items.

    The inverse of the cumulative distribution in whole 2^-32ths: `bound_T` is the last 32-bit
    number that falls to each item of `support_T`, so p is exactly the frequency of the draws.

    Attributes:
        support_T: int32, the items with p > 0.
        bound_T: uint32, rising, the last is 2^32 - 1.
        log_p_N: float32, -inf where p is 0.
        count: number of draws.
    """

    support_T: Leaf
    bound_T: Leaf
    log_p_N: Leaf
    count: int

    def draw(self, key: PRNGKeyArray) -> Int[Array, "C"]:
        """The ids that are drawn."""
        bits_C = jax.random.bits(key, (self.count,), jnp.uint32)
        return self.support_T[jnp.searchsorted(self.bound_T, bits_C)]

    def log_q(self, ids: Int[Array, "..."]) -> Float[Array, "..."]:
        """Log of the expected number of times that each id is drawn; -inf for -1."""
        return float(np.log(self.count)) + log_p(self.log_p_N, ids)


def log_p(log_p_N: Float[Array, "N"], ids: Int[Array, "..."]) -> Float[Array, "..."]:
    """The entries of the ids; -inf for -1."""
    return log_p_N.at[jnp.where(ids < 0, len(log_p_N), ids)].get(mode="fill", fill_value=-jnp.inf)


def to_log(p_N: np.ndarray) -> Float[Array, "N"]:
    """Log of the numbers in float32, -inf of 0."""
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(p_N).astype(np.float32))


def uniform(mask_N: np.ndarray, count: int) -> Distribution:
    """Every item of the mask alike."""
    return _make_distribution("uniform", mask_N.astype(np.float64), count)


def log_uniform(frequency_N: np.ndarray, mask_N: np.ndarray, count: int) -> Distribution:
    """P(rank r) proportional to log((r + 2) / (r + 1)), the most frequent item at rank 0."""
    order = np.argsort(-frequency_N, kind="stable")
    order = order[mask_N[order]]
    mass_N = np.zeros(len(frequency_N))
    mass_N[order] = np.log1p(1 / np.arange(1, len(order) + 1))
    return _make_distribution("log_uniform", mass_N, count)


def unigram(
    frequency_N: np.ndarray, mask_N: np.ndarray, count: int, power: float, name: str = "unigram"
) -> Distribution:
    """Items of the mask that occur at all, in proportion to frequency^power."""
    if not power >= 0:
        raise ConfigError(
            f"config.loss.unigram_power: {name} candidates need a power of at least 0, not {power}"
        )
    drawn_N = mask_N & (frequency_N > 0)
    mass_N = np.zeros(len(frequency_N))
    mass_N[drawn_N] = frequency_N[drawn_N] ** power
    return _make_distribution(name, mass_N, count)


def _make_distribution(name: str, mass_N: np.ndarray, count: int) -> Distribution:
    if count < 1:
        raise ConfigError(
            f"config.loss.num_sampled: {name} candidates need at least 1 draw per step, not {count}"
        )
    support_T = np.flatnonzero(mass_N)
    if not len(support_T):
        raise DataError(f"{name} candidates: no item can be drawn (all are masked or unseen)")
    # Every item keeps at least one of the 2^32 numbers; the rest is divided by mass.
    share_T = np.cumsum(mass_N[support_T]) / mass_N.sum()
    end_T = np.arange(1, len(support_T) + 1) + np.rint(share_T * (2**32 - len(support_T)))
    end_T = end_T.astype(np.int64)
    end_T[-1] = 2**32
    p_N = np.zeros(len(mass_N))
    p_N[support_T] = np.diff(end_T, prepend=0) / 2**32
    return Distribution(
        jnp.asarray(support_T.astype(np.int32)),
        jnp.asarray((end_T - 1).astype(np.uint32)),
        to_log(p_N),
        count,
    )
