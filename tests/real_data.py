"""Where the real data sets are, for tests that read them."""

import os
from pathlib import Path

import pytest

_FOLDERS = {"movielens-100k": "ml-100k", "movielens-1m": "ml-1m", "gowalla": "gowalla-lightgcn"}


def real_data(name: str) -> Path:
    """The directory of a real data set; skips the test where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    directory = Path(os.environ.get("RECJAX_DATA", beside)) / _FOLDERS[name]
    if not directory.is_dir():
        pytest.skip(f"{name}: no {directory}; set RECJAX_DATA to the folder that holds it")
    return directory
