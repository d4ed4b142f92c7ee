"""The one model: a query tower, an item side, and their product."""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from recjax.data.encode import FeatureSpec
from recjax.embedding import TableSpec, init_table, lookup, lookup_sum
from recjax.models.features import is_summed
from recjax.models.towers import ItemTower, QueryTower
from recjax.ops.precision import rounded
from recjax.ops.softmax import corpus_logsumexp

HEAD = "head"  # the table of a softmax head

Inputs = Mapping[str, Array]


class SoftmaxHead(nn.Module):
    """The item embedding matrix V [N, D] as an item side: phi(i) = V_i, and maybe a logit bias.

    V itself is the table `head` of the model, so that it may be updated row by row, sharded, or
    read by the watch history.

    Attributes:
      num_items: rows of V: N, or more where it is filled up.
      use_bias: whether each item has a logit bias.
    """

    num_items: int
    use_bias: bool = False
    pooling: tuple[str, ...] = ()  # it reads no history

    def setup(self):
        """Declares the bias."""
        if self.use_bias:
            self.bias = self.param("bias", nn.initializers.zeros, (self.num_items,))

    @property
    def features(self) -> tuple[FeatureSpec, ...]:
        """A head reads the item's position alone."""
        return (FeatureSpec("item", "embedding", table=HEAD),)

    def __call__(
        self, inputs: Inputs, rows: Mapping[str, Array], index_B: Int[Array, "B"] | None = None
    ) -> Float[Array, "B D"]:
        """The rows of V of the items asked for."""
        del inputs, index_B
        return rows["item"]

    def logit_bias(self) -> Float[Array, "N"] | None:
        """The bias of every item, or None."""
        return self.bias if self.use_bias else None


class RetrievalModel(nn.Module):
    """score(q, i) = <psi(x_q), phi(x_i)> / temperature + b_i, and p(i | q), its softmax.

    `query` and `item` are towers or a head; MF is a query tower over the user id without hidden
    layers beside a softmax head. Inputs are what `Encoder.query_inputs` and `Encoder.item_inputs`
    return. Dense tables are parameters, `params/embedding/<name>`; tables in mode `rows` are the
    collection `tables`, and a caller may pass `rows` (feature -> looked-up rows) in their place.

    Attributes:
      query: the query tower.
      item: an ItemTower or a SoftmaxHead.
      tables: every embedding table of both sides; sides share a table by naming it.
      temperature: divides the product; where it is learned, what it begins with.
      learn_temperature: whether it is a parameter, `params/log_temperature`.
      normalize: whether both sides are scaled to unit length.
      compute_dtype: of the operands of products. Embeddings are float32 arrays of its numbers, for
        losses, rankings and whoever asks for them alike.
    """

    query: QueryTower
    item: ItemTower | SoftmaxHead
    tables: tuple[TableSpec, ...]
    temperature: float = 1.0
    learn_temperature: bool = False
    normalize: bool = False
    compute_dtype: str = "float32"

    def setup(self):
        """Makes the tables, at initialisation only: later they are read where they are needed."""
        if self.learn_temperature:
            start = nn.initializers.constant(math.log(self.temperature))
            self.log_temperature = self.param("log_temperature", start, ())
        if self.is_initializing():
            # In one order whatever their modes, so that a table begins the same in either.
            dense: dict[str, Array] = {}
            for spec in self.tables:
                table = init_table(self.make_rng("params"), spec)
                if spec.mode == "dense":
                    dense[spec.name] = table
                else:
                    self.put_variable("tables", spec.name, table)
            self.put_variable("params", "embedding", dense)

    def __call__(self, query_inputs: Inputs, item_inputs: Inputs) -> Float[Array, "B"]:
        """The score of each pair: see `score`."""
        return self.score(query_inputs, item_inputs)

    def embed_query(
        self,
        inputs: Inputs,
        rows: Mapping[str, Array] | None = None,
        index_B: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B D"]:
        """psi(x) [B, D]; `index_B` (global example indices) switches dropout on."""
        return self.finish(self.query(inputs, self._rows(self.query, inputs, rows), index_B))

    def embed_items(
        self,
        inputs: Inputs,
        rows: Mapping[str, Array] | None = None,
        index_B: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B D"]:
        """phi(x_i) [B, D]; `index_B` (item positions) switches dropout on."""
        return self.finish(self.item(inputs, self._rows(self.item, inputs, rows), index_B))

    @nn.nowrap
    def finish(self, embedded_BxD: Float[Array, "B D"]) -> Float[Array, "B D"]:
        """What a side returned as scores read it: of unit length where asked, and rounded."""
        embedded_BxD = unit(embedded_BxD) if self.normalize else embedded_BxD
        return rounded(embedded_BxD, self.compute_dtype)

    def scale(self) -> float | Float[Array, ""]:
        """1 / temperature: what products are multiplied by."""
        if self.learn_temperature:
            return jnp.exp(-self.log_temperature)
        return 1.0 / self.temperature

    def item_bias(self) -> Float[Array, "N"] | None:
        """The logit bias of every item of a softmax head that has one; else None."""
        return self.item.logit_bias() if isinstance(self.item, SoftmaxHead) else None

    def score(self, query_inputs: Inputs, item_inputs: Inputs) -> Float[Array, "B"]:
        """One score for each (query, item) pair of two equally long batches."""
        query_BxD, item_BxD = self.embed_query(query_inputs), self.embed_items(item_inputs)
        score_B = jnp.sum(query_BxD * item_BxD, axis=1) * self.scale()
        bias_B = self._bias_of(item_inputs)
        return score_B if bias_B is None else score_B + bias_B

    def log_prob(
        self,
        query_inputs: Inputs,
        item_inputs: Inputs,
        corpus_inputs: Inputs,
        corpus_mask_N: Bool[Array, "N"] | None = None,
    ) -> Float[Array, "B"]:
        """log p(i | q) = score(q, i) - log Z(q), of each pair; Z sums over the masked corpus.

        Args:
          query_inputs: B queries.
          item_inputs: B items.
          corpus_inputs: every item of the corpus, in any order.
          corpus_mask_N: False where an item of the corpus is left out of Z.
        """
        log_z_B = corpus_logsumexp(
            self.embed_query(query_inputs),
            self.embed_items(corpus_inputs),
            bias_N=self._bias_of(corpus_inputs),
            mask_N=corpus_mask_N,
            scale=self.scale(),
        )
        return self.score(query_inputs, item_inputs) - log_z_B

    def _bias_of(self, item_inputs: Inputs) -> Float[Array, "B"] | None:
        bias_N = self.item_bias()
        return None if bias_N is None else bias_N[item_inputs["item"]]

    def _rows(
        self,
        side: QueryTower | ItemTower | SoftmaxHead,
        inputs: Inputs,
        rows: Mapping[str, Array] | None,
    ) -> dict[str, Array]:
        found = dict(rows or {})
        modes = {spec.name: spec.mode for spec in self.tables}
        for spec in side.features:
            if spec.table and spec.name not in found:
                if modes[spec.table] == "rows":
                    table = self.get_variable("tables", spec.table)
                else:
                    table = self.get_variable("params", "embedding")[spec.table]
                look_up = lookup_sum if is_summed(spec, side.pooling) else lookup
                found[spec.name] = look_up(table, inputs[spec.name])
        return found


def row_features(
    features: tuple[FeatureSpec, ...], tables: tuple[TableSpec, ...]
) -> tuple[FeatureSpec, ...]:
    """The features whose table is in mode `rows`: a train step looks these up itself."""
    rows = {spec.name for spec in tables if spec.mode == "rows"}
    return tuple(spec for spec in features if spec.table in rows)


def unit(x_BxD: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """Rows scaled to length 1; a row of zeros stays zero."""
    square_Bx1 = jnp.sum(x_BxD * x_BxD, axis=1, keepdims=True)
    return x_BxD * jax.lax.rsqrt(jnp.maximum(square_Bx1, 1e-12))
