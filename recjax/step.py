"""The training step: a pure function of one replica's state and batch, with named-axis sums."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from recjax.collectives import gather_over, sum_over
from recjax.models.retrieval import RetrievalModel
from recjax.objective import Batch, Objective, Question
from recjax.optim import RowOptimizer

PyTree = Any
Leaf = Any  # an array, or what stands for one: a shape, a sharding

_INIT, _CANDIDATES, _DROPOUT, _ROUNDING = range(4)  # streams of random keys within a step


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes; a checkpoint holds exactly this.

    Attributes:
      step: int32 [], steps taken.
      key: uint32 [2], the run's root key; never split, only folded.
      params: dense parameters.
      tables: embedding tables of mode `rows`, by name, as `recjax.rounding` keeps them.
      opt_state: of the dense parameters.
      table_state: of each table of mode `rows`.
      source: of the candidate source: streaming frequencies, remembered embeddings; often {}.
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
    source: dict[str, PyTree]
    loss_sum: Leaf
    weight_sum: Leaf
    bad_step: Leaf


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """One step of training, `step(state, batch, arrays) -> (state, metrics)`; pure.

    Attributes:
      objective: the loss of a batch.
      optimizer: of the dense parameters.
      row_optimizer: of the tables in mode `rows`.
      log_every: steps over which the logged loss is a mean.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    row_optimizer: RowOptimizer
    log_every: int = 50

    __name__ = "train_step"  # by which JAX calls the compiled program, in traces too

    @property
    def model(self) -> RetrievalModel:
        """What is trained."""
        return self.objective.model

    def init(self, seed: int | Array, batch: Mapping[str, Any], arrays: PyTree) -> TrainState:
        """A new state, whole (not split over devices).

        Args:
          seed: of the run's root key.
          batch: any batch; two of its rows give the shapes.
          arrays: as for a step.
        """
        key = jax.random.key(seed)
        encoder = self.objective.encoder
        variables: Any = self.model.init(
            {"params": _stream(key, 0, _INIT)},
            encoder.query_inputs(arrays, {name: batch[name][:2] for name in batch}),
            encoder.item_inputs(arrays, jnp.zeros(2, jnp.int32)),
        )
        params, tables = variables["params"], dict(variables.get("tables", {}))
        source = arrays["source"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(key),
            params=params,
            tables=tables,
            opt_state=self.optimizer.init(params),
            table_state={name: self.row_optimizer.init(table) for name, table in tables.items()},
            source={} if source is None else source.init(self.model.query.dim),
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
          arrays: the encoder's arrays, `trainable_N` (bool, items that training knows), `source` (a
            CandidateSource, or None for the full corpus) and, where there is one, `log_prior_N`.

        Returns:
          The state after it, and {`loss`: its mean since the last multiple of `log_every` steps,
          `logit_scale`: mean of |psi| |phi| / temperature over the batch, `bad_step`: as in
          TrainState}.
        """
        objective = self.objective
        key = jax.random.wrap_key_data(state.key)
        weight = sum_over(jnp.sum(batch["weight"]), objective.data_axis)
        variables = {"params": state.params, "tables": state.tables}
        draws = _stream(key, 0, _CANDIDATES)  # not of the step: a pool may outlive it
        question, source = objective.ask(variables, state.source, draws, state.step, batch, arrays)
        rows = objective.look_up(state.tables, question)
        dropout = _stream(key, state.step, _DROPOUT)

        def mean_loss(params: PyTree, rows: PyTree) -> tuple[Array, Any]:
            total, measured = objective(params, rows, question, dropout, arrays)
            return total / jnp.maximum(weight, 1e-9), measured

        value_and_grad = jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)
        (loss, measured), (grads, row_grads) = value_and_grad(state.params, rows)
        loss, grads, length = sum_over((loss, grads, measured.length_product), objective.data_axis)
        if measured.drawn is not None:
            source = arrays["source"].push(source, *measured.drawn)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        tables, table_state = self._update_tables(
            state, question, row_grads, _stream(key, state.step, _ROUNDING)
        )
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
            source=source,
            loss_sum=loss_sum,
            weight_sum=weight_sum,
            bad_step=bad_step,
        )
        scale = self.model.apply({"params": state.params}, method="scale")
        return new_state, {
            "loss": loss_sum / weight_sum,
            "logit_scale": length / jnp.maximum(weight, 1e-9) * scale,
            "bad_step": bad_step,
        }

    def _update_tables(
        self, state: TrainState, question: Question, row_grads: PyTree, key: Array
    ) -> tuple[dict[str, Array], dict[str, PyTree]]:
        """One update of each table from the gradients of all its uses on all replicas."""
        tables, table_state = dict(state.tables), dict(state.table_state)
        for table in tables:
            ids, grads = [], []
            for scope, features in question.uses.items():
                for name, use in features.items():
                    if use.table == table:
                        grad = row_grads[scope][name]
                        ids.append(use.ids if use.is_summed else use.ids.reshape(-1, 1))
                        grads.append(grad.reshape(-1, grad.shape[-1]))
            ids, grads = gather_over((ids, grads), self.objective.data_axis)
            tables[table], table_state[table] = self.row_optimizer.update(
                tables[table],
                table_state[table],
                ids,
                grads,
                state.step,
                jax.random.fold_in(key, zlib.crc32(table.encode())),
                axis=self.objective.model_axis,
            )
        return tables, table_state


def _stream(key: Array, step: int | Array, stream: int) -> Array:
    return jax.random.fold_in(jax.random.fold_in(key, step), stream)
