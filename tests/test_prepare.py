"""The command `python -m recjax.prepare`, and training on what it made."""

import signal
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

import recjax
from recjax.data.table import load_table
from tests.runs import ROOT
from tests.tiny import tiny_experiment


def prepare(*words):
    """The command, with its output as text."""
    return subprocess.Popen(
        [sys.executable, "-m", "recjax.prepare", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def source_of(folder, count):
    folder.mkdir()
    draw = np.random.default_rng(0)
    rows = {"user": draw.integers(0, count // 20, count), "item": draw.integers(0, 50, count)}
    rows |= {"time": draw.integers(0, 1000, count), "phone": draw.choice(["a", "b"], count)}
    pl.DataFrame(rows).write_parquet(folder / "interactions.parquet")
    return folder


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_command_prepares_what_a_config_then_names(tmp_path):
    source, out = source_of(tmp_path / "source", 800), tmp_path / "out"
    wrong = prepare("--source", tmp_path / "nowhere", "--out", out)
    right = prepare(f"--source={source}", f"--out={out}", "--rows=100")
    printed, errors = right.communicate(timeout=60)
    assert right.returncode == 0, errors
    assert "scan: 8 of 8" in printed and "is prepared: hash" in printed
    assert wrong.communicate(timeout=60)[1].startswith("error: ") and wrong.returncode == 2
    config = recjax.load_config(
        str(ROOT / "configs/two_tower.py:prepared"), **{"data.dir": str(out)}
    )
    assert config.data.name == "prepared"
    data = recjax.load_dataset("prepared", out)
    known = load_table(source)
    assert data.hash == known.hash
    settings = {"split__name": "leave_one_out", "model__query__features": ("history",)}
    a, b = (tiny_experiment(dataset=d, **settings).examples for d in (data, known))
    rows = np.arange(a.size)
    for name, array in b.batch(rows, seed=0, epoch=0).items():
        np.testing.assert_array_equal(a.batch(rows, seed=0, epoch=0)[name], array, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("line", ["scan: 3", "partition: 2", "gather: 5"])
def test_a_killed_preparation_goes_on_to_the_same_bytes(tmp_path, line):
    source, whole, out = source_of(tmp_path / "source", 20_000), tmp_path / "a", tmp_path / "b"
    recjax.prepare_dataset(source, whole, shard_rows=1000)
    process = prepare(f"--source={source}", f"--out={out}", "--rows=1000")
    assert process.stdout is not None
    while line not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    again = prepare(f"--source={source}", f"--out={out}", "--rows=1000")
    assert "going on with what is finished" in again.communicate(timeout=120)[0]
    assert files_of(out) == files_of(whole)
