"""Where the public data sets are published, and fetching them when that is asked for.

Nothing here touches the network unless `download=True`. What is fetched is checked by size and MD5
against what the publishers state; a directory that the user names is taken as it is.
"""

import dataclasses
import hashlib
import http.client
import logging
import os
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from recjax.data.files import describe
from recjax.errors import DataError

_log = logging.getLogger(__name__)

_TIMEOUT_S = 60


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """One file at its official address.

    Attributes:
      url: the address.
      size: in bytes.
      md5: as published, in hex.
    """

    url: str
    size: int
    md5: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a data set is published.

    Attributes:
      folder: the name of its folder in the cache.
      files: what to fetch.
      members: the files taken out of a zip, beside any README; empty where there is no zip.
      marker: the file that tells that a directory holds the data set.
      page: where its description and its terms of use are.
    """

    folder: str
    files: tuple[RemoteFile, ...]
    members: tuple[str, ...]
    marker: str
    page: str


def _movielens(size_name: str, size: int, md5: str, members: tuple[str, ...]) -> Source:
    url = f"https://files.grouplens.org/datasets/movielens/ml-{size_name}.zip"
    page = f"https://grouplens.org/datasets/movielens/{size_name}/"
    return Source(f"ml-{size_name}", (RemoteFile(url, size, md5),), members, members[0], page)


_CSV_MEMBERS = ("ratings.csv", "movies.csv")
_LIGHTGCN = "https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/master/data/gowalla"
_LIGHTGCNPP = (
    "https://raw.githubusercontent.com/geon0325/LightGCNpp/"
    "a18af1e1f65dc4b6a432ce5aeaae5bbe75ac1c2e/data/gowalla"
)

SOURCES: Mapping[str, Source] = {
    "movielens-100k": _movielens(
        *("100k", 4_924_029, "0e33842e24a9c977be4e0107933c0723"),
        ("u.data", "u.user", "u.item", "u.genre"),
    ),
    "movielens-1m": _movielens(
        *("1m", 5_917_549, "c4d9eecfca2ab87c1945afe126590906"),
        ("ratings.dat", "users.dat", "movies.dat"),
    ),
    "movielens-20m": _movielens(
        "20m", 198_702_078, "cd245b17a1ae2cc31bb14903e1204af3", _CSV_MEMBERS
    ),
    "movielens-25m": _movielens(
        "25m", 261_978_986, "6b51fb2759a8657d3bfcbfc42b592ada", _CSV_MEMBERS
    ),
    "movielens-32m": _movielens(
        "32m", 238_950_008, "d472be332d4daa821edc399621853b57", _CSV_MEMBERS
    ),
    "gowalla": Source(
        folder="gowalla-lightgcn",
        files=(
            RemoteFile(f"{_LIGHTGCN}/train.txt", 4_633_414, "5eec1eb2edb8dd648377d348b8e136cf"),
            RemoteFile(f"{_LIGHTGCN}/test.txt", 1_372_559, "c04e2c4bcd2389f53ed8281816166149"),
            RemoteFile(f"{_LIGHTGCNPP}/valid.txt", 669_008, "9b5bd17a72a419114e1334d12fb13ea1"),
        ),
        members=(),
        marker="train.txt",
        page="https://github.com/gusye1234/LightGCN-PyTorch",
    ),
}


def locate_dataset(name: str, directory: str | Path = "", *, download: bool = False) -> Path:
    """The directory that holds a public data set, fetched first if `download` says so.

    Args:
      name: a key of `SOURCES`.
      directory: where the data are, or are to go; empty for a folder of recjax's cache
        (`$XDG_CACHE_HOME/recjax`, or `~/.cache/recjax`).
      download: whether the network may be used. Data that are there are not fetched again.

    Raises:
      DataError: the data are not there, and both ways to get them; or the fetching failed, and
        then nothing is left behind.
    """
    source = SOURCES[name]
    target = Path(directory) if directory else _cache() / source.folder
    if _holds(target, source):
        return target
    if not download:
        found = "no data directory was named"
        if directory:
            found = f"no {source.marker} in {target}, which {describe(target)}"
        raise DataError(
            f"{name}: {found}. Either --config.data.download=True (fetches "
            f"{_megabytes(source):.0f} MB into {target}), or --config.data.dir=DIR, where DIR "
            f"holds the unpacked files of {' and '.join(file.url for file in source.files)}"
        )
    target = target.resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise DataError(
            f"{target} {describe(target)} and no {source.marker}; --config.data.dir must name a "
            f"new or an empty directory for {name} to be downloaded into"
        )
    _log.info(
        "%s: fetching %.0f MB into %s; see %s for its terms of use",
        *(name, _megabytes(source), target, source.page),
    )
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        ready = scratch / "ready"
        ready.mkdir()
        for file in source.files:
            path = (scratch if source.members else ready) / file.url.rsplit("/", 1)[1]
            _fetch(file, path)
            if source.members:
                _extract(path, source.members, ready)
        os.replace(ready, target)
    except OSError as error:
        raise DataError(f"{target}: {name} could not be put there: {error}") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _holds(target: Path, source: Source) -> bool:
    return any((target / f"{source.marker}{suffix}").is_file() for suffix in ("", ".gz"))


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "recjax"


def _megabytes(source: Source) -> float:
    return sum(file.size for file in source.files) / 1e6


def _fetch(file: RemoteFile, path: Path) -> None:
    """Writes what the address serves to `path`, and checks its size and MD5."""
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with path.open("wb") as out:
        for block in _read_blocks(file.url):
            out.write(block)
            digest.update(block)
            size += len(block)
            if size > file.size:
                break
    if size != file.size:
        got = "more" if size > file.size else size
        raise DataError(f"{file.url}: expected {file.size} bytes, got {got}; try again later")
    if digest.hexdigest() != file.md5:
        raise DataError(
            f"{file.url}: its MD5 is {digest.hexdigest()}, and {file.md5} was expected; the file "
            "is damaged or was changed since"
        )


def _read_blocks(url: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            while block := response.read(1 << 20):
                yield block
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{url}: cannot be fetched ({error}); fetch it yourself and name the directory of its "
            "unpacked files with --config.data.dir=DIR"
        ) from error


def _extract(archive: Path, members: tuple[str, ...], target: Path) -> None:
    """Takes `members` and any README out of a zip by base name: no path in it leads elsewhere."""
    try:
        with zipfile.ZipFile(archive) as pack:
            place = {name.split("/")[-1]: name for name in reversed(pack.namelist())}
            for member in members:
                if member not in place:
                    raise DataError(f"{archive.name}: holds no {member}")
            for name, inside in place.items():
                if name in members or name.startswith("README"):
                    with pack.open(inside) as source, (target / name).open("wb") as out:
                        shutil.copyfileobj(source, out)
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive.name}: not a sound zip file ({error})") from error
