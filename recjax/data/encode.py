"""Turns columns into arrays that a model reads; everything fitted is fitted on training data.

A value that training never saw, and a value that is missing, mean the same everywhere:

| kind | unseen in training | missing |
|---|---|---|
| user or item id | the zero vector | - |
| categorical, dense in buckets | a row of its own | another row of its own |
| bag | a row of its own per word | the zero vector |
| dense | the number, standardised | 0 (the training mean) and a second channel set to 1 |
| vector | the vector | the zero vector |
| history | the zero vector per item | the zero vector |
"""

import dataclasses
import difflib
import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from recjax.data.dataset import Bag, Categorical, Column, Dataset, Dense, Vector
from recjax.data.schema import Feature
from recjax.errors import ConfigError

CYCLES = {"hour": 24, "day": 7}  # context features that are categorical
LOG_CONTEXT = ("time_since_last", "user_count")  # context features with a heavy tail


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """How a tower reads one feature.

    Attributes:
      name: the key of the tower's inputs.
      kind: `dense` or `vector` (numbers [B, width]), `embedding` (ids [B]), `bag` (ids [B, W]) or
        `history` (ids [B, L], oldest first); an id of -1 is the zero vector.
      width: channels of a dense or vector input; 0 for the others.
      table: the embedding table of the ids; empty for dense and vector.
      length: L of a history; 0 for the others.
    """

    name: str
    kind: str
    width: int = 0
    table: str = ""
    length: int = 0


@dataclasses.dataclass(frozen=True)
class _Context:
    """A context feature: `size` > 0 makes it categorical, otherwise it is standardised."""

    name: str
    size: int = 0
    log: bool = False
    mean: float = 0.0
    std: float = 1.0

    def __call__(self, raw_B: jax.Array) -> jax.Array:
        missing_B = jnp.isnan(raw_B)
        if self.size:
            code_B = jnp.where(missing_B, self.size + 1, raw_B).astype(jnp.int32)
            return jnp.where(code_B < 0, self.size, code_B)
        value_B = jnp.log1p(jnp.maximum(raw_B, 0.0)) if self.log else raw_B
        value_B = jnp.where(missing_B, 0.0, (value_B - self.mean) / self.std)
        return jnp.stack([value_B, missing_B.astype(jnp.float32)], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """What the towers read and how to gather it.

    Attributes:
      query: the query tower's features, in order.
      item: the item side's features, in order (empty for a softmax head).
      table_rows: rows of every embedding table that the features name.
      arrays: frozen arrays for the device: {'user': {name: [U, ...]}, 'item': {name: [N, ...]},
        'history_N': item position -> id in the history's table}.
      context: how raw context numbers become inputs.
    """

    query: tuple[FeatureSpec, ...]
    item: tuple[FeatureSpec, ...]
    table_rows: Mapping[str, int]
    arrays: Mapping[str, Mapping[str, np.ndarray] | np.ndarray]
    context: tuple[_Context, ...] = ()

    def query_inputs(self, arrays, batch) -> dict[str, jax.Array]:
        """Inputs of the query tower for a batch of ids; pure and jittable.

        Args:
          arrays: `self.arrays`, on the device.
          batch: `user` [B], and, where the tower reads them, `history` [B, L] and `context/*` [B].
        """
        inputs = {name: array[batch["user"]] for name, array in arrays["user"].items()}
        for spec in self.query:
            if spec.kind == "history":
                item_BxL = batch["history"]
                id_BxL = arrays["history_N"][jnp.maximum(item_BxL, 0)]
                inputs[spec.name] = jnp.where(item_BxL < 0, -1, id_BxL)
        for context in self.context:
            inputs[context.name] = context(batch[f"context/{context.name}"])
        return inputs

    def item_inputs(self, arrays, item_B) -> dict[str, jax.Array]:
        """Inputs of the item side for item positions [B]; padding (-1) has no id and no row."""
        inputs = {"item": item_B}
        for name, array in arrays["item"].items():
            value = array[jnp.maximum(item_B, 0)]
            if jnp.issubdtype(value.dtype, jnp.integer):
                padding = item_B.reshape(-1, *[1] * (value.ndim - 1)) < 0
                value = jnp.where(padding, -1, value)
            inputs[name] = value
        return inputs


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
      context_sample: {`context/name`: raw values of a sample of training examples}; its keys are
        the context features that this data can give.
      history_length: L.
      history_table: name of the table that the history reads.

    Raises:
      ConfigError: a name that the data does not have, listing the near ones.
    """
    context_names = [key.removeprefix("context/") for key in context_sample]
    user_names = [f.name for f in dataset.schema.of_side("user")]
    item_names = [f.name for f in dataset.schema.of_side("item")]
    derived = [n for n in context_names if not _is_column(dataset, n)]
    chosen = _choose(
        query_features,
        default=[*user_names, "history", *derived],
        legal=["user_id", *user_names, "history", *context_names],
        key="model.query.features",
    )
    table_rows: dict[str, int] = {}
    query, context, user_arrays = [], [], {}
    for name in chosen:
        if name == "history":
            query.append(FeatureSpec("history", "history", table=history_table, length=history_length))
            table_rows[history_table] = dataset.items.size
        elif name == "user_id":
            query.append(FeatureSpec("user_id", "embedding", table="user_id"))
            table_rows["user_id"] = dataset.users.size
            user_arrays["user_id"] = _known_ids(dataset.users.size, train_users)
        elif name in user_names:
            feature = next(f for f in dataset.schema.of_side("user") if f.name == name)
            column = dataset.users.columns[name]
            spec, user_arrays[name] = _encode(feature, column, train_users, table_rows)
            query.append(spec)
        else:
            column = dataset.interactions.columns.get(name) if _is_column(dataset, name) else None
            encoding = _fit_context(name, column, context_sample[f"context/{name}"])
            context.append(encoding)
            if encoding.size:
                query.append(FeatureSpec(name, "embedding", table=f"context.{name}"))
                table_rows[f"context.{name}"] = encoding.size + 2
            else:
                query.append(FeatureSpec(name, "dense", width=2))
    item, item_arrays = [], {}
    if item_features is not None:
        legal = ["item_id", *item_names]
        for name in _choose(item_features, item_names, legal, "model.item.features"):
            if name == "item_id":
                item.append(FeatureSpec("item_id", "embedding", table="item_id"))
                table_rows["item_id"] = dataset.items.size
                item_arrays["item_id"] = _known_ids(dataset.items.size, train_items)
                continue
            feature = next(f for f in dataset.schema.of_side("item") if f.name == name)
            column = dataset.items.columns[name]
            spec, item_arrays[name] = _encode(feature, column, train_items, table_rows)
            item.append(spec)
    arrays = {
        "user": user_arrays,
        "item": item_arrays,
        "history_N": _known_ids(dataset.items.size, train_items),
    }
    return Encoder(tuple(query), tuple(item), table_rows, arrays, tuple(context))


def _is_column(dataset: Dataset, name: str) -> bool:
    return any(f.name == name for f in dataset.schema.of_side("context"))


def _choose(asked: Sequence[str], default: list[str], legal: list[str], key: str) -> list[str]:
    chosen: list[str] = []
    for name in asked:
        if name != "all" and name not in legal:
            near = difflib.get_close_matches(name, legal, n=3) or legal
            raise ConfigError(f"{key}: this data has no feature {name!r}; did you mean one of {near}?")
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
    table = f"{feature.side}.{feature.name}"
    match column:
        case Vector(values):
            spec = FeatureSpec(feature.name, "vector", width=values.shape[1])
            return spec, np.nan_to_num(values).astype(np.float32)
        case Dense(values) if feature.transform == "bucket":
            known = values[train_rows]
            known = known[~np.isnan(known)]
            inner = np.linspace(0, 1, feature.buckets + 1)[1:-1]
            edges = np.unique(np.quantile(known, inner)) if known.size else np.zeros(0)
            ids = np.searchsorted(edges, values, side="right")
            table_rows[table] = len(edges) + 3
            ids = np.where(np.isnan(values), len(edges) + 2, ids).astype(np.int32)
            return FeatureSpec(feature.name, "embedding", table=table), ids
        case Dense(values):
            return _encode_dense(feature, values, train_rows)
        case Categorical(codes, vocab):
            remap, size = _vocabulary(feature, vocab, codes[train_rows])
            table_rows[table] = size + 2
            ids = np.where(codes < 0, size + 1, remap[codes]).astype(np.int32)
            return FeatureSpec(feature.name, "embedding", table=table), ids
        case Bag(offsets, codes, vocab):
            remap, size = _vocabulary(feature, vocab, column.take(train_rows).codes)
            table_rows[table] = size + 1
            lengths = np.diff(offsets)
            ids = np.full((len(lengths), max(int(lengths.max(initial=0)), 1)), -1, np.int32)
            within = np.arange(len(codes)) - np.repeat(offsets[:-1], lengths)
            ids[np.repeat(np.arange(len(lengths)), lengths), within] = remap[codes]
            return FeatureSpec(feature.name, "bag", table=table), ids


def _encode_dense(
    feature: Feature, values: np.ndarray, train_rows: np.ndarray
) -> tuple[FeatureSpec, np.ndarray]:
    values = values.astype(np.float64)
    if feature.transform == "log":
        values = np.log1p(np.maximum(values, 0.0))
    mean, std = 0.0, 1.0
    if feature.transform != "none":
        mean, std = _moments(values[train_rows])
    missing = np.isnan(values)
    channels = [np.where(missing, 0.0, (values - mean) / std)]
    if missing.any():
        channels.append(missing.astype(np.float64))
    spec = FeatureSpec(feature.name, "dense", width=len(channels))
    return spec, np.stack(channels, axis=1).astype(np.float32)


def _vocabulary(
    feature: Feature, vocab: np.ndarray, train_codes: np.ndarray
) -> tuple[np.ndarray, int]:
    """Code -> id: 0..size-1 for what training knows, size for what it does not."""
    if feature.hash_buckets:
        size = feature.hash_buckets
        hashed = [zlib.crc32(str(word).encode()) % size for word in vocab]
        return np.asarray(hashed or [0], np.int32), size
    counts = np.bincount(train_codes[train_codes >= 0], minlength=max(len(vocab), 1))
    known = counts >= max(feature.min_count, 1)
    return np.where(known, np.cumsum(known) - 1, known.sum()).astype(np.int32), int(known.sum())


def _moments(values: np.ndarray) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if values.size == 0:
        return 0.0, 1.0
    return float(values.mean()), max(float(values.std()), 1e-6)


def _fit_context(name: str, column: Column | None, sample: np.ndarray) -> _Context:
    if name in CYCLES:
        return _Context(name, size=CYCLES[name])
    if isinstance(column, Categorical):
        return _Context(name, size=len(column.vocab))
    log = name in LOG_CONTEXT
    raw = sample.astype(np.float64)
    mean, std = _moments(np.log1p(np.maximum(raw, 0.0)) if log else raw)
    return _Context(name, log=log, mean=mean, std=std)
