"""A trained model as functions: queries and corpus to embeddings, and rankings of the corpus."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from recjax.baselines import Ranker
from recjax.data.encode import Encoder
from recjax.models.corpus import encode_corpus
from recjax.models.retrieval import RetrievalModel
from recjax.ops.topk import top_k
from recjax.parallel import Parallel
from recjax.scoring_sharded import ShardedScorer

PyTree = Any


class _Corpus(NamedTuple):
    """The items that are ranked, in rising order: no time goes into the others."""

    item_C: Array
    item_CxD: Array
    place_N: Array  # where each item of the data set stands among them; -1 for the others


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
    """Jitted functions of (variables, arrays, ...), compiled once per shape.

    Attributes:
      model: scores.
      encoder: gathers its inputs.
      num_items: N, items of the data set.
      chunk: items encoded at a time.
      parallel: the devices that variables and arrays lie on; None for one device.
      sharded: tables whose rows are split over its model axis.
    """

    model: RetrievalModel
    encoder: Encoder
    num_items: int
    chunk: int = 8192
    parallel: Parallel | None = None
    sharded: tuple[str, ...] = ()

    @functools.cached_property
    def embed_queries(self) -> Callable[[PyTree, PyTree, PyTree], Float[Array, "B D"]]:
        """(variables, arrays, batch) -> query embeddings [B, D]."""

        def embed(variables, arrays, batch):
            inputs = self.encoder.query_inputs(arrays, batch)
            return self.model.apply(variables, inputs, method="embed_query")

        return self._jit(embed)

    @functools.cached_property
    def embed_items(self) -> Callable[[PyTree, PyTree, Any], Float[Array, "C D"]]:
        """(variables, arrays, item positions [C]) -> their embeddings [C, D]."""

        def embed(variables, arrays, item_C):
            def encode(item_C: Array) -> Any:
                inputs = self.encoder.item_inputs(arrays, item_C)
                return self.model.apply(variables, inputs, method="embed_items")

            return encode_corpus(encode, item_C, self.chunk)

        return self._jit(embed)

    def embed_corpus(self, variables: PyTree, arrays: PyTree) -> Float[Array, "N D"]:
        """Embeddings of every item [N, D], whole on each device."""
        return self.embed_items(variables, arrays, np.arange(self.num_items, dtype=np.int32))

    @functools.cached_property
    def _rank(self) -> Callable[..., tuple[Array, Array]]:
        def rank(variables, arrays, corpus, batch, seen_BxS, k):
            bias_N = self.model.apply(variables, method="item_bias")
            inputs = self.encoder.query_inputs(arrays, batch)
            scores_BxK, place_BxK = top_k(
                self.model.apply(variables, inputs, method="embed_query"),
                corpus.item_CxD,
                k,
                bias_N=None if bias_N is None else bias_N[corpus.item_C],
                seen_BxS=jnp.where(seen_BxS < 0, -1, corpus.place_N[seen_BxS]),
                scale=self.model.apply(variables, method="scale"),
            )
            return scores_BxK, jnp.where(place_BxK < 0, -1, corpus.item_C[place_BxK])

        return jax.jit(rank, static_argnames="k")

    @functools.cached_property
    def _on_shards(self) -> ShardedScorer:
        assert self.parallel is not None
        return ShardedScorer(
            self.model, self.encoder, self.num_items, self.chunk, self.parallel, self.sharded
        )

    def ranker(self, variables: PyTree, arrays: PyTree, mask_N: Bool[np.ndarray, "N"]) -> Ranker:
        """Ranks the corpus: (batch, seen_BxS, k) -> (scores [B, K], item positions [B, K]).

        On several devices queries are split over 'data' and items over 'model', and every device
        gets the whole result.

        Args:
          variables: of the model.
          arrays: the encoder's, on the device.
          mask_N: the items that may be ranked.

        Raises:
          ValueError: there are none.
        """
        if not mask_N.any():
            raise ValueError("mask_N names no item that may be ranked")
        if self.parallel is not None and not self.parallel.is_one_device:
            return self._on_shards.ranker(variables, arrays, mask_N)
        item_C = np.flatnonzero(mask_N).astype(np.int32)
        place_N = np.full(self.num_items, -1, np.int32)
        place_N[item_C] = np.arange(len(item_C))
        item_CxD = self.embed_items(variables, arrays, item_C)
        corpus = _Corpus(jnp.asarray(item_C), item_CxD, jnp.asarray(place_N))

        def rank(
            batch: Mapping[str, np.ndarray], seen_BxS: Int[np.ndarray, "B S"], k: int
        ) -> tuple[Array, Array]:
            return self._rank(variables, arrays, corpus, batch, seen_BxS, k=k)

        return rank

    def _jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiled; on several devices each gets the whole result, so every process can read it."""
        if self.parallel is None or self.parallel.is_one_device:
            return jax.jit(function)
        return jax.jit(function, out_shardings=self.parallel.whole)
