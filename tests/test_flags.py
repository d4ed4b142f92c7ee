"""The command line: keys of the config as flags, each mistake one message and status 2."""

import pytest
from absl import flags

from recjax import flags as flags_lib
from recjax.config import Word, load_config

BASE = """
from ml_collections import ConfigDict

def get_config(data="synthetic"):
    c = ConfigDict()
    c.data = ConfigDict(dict(name=data, download=False, dir=""))
    c.model = ConfigDict(dict(dim=64, rate=0.5, hidden=(128, 64), features=("all",), limit=None))
    return c
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.py").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def parse(folder, monkeypatch):
    """Parses words as `main.py` does and returns the config."""
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    flags.DEFINE(flags.ArgumentParser(), "config", None, "", flag_values=values)
    flags.DEFINE_string("workdir", "", "", flag_values=values)

    def run(*words):
        assert flags_lib.parse_flags(["main.py", *words]) == ["main.py"]
        return values["config"].value

    return run


def test_flags_set_keys_of_every_type(parse):
    config = parse(
        "--config.model.dim=8",
        "--config=configs/base.py:gowalla",
        "--config.model.rate",
        "2",
        "--config.model.hidden=256,128",
        "--config.model.features=(age, country)",
        "--config.model.limit=7",
        "--config.data.dir=a=b",
        "--config.data.download",
        "--workdir=w",
    )
    assert config.data.to_dict() == {"name": "gowalla", "download": True, "dir": "a=b"}
    assert config.model.to_dict() == {
        "dim": 8,
        "rate": 2.0,
        "hidden": (256, 128),
        "features": ("age", "country"),
        "limit": 7,
    }


@pytest.mark.parametrize(
    ("word", "value"), [("()", ()), ("", ()), ("5", (5,)), ("(5,)", (5,)), ("[5, 6]", (5, 6))]
)
def test_flags_read_tuples_in_every_spelling(parse, word, value):
    assert parse("--config=configs/base.py", f"--config.model.hidden={word}").model.hidden == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.model.dmi=1"], "unknown config key 'model.dmi': did you mean 'model.dim'"),
        (["--config.model.dim=1.5"], "'model.dim' must be int (default 64), not '1.5'"),
        (["--config.model.dim"], "'model.dim' needs a value"),
        (["--config.data.download=maybe"], "'data.download' must be true or false"),
        (["--config.model.hidden=a,b"], "'model.hidden' must be a tuple of int"),
        (["--worksdir=x"], "worksdir"),
        (["--config=configs/bsae.py"], "holds base.py; did you mean base.py"),
    ],
)
def test_a_wrong_flag_is_one_message_and_status_2(parse, capsys, words, message):
    with pytest.raises(SystemExit) as exit_:
        parse("--config=configs/base.py", *words)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_without_a_config_the_message_shows_how_to_name_one(parse, capsys):
    with pytest.raises(SystemExit):
        parse()
    assert "--config=configs/two_tower.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.dim", 8),
        ("model.rate", 1e-7),
        ("model.hidden", ()),
        ("model.hidden", (5,)),
        ("model.hidden", (256, 128)),
        ("model.features", ("age",)),
        ("model.features", ("age", "a, b", "True", "7")),
        ("model.limit", 2.5),
        ("data.download", True),
        ("data.dir", " a=b 'c' "),
        ("data.dir", ""),
    ],
)
def test_words_of_overrides_are_read_back_equal(folder, key, value):
    overrides, rest = flags_lib.split_overrides(flags_lib.override_words({key: value}))
    assert rest == []
    config = load_config("configs/base.py", **overrides)
    assert config == load_config("configs/base.py", **{key: value})


def test_the_last_of_two_values_of_a_key_counts():
    words = ["--config.model.dim=8", "x", "--config.model.dim", "9", "--", "--config.model.dim=7"]
    overrides, rest = flags_lib.split_overrides(words)
    assert overrides == {"model.dim": Word("9")}
    assert rest == ["x", "--", "--config.model.dim=7"]
