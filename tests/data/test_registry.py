import pytest

from recjax.data.registry import READERS, load_dataset
from recjax.errors import ConfigError, DataError


def test_every_named_set_has_a_reader():
    assert list(READERS) == [
        *("synthetic", "movielens-100k", "movielens-1m", "movielens-20m", "movielens-25m"),
        *("movielens-32m", "gowalla", "table", "prepared"),
    ]


def test_synthetic_takes_its_knobs():
    data = load_dataset("synthetic", synthetic={"users": 30, "items": 150})
    assert (data.users.size, data.items.size) == (30, 150)
    with pytest.raises(ConfigError, match=r"data\.synthetic: unknown key 'user'.*\['users'"):
        load_dataset("synthetic", synthetic={"user": 30})


def test_synthetic_refuses_a_directory(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.dir is set.*'synthetic'.*'movielens-1m'"):
        load_dataset("synthetic", str(tmp_path))


def test_files_are_read_by_name(tmp_path):
    (tmp_path / "interactions.csv").write_text("user,item\n1,5\n2,6\n")
    assert load_dataset("table", tmp_path).interactions.size == 2
    (tmp_path / "items.csv").write_text("item,price\n5,1.5\n")
    (tmp_path / "schema.json").unlink()
    assert load_dataset("table", tmp_path, unknown_items="drop").interactions.size == 1
    (tmp_path / "train.txt").write_text("0 1\n")
    (tmp_path / "test.txt").write_text("0 2\n")
    data = load_dataset("gowalla", tmp_path)
    assert data.name == "gowalla" and data.interactions.part is not None
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,3.5,9\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n2,A (1999),Drama\n")
    assert load_dataset("movielens-32m", tmp_path).name == "movielens-32m"


def test_bad_settings_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"data\.name='movielens1m' is no data set.*'movielens-1m'"
    ):
        load_dataset("movielens1m")
    with pytest.raises(ConfigError, match=r"data\.unknown_items='skip'; it must be 'error' or 'dr"):
        load_dataset("table", tmp_path, unknown_items="skip")
    with pytest.raises(ConfigError, match=r"data\.dir is empty; --config\.data\.dir=DIR"):
        load_dataset("table")
    with pytest.raises(ConfigError, match=r"data\.download is set, but data\.name is 'table'"):
        load_dataset("table", tmp_path, download=True)
    with pytest.raises(DataError, match=r"gowalla: no data directory.*download=True.*LightGCN"):
        load_dataset("gowalla")
