"""A model as the config defines it: the modes and widths of its tables."""

import pytest

from recjax.errors import ConfigError
from tests.runs import small_experiment


def test_a_table_is_dense_where_the_whole_corpus_is_read_and_else_in_the_mode_asked_for():
    def modes(**changes):
        tables = small_experiment("softmax", **changes).model.tables
        return {table.name: (table.mode, table.rows) for table in tables}

    sampled = {"loss__candidates": "uniform"}
    assert modes(loss__candidates="full")["head"] == ("dense", 64)
    assert modes(**sampled)["history"] == ("rows", 64)
    assert modes(**sampled, tables__mode="dense")["history"] == ("dense", 51)
    found = modes(**sampled, tables__mode="auto", tables__rows_min=52)
    assert (found["history"], found["head"]) == (("dense", 51), ("rows", 64))


@pytest.mark.parametrize("key", ["tables__dtype", "optim__moments_dtype"])
def test_a_dtype_of_tables_in_mode_rows_needs_one(key):
    changes = {key: "bfloat16", "tables__mode": "auto", "tables__rows_min": 1000}
    name = f"config.{key.replace('__', '.')}=bfloat16: all tables of this model are dense"
    with pytest.raises(ConfigError, match=name):
        small_experiment("mf", **changes)
    tables = small_experiment("mf", **changes | {"tables__rows_min": 40}).model.tables
    rows = "bfloat16" if key == "tables__dtype" else "float32"
    assert {t.name: t.dtype for t in tables} == {"user_id": rows, "head": "float32"}


def test_an_id_alone_has_an_embedding_as_wide_as_the_output():
    dims = {t.name: t.dim for t in small_experiment("mf", model__dim=12).model.tables}
    assert dims == {"user_id": 12, "head": 12}


def test_features_as_they_are_must_be_as_wide_as_the_output():
    with pytest.raises(ConfigError, match="model.query.output=none returns 5 .*model.dim is 8"):
        small_experiment("mf", model__query__features=("age", "country"))


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ("softmax", {"query__id_dropout": 0.5}, "query tower does not read user_id, so there is"),
        ("mf", {"query__id_dropout": 0.5}, "query.id_dropout=0.5: .* reads user_id alone"),
        (
            "two_tower",
            {"item__id_dropout": 0.5, "item__features": ("all",)},
            "item tower does not read item_id.* name item_id in model.item.features",
        ),
        (
            "two_tower",
            {"item__id_dropout": 0.5, "item__features": ("item_id",)},
            "item.id_dropout=0.5: .* reads item_id alone",
        ),
    ],
)
def test_an_id_that_is_dropped_is_one_of_several_features(config, changes, message):
    with pytest.raises(ConfigError, match=f"config.model.*{message}"):
        small_experiment(config, **{f"model__{key}": value for key, value in changes.items()})
