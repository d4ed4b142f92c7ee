"""Optimizers: optax for dense parameters, row-wise rules for embedding tables.

A config group `optim` has the fields name ('sgd' | 'adagrad' | 'adam'), learning_rate, schedule
('constant' | 'cosine'), warmup_steps, weight_decay (decoupled), clip_norm (0 = off), b1, b2, eps
and initial_accumulator.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from recjax.collectives import sum_over
from recjax.embedding import deduplicate, local_ids
from recjax.errors import ConfigError

Schedule = Callable[[Any], Array]


def make_schedule(optim: Any, total_steps: int) -> Schedule:
    """The learning rate by the number of updates already made.

    It rises linearly over the first `warmup_steps` updates, reaching `learning_rate` with the last
    of them; then it stays ('constant') or falls to 0 at `total_steps` as half a cosine ('cosine',
    Loshchilov & Hutter 2017).

    Raises:
        ConfigError: an unknown schedule or a negative number of warm-up steps.
    """
    shape = SCHEDULES[_choice("optim.schedule", optim.schedule, SCHEDULES)]
    warmup, peak = optim.warmup_steps, optim.learning_rate
    if warmup < 0:
        raise ConfigError(f"optim.warmup_steps={warmup} must not be negative")
    decay_steps = max(total_steps - warmup, 1)

    def schedule(step: Any) -> Array:
        step = jnp.asarray(step).astype(jnp.float32)
        rate = peak * shape(jnp.clip((step - warmup) / decay_steps, 0.0, 1.0))
        return rate * jnp.minimum((step + 1) / warmup, 1.0) if warmup else rate

    return schedule


def make_optimizer(optim: Any, total_steps: int) -> optax.GradientTransformation:
    """The optimizer of dense parameters: clip, rule, decay, learning rate, in this order.

    Optax's own `sgd`, `adagrad` and `adamw` where clipping is off (and the decay 0, for the first
    two, which have none); a scalar, such as a learned temperature, does not decay. The norm that
    `clip_norm` bounds is that of the gradients passed in: whole ones, not shards. It may be called
    under strict dtype promotion.

    Raises:
        ConfigError: a name or value that is not legal.
    """
    chain = [OPTIMIZERS[_choice("optim.name", optim.name, OPTIMIZERS)].dense(optim)]
    if optim.clip_norm:
        chain.insert(0, optax.clip_by_global_norm(optim.clip_norm))
    if optim.weight_decay:
        chain.append(optax.add_decayed_weights(optim.weight_decay, _is_no_scalar))
    chain.append(optax.scale_by_learning_rate(make_schedule(optim, total_steps)))
    inner = optax.chain(*chain)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # Adam mixes int32 counts with floats
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


@dataclasses.dataclass(frozen=True)
class RowOptimizer:
    """An optimizer of embedding tables that writes only the rows it has gradients for.

    Args:
        init: table [R, D] -> state, a dict of arrays [R, D] (empty for SGD).
        update: (table, state, ids, gradients, step, axis=None) -> (table, state), where step is the
            number of updates already made, and ids [B, L] and gradients [B, D] are lists, an
            element for each use of the table: row b is the gradient at each id of row b. Gradients
            of one id are summed first; ids of -1 are dropped. With `axis` table and state are this
            device's shard and the ids are global: each device updates the rows that it owns.
    """

    init: Callable[[Array], dict[str, Array]]
    update: Callable[..., tuple[Array, dict[str, Array]]]


def make_row_optimizer(optim: Any, total_steps: int) -> RowOptimizer:
    """The row-wise optimizer of embedding tables in mode 'rows'.

    SGD and Adagrad give what `make_optimizer` gives on the whole table: a row without a gradient
    stays. Adam is lazy: a row and its moments change only where the row has a gradient, with
    the bias correction of the global step; it equals the dense one where every row is touched at
    every step. Weight decay reaches the touched rows only, and `clip_norm` bounds the norm of each
    table's gradient by itself.

    Raises:
        ConfigError: a name or value that is not legal.
    """
    rule = OPTIMIZERS[_choice("optim.name", optim.name, OPTIMIZERS)]
    schedule = make_schedule(optim, total_steps)

    def init(table_RxD: Float[Array, "R D"]) -> dict[str, Array]:
        return {
            name: jnp.full(table_RxD.shape, value, jnp.float32)
            for name, value in rule.initial(optim).items()
        }

    def update(
        table_RxD: Float[Array, "R D"],
        state: dict[str, Array],
        ids: Sequence[Int[Array, "_ _"]],
        grads: Sequence[Float[Array, "_ D"]],
        step: int | Int[Array, ""],
        axis: str | None = None,
    ) -> tuple[Float[Array, "R D"], dict[str, Array]]:
        num_rows = len(table_RxD)
        if axis is not None:
            ids = [local_ids(ids_BxL, num_rows, axis) for ids_BxL in ids]
        grads = [grads_BxD.astype(jnp.float32) for grads_BxD in grads]
        ids_M, grads_MxD = deduplicate(ids, grads, num_rows)
        if optim.clip_norm:
            square = jnp.sum(grads_MxD**2)
            norm = jnp.sqrt(sum_over(square, axis))
            grads_MxD *= jnp.where(norm < optim.clip_norm, 1.0, optim.clip_norm / norm)
        # Places that are to be dropped get numbers of their own, so that all of them differ.
        ids_M = jnp.where(ids_M < num_rows, ids_M, num_rows + jnp.arange(len(ids_M)))

        def rows(of_RxD: Array) -> Array:
            return of_RxD.at[ids_M].get(mode="fill", fill_value=0.0, unique_indices=True)

        direction_MxD, touched = rule.rows(optim, jax.tree.map(rows, state), grads_MxD, step)
        if optim.weight_decay:
            direction_MxD += optim.weight_decay * rows(table_RxD)
        change_MxD = (-schedule(step) * direction_MxD).astype(table_RxD.dtype)
        table_RxD = table_RxD.at[ids_M].add(change_MxD, mode="drop", unique_indices=True)
        state = jax.tree.map(
            lambda old, new: old.at[ids_M].set(new, mode="drop", unique_indices=True),
            state,
            touched,
        )
        return table_RxD, state

    return RowOptimizer(init, update)


def _is_no_scalar(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 0, params)


def _sgd(optim: Any, state: dict, grads: Array, step: Any) -> tuple[Array, dict]:
    del optim, step
    return grads, state


def _adagrad(optim: Any, state: dict, grads: Array, step: Any) -> tuple[Array, dict]:
    del step
    accumulator = state["accumulator"] + grads**2
    inverse = jnp.where(accumulator > 0, jax.lax.rsqrt(accumulator + optim.eps), 0.0)
    return inverse * grads, {"accumulator": accumulator}


def _adam(optim: Any, state: dict, grads: Array, step: Any) -> tuple[Array, dict]:
    count = jnp.asarray(step).astype(jnp.float32) + 1
    m = optim.b1 * state["m"] + (1 - optim.b1) * grads
    v = optim.b2 * state["v"] + (1 - optim.b2) * grads**2
    m_hat, v_hat = m / (1 - optim.b1**count), v / (1 - optim.b2**count)
    return m_hat / (jnp.sqrt(v_hat) + optim.eps), {"m": m, "v": v}


class Rule(NamedTuple):
    """An update rule in both forms."""

    dense: Callable[[Any], optax.GradientTransformation]  # optim -> the rule without a rate
    initial: Callable[[Any], dict[str, float]]  # optim -> initial value of each state array
    rows: Callable[..., tuple[Array, dict]]  # optim, state, gradients, step -> direction, state


OPTIMIZERS: dict[str, Rule] = {
    "sgd": Rule(lambda optim: optax.identity(), lambda optim: {}, _sgd),
    "adagrad": Rule(
        lambda optim: optax.scale_by_rss(optim.initial_accumulator, optim.eps),
        lambda optim: {"accumulator": optim.initial_accumulator},
        _adagrad,
    ),
    "adam": Rule(
        lambda optim: optax.scale_by_adam(optim.b1, optim.b2, optim.eps),
        lambda optim: {"m": 0.0, "v": 0.0},
        _adam,
    ),
}

# By name: the share of the peak rate, given the share of the steps after warm-up.
SCHEDULES: dict[str, Callable[[Array], Array]] = {
    "constant": jnp.ones_like,
    "cosine": lambda progress: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
}


def _choice(key: str, value: str, choices: Mapping[str, Any]) -> str:
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{key}={value!r} is none of {', '.join(choices)}{hint}")
    return value
