"""From a config to a model: sides, tables, and the widths that must agree."""

from typing import Any

from recjax.config import Config
from recjax.data.encode import Encoder
from recjax.embedding import TableSpec
from recjax.errors import ConfigError
from recjax.models.retrieval import HEAD, RetrievalModel, SoftmaxHead
from recjax.models.towers import ItemTower, QueryTower
from recjax.parallel import ROW_MULTIPLE

_IDS = {"query": "user_id", "item": "item_id"}


def make_model(
    model: Config, tables: Config, encoder: Encoder, num_items: int, *, full: bool
) -> RetrievalModel:
    """The model that the config groups `model` and `tables` define, for inputs of the encoder.

    Args:
      model: widths, features and layers of both sides.
      tables: in which mode tables are kept, and how they begin.
      encoder: what the towers read.
      num_items: N.
      full: whether a step reads the whole corpus; the item side's tables are then dense.

    Raises:
      ConfigError: a tower without a last layer whose width is not `model.dim`, or dropout of an id
        that a tower does not read, or reads alone.
    """
    query, item = model.query, model.item
    rows = dict(encoder.table_rows)
    dims: dict[str, int] = {name: model.feature_dim for name in rows}
    corpus_wide = set()
    precision = {"compute_dtype": model.compute_dtype}
    if item.side == "softmax":
        rows[HEAD] = -(-num_items // ROW_MULTIPLE) * ROW_MULTIPLE
        dims[HEAD] = model.dim
        item_side: ItemTower | SoftmaxHead = SoftmaxHead(rows[HEAD], item.bias)
        item_features = item_side.features
    else:
        item_side = ItemTower(encoder.item, model.dim, **_tower_settings(item), **precision)
        item_features = encoder.item
    if full:
        corpus_wide = {spec.table for spec in item_features}
    for side, features in ((query, encoder.query), (item, encoder.item)):
        if len(features) == 1 and features[0].table and side.output == "none" and not side.hidden:
            dims[features[0].table] = model.dim
    specs = tuple(
        _table(name, rows[name], dims[name], name in corpus_wide, tables) for name in rows
    )
    query_side = QueryTower(
        encoder.query,
        model.dim,
        pooling=tuple(query.pooling),
        **_tower_settings(query),
        **precision,
    )
    for side, name in ((query_side, "query"), (item_side, "item")):
        if isinstance(side, QueryTower | ItemTower):
            _check_width(side, dims, name)
            _check_id_dropout(side, name)
    return RetrievalModel(
        query_side,
        item_side,
        specs,
        temperature=model.temperature,
        learn_temperature=model.learn_temperature,
        normalize=model.normalize,
        **precision,
    )


def _tower_settings(side: Config) -> dict[str, Any]:
    names = ("output", "activation", "normalization")
    names += ("dropout", "embedding_dropout", "id_dropout")
    return {"hidden": tuple(side.hidden)} | {name: side[name] for name in names}


def _table(name: str, rows: int, dim: int, corpus_wide: bool, tables: Config) -> TableSpec:
    by_rows = tables.mode == "rows" or (tables.mode == "auto" and rows >= tables.rows_min)
    mode = "rows" if by_rows and not corpus_wide else "dense"
    if mode == "rows":
        rows = -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE
    dtype = tables.dtype if mode == "rows" else "float32"
    return TableSpec(name, rows, dim, mode, tables.init, dtype)


def _check_width(tower: QueryTower | ItemTower, dims: dict[str, int], name: str) -> None:
    """Without a last linear layer the features or the last hidden layer must be `dim` wide."""
    if tower.output == "linear":
        return
    width = sum(
        (spec.width or dims[spec.table]) * (len(tower.pooling) if spec.kind == "history" else 1)
        for spec in tower.features
    )
    width = tower.hidden[-1] if tower.hidden else width
    if width != tower.dim:
        raise ConfigError(
            f"config.model.{name}.output=none returns {width} numbers, but config.model.dim is "
            f"{tower.dim}; use output=linear, or widths that agree"
        )


def _check_id_dropout(tower: QueryTower | ItemTower, name: str) -> None:
    """What is dropped must be there, and leave something to learn from."""
    if tower.id_dropout == 0.0:
        return
    key, features = f"config.model.{name}.id_dropout={tower.id_dropout}", f"model.{name}.features"
    read, id_name = [spec.name for spec in tower.features], _IDS[name]
    if id_name not in read:
        raise ConfigError(
            f"{key}: the {name} tower does not read {id_name}, so there is nothing to drop; set it "
            f"to 0.0 or name {id_name} in {features}"
        )
    if read == [id_name]:
        raise ConfigError(
            f"{key}: the {name} tower reads {id_name} alone, so without it an example is the zero "
            f"vector; set it to 0.0 or name more in {features}"
        )
