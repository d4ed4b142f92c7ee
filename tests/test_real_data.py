"""The main job on real data: every set runs through, in bounded memory, above popularity."""

import json
import os
import subprocess
import sys

import pytest

from tests.real_data import real_data
from tests.runs import ROOT, lines_of

GIBIBYTE = 1 << 30
MEASURED = """
import atexit, pathlib, re, runpy
status = pathlib.Path("/proc/self/status")  # getrusage would count what the parent once held
atexit.register(lambda: print(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]))
runpy.run_module("recjax.main", run_name="__main__")
"""


def run_main(config, data, workdir, **overrides):
    """Runs `recjax.main` on one device of its own; returns its peak resident memory in bytes."""
    words = [
        f"--config=configs/{config}.py:{data}",
        f"--config.data.dir={real_data(data)}",
        f"--workdir={workdir}",
        "--config.eval.bootstrap=0",
        *(f"--config.{key}={value}" for key, value in overrides.items()),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return 1024 * int(done.stdout.split()[-1])


@pytest.mark.slow
def test_movielens_100k_is_ranked_better_than_by_popularity(tmp_path):
    quick = {"train.epochs": 3.0, "eval.every": 500, "examples.history_length": 20}
    run_main("two_tower", "movielens-100k", tmp_path, **quick)
    test = lines_of(tmp_path)[-1]
    assert test["test/recall@50"] > 1.2 * test["test/popularity/recall@50"]


@pytest.mark.slow
def test_movielens_1m_trains_within_two_gigabytes(tmp_path):
    peak = run_main("two_tower", "movielens-1m", tmp_path, **{"train.steps": 200})
    assert peak < 2 * GIBIBYTE
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    assert (protocol["split"], protocol["candidates"]) == ("leave_one_out", 3706)


@pytest.mark.slow
def test_gowalla_has_no_features_so_its_item_tower_reads_the_id(tmp_path):
    quick = {"train.steps": 30, "model.dim": 32, "model.feature_dim": 32}
    run_main("two_tower", "gowalla", tmp_path, **quick)
    test = lines_of(tmp_path)[-1]
    assert test["test/recall@20"] > 1.1 * test["test/popularity/recall@20"]
