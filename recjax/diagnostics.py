"""How wrong an estimator is: its gradient beside that of the exact softmax, on a few queries."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from recjax.candidates import pick_hard
from recjax.data.examples import TrainExamples
from recjax.models.corpus import encode_corpus
from recjax.objective import Batch, Objective, bias_of, join_candidates, own_items

PyTree = Any
GROUPS = ("query", "items", "head")


class EstimatorError:
    """Compares the gradient of an objective with drawn candidates with the exact softmax's.

    The loss is the mean over some queries. Every draw takes candidates anew: for each query the
    batch is that query's example and `batch_size - 1` others, as in training, where a batch is a
    random one. With g* the exact gradient, g_r that of draw r, of R, and g their mean,

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
        others = rng.integers(examples.size, size=(max(draws, 2), batch_size - 1))
        self._others = [examples.batch(each, seed=seed, epoch=0) for each in others]
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
        exact = self._exact(variables)
        total = jax.tree.map(jnp.zeros_like, exact)
        square, cosine = dict.fromkeys(GROUPS, 0.0), dict.fromkeys(GROUPS, 0.0)
        for number, others in enumerate(self._others):
            key = jax.random.fold_in(self._key, number)
            drawn = self._drawn(variables, source, key, jnp.int32(step), others)
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
            off, noise = mean - exact[group], variance / count
            found[f"{group}/bias"] = (max(_dot(off, off) - noise, 0.0) / size) ** 0.5
            found[f"{group}/bias_noise"] = (noise / size) ** 0.5
            found[f"{group}/variance"] = variance / size
            found[f"{group}/cosine"] = cosine[group] / count
        return found

    def _item_side(self, variables: PyTree) -> tuple[Array, Any]:
        objective = self._objective

        def encode(item_C: Array) -> Any:
            inputs = objective.encoder.item_inputs(self._arrays, item_C)
            return objective.model.apply(variables, inputs, method="embed_items")

        everything = jnp.arange(objective.num_items)
        item_NxD = encode_corpus(encode, everything, objective.corpus_chunk)
        bias_N = objective.model.apply(variables, method="item_bias")
        bias_N = None if bias_N is None else bias_N[: objective.num_items]
        prior_N = self._arrays.get("log_prior_N")
        if prior_N is not None:
            bias_N = prior_N if bias_N is None else bias_N + prior_N
        return item_NxD, bias_N

    def _gradients(self, variables: PyTree, mean_loss: Any) -> dict[str, Array]:
        """The gradient of `mean_loss(query, item, bias)` in each group, flat."""
        model, encoder = self._objective.model, self._objective.encoder
        inputs = encoder.query_inputs(self._arrays, self._probe)
        query_BxD = model.apply(variables, inputs, method="embed_query")
        (item_NxD, bias_N), pull_back = jax.vjp(self._item_side, variables)
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

    def _exact_gradients(self, variables: PyTree) -> dict[str, Array]:
        probe = {name: jnp.asarray(value) for name, value in self._probe.items()}

        def mean_loss(query_BxD: Array, item_NxD: Array, bias_N: Any) -> Array:
            total, _ = self._objective.loss.full(
                query_BxD,
                item_NxD,
                probe["label"],
                probe["label_weight"],
                probe["weight"],
                bias_N=bias_N,
                mask_N=self._arrays["trainable_N"],
                scale=self._objective.model.apply(variables, method="scale"),
            )
            return total / jnp.sum(probe["weight"])

        return self._gradients(variables, mean_loss)

    def _drawn_gradients(
        self, variables: PyTree, source: PyTree, key: Array, step: Array, others: Batch
    ) -> dict[str, Array]:
        objective, sampler = self._objective, self._arrays["source"]
        probe = {name: jnp.asarray(value) for name, value in self._probe.items()}

        scale: Any = objective.model.apply(variables, method="scale")

        def loss_of(query_D: Array, row: Batch, item_NxD: Array, bias_N: Any) -> Array:
            row = {name: value[None] for name, value in row.items()}
            batch = {name: jnp.concatenate([row[name], others[name]]) for name in row}
            batch["index"] = jnp.arange(len(batch["index"]))
            draw, _ = sampler.draw(source, key, batch, step)
            if draw.pool is not None:
                negative = pick_hard(
                    query_D[None],
                    item_NxD[jnp.maximum(draw.pool, 0)],
                    draw.pool,
                    bias_of(bias_N, draw.pool),
                    row["label"],
                    sampler.num_hard,
                    scale=scale,
                )
            else:
                negative = jax.tree.map(lambda x: x[:1], draw.negative)
            draw = draw._replace(negative=negative, label_log_q_BxP=draw.label_log_q_BxP[:1])
            ids_1xP, y_1xP, own_log_q = own_items(row, draw, objective.correct_positive)
            parts = [
                (drawn, item_NxD[jnp.maximum(drawn.ids_C, 0)])
                for drawn in (draw.own, draw.shared)
                if drawn is not None
            ]
            if draw.stored is not None:
                parts.append((draw.stored, source["memory"]["embedding_MxD"]))
            candidates, candidate_CxD = join_candidates(parts, item_NxD.shape[1])
            total, _ = objective.loss.sampled(
                query_D[None],
                item_NxD[jnp.maximum(ids_1xP, 0)],
                candidate_CxD,
                ids_1xP,
                y_1xP,
                candidates,
                row["weight"],
                scale=scale,
                own_bias_BxP=bias_of(bias_N, ids_1xP),
                candidate_bias_C=bias_of(bias_N, candidates.ids_C),
                correct=objective.correct_logq,
                own_log_q_BxP=own_log_q,
            )
            return total

        def mean_loss(query_BxD: Array, item_NxD: Array, bias_N: Any) -> Array:
            of_each = jax.vmap(loss_of, in_axes=(0, 0, None, None))
            return jnp.sum(of_each(query_BxD, probe, item_NxD, bias_N)) / jnp.sum(probe["weight"])

        return self._gradients(variables, mean_loss)


def _dot(a: Array, b: Array) -> float:
    return float(jnp.vdot(a, b))
