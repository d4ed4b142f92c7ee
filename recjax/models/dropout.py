"""Dropout whose noise depends on the example's index, not on its place in a batch.

So an example meets the same noise on one device and on eight.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class ExampleDropout(nn.Module):
    """Drops entries with probability `rate` and scales up the others; no index means no dropout."""

    rate: float

    @nn.compact
    def __call__(
        self, x_BxH: Float[Array, "B H"], index_B: Int[Array, "B"] | None
    ) -> Float[Array, "B H"]:
        """The entries that are kept, over the chance that they are."""
        if self.rate == 0.0 or index_B is None:
            return x_BxH
        keep_BxH = _keep(self.make_rng("dropout"), index_B, self.rate, x_BxH.shape[1])
        return jnp.where(keep_BxH, x_BxH / (1.0 - self.rate), 0.0)


class IdDropout(nn.Module):
    """Makes an id's whole row zero, the vector of an unknown id, with probability `rate`.

    Nothing is scaled up: a row that is kept is what it is at serving.
    """

    rate: float

    @nn.compact
    def __call__(
        self, row_BxD: Float[Array, "B D"], index_B: Int[Array, "B"] | None
    ) -> Float[Array, "B D"]:
        """The rows that are kept; no index means all."""
        if self.rate == 0.0 or index_B is None:
            return row_BxD
        return jnp.where(_keep(self.make_rng("dropout"), index_B, self.rate, 1), row_BxD, 0.0)


def _keep(key: Array, index_B: Array, rate: float, width: int) -> Bool[Array, "B W"]:
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, index_B)
    return jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - rate, (width,)))(keys_B)
