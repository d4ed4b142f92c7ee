"""Turns columns into arrays that a model reads; everything fitted is fitted on training data.

A value that training never saw, and a value that is missing, mean the same everywhere:

| kind | unseen in training | missing |
|---|---|---|
| user or item id | the zero vector | - |
| categorical | a row that all unseen values share | a row of its own |
| bag | that row, for each such word | the zero vector |
| dense in buckets | the bucket that it falls into | a row of its own |
| dense | the number, standardised | 0 (the training mean) and, if training has any, a flag of 1 |
| vector | the vector | the zero vector |
| history | the zero vector for each such item | the zero vector |
"""

import dataclasses
import difflib
import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from recjax.data.dataset import Bag, Categorical, Column, Dataset, Dense, Vector
from recjax.data.schema import Feature
from recjax.errors import ConfigError

Array = jax.Array | np.ndarray

_CYCLES = {"hour": 24, "day": 7}  # derived context features that are one of so many values


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """How a tower reads one feature.

    Attributes:
      name: the key of the tower's inputs.
      kind: `dense` or `vector` (numbers [B, width]), `embedding` (ids [B]), `bag` (ids [B, W]) or
        `history` (ids [B, L], oldest first); an id of -1 is the zero vector.
      width: channels of a dense or vector input; 0 for the others.
      table: the embedding table of the ids; empty for dense and vector.
    """

    name: str
    kind: str
    width: int = 0
    table: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """What the towers read and how to gather it.

    Attributes:
      query: the query tower's features, in order.
      item: the item side's features, in order (empty for a softmax head).
      table_rows: rows of every embedding table that the features name.
      arrays: frozen arrays for the device: {'user': {name: [U, ...]}, 'item': {name: [N, ...]},
        'history_N': item position -> id in the history's table}.
      context: by context feature, what turns its raw numbers [B] into inputs.
    """

    query: tuple[FeatureSpec, ...]
    item: tuple[FeatureSpec, ...]
    table_rows: Mapping[str, int]
    arrays: Mapping[str, Mapping[str, np.ndarray] | np.ndarray]
    context: Mapping[str, Callable[[Array], jax.Array]]

    def query_inputs(self, arrays: Mapping, batch: Mapping[str, Array]) -> dict[str, jax.Array]:
        """Inputs of the query tower for a batch of ids; pure and jittable.

        Args:
          arrays: `self.arrays`, on the device or not.
          batch: `user` [B], and, where the tower reads them, `history` [B, L] and `context/*` [B].
        """
        inputs = {name: jnp.asarray(array)[batch["user"]] for name, array in arrays["user"].items()}
        for spec in self.query:
            if spec.kind == "history":
                inputs[spec.name] = _gather_ids(arrays["history_N"], batch["history"])
        for name, encode in self.context.items():
            inputs[name] = encode(batch[f"context/{name}"])
        return inputs

    def item_inputs(self, arrays: Mapping, item_B: Int[Array, "B"]) -> dict[str, jax.Array]:
        """Inputs of the item side for item positions [B]; padding (-1) has no id and no row."""
        inputs = {"item": jnp.asarray(item_B)}
        for name, array in arrays["item"].items():
            is_id = jnp.issubdtype(array.dtype, jnp.integer)
            gather = _gather_ids if is_id else _gather
            inputs[name] = gather(array, item_B)
        return inputs


def _gather(array_Nx: Array, item: Array) -> jax.Array:
    return jnp.asarray(array_Nx)[jnp.maximum(item, 0)]


def _gather_ids(array_Nx: Array, item: Array) -> jax.Array:
    """The ids of items; -1 for padding."""
    ids = _gather(array_Nx, item)
    is_padding = jnp.reshape(item < 0, item.shape + (1,) * (ids.ndim - item.ndim))
    return jnp.where(is_padding, -1, ids)


def make_encoder(
    dataset: Dataset,
    train_users: np.ndarray,
    train_items: np.ndarray,
    *,
    query_features: Sequence[str],
    item_features: Sequence[str] | None,
    context_sample: Mapping[str, np.ndarray],
    history_length: int,
    history_table: str,
) -> Encoder:
    """Fits every encoding on the users and items of the training interactions.

    Args:
      dataset: the data.
      train_users: positions of the users with training interactions.
      train_items: positions of the items with training interactions.
      query_features: names, or `all` for every one but the id.
      item_features: the same for the item tower; None for a softmax head.
      context_sample: {`context/name`: raw values of a sample of training examples}, on which the
        context features are fitted; its keys are those that this data can give.
      history_length: L; there is no history where it is 0.
      history_table: name of the table that the history reads.

    Raises:
      ConfigError: a name that the data does not have, listing the near ones, or has twice.
    """
    users = {f.name: f for f in dataset.schema.of_side("user")}
    items = {f.name: f for f in dataset.schema.of_side("item")}
    columns = {f.name: f for f in dataset.schema.of_side("context")}
    history = ["history"] if history_length else []
    context_names = [key.removeprefix("context/") for key in context_sample]
    derived = [name for name in context_names if name not in columns]
    table_rows: dict[str, int] = {}
    query, context, user_arrays = [], {}, {}
    for name in _choose(
        "model.query.features",
        query_features,
        default=[*users, *history, *derived],
        legal=["user_id", *users, *history, *context_names],
    ):
        if name == "history":
            query.append(FeatureSpec("history", "history", table=history_table))
            table_rows[history_table] = dataset.items.size
        elif name == "user_id":
            query.append(FeatureSpec("user_id", "embedding", table="user_id"))
            table_rows["user_id"] = dataset.users.size
            user_arrays["user_id"] = _known_ids(dataset.users.size, train_users)
        elif name in users:
            column = dataset.users.columns[name]
            spec, user_arrays[name] = _encode(users[name], column, train_users, table_rows)
            query.append(spec)
        else:
            feature = columns.get(name) or _derived_feature(name, columns)
            column = dataset.interactions.columns.get(name)
            context[name] = _fit_context(feature, column, context_sample[f"context/{name}"])
            query.append(context[name].spec(feature, table_rows))
    item, item_arrays = [], {}
    if item_features is not None:
        for name in _choose(
            "model.item.features",
            item_features,
            default=list(items),
            legal=["item_id", *items],
        ):
            if name == "item_id":
                item.append(FeatureSpec("item_id", "embedding", table="item_id"))
                table_rows["item_id"] = dataset.items.size
                item_arrays["item_id"] = _known_ids(dataset.items.size, train_items)
            else:
                column = dataset.items.columns[name]
                spec, item_arrays[name] = _encode(items[name], column, train_items, table_rows)
                item.append(spec)
    arrays = {
        "user": user_arrays,
        "item": item_arrays,
        "history_N": _known_ids(dataset.items.size, train_items),
    }
    return Encoder(tuple(query), tuple(item), table_rows, arrays, context)


def _choose(key: str, asked: Sequence[str], *, default: list[str], legal: list[str]) -> list[str]:
    twice = sorted({name for name in legal if legal.count(name) > 1})
    if twice:
        raise ConfigError(
            f"{key}: this data has two features called {twice[0]!r} (user_id, item_id, history and "
            "those computed from time have their names); rename the column"
        )
    chosen: list[str] = []
    for name in asked:
        if name != "all" and name not in legal:
            near = difflib.get_close_matches(name, legal, n=3) or legal
            raise ConfigError(
                f"{key}: this data has no feature {name!r}; did you mean one of {near}?"
            )
        chosen.extend(n for n in (default if name == "all" else [name]) if n not in chosen)
    if not chosen:
        raise ConfigError(f"{key}={tuple(asked)}: no feature is left; this data has {legal}")
    return chosen


def _known_ids(size: int, train_rows: np.ndarray) -> np.ndarray:
    ids = np.full(size, -1, np.int32)
    ids[train_rows] = train_rows
    return ids


def _encode(
    feature: Feature, column: Column, train_rows: np.ndarray, table_rows: dict[str, int]
) -> tuple[FeatureSpec, np.ndarray]:
    """A column of the user or item table: how it is read, and its inputs row by row."""
    match column:
        case Vector(values):
            spec = FeatureSpec(feature.name, "vector", width=values.shape[1])
            return spec, np.nan_to_num(values)
        case Dense(values):
            encoding = _fit_dense(feature, values[train_rows])
            return encoding.spec(feature, table_rows), np.asarray(encoding(values))
        case Categorical(codes, vocab):
            encoding = _fit_word(feature, vocab, codes[train_rows])
            return encoding.spec(feature, table_rows), np.asarray(encoding(codes))
        case Bag(offsets, codes, vocab):
            encoding = _fit_word(feature, vocab, column.take(train_rows).codes)
            spec = dataclasses.replace(encoding.spec(feature, table_rows), kind="bag")
            lengths = np.diff(offsets)
            ids = np.full((len(lengths), max(int(lengths.max(initial=0)), 1)), -1, np.int32)
            within = np.arange(len(codes)) - np.repeat(offsets[:-1], lengths)
            ids[np.repeat(np.arange(len(lengths)), lengths), within] = encoding.id_V[codes]
            return spec, ids


@dataclasses.dataclass(frozen=True, eq=False)
class _Number:
    """A standardised number and, with `flag`, a second channel that is 1 where it is missing."""

    log: bool
    mean: float
    std: float
    flag: bool

    def __call__(self, raw_B: Float[Array, "B"]) -> Float[jax.Array, "B W"]:
        missing_B = jnp.isnan(raw_B)
        value_B = jnp.log1p(jnp.maximum(raw_B, 0.0)) if self.log else raw_B
        channels = [jnp.where(missing_B, 0.0, (value_B - self.mean) / self.std)]
        if self.flag:
            channels.append(missing_B.astype(jnp.float32))
        return jnp.stack(channels, axis=1)

    def spec(self, feature: Feature, table_rows: dict[str, int]) -> FeatureSpec:
        del table_rows
        return FeatureSpec(feature.name, "dense", width=1 + self.flag)


@dataclasses.dataclass(frozen=True, eq=False)
class _Bucket:
    """The id of the bucket of a number; one more where it is missing."""

    edges: np.ndarray

    def __call__(self, raw_B: Float[Array, "B"]) -> Int[jax.Array, "B"]:
        id_B = jnp.searchsorted(jnp.asarray(self.edges), raw_B, side="right")
        return jnp.where(jnp.isnan(raw_B), len(self.edges) + 1, id_B).astype(jnp.int32)

    def spec(self, feature: Feature, table_rows: dict[str, int]) -> FeatureSpec:
        return _embedding(feature, len(self.edges) + 2, table_rows)


@dataclasses.dataclass(frozen=True, eq=False)
class _Word:
    """The id of a code: `size` for all that are unseen, one more where it is missing (< 0, NaN)."""

    id_V: np.ndarray
    size: int

    def __call__(self, code_B: Float[Array, "B"] | Int[Array, "B"]) -> Int[jax.Array, "B"]:
        missing_B = jnp.logical_not(code_B >= 0)
        code_B = jnp.where(missing_B, 0, code_B).astype(jnp.int32)
        return jnp.where(missing_B, self.size + 1, jnp.asarray(self.id_V)[code_B])

    def spec(self, feature: Feature, table_rows: dict[str, int]) -> FeatureSpec:
        return _embedding(feature, self.size + 2, table_rows)


def _embedding(feature: Feature, rows: int, table_rows: dict[str, int]) -> FeatureSpec:
    table = f"{feature.side}.{feature.name}"
    table_rows[table] = rows
    return FeatureSpec(feature.name, "embedding", table=table)


def _fit_dense(feature: Feature, train_values: np.ndarray) -> _Number | _Bucket:
    missing = np.isnan(train_values)
    values = train_values[~missing].astype(np.float64)
    if feature.transform == "bucket":
        inner = np.linspace(0, 1, feature.buckets + 1)[1:-1]
        edges = np.quantile(values, inner) if values.size else np.zeros(0)
        return _Bucket(np.unique(edges.astype(np.float32)))
    log = feature.transform == "log"
    if log:
        values = np.log1p(np.maximum(values, 0.0))
    mean, std = 0.0, 1.0
    if feature.transform != "none" and values.size:
        mean, std = float(values.mean()), float(values.std())
    # What does not vary in training is moved to 0 and not blown up elsewhere.
    std = std if std > 1e-6 * max(abs(mean), 1e-6) else 1.0
    return _Number(log, mean, std, bool(missing.any()))


def _fit_word(feature: Feature, vocab: np.ndarray, train_codes: np.ndarray) -> _Word:
    if feature.hash_buckets:
        size = feature.hash_buckets
        hashed = [zlib.crc32(str(word).encode()) % size for word in vocab]
        return _Word(np.asarray(hashed or [0], np.int32), size)
    counts = np.bincount(train_codes[train_codes >= 0], minlength=max(len(vocab), 1))
    known = counts >= max(feature.min_count, 1)
    size = int(known.sum())
    return _Word(np.where(known, np.cumsum(known) - 1, size).astype(np.int32), size)


def _derived_feature(name: str, columns: Mapping[str, Feature]) -> Feature:
    """What a context feature that is no column is, as if it were one."""
    if name == "last_watch_time":
        return dataclasses.replace(columns["watch_time"], name=name)
    return Feature(name, "dense", "context", transform="log")


def _fit_context(
    feature: Feature, column: Column | None, sample: np.ndarray
) -> _Number | _Bucket | _Word:
    if feature.name in _CYCLES:
        size = _CYCLES[feature.name]
        return _Word(np.arange(size, dtype=np.int32), size)
    if isinstance(column, Categorical):
        return _fit_word(feature, column.vocab, np.nan_to_num(sample, nan=-1).astype(np.int64))
    return _fit_dense(feature, sample)
