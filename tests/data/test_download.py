import hashlib
import io
import zipfile

import pytest

from recjax.data import download
from recjax.data.download import RemoteFile, Source, locate_dataset
from recjax.errors import DataError


def packed(**files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as pack:
        for name, text in files.items():
            pack.writestr(name.replace("__", "/").replace("_", "."), text)
    return out.getvalue()


def remote(path, data, **wrong):
    path.write_bytes(data)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return RemoteFile(**{"url": path.as_uri(), "size": len(data), "md5": md5, **wrong})


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Makes `movielens-1m` a zip on this machine, in place of the official address."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def set_source(data, *, members=("ratings.dat",), **wrong):
        file = remote(tmp_path / "served.zip", data, **wrong)
        source = Source("ml-1m", (file,), members, "ratings.dat", "https://page")
        monkeypatch.setattr(download, "SOURCES", {"movielens-1m": source})
        return file

    return set_source


def test_without_leave_the_error_names_both_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    address = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
    both = f"--config.data.download=True .fetches 6 MB.*--config.data.dir=DIR, .* of {address}"
    with pytest.raises(DataError, match=f"movielens-1m: no data directory was named.*{both}"):
        locate_dataset("movielens-1m")
    with pytest.raises(
        DataError, match=f"no ratings.dat in .*absent, which is no directory.*{both}"
    ):
        locate_dataset("movielens-1m", tmp_path / "absent")
    with pytest.raises(DataError, match=f"no ratings.dat in .*, which holds nothing.*{both}"):
        locate_dataset("movielens-1m", tmp_path)


@pytest.mark.parametrize("name", ["ratings.dat", "ratings.dat.gz"])
def test_a_directory_that_holds_the_data_is_taken_unchecked(tmp_path, name):
    (tmp_path / name).write_text("anything")
    assert locate_dataset("movielens-1m", tmp_path) == tmp_path
    assert locate_dataset("movielens-1m", tmp_path, download=True) == tmp_path


@pytest.mark.parametrize("exists", [False, True])
def test_a_download_lands_in_the_directory_and_is_found_again(tmp_path, publish, exists):
    publish(packed(**{"ml-1m__ratings_dat": "1::2::3::4", "ml-1m__README": "terms", "x": "y"}))
    target = tmp_path / "deep" / "data"
    if exists:
        target.mkdir(parents=True)
    assert locate_dataset("movielens-1m", target, download=True) == target
    assert sorted(p.name for p in target.iterdir()) == ["README", "ratings.dat"]
    assert (target / "ratings.dat").read_text() == "1::2::3::4"
    assert [p.name for p in target.parent.iterdir()] == ["data"]
    assert locate_dataset("movielens-1m", target) == target


def test_a_download_without_a_directory_goes_to_the_cache(tmp_path, publish):
    publish(packed(ratings_dat="1"))
    place = locate_dataset("movielens-1m", download=True)
    assert place == tmp_path / "cache" / "recjax" / "ml-1m"
    assert locate_dataset("movielens-1m") == place


def test_files_that_are_no_zip_are_fetched_one_by_one(tmp_path, monkeypatch):
    files = tuple(remote(tmp_path / f"{x}.txt", x.encode()) for x in ("train", "test"))
    source = Source("g", files, (), "train.txt", "https://page")
    monkeypatch.setattr(download, "SOURCES", {"gowalla": source})
    place = locate_dataset("gowalla", tmp_path / "out", download=True)
    assert {p.name: p.read_text() for p in place.iterdir()} == {
        "train.txt": "train",
        "test.txt": "test",
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 10}, r"served\.zip: expected 10 bytes, got more"),
        ({"size": 10**6}, r"served\.zip: expected 1000000 bytes, got \d+"),
        ({"md5": "0" * 32}, r"served\.zip: its MD5 is [0-9a-f]{32}, and 0{32} was expected"),
        ({"url": "file:///nowhere/served.zip"}, r"file:///nowhere/served\.zip: cannot be fetched"),
        ({"members": ("ratings.dat", "users.dat")}, r"served\.zip: holds no users\.dat"),
    ],
)
def test_what_does_not_fit_leaves_nothing_behind(tmp_path, publish, wrong, message):
    publish(packed(ratings_dat="1"), **wrong)
    target = tmp_path / "deep" / "data"
    with pytest.raises(DataError, match=message):
        locate_dataset("movielens-1m", target, download=True)
    assert list(target.parent.iterdir()) == []


def test_a_broken_zip_is_refused(tmp_path, publish):
    publish(b"this is no zip")
    with pytest.raises(DataError, match=r"served\.zip: not a sound zip file"):
        locate_dataset("movielens-1m", tmp_path / "data", download=True)
    assert not (tmp_path / "data").exists()


def test_paths_in_a_zip_lead_nowhere_else(tmp_path, publish):
    publish(packed(**{"____________evil_txt": "x", "..__..__ratings_dat": "1", "..__README": "r"}))
    target = tmp_path / "a" / "b" / "data"
    locate_dataset("movielens-1m", target, download=True)
    assert sorted(p.name for p in target.iterdir()) == ["README", "ratings.dat"]
    assert [p.name for p in target.parent.iterdir()] == ["data"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


def test_a_directory_with_other_files_is_not_written_into(tmp_path, publish):
    publish(packed(ratings_dat="1"))
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.tex").write_text("precious")
    with pytest.raises(
        DataError, match=r"mine holds \['thesis\.tex'\] and no ratings\.dat.*empty d"
    ):
        locate_dataset("movielens-1m", target, download=True)
    assert [p.name for p in target.iterdir()] == ["thesis.tex"]


def test_a_full_disk_leaves_nothing_behind(tmp_path, publish, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    publish(packed(ratings_dat="1"))
    monkeypatch.setattr(download.shutil, "copyfileobj", fail)
    with pytest.raises(DataError, match="movielens-1m could not be put there.*No space left"):
        locate_dataset("movielens-1m", tmp_path / "deep" / "data", download=True)
    assert list((tmp_path / "deep").iterdir()) == []


def test_every_address_is_https_with_size_and_md5():
    for source in download.SOURCES.values():
        for file in source.files:
            assert file.url.startswith("https://") and file.size > 0 and len(file.md5) == 32
