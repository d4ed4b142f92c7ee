"""Rankings by a model on a mesh: queries split over 'data', the corpus over 'model'."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from recjax.baselines import Ranker
from recjax.collectives import gather_over
from recjax.data.encode import Encoder
from recjax.embedding import local_ids, lookup, lookup_sum
from recjax.models.corpus import encode_corpus
from recjax.models.features import is_summed
from recjax.models.retrieval import HEAD, RetrievalModel, SoftmaxHead, row_features
from recjax.models.towers import Tower
from recjax.ops.topk import top_k
from recjax.ops.topk_sharded import top_k_sharded
from recjax.parallel import BY_DATA, BY_MODEL, DATA, WHOLE, Parallel
from recjax.rounding import as_float32

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class ShardedScorer:
    """What `Scorer` does, on several devices; each holds, encodes and ranks its part of the corpus.

    Attributes:
      model: scores.
      encoder: gathers its inputs.
      num_items: N, items of the data set.
      chunk: items encoded at a time, on all devices of 'model' together.
      parallel: the devices.
      sharded: tables whose rows are split over 'model'.
    """

    model: RetrievalModel
    encoder: Encoder
    num_items: int
    chunk: int
    parallel: Parallel
    sharded: tuple[str, ...]

    def embed_corpus(self, variables: PyTree, arrays: PyTree) -> Array:
        """Embeddings of the items and of fillers after them [M, D], split over 'model'."""
        specs = self.parallel.specs(variables, self.sharded)
        return self._compiled(self._embed, specs, 0)(variables, arrays)

    def ranker(self, variables: PyTree, arrays: PyTree, mask_N: Bool[np.ndarray, "N"]) -> Ranker:
        """See `Scorer.ranker`; what it is given must be the same in every process."""
        parallel = self.parallel
        specs = parallel.specs(variables, self.sharded)
        item_MxD = self.embed_corpus(variables, arrays)
        missing = item_MxD.shape[0] - self.num_items
        mask_M = parallel.put_split(np.pad(mask_N, (0, missing)), parallel.model_axis)

        def rank(
            batch: Mapping[str, np.ndarray], seen_BxS: Int[np.ndarray, "B S"], k: int
        ) -> tuple[Array, Array]:
            size = len(seen_BxS)
            filled = np.minimum(np.arange(-(-size // parallel.data) * parallel.data), size - 1)
            given = {name: np.asarray(x)[filled] for name, x in (*batch.items(), (_SEEN, seen_BxS))}
            split = parallel.put_split(given, DATA)
            scores, ids = self._compiled(self._rank, specs, k)(
                variables, arrays, item_MxD, mask_M, split
            )
            return scores[:size], ids[:size]

        return rank

    def _compiled(self, function: Callable, specs: PyTree, k: int) -> Callable:
        key = function.__name__, k
        if key not in self._programs:
            by_item = BY_MODEL if self.parallel.model_axis else WHOLE
            if k == 0:
                mapped = self.parallel.map(function, (specs, WHOLE), by_item)
            else:
                given = specs, WHOLE, by_item, by_item, BY_DATA
                mapped = self.parallel.map(functools.partial(function, k), given, WHOLE)
            self._programs[key] = mapped
        return self._programs[key]

    @functools.cached_property
    def _programs(self) -> dict[tuple[str, int], Callable]:
        return {}

    def _embed(self, variables: PyTree, arrays: PyTree) -> Array:
        """This device's items, [C, D]; from N on they are fillers."""
        axis, size = self.parallel.model_axis, self.parallel.model
        is_head = isinstance(self.model.item, SoftmaxHead)
        if is_head and HEAD in self.sharded and axis:
            tables = {**variables["params"]["embedding"], **variables.get("tables", {})}
            table = as_float32(tables[HEAD])
            return self.model.finish(table)
        count = -(-self.num_items // size)
        if is_head:  # as many as a shard of its bias has
            count = self.model.item.num_items // size
        item_C = count * (0 if axis is None else jax.lax.axis_index(axis)) + jnp.arange(count)
        item_C = jnp.where(item_C < self.num_items, item_C, 0)

        def encode(item_C: Array) -> Any:
            inputs = self.encoder.item_inputs(arrays, item_C)
            rows = self._rows(variables, self.model.item, inputs, _of_own_ids)
            return self.model.apply(variables, inputs, rows, method="embed_items")

        return encode_corpus(encode, item_C, max(1, self.chunk // size))

    def _rank(
        self,
        k: int,
        variables: PyTree,
        arrays: PyTree,
        item_CxD: Array,
        mask_C: Array,
        batch: Mapping[str, Array],
    ) -> tuple[Array, Array]:
        axis, count = self.parallel.model_axis, item_CxD.shape[0]
        inputs = self.encoder.query_inputs(arrays, batch)
        rows = self._rows(variables, self.model.query, inputs)
        query_BxD: Any = self.model.apply(variables, inputs, rows, method="embed_query")
        bias_N: Any = self.model.apply(variables, method="item_bias")
        scale: Any = self.model.apply(variables, method="scale")
        if axis is None:
            found = top_k(
                query_BxD,
                item_CxD,
                k,
                bias_N=None if bias_N is None else bias_N[:count],
                mask_N=mask_C,
                seen_BxS=batch[_SEEN],
                scale=scale,
            )
        else:
            bias_C = None
            if bias_N is not None:
                first = jax.lax.axis_index(axis) * count
                bias_C = jax.lax.dynamic_slice_in_dim(bias_N, first, count)
            found = top_k_sharded(
                query_BxD,
                item_CxD,
                k,
                axis=axis,
                bias_C=bias_C,
                mask_C=mask_C,
                seen_BxS=batch[_SEEN],
                scale=scale,
            )
        return gather_over(found, DATA)

    def _rows(
        self,
        variables: PyTree,
        side: Tower | SoftmaxHead,
        inputs: Mapping[str, Array],
        change: Callable[[Callable[..., Array]], Callable[..., Array]] = lambda look_up: look_up,
    ) -> dict[str, Array]:
        """The rows of the features whose table is split, which the model cannot look up itself."""
        axis = self.parallel.model_axis
        if axis is None:
            return {}
        found = {}
        for spec in row_features(side.features, self.model.tables):
            look_up = change(lookup_sum if is_summed(spec, side.pooling) else lookup)
            table_RxD = variables["tables"][spec.table]
            found[spec.name] = look_up(table_RxD, inputs[spec.name], axis=axis)
        return found


_SEEN = "seen"  # beside the batch


def _of_own_ids(look_up: Callable[..., Array]) -> Callable[..., Array]:
    """A lookup whose ids differ over the axis: each device gets the rows of its own."""

    def look_up_own(table_RxD: Array, ids: Array, *, axis: str) -> Array:
        ids = gather_over(ids, axis)
        rows = look_up(table_RxD, local_ids(ids, len(table_RxD), axis))
        return jax.lax.psum_scatter(rows, axis, tiled=True)

    return look_up_own
