"""The objective of one replica's batch: towers, candidates, loss."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recjax.candidates import Candidates, Draw, gather_candidates, pick_hard
from recjax.data.encode import Encoder
from recjax.embedding import lookup, lookup_sum
from recjax.losses import Loss
from recjax.models.corpus import encode_corpus, sum_gradient
from recjax.models.features import is_summed
from recjax.models.retrieval import HEAD, RetrievalModel, SoftmaxHead, row_features

PyTree = Any
Batch = Mapping[str, Array]


class Measured(NamedTuple):
    """What a step reads of the objective beside its value; no gradient passes.

    `length_product`: sum over the examples of weight |psi| |phi of the first label|; `drawn`: ids
    [G] and embeddings [G, D] of the global batch's own candidates, None where there are none.
    """

    length_product: Array
    drawn: tuple[Array, Array] | None


class Use(NamedTuple):
    """Where a feature reads its table; `is_summed` if only the sum of an example's rows is read."""

    table: str
    ids: Array
    is_summed: bool


class Question(NamedTuple):
    """A batch made ready: what it is scored against, and every id that an embedding is needed of.

    `inputs` and `uses` are by scope: `query`, `own` (the examples' own items, flat) and
    `candidate` (the shared candidates); `uses` is by scope and feature whose table is in mode
    `rows`. `stored_MxD` are the embeddings of `draw.stored`.
    """

    batch: Batch
    draw: Draw | None
    stored_MxD: Array | None
    inputs: Mapping[str, Batch]
    uses: Mapping[str, Mapping[str, Use]]


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """The loss of a batch, as a function of parameters and looked-up rows.

    Attributes:
      model: what is trained.
      encoder: gathers the model's inputs.
      loss: of the scores.
      full: whether queries are scored against the full corpus; if not, against what the candidate
        source in `arrays` draws.
      num_items: N, items of the data set.
      correct_logq: whether the loss corrects for log q.
      correct_positive: whether it does so for the labels too, which is biased.
      corpus_chunk: items that a tower encodes at a time, for the full corpus.
      data_axis: axis over which examples are split.
      model_axis: axis over which the tables named in `sharded` and the corpus are split, or None.
      model_size: devices along it.
    """

    model: RetrievalModel
    encoder: Encoder
    loss: Loss
    full: bool
    num_items: int
    correct_logq: bool = True
    correct_positive: bool = False
    corpus_chunk: int = 8192
    data_axis: str | None = "data"
    model_axis: str | None = None
    model_size: int = 1

    @property
    def sharded(self) -> tuple[str, ...]:
        """Tables whose rows are split over the model axis.

        These are the tables in mode `rows`, and a softmax head that is ranked whole and that no
        tower reads.
        """
        names = [spec.name for spec in self.model.tables if spec.mode == "rows"]
        read_by_towers = {spec.table for spec in self.model.query.features}
        is_head = isinstance(self.model.item, SoftmaxHead)
        if self.full and is_head and HEAD not in read_by_towers:
            names.append(HEAD)
        return tuple(names)

    def ask(
        self, variables: PyTree, source: PyTree, key: Array, step: Array, batch: Batch, arrays: Any
    ) -> tuple[Question, PyTree]:
        """Draws candidates and gathers the inputs of a batch.

        Args:
          variables: of the model; only `hard` negatives are chosen by them.
          source: the candidate source's state.
          key: of the run's draws, the same on every replica; `step` is folded into it.
          step: int32 [].
          batch: this replica's rows.
          arrays: as for `TrainStep`.

        Returns:
          The question, and the source's state after it.
        """
        inputs = {"query": self.encoder.query_inputs(arrays, batch)}
        if self.full:
            return Question(batch, None, None, inputs, self._uses(inputs)), source
        stored_MxD = source["memory"]["embedding_MxD"] if "memory" in source else None
        draw, source = arrays["source"].draw(source, key, batch, step, axis=self.data_axis)
        if draw.pool is not None:
            draw = draw._replace(negative=self._hard(variables, draw.pool, inputs, batch, arrays))
        own_BxP = own_items(batch, draw, self.correct_positive).ids_BxP
        inputs["own"] = self.encoder.item_inputs(arrays, own_BxP.reshape(-1))
        if draw.shared is not None:
            inputs["candidate"] = self.encoder.item_inputs(arrays, draw.shared.ids_C)
        return Question(batch, draw, stored_MxD, inputs, self._uses(inputs)), source

    def look_up(self, tables: Mapping[str, Array], question: Question) -> PyTree:
        """The rows that a question needs, by scope and feature."""
        return {
            scope: {
                name: (lookup_sum if use.is_summed else lookup)(
                    tables[use.table], use.ids, axis=self.model_axis
                )
                for name, use in features.items()
            }
            for scope, features in question.uses.items()
        }

    def __call__(
        self, params: PyTree, rows: PyTree, question: Question, key: Array, arrays: Any
    ) -> tuple[Array, Measured]:
        """The weighted sum of this replica's losses.

        Args:
          params: dense parameters.
          rows: what `look_up` returned.
          question: what `ask` returned.
          key: of dropout.
          arrays: as for `TrainStep`.
        """
        towers = _Towers(self.model, params, rows, question.inputs, key)
        if question.draw is None:
            return self._against_corpus(towers, question.batch, arrays)
        return self._against_candidates(towers, question, question.draw, arrays)

    def _uses(self, inputs: Mapping[str, Batch]) -> dict[str, dict[str, Use]]:
        side = {**dict.fromkeys(inputs, self.model.item), "query": self.model.query}
        return {
            scope: {
                spec.name: Use(spec.table, scoped[spec.name], is_summed(spec, side[scope].pooling))
                for spec in row_features(side[scope].features, self.model.tables)
            }
            for scope, scoped in inputs.items()
        }

    def _hard(
        self,
        variables: PyTree,
        pool_S: Array,
        inputs: Mapping[str, Batch],
        batch: Batch,
        arrays: Any,
    ) -> Candidates:
        """The pool's items that score highest for each query, as the model now stands."""
        inputs = {"query": inputs["query"], "pool": self.encoder.item_inputs(arrays, pool_S)}
        question = Question(batch, None, None, inputs, self._uses(inputs))
        rows = self.look_up(variables["tables"], question)
        towers = _Towers(self.model, variables["params"], rows, inputs, None)
        return pick_hard(
            towers.query(batch["index"]),
            towers.scope("pool", pool_S),
            pool_S,
            bias_of(self.bias(towers.item_bias(variables["params"]), arrays), pool_S),
            batch["label"],
            arrays["source"].num_hard,
            scale=towers.scale(),
        )

    def _against_corpus(
        self, towers: "_Towers", batch: Batch, arrays: Any
    ) -> tuple[Array, Measured]:
        """The loss over the items that training knows, each device its part of the corpus."""
        params, axis = towers.params, self.model_axis
        count = -(-self.num_items // self.model_size)
        if isinstance(self.model.item, SoftmaxHead):
            head_NxD = params["embedding"][HEAD]
            if HEAD in self.sharded:
                count = head_NxD.shape[0]  # this device's rows already
            else:
                count = head_NxD.shape[0] // self.model_size
        offset = count * (0 if axis is None else jax.lax.axis_index(axis))
        item_C = offset + jnp.arange(count)
        inside_C = item_C < self.num_items
        item_C = jnp.where(inside_C, item_C, 0)
        mask_C = inside_C & arrays["trainable_N"][item_C]
        summed = {k: v for k, v in params.items() if k not in _WHOLE}
        shared = {**params, **sum_gradient(summed, axis)}
        bias_C = towers.item_bias(shared)
        if bias_C is not None:
            bias_C = jax.lax.dynamic_slice_in_dim(bias_C, offset, count)
        if not isinstance(self.model.item, SoftmaxHead):

            def encode(chunk_C: Array) -> Array:
                inputs = self.encoder.item_inputs(arrays, chunk_C)
                return towers.items(inputs, {}, chunk_C, shared)

            item_CxD = encode_corpus(encode, item_C, self.corpus_chunk)
        elif HEAD in self.sharded:
            item_CxD = self.model.finish(params["embedding"][HEAD])
        else:
            whole_NxD = self.model.finish(shared["embedding"][HEAD])
            item_CxD = jax.lax.dynamic_slice_in_dim(whole_NxD, offset, count)
        prior_N = arrays.get("log_prior_N")
        query_BxD = towers.query(batch["index"])
        total, _ = self.loss.full(
            query_BxD.astype(self.model.compute_dtype),
            item_CxD.astype(self.model.compute_dtype),
            batch["label"],
            batch["label_weight"],
            batch["weight"],
            bias_N=bias_C,
            mask_N=mask_C,
            log_prior_N=None if prior_N is None else prior_N[item_C],
            scale=towers.scale(),
            offset=offset,
            axis=axis,
        )
        first_BxD = lookup(jax.lax.stop_gradient(item_CxD), batch["label"][:, 0], axis=axis)
        return total, Measured(_length_product(query_BxD, first_BxD, batch), None)

    def _against_candidates(
        self, towers: "_Towers", question: Question, draw: Draw, arrays: Any
    ) -> tuple[Array, Measured]:
        """The loss over the examples' own items and the candidates that were drawn."""
        batch = question.batch
        own = own_items(batch, draw, self.correct_positive)
        own_BxPxD = towers.scope("own", own.ids_BxP.reshape(-1)).reshape(*own.ids_BxP.shape, -1)
        parts, drawn = [], None
        if draw.own is not None and draw.slot_B is not None:
            given_BxD = jnp.take_along_axis(own_BxPxD, draw.slot_B[:, None, None], axis=1)[:, 0]
            given, given_GxD = gather_candidates(draw.own, given_BxD, self.data_axis)
            gives_G = jnp.isfinite(given.log_q_C)
            drawn = jnp.where(gives_G, given.ids_C, -1), jax.lax.stop_gradient(given_GxD)
            parts.append((given, given_GxD))
        if draw.shared is not None:
            parts.append((draw.shared, towers.scope("candidate", draw.shared.ids_C)))
        if draw.stored is not None and question.stored_MxD is not None:
            parts.append((draw.stored, question.stored_MxD))
        query_BxD = towers.query(batch["index"])
        total = self.score(
            query_BxD,
            own_BxPxD,
            own,
            parts,
            batch["weight"],
            self.bias(towers.item_bias(towers.params), arrays),
            towers.scale(),
        )
        return total, Measured(_length_product(query_BxD, own_BxPxD[:, 0], batch), drawn)

    def score(
        self,
        query_BxD: Float[Array, "B D"],
        own_BxPxD: Float[Array, "B P D"],
        own: "Own",
        parts: Sequence[tuple[Candidates, Array]],
        weight_B: Float[Array, "B"],
        bias_N: Float[Array, "N"] | None,
        scale: float | Float[Array, ""],
    ) -> Float[Array, ""]:
        """The weighted sum of losses against own items and candidates.

        Args:
          query_BxD: query embeddings.
          own_BxPxD: embeddings of the own items.
          own: what they are.
          parts: candidates and their embeddings [C, D], of each source that was drawn from.
          weight_B: weight of each example.
          bias_N: what `bias` returned.
          scale: 1 / temperature.
        """
        if parts:
            candidates, candidate_CxD = jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)
        else:
            candidates = Candidates(jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.float32))
            candidate_CxD = jnp.zeros((0, query_BxD.shape[1]), query_BxD.dtype)
        total, _ = self.loss.sampled(
            query_BxD.astype(self.model.compute_dtype),
            own_BxPxD.astype(self.model.compute_dtype),
            candidate_CxD.astype(self.model.compute_dtype),
            own.ids_BxP,
            own.weight_BxP,
            candidates,
            weight_B,
            scale=scale,
            own_bias_BxP=bias_of(bias_N, own.ids_BxP),
            candidate_bias_C=bias_of(bias_N, candidates.ids_C),
            correct=self.correct_logq,
            own_log_q_BxP=own.log_q_BxP,
        )
        return total

    def bias(self, item_bias_N: Array | None, arrays: Any) -> Float[Array, "N"] | None:
        """What training adds to the scores: the items' logit biases and the log prior, if any."""
        prior_N = arrays.get("log_prior_N")
        if item_bias_N is None or prior_N is None:
            return prior_N if item_bias_N is None else item_bias_N
        return item_bias_N + jnp.pad(prior_N, (0, len(item_bias_N) - len(prior_N)))


class Own(NamedTuple):
    """The own items of each example: its labels, then negatives of its own, of weight 0."""

    ids_BxP: Array  # -1 for padding
    weight_BxP: Array
    log_q_BxP: Array | None  # None where it is 0 for all


def own_items(batch: Batch, draw: Draw, correct_positive: bool) -> Own:
    """The own items of a batch, by what was drawn for it."""
    ids_BxP, y_BxP = batch["label"], batch["label_weight"]
    log_q_BxP = draw.label_log_q_BxP if correct_positive else None
    if draw.negative is not None:
        ids_BxP = jnp.concatenate([ids_BxP, draw.negative.ids_C], axis=1)
        log_q_BxP = jnp.zeros_like(y_BxP) if log_q_BxP is None else log_q_BxP
        log_q_BxP = jnp.concatenate([log_q_BxP, draw.negative.log_q_C], axis=1)
        y_BxP = jnp.pad(y_BxP, [(0, 0), (0, draw.negative.ids_C.shape[1])])
    return Own(ids_BxP, y_BxP, log_q_BxP)


# Parameters whose gradient is whole on every device of the model axis, without a sum.
_WHOLE = ("query", "log_temperature")


@dataclasses.dataclass(frozen=True)
class _Towers:
    """The model at given parameters and looked-up rows; dropout is on where there is a key."""

    model: RetrievalModel
    params: PyTree
    rows: PyTree
    inputs: Mapping[str, Batch]
    key: Array | None

    def query(self, index_B: Array) -> Array:
        return self._apply(
            self.params, self.inputs["query"], self.rows["query"], index_B, method="embed_query"
        )

    def scope(self, scope: str, item_B: Array) -> Array:
        return self.items(self.inputs[scope], self.rows[scope], item_B, self.params)

    def items(self, inputs: Batch, rows: Batch, item_B: Array, params: PyTree) -> Array:
        return self._apply(params, inputs, rows, item_B, method="embed_items")

    def item_bias(self, params: PyTree) -> Any:
        return self.model.apply({"params": params}, method="item_bias")

    def scale(self) -> Any:
        return self.model.apply({"params": self.params}, method="scale")

    def _apply(
        self, params: PyTree, inputs: Batch, rows: Batch, index_B: Array, method: str
    ) -> Any:
        rngs = None if self.key is None else {"dropout": self.key}
        index = None if self.key is None else index_B
        return self.model.apply({"params": params}, inputs, rows, index, rngs=rngs, method=method)


def bias_of(bias_N: Float[Array, "N"] | None, ids: Int[Array, "..."]) -> Float[Array, "..."] | None:
    """The logit biases of ids; any number for padding."""
    return None if bias_N is None else bias_N[jnp.maximum(ids, 0)]


def _length_product(query_BxD: Array, item_BxD: Array, batch: Batch) -> Array:
    length_B = jnp.linalg.norm(query_BxD, axis=1) * jnp.linalg.norm(item_BxD, axis=1)
    return jax.lax.stop_gradient(jnp.sum(batch["weight"] * length_B))
