"""The scripts behind the tables of the README run."""

import os
import subprocess
import sys

import pytest

from tests.runs import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("combinations", ["full", "mixed"]),
        ("estimators", ["exact", "hard, of a pool of 1,024", "explicit (other data)"]),
    ],
)
def test_an_ablation_prints_and_writes_its_table(tmp_path, name, rows):
    environment = os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        [
            sys.executable,
            f"experiments/ablations/{name}.py",
            "--smoke",
            f"--out={tmp_path / 't.md'}",
        ],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "t.md").read_text().rpartition("\n\n")[2]
    assert table in done.stdout
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == rows
