"""From a tower's inputs to one vector per example: embeddings pooled, numbers passed, joined."""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recjax.data.encode import FeatureSpec
from recjax.models.dense import make_dense
from recjax.models.dropout import ExampleDropout

POOLINGS = ("mean", "sqrt", "last", "attention")
# Of those that read the sum of a history's rows alone: what power of their number it is over.
_POWERS = {"mean": 1.0, "sqrt": 0.5}


def is_summed(spec: FeatureSpec, pooling: Sequence[str]) -> bool:
    """Whether a tower of this pooling reads of an example's rows no more than their sum."""
    return spec.kind == "bag" or spec.kind == "history" and set(pooling) <= _POWERS.keys()


class FeatureEncoder(nn.Module):
    """Joins features into one vector: [B, F].

    Attributes:
      features: what is read, in the order of the joined vector.
      pooling: how a history becomes one vector; several stand side by side.
      dropout: rate on the entries of embeddings (pooled ones, where several are pooled).
      compute_dtype: of the operands of attention's layers.
    """

    features: tuple[FeatureSpec, ...]
    pooling: tuple[str, ...] = ("mean",)
    dropout: float = 0.0
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        inputs: Mapping[str, Array],
        rows: Mapping[str, Array],
        index_B: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B F"]:
        """Joins the features.

        Args:
          inputs: by feature, numbers [B, width] or ids [B] or [B, K] (-1 is padding).
          rows: by feature with a table, the embedding rows of its ids, [B, D] or [B, K, D]; or
            their sum [B, D] where `is_summed`.
          index_B: example or item indices that key dropout; None switches it off.
        """
        parts = []
        for spec in self.features:
            if spec.kind in ("dense", "vector"):
                parts.append(inputs[spec.name])
                continue
            if spec.kind == "embedding":
                embedded = [rows[spec.name]]
            elif spec.kind == "bag":
                embedded = [mean_of(rows[spec.name], inputs[spec.name])]
            else:
                embedded = self._pool(spec, rows[spec.name], inputs[spec.name])
            joined_BxH = jnp.concatenate(embedded, axis=1)
            dropout = ExampleDropout(self.dropout, name=f"{spec.name}_dropout")
            parts.append(dropout(joined_BxH, index_B))
        return jnp.concatenate(parts, axis=1)

    def _pool(self, spec: FeatureSpec, rows: Array, ids_BxL: Array) -> Sequence[Array]:
        sum_BxD = rows if is_summed(spec, self.pooling) else jnp.sum(rows, axis=1)
        pooled = []
        for pooling in self.pooling:
            if pooling in _POWERS:
                pooled.append(mean_of(sum_BxD, ids_BxL, _POWERS[pooling]))
            elif pooling == "last":
                pooled.append(rows[:, -1, :])
            else:
                attention = AttentionPool(self.compute_dtype, name=f"{spec.name}_attention")
                pooled.append(attention(rows, ids_BxL))
        return pooled


class AttentionPool(nn.Module):
    """Additive attention over a history (Bahdanau et al. 2015), with a learned weight per position.

    weight_l = softmax_l(v . tanh(W h_l) + p_l); a history of padding alone gives zeros.

    Attributes:
      compute_dtype: of the operands of the products with W and v.
    """

    compute_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, rows_BxLxD: Float[Array, "B L D"], ids_BxL: Int[Array, "B L"]
    ) -> Float[Array, "B D"]:
        """Pools [B, L, D] to [B, D]; positions with id -1 have no weight."""
        _, length, dim = rows_BxLxD.shape
        position_L = self.param("position", nn.initializers.zeros, (length,))
        key = make_dense(dim, self.compute_dtype, use_bias=False, name="key")
        score = make_dense(1, self.compute_dtype, use_bias=False, name="score")
        logits_BxL = score(jnp.tanh(key(rows_BxLxD)))[:, :, 0] + position_L[None, :]
        known_BxL = ids_BxL >= 0
        logits_BxL = jnp.where(known_BxL, logits_BxL, -1e9)
        weights_BxL = jax.nn.softmax(logits_BxL, axis=1) * known_BxL.astype(logits_BxL.dtype)
        return jnp.einsum("bl,bld->bd", weights_BxL, rows_BxLxD)


def mean_of(
    sum_BxD: Float[Array, "B D"], ids_BxL: Int[Array, "B L"], power: float = 1.0
) -> Float[Array, "B D"]:
    """Sum of the rows over their number to a power: 1 is the mean, 0.5 keeps some of the length.

    Padding (id -1) is not counted; no rows give zeros.
    """
    count_B = jnp.maximum(jnp.sum(ids_BxL >= 0, axis=1), 1).astype(sum_BxD.dtype)
    return sum_BxD / (count_B**power)[:, None]
