"""Loading, overriding and comparing configs; each mistake has one message that names the key."""

import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from recjax import config as config_lib
from recjax.errors import CheckpointError, ConfigError

BASE = """
from ml_collections import ConfigDict

def get_config(data="synthetic"):
    if data not in ("synthetic", "gowalla"):
        raise ValueError(f"unknown data {data!r}")
    c = ConfigDict()
    c.seed = 0
    c.data = ConfigDict(dict(name=data, download=False, dir=""))
    c.model = ConfigDict()
    c.model.dim = 64
    c.model.rate = 0.5
    c.model.hidden = [128, 64]
    c.model.features = ("all",)
    c.model.limit = None
    return c
"""
COMPOSED = """
from configs import base

def get_config(data="synthetic"):
    c = base.get_config(data)
    c.model.dim = 8
    return c
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.py").write_text(BASE)
    (tmp_path / "configs" / "small.py").write_text(COMPOSED)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_loads_relative_and_absolute_paths_with_an_argument(folder):
    assert config_lib.load_config("configs/base.py").data.name == "synthetic"
    path = str(folder / "configs" / "base.py")
    assert config_lib.load_config(f"{path}:gowalla").data.name == "gowalla"


def test_a_config_composes_its_neighbour_and_leaves_no_trace(folder, monkeypatch):
    other = type(sys)("configs")
    monkeypatch.setitem(sys.modules, "configs", other)
    paths = list(sys.path)
    assert config_lib.load_config("configs/small.py:gowalla").model.dim == 8
    assert sys.path == paths
    assert sys.modules["configs"] is other
    assert "configs.base" not in sys.modules


def test_an_edited_file_is_read_again(folder):
    config_lib.load_config("configs/small.py")
    (folder / "configs" / "base.py").write_text(BASE.replace("c.seed = 0", "c.seed = 12345"))
    assert config_lib.load_config("configs/small.py").seed == 12345


def test_overrides_keep_the_type_of_the_key(folder):
    config = config_lib.load_config(
        "configs/base.py",
        **{"model.dim": np.int64(8), "model.rate": 1, "model.hidden": [2], "model.limit": 3},
    )
    assert (config.model.dim, config.model.rate, config.model.limit) == (8, 1.0, 3)
    assert isinstance(config.model.rate, float)
    assert config.model.hidden == (2,)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.dmi", 1, "unknown config key 'model.dmi'.*'model.dim'"),
        ("dim", 1, "unknown config key 'dim'.*'model.dim'"),
        ("zzzzzz", 1, "unknown config key 'zzzzzz'.*'seed'"),
        ("model", 1, "'model' is a group.*'model.dim'"),
        ("model.dim", 1.5, "'model.dim' must be int .default 64., not 1.5"),
        ("model.dim", "8", "'model.dim' must be int"),
        ("model.dim", True, "'model.dim' must be int"),
        ("model.dim", None, "'model.dim' must be int"),
        ("model.rate", True, "'model.rate' must be float"),
        ("data.download", 1, "'data.download' must be true or false"),
        ("model.hidden", 128, "'model.hidden' must be a tuple of int"),
        ("model.hidden", (128, "64"), r"'model.hidden\[1\]' must be int"),
        ("model.limit", (1,), "'model.limit' must be a number or a word"),
    ],
)
def test_a_wrong_override_names_the_key_and_what_would_be_right(folder, key, value, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.load_config("configs/base.py", **{key: value})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("configs/bsae.py", "holds base.py, small.py; did you mean base.py"),
        ("configs/base", "did you mean .*configs/base.py"),
        ("conf/base.py", "holds base.py, small.py"),
        ("configs/base.py:golawa", "configs/base.py:golawa: unknown data 'golawa'"),
    ],
)
def test_a_wrong_path_or_argument_says_what_there_is(folder, path, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.load_config(path)


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("", "configs/own.py", "no function get_config"),
        ("def get_config(): return {}", "configs/own.py", "returned dict, not a ConfigDict"),
        ("def get_config(): return {}", "configs/own.py:x", "takes no argument 'x'"),
        ("def get_config(x): return {}", "configs/own.py", "needs an argument"),
    ],
)
def test_a_file_that_is_no_config_is_refused(folder, text, path, message):
    (folder / "configs" / "own.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        config_lib.load_config(path)


def test_json_gives_back_an_equal_config(folder):
    config = config_lib.load_config("configs/base.py", **{"model.rate": 0.1 + 0.2})
    again = config_lib.config_from_json(config_lib.config_to_json(config))
    assert again == config
    assert again.model.hidden == (128, 64)
    with pytest.raises(ConfigError, match="run/config.json, line 1"):
        config_lib.config_from_json("{", source="run/config.json")


def test_choices_name_the_key_the_value_and_the_near_one(folder):
    config = config_lib.load_config("configs/base.py", **{"model.features": ("all", "aeg")})
    config_lib.check_choices(config, {"data.name": ("synthetic", "gowalla")})
    with pytest.raises(ConfigError, match="config.model.features='aeg'.*did you mean 'age'"):
        config_lib.check_choices(config, {"model.features": ("all", "age")})
    with pytest.raises(ConfigError, match="no key 'loss.name'"):
        config_lib.check_choices(config, {"loss.name": ("softmax",)})


def test_differences_are_dotted_keys():
    a = ConfigDict({"a": 1, "b": {"c": 2, "d": (1, 2)}})
    b = ConfigDict({"a": 1, "b": {"c": 3, "d": (1, 2), "e": 0}})
    assert config_lib.config_differences(a, b) == ["b.c", "b.e"]


def test_only_steps_evaluation_and_logging_may_change_on_resume():
    old = ConfigDict({"train": {"steps": 1, "seed": 1}, "log": {"every": 1}, "model": {"dim": 2}})
    new = ConfigDict({"train": {"steps": 9, "seed": 1}, "log": {"every": 5}, "model": {"dim": 2}})
    config_lib.check_resume(old, new)
    new.model.dim = 4
    with pytest.raises(CheckpointError, match="/w holds .*model.dim was 2, is 4.*--workdir"):
        config_lib.check_resume(old, new, "/w")
