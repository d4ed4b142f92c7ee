"""Optimizers: optax for dense parameters, row-wise rules for embedding tables.

A config group `optim` has the fields name (a key of OPTIMIZERS), learning_rate, schedule
('constant' | 'cosine'), warmup_steps, weight_decay (decoupled), clip_norm (0 = off), b1, b2, eps,
initial_accumulator and moments_dtype (of the state of tables in mode 'rows').
"""

import dataclasses
import difflib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from recjax.collectives import sum_over
from recjax.embedding import deduplicate, local_ids, take
from recjax.errors import ConfigError
from recjax.rounding import Stored, as_kept, round_randomly

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
    two, which have none), `scale_by_row_rss` for `row_adagrad`; a scalar, such as a learned
    temperature, does not decay. The norm that `clip_norm` bounds is that of the gradients passed
    in: whole ones, not shards. It may be called under strict dtype promotion.

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
        init: table [R, D] -> state, a dict of arrays [R, D], or [R] where a rule keeps a number a
            row (empty for SGD).
        update: (table, state, ids, gradients, step, key, axis=None) -> (table, state), where step
            is the number of updates already made, and ids [B, L] and gradients [B, D] are lists, an
            element for each use of the table: row b is the gradient at each id of row b. Gradients
            of one id are summed first; ids of -1 are dropped. What is kept in bfloat16 is rounded
            by `round_randomly`, by the key, which is another for every table and step. With `axis`
            table and state are this device's shard and the ids are global: each device updates the
            rows that it owns.
    """

    init: Callable[[Array], dict[str, Array]]
    update: Callable[..., tuple[Array, dict[str, Array]]]


def make_row_optimizer(optim: Any, total_steps: int) -> RowOptimizer:
    """The row-wise optimizer of embedding tables in mode 'rows'.

    SGD and both forms of Adagrad give what `make_optimizer` gives on the whole table: a row without
    a gradient stays. Adam is lazy: a row and its moments change only where the row has a gradient,
    with the bias correction of the global step; it equals the dense one where every row is touched
    at every step. Weight decay reaches the touched rows only, and `clip_norm` bounds the norm of
    each table's gradient by itself.

    Raises:
        ConfigError: a name or value that is not legal.
    """
    rule = OPTIMIZERS[_choice("optim.name", optim.name, OPTIMIZERS)]
    schedule = make_schedule(optim, total_steps)

    def init(table_RxD: Stored) -> dict[str, Array]:
        shape = table_RxD.shape[:1] if rule.by_row else table_RxD.shape
        return {
            name: jnp.broadcast_to(as_kept(jnp.float32(value), optim.moments_dtype), shape)
            for name, value in rule.initial(optim).items()
        }

    def update(
        table_RxD: Stored,
        state: dict[str, Array],
        ids: Sequence[Int[Array, "_ _"]],
        grads: Sequence[Float[Array, "_ D"]],
        step: int | Int[Array, ""],
        key: PRNGKeyArray,
        axis: str | None = None,
    ) -> tuple[Stored, dict[str, Array]]:
        num_rows, first = len(table_RxD), 0
        if axis is not None:
            ids = [local_ids(ids_BxL, num_rows, axis) for ids_BxL in ids]
            first = jax.lax.axis_index(axis) * num_rows
        grads = [grads_BxD.astype(jnp.float32) for grads_BxD in grads]
        ids_M, grads_MxD = deduplicate(ids, grads, num_rows)
        if optim.clip_norm:
            square = jnp.sum(grads_MxD**2)
            norm = jnp.sqrt(sum_over(square, axis))
            grads_MxD *= jnp.where(norm < optim.clip_norm, 1.0, optim.clip_norm / norm)
        # Places that are to be dropped get numbers of their own, so that all of them differ.
        ids_M = jnp.where(ids_M < num_rows, ids_M, num_rows + jnp.arange(len(ids_M)))

        def rows(of_RxD: Array) -> Array:
            return take(of_RxD, ids_M, unique=True)

        def written(of_RxD: Array, new_MxD: Array, name: str) -> Array:
            if of_RxD.dtype == jnp.uint16:
                own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
                new_MxD = round_randomly(new_MxD, own_key, ids_M + first)
            return of_RxD.at[ids_M].set(new_MxD, mode="drop", unique_indices=True)

        direction_MxD, touched = rule.rows(optim, jax.tree.map(rows, state), grads_MxD, step)
        if optim.weight_decay:
            direction_MxD += optim.weight_decay * rows(table_RxD)
        change_MxD = -schedule(step) * direction_MxD
        if table_RxD.dtype == jnp.uint16:
            table_RxD = written(table_RxD, rows(table_RxD) + change_MxD, "table")
        else:
            table_RxD = table_RxD.at[ids_M].add(change_MxD, mode="drop", unique_indices=True)
        return table_RxD, {name: written(state[name], touched[name], name) for name in state}

    return RowOptimizer(init, update)


def slots(optim: Any, dim: int) -> int:
    """How many numbers the optimizer keeps for a row of `dim` numbers; none for SGD."""
    rule = OPTIMIZERS[optim.name]
    return len(rule.initial(optim)) * (1 if rule.by_row else dim)


def scale_by_row_rss(initial_accumulator: float, eps: float) -> optax.GradientTransformation:
    """Adagrad with one accumulator a row: `row_adagrad` without a learning rate.

    What lies along the last axis is a row r, of D entries:

        a_r <- a_r + 1/D sum_d g_rd^2        direction_rd = g_rd / sqrt(a_r + eps)

    (Mudigere et al., ISCA 2022, arXiv:2104.05158). So a table [R, D] has R accumulators, and the
    kernel of a layer one for each of its inputs. A bias or a scalar, of one axis or none, has one
    for each entry, as Adagrad has: its entries belong to different outputs or items.
    """

    def init(params: Any) -> optax.ScaleByRssState:
        def accumulator(leaf: Array) -> Array:
            shape = leaf.shape[:-1] if leaf.ndim > 1 else leaf.shape
            return jnp.full(shape, initial_accumulator, leaf.dtype)

        return optax.ScaleByRssState(jax.tree.map(accumulator, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByRssState]:
        del params
        added = jax.tree.map(lambda g: _mean_square(g) if g.ndim > 1 else g**2, updates)
        sums = jax.tree.map(jnp.add, state.sum_of_squares, added)

        def direction(grads: Array, accumulator: Array) -> Array:
            inverse = _inverse_root(accumulator, eps)
            return grads * (inverse[..., None] if grads.ndim > 1 else inverse)

        return jax.tree.map(direction, updates, sums), optax.ScaleByRssState(sums)

    return optax.GradientTransformation(init, update)


def _is_no_scalar(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 0, params)


def _sgd(optim: Any, state: dict, grads: Array, step: Any) -> tuple[Array, dict]:
    del optim, step
    return grads, state


def _adagrad(optim: Any, state: dict, grads: Array, step: Any) -> tuple[Array, dict]:
    del step
    accumulator = state["accumulator"] + grads**2
    return _inverse_root(accumulator, optim.eps) * grads, {"accumulator": accumulator}


def _row_adagrad(optim: Any, state: dict, grads: Array, step: Any) -> tuple[Array, dict]:
    del step
    accumulator = state["accumulator"] + _mean_square(grads)
    inverse = _inverse_root(accumulator, optim.eps)
    return inverse[:, None] * grads, {"accumulator": accumulator}


def _mean_square(grads: Array) -> Array:
    return jnp.mean(grads**2, axis=-1)


def _inverse_root(accumulator: Array, eps: float) -> Array:
    return jnp.where(accumulator > 0, jax.lax.rsqrt(accumulator + eps), 0.0)


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
    by_row: bool = False  # whether a state array of a table is [R], not [R, D]


OPTIMIZERS: dict[str, Rule] = {
    "sgd": Rule(lambda optim: optax.identity(), lambda optim: {}, _sgd),
    "adagrad": Rule(
        lambda optim: optax.scale_by_rss(optim.initial_accumulator, optim.eps),
        lambda optim: {"accumulator": optim.initial_accumulator},
        _adagrad,
    ),
    "row_adagrad": Rule(
        lambda optim: scale_by_row_rss(optim.initial_accumulator, optim.eps),
        lambda optim: {"accumulator": optim.initial_accumulator},
        _row_adagrad,
        by_row=True,
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
