"""How wrong an estimator is: its gradient beside that of the exact softmax, on a few queries."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from recjax.candidates import pick_hard
from recjax.data.examples import TrainExamples
from recjax.models.corpus import encode_corpus
from recjax.objective import Batch, Objective, bias_of, own_items
from recjax.rounding import as_float32

PyTree = Any
GROUPS = ("query", "items", "head")


class EstimatorError:
    """Compares the gradient of an objective with drawn candidates with the exact softmax's.

    The loss is the mean over some queries. Every draw takes candidates anew: for each query the
    batch is that query's example and `batch_size - 1` others, as in training, where a batch is a
    random one; a memory is filled with other items, each as stale as the memory's own of that item,
    while streaming frequencies stay as they are. With g* the exact gradient, g_r that of draw r, of
    R, and g their mean,

        variance   = mean_r |g_r - g|^2 R / (R - 1) / |g*|^2
        bias_noise = sqrt(variance / R), what R draws leave of |g - g*| / |g*| by chance
        bias       = |g - g*| / |g*| less that, as squares; 0 where that is all
        cosine     = mean_r cos(g_r, g*)

    in three groups: `query`, w.r.t. the query embeddings; `items`, w.r.t. the item embeddings;
    `head`, w.r.t. the parameters of the item side (the head and its bias, or the tower). Dropout is
    off. The gradients of N x D numbers are held a few times: it is for corpora where that fits.

    Args:
      objective: with drawn candidates.
      examples: what it is trained on.
      arrays: as for `TrainStep`.
      batch_size: of training.
      queries: that are compared.
      draws: R, at least 2.
      seed: of the queries, the other examples and the draws.
    """

    def __init__(
        self,
        objective: Objective,
        examples: TrainExamples,
        arrays: Mapping[str, Any],
        *,
        batch_size: int,
        queries: int = 64,
        draws: int = 32,
        seed: int = 0,
    ):
        self._objective = objective
        self._arrays = arrays
        rng = np.random.default_rng(seed)
        chosen = rng.choice(examples.size, min(queries, examples.size), replace=False)
        self._probe = examples.batch(chosen, seed=seed, epoch=0)
        shape = max(draws, 2), batch_size - 1
        others = rng.integers(examples.size, size=shape)
        self._others = [examples.batch(each, seed=seed, epoch=0) for each in others]
        frequency_N = examples.label_frequency_N
        size = shape[0], arrays["source"].memory
        self._remembered = rng.choice(len(frequency_N), size, p=frequency_N).astype(np.int32)
        self._key = jax.random.key(seed)
        self._exact = jax.jit(self._exact_gradients)
        self._drawn = jax.jit(self._drawn_gradients)

    def __call__(self, variables: PyTree, source: PyTree, step: int) -> dict[str, float]:
        """{`query/bias`, `/bias_noise`, `/variance`, `/cosine`, `items/...`, `head/...`}.

        Args:
          variables: of the model.
          source: the candidate source's state; it stays as it is.
          step: at which the candidates are drawn.
        """
        arrays, probe = self._arrays, self._probe
        exact = self._exact(variables, arrays, probe)
        total = jax.tree.map(jnp.zeros_like, exact)
        square, cosine = dict.fromkeys(GROUPS, 0.0), dict.fromkeys(GROUPS, 0.0)
        for number, (others, remembered_M) in enumerate(
            zip(self._others, self._remembered, strict=True)
        ):
            key = jax.random.fold_in(self._key, number)
            chance = key, jnp.int32(step), others, remembered_M
            drawn = self._drawn(variables, arrays, probe, source, *chance)
            total = jax.tree.map(jnp.add, total, drawn)
            for group in GROUPS:
                length = _dot(drawn[group], drawn[group])
                square[group] += length
                aligned = _dot(drawn[group], exact[group])
                lengths = (length * _dot(exact[group], exact[group])) ** 0.5
                cosine[group] += aligned / lengths if lengths else 0.0
        found, count = {}, len(self._others)
        for group in GROUPS:
            mean, size = total[group] / count, _dot(exact[group], exact[group])
            variance = max(square[group] - count * _dot(mean, mean), 0.0) / (count - 1)
            off, noise, size = mean - exact[group], variance / count, size or math.inf
            found[f"{group}/bias"] = (max(_dot(off, off) - noise, 0.0) / size) ** 0.5
            found[f"{group}/bias_noise"] = (noise / size) ** 0.5
            found[f"{group}/variance"] = variance / size
            found[f"{group}/cosine"] = cosine[group] / count
        return found

    def _gradients(
        self, variables: PyTree, arrays: Any, probe: Batch, total_loss: Callable[..., Array]
    ) -> dict[str, Array]:
        """The gradient of `total_loss(query, item, item bias) / weights` in each group, flat."""
        objective = self._objective
        model, encoder = objective.model, objective.encoder
        variables = jax.tree.map(as_float32, variables)  # bits have no gradient

        def item_side(variables: PyTree) -> tuple[Array, Any]:
            def encode(item_C: Array) -> Any:
                inputs = encoder.item_inputs(arrays, item_C)
                return model.apply(variables, inputs, method="embed_items")

            item_N = jnp.arange(objective.num_items)
            item_NxD = encode_corpus(encode, item_N, objective.corpus_chunk)
            return item_NxD, model.apply(variables, method="item_bias")

        def mean_loss(*inputs: Any) -> Array:
            return total_loss(*inputs) / jnp.sum(probe["weight"])

        query_BxD = model.apply(
            variables, encoder.query_inputs(arrays, probe), method="embed_query"
        )
        (item_NxD, bias_N), pull_back = jax.vjp(item_side, variables)
        d_query, d_item, d_bias = jax.grad(mean_loss, argnums=(0, 1, 2))(
            query_BxD, item_NxD, bias_N
        )
        (d_variables,) = pull_back((d_item, d_bias))
        leaves = [leaf.reshape(-1) for leaf in jax.tree.leaves(d_variables)]
        return {
            "query": d_query.reshape(-1),
            "items": d_item.reshape(-1),
            "head": jnp.concatenate(leaves),
        }

    def _exact_gradients(self, variables: PyTree, arrays: Any, probe: Batch) -> dict[str, Array]:
        objective = self._objective

        def total_loss(query_BxD: Array, item_NxD: Array, bias_N: Any) -> Array:
            total, _ = objective.loss.full(
                query_BxD,
                item_NxD,
                probe["label"],
                probe["label_weight"],
                probe["weight"],
                bias_N=None if bias_N is None else bias_N[: len(item_NxD)],
                mask_N=arrays["trainable_N"],
                log_prior_N=arrays.get("log_prior_N"),
                scale=objective.model.apply(variables, method="scale"),
            )
            return total

        return self._gradients(variables, arrays, probe, total_loss)

    def _drawn_gradients(
        self,
        variables: PyTree,
        arrays: Any,
        probe: Batch,
        source: PyTree,
        key: Array,
        step: Array,
        others: Batch,
        remembered_M: Array,
    ) -> dict[str, Array]:
        objective, sampler = self._objective, arrays["source"]
        scale: Any = objective.model.apply(variables, method="scale")

        def loss_of(
            query_D: Array, row: Batch, state: Any, item_NxD: Array, bias_N: Array | None
        ) -> Array:
            query_1xD = query_D[None]
            row = {name: value[None] for name, value in row.items()}
            batch = {name: jnp.concatenate([row[name], others[name]]) for name in row}
            batch["index"] = jnp.arange(len(batch["index"]))
            draw, _ = sampler.draw(state, key, batch, step)
            if draw.pool is None:
                negative = jax.tree.map(lambda x: x[:1], draw.negative)
            else:
                negative = pick_hard(
                    query_1xD,
                    item_NxD[jnp.maximum(draw.pool, 0)],
                    draw.pool,
                    bias_of(bias_N, draw.pool),
                    row["label"],
                    sampler.num_hard,
                    scale=scale,
                )
            draw = draw._replace(negative=negative, label_log_q_BxP=draw.label_log_q_BxP[:1])
            own = own_items(row, draw, objective.correct_positive)
            parts = [
                (drawn, item_NxD[jnp.maximum(drawn.ids_C, 0)])
                for drawn in (draw.own, draw.shared)
                if drawn is not None
            ]
            if draw.stored is not None:
                parts.append((draw.stored, state["memory"]["embedding_MxD"]))
            own_1xPxD = item_NxD[jnp.maximum(own.ids_BxP, 0)]
            return objective.score(query_1xD, own_1xPxD, own, parts, row["weight"], bias_N, scale)

        def total_loss(query_BxD: Array, item_NxD: Array, bias_N: Any) -> Array:
            state = source
            if "memory" in source:
                memory = _redrawn(source["memory"], remembered_M, item_NxD)
                state = {**source, "memory": memory}
            bias_N = objective.bias(bias_N, arrays)
            rows = {name: jnp.asarray(value) for name, value in probe.items()}
            each = jax.vmap(loss_of, in_axes=(0, 0, None, None, None))
            return jnp.sum(each(query_BxD, rows, state, item_NxD, bias_N))

        return self._gradients(variables, arrays, probe, total_loss)


def _redrawn(memory: dict[str, Array], drawn_M: Array, item_NxD: Array) -> dict[str, Array]:
    """The memory with other items, as old as they would be: from it, where it has them."""
    item_NxD = jax.lax.stop_gradient(item_NxD)
    is_filled_M = memory["ids_M"] >= 0
    at_M = jnp.where(is_filled_M, memory["ids_M"], len(item_NxD))
    stale_NxD = item_NxD.at[at_M].set(memory["embedding_MxD"], mode="drop")
    return {
        **memory,
        "ids_M": jnp.where(is_filled_M, drawn_M, -1),
        "embedding_MxD": stale_NxD[drawn_M],
    }


def _dot(a: Array, b: Array) -> float:
    return float(jnp.vdot(a, b))
