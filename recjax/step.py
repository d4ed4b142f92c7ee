"""The training step: a pure function of one replica's state and batch, with named-axis sums."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from recjax.candidates import Draw, gather_candidates
from recjax.data.encode import Encoder
from recjax.embedding import lookup
from recjax.losses import LOSSES, Loss
from recjax.models.corpus import encode_corpus, sum_gradient
from recjax.models.retrieval import HEAD, RetrievalModel, SoftmaxHead, row_features, unit
from recjax.optim import RowOptimizer

PyTree = Any
Leaf = Any  # an array, or what stands for one: a shape, a sharding
Batch = Mapping[str, Array]

_INIT, _CANDIDATES, _DROPOUT = range(3)  # streams of random keys within a step


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes; a checkpoint holds exactly this.

    Attributes:
      step: int32 [], steps taken.
      key: uint32 [2], the run's root key; never split, only folded.
      params: dense parameters.
      tables: embedding tables of mode `rows`, by name.
      opt_state: of the dense parameters.
      table_state: of each table of mode `rows`.
      loss_sum: float32 [], weighted loss since the last multiple of `log_every` steps.
      weight_sum: float32 [], the weights of those examples.
      bad_step: int32 [], the first step whose loss was not finite; -1 while there is none.
    """

    step: Leaf
    key: Leaf
    params: PyTree
    tables: dict[str, Leaf]
    opt_state: PyTree
    table_state: dict[str, PyTree]
    loss_sum: Leaf
    weight_sum: Leaf
    bad_step: Leaf


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """One step of training, `step(state, batch, arrays) -> state`; pure.

    Attributes:
      model: what is trained.
      encoder: gathers the model's inputs.
      full: whether queries are scored against the full corpus; if not, against what the
        candidate source in `arrays` draws.
      optimizer: of the dense parameters.
      row_optimizer: of the tables in mode `rows`.
      num_items: N, items of the data set.
      loss: of the logits.
      correct_logq: whether the loss corrects for log q.
      correct_positive: whether it does so for the labels too, which is biased.
      corpus_chunk: items that a tower encodes at a time, for the full corpus.
      log_every: steps over which the logged loss is a mean.
      data_axis: axis over which examples are split.
      model_axis: axis over which the tables named in `sharded` and the corpus are split, or None.
      model_size: devices along it.
    """

    model: RetrievalModel
    encoder: Encoder
    full: bool
    optimizer: optax.GradientTransformation
    row_optimizer: RowOptimizer
    num_items: int
    loss: Loss = LOSSES["softmax"]
    correct_logq: bool = True
    correct_positive: bool = False
    corpus_chunk: int = 8192
    log_every: int = 50
    data_axis: str = "data"
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
        if self._full_head and HEAD not in read_by_towers:
            names.append(HEAD)
        return tuple(names)

    @property
    def _full_head(self) -> bool:
        return self.full and isinstance(self.model.item, SoftmaxHead)

    def init(self, seed: int, batch: Mapping[str, Any], arrays: PyTree) -> TrainState:
        """A new state, whole (not split over devices).

        Args:
          seed: of the run's root key.
          batch: any batch; two of its rows give the shapes.
          arrays: the encoder's arrays.
        """
        key = jax.random.key(seed)
        variables: Any = self.model.init(
            {"params": _stream(key, 0, _INIT)},
            self.encoder.query_inputs(arrays, {name: batch[name][:2] for name in batch}),
            self.encoder.item_inputs(arrays, jnp.zeros(2, jnp.int32)),
        )
        params, tables = variables["params"], dict(variables.get("tables", {}))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(key),
            params=params,
            tables=tables,
            opt_state=self.optimizer.init(params),
            table_state={name: self.row_optimizer.init(table) for name, table in tables.items()},
            loss_sum=jnp.zeros((), jnp.float32),
            weight_sum=jnp.zeros((), jnp.float32),
            bad_step=jnp.full((), -1, jnp.int32),
        )

    def __call__(
        self, state: TrainState, batch: Batch, arrays: PyTree
    ) -> tuple[TrainState, dict[str, Array]]:
        """Takes one step on this replica's share of the batch.

        Args:
          state: before the step.
          batch: this replica's rows of what `TrainExamples.batch` returns.
          arrays: the encoder's arrays, `trainable_N` (bool, items that training knows) and
            `source` (a CandidateSource, or None for the full corpus).

        Returns:
          The state after it, and {`loss`: its mean since the last multiple of `log_every` steps,
          `bad_step`: as in TrainState}.
        """
        key = jax.random.wrap_key_data(state.key)
        weight = jax.lax.psum(jnp.sum(batch["weight"]), self.data_axis)
        inputs = {"query": self.encoder.query_inputs(arrays, batch)}
        draw = None
        if not self.full:
            inputs["label"] = self.encoder.item_inputs(arrays, batch["label"].reshape(-1))
            draw = arrays["source"].draw(
                _stream(key, state.step, _CANDIDATES),
                *(batch[name] for name in ("label", "label_weight", "weight", "index")),
                axis=self.data_axis,
            )
            if draw.slot_B is None:
                inputs["candidate"] = self.encoder.item_inputs(arrays, draw.candidates.ids_C)
        uses = self._row_uses(inputs)
        rows = {
            scope: {
                name: lookup(state.tables[table], ids, axis=self.model_axis)
                for name, (table, ids) in features.items()
            }
            for scope, features in uses.items()
        }
        dropout = _stream(key, state.step, _DROPOUT)

        def mean_loss(params: PyTree, rows: PyTree) -> Array:
            towers = _Towers(self.model, params, rows, inputs, dropout)
            if draw is None:
                total = self._full_loss(towers, batch, arrays)
            else:
                total = self._sampled_loss(towers, batch, draw)
            return total / jnp.maximum(weight, 1e-9)

        loss, (grads, row_grads) = jax.value_and_grad(mean_loss, argnums=(0, 1))(state.params, rows)
        loss, grads = jax.lax.psum((loss, grads), self.data_axis)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        tables, table_state = self._update_tables(state, uses, row_grads)
        fresh = state.step % self.log_every == 0
        loss_sum = jnp.where(fresh, 0.0, state.loss_sum) + loss * weight
        weight_sum = jnp.where(fresh, 0.0, state.weight_sum) + weight
        is_bad = (state.bad_step < 0) & ~jnp.isfinite(loss)
        bad_step = jnp.where(is_bad, state.step + 1, state.bad_step)
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            tables=tables,
            opt_state=opt_state,
            table_state=table_state,
            loss_sum=loss_sum,
            weight_sum=weight_sum,
            bad_step=bad_step,
        )
        return new_state, {"loss": loss_sum / weight_sum, "bad_step": bad_step}

    def _row_uses(self, inputs: Mapping[str, Batch]) -> dict[str, dict[str, tuple[str, Array]]]:
        """{scope: {feature: (table, ids)}} of every feature whose table is in mode `rows`."""
        features = dict.fromkeys(inputs, self.model.item.features)
        features["query"] = self.model.query.features
        return {
            scope: {
                spec.name: (spec.table, inputs[scope][spec.name])
                for spec in row_features(features[scope], self.model.tables)
            }
            for scope in inputs
        }

    def _full_loss(self, towers: "_Towers", batch: Batch, arrays: PyTree) -> Array:
        """Exact softmax over the items that training knows, each device its part of the corpus."""
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
        shared = sum_gradient({k: v for k, v in params.items() if k != "query"}, axis)
        bias_C = towers.item_bias(shared)
        if bias_C is not None:
            bias_C = jax.lax.dynamic_slice_in_dim(bias_C, offset, count)
        if not isinstance(self.model.item, SoftmaxHead):

            def encode(chunk_C: Array) -> Array:
                inputs = self.encoder.item_inputs(arrays, chunk_C)
                return towers.items(inputs, {}, chunk_C, shared)

            item_CxD = encode_corpus(encode, item_C, self.corpus_chunk)
        elif HEAD in self.sharded:
            item_CxD = _maybe_unit(params["embedding"][HEAD], self.model.normalize)
        else:
            whole_NxD = _maybe_unit(shared["embedding"][HEAD], self.model.normalize)
            item_CxD = jax.lax.dynamic_slice_in_dim(whole_NxD, offset, count)
        assert self.loss.full is not None
        total, _ = self.loss.full(
            towers.query(batch["index"]),
            item_CxD,
            batch["label"],
            batch["label_weight"],
            batch["weight"],
            bias_N=bias_C,
            mask_N=mask_C,
            scale=1.0 / self.model.temperature,
            offset=offset,
            axis=axis,
        )
        return total

    def _sampled_loss(self, towers: "_Towers", batch: Batch, draw: Draw) -> Array:
        """Softmax against the labels and the candidates that were drawn."""
        label_BxP = batch["label"]
        size, positives = label_BxP.shape
        positive_BxPxD = towers.scope("label", label_BxP.reshape(-1)).reshape(size, positives, -1)
        candidates = draw.candidates
        if draw.slot_B is None:
            candidate_CxD = towers.scope("candidate", candidates.ids_C)
        else:
            own_BxD = jnp.take_along_axis(positive_BxPxD, draw.slot_B[:, None, None], axis=1)[:, 0]
            candidates, candidate_CxD = gather_candidates(candidates, own_BxD, self.data_axis)
        bias_N = towers.item_bias(towers.params)
        label_bias = candidate_bias = None
        if bias_N is not None:
            label_bias = bias_N[jnp.maximum(label_BxP, 0)]
            candidate_bias = bias_N[jnp.maximum(candidates.ids_C, 0)]
        total, _ = self.loss.sampled(
            towers.query(batch["index"]),
            positive_BxPxD,
            candidate_CxD,
            label_BxP,
            batch["label_weight"],
            candidates,
            batch["weight"],
            scale=1.0 / self.model.temperature,
            positive_bias_BxP=label_bias,
            candidate_bias_C=candidate_bias,
            correct=self.correct_logq,
            positive_log_q_BxP=draw.label_log_q_BxP if self.correct_positive else None,
        )
        return total

    def _update_tables(
        self,
        state: TrainState,
        uses: Mapping[str, Mapping[str, tuple[str, Array]]],
        row_grads: Mapping[str, Mapping[str, Array]],
    ) -> tuple[dict[str, Array], dict[str, PyTree]]:
        """One update of each table from the gradients of all its uses on all replicas."""
        tables, table_state = dict(state.tables), dict(state.table_state)
        for table in tables:
            ids, grads = [], []
            for scope, features in uses.items():
                for name, (used, ids_of_use) in features.items():
                    if used == table:
                        ids.append(ids_of_use.reshape(-1))
                        grads.append(row_grads[scope][name].reshape(ids[-1].shape[0], -1))
            ids_M, grads_MxD = jax.lax.all_gather(
                (jnp.concatenate(ids), jnp.concatenate(grads)), self.data_axis, tiled=True
            )
            tables[table], table_state[table] = self.row_optimizer.update(
                tables[table],
                table_state[table],
                ids_M,
                grads_MxD,
                state.step,
                axis=self.model_axis,
            )
        return tables, table_state


@dataclasses.dataclass(frozen=True)
class _Towers:
    """The model at given parameters and looked-up rows, with dropout on."""

    model: RetrievalModel
    params: PyTree
    rows: PyTree
    inputs: Mapping[str, Batch]
    key: Array

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

    def _apply(
        self, params: PyTree, inputs: Batch, rows: Batch, index_B: Array, method: str
    ) -> Any:
        rngs = {"dropout": self.key}
        return self.model.apply({"params": params}, inputs, rows, index_B, rngs=rngs, method=method)


def _stream(key: Array, step: int | Array, stream: int) -> Array:
    return jax.random.fold_in(jax.random.fold_in(key, step), stream)


def _maybe_unit(x_NxD: Array, normalize: bool) -> Array:
    return unit(x_NxD) if normalize else x_NxD
