"""Towers: features through hidden layers to one vector per query or per item."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recjax.data.encode import FeatureSpec
from recjax.models.dense import make_dense
from recjax.models.dropout import ExampleDropout, IdDropout
from recjax.models.features import FeatureEncoder

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "silu": jax.nn.silu, "tanh": jnp.tanh}
IDS = ("user_id", "item_id")


class Tower(nn.Module):
    """Features, hidden layers, and a last layer of width `dim`.

    Attributes:
      features: what is read.
      dim: width of the output, D.
      hidden: widths of the hidden layers; () has none.
      output: `linear` for a last layer of width D, `none` to return the last hidden layer (or the
        joined features, where there is none) as it is.
      activation: a key of ACTIVATIONS.
      normalization: `layer` puts a LayerNorm before each activation; `none` does not.
      dropout: rate after each hidden layer.
      embedding_dropout: rate on the entries of the features' embeddings.
      id_dropout: chance that an example is embedded as if its user or item were unknown, so that
        the tower learns from the other features (DropoutNet, Volkovs et al., NeurIPS 2017).
      pooling: of histories; see FeatureEncoder.
      compute_dtype: of the operands of every layer's product; all else is float32.
    """

    features: tuple[FeatureSpec, ...]
    dim: int
    hidden: tuple[int, ...] = ()
    output: str = "linear"
    activation: str = "relu"
    normalization: str = "none"
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    id_dropout: float = 0.0
    pooling: tuple[str, ...] = ("mean",)
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        inputs: Mapping[str, Array],
        rows: Mapping[str, Array],
        index_B: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B D"]:
        """Embeds a batch.

        Args:
          inputs: see FeatureEncoder.
          rows: see FeatureEncoder.
          index_B: global example (or item) indices that key dropout; None switches it off.
        """
        rows = dict(rows)
        for name in set(IDS) & {spec.name for spec in self.features}:
            rows[name] = IdDropout(self.id_dropout, name="id_dropout")(rows[name], index_B)
        x_BxH = FeatureEncoder(
            self.features,
            self.pooling,
            self.embedding_dropout,
            self.compute_dtype,
            name="features",
        )(inputs, rows, index_B)
        for layer, width in enumerate(self.hidden):
            x_BxH = make_dense(width, self.compute_dtype, name=f"hidden_{layer}")(x_BxH)
            if self.normalization == "layer":
                x_BxH = nn.LayerNorm(name=f"norm_{layer}")(x_BxH)
            x_BxH = ACTIVATIONS[self.activation](x_BxH)
            x_BxH = ExampleDropout(self.dropout, name=f"dropout_{layer}")(x_BxH, index_B)
        if self.output == "linear":
            x_BxH = make_dense(self.dim, self.compute_dtype, name="output")(x_BxH)
        return x_BxH


class QueryTower(Tower):
    """psi(x): user features, watch history and context to a query embedding [B, D]."""


class ItemTower(Tower):
    """phi(x_i): item features to an item embedding [B, D]."""
