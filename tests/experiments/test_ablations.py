"""The scripts and sweeps behind the tables of the READMEs run."""

import ast
import dataclasses
import os
import subprocess
import sys

import pytest

from recjax import load_results, load_sweep, run_sweep
from recjax.checks import check_config
from tests.runs import ROOT

SWEEPS = sorted(
    path.stem
    for path in (ROOT / "experiments" / "ablations").glob("*.py")
    if any(getattr(node, "name", "") == "sweep" for node in ast.parse(path.read_text()).body)
)


def smoke(name, data="synthetic"):
    path = ROOT / "experiments" / "ablations" / f"{name}.py"
    return load_sweep(f"{path}:{data}", smoke=True)


def test_there_are_ten_sweeps_and_every_arm_of_each_is_in_the_readme():
    assert len(SWEEPS) == 10
    text = (ROOT / "experiments" / "README.md").read_text().replace("\\", "")
    for name in SWEEPS:
        assert f"--sweep=experiments/ablations/{name}.py" in text
        for arm in smoke(name).arms:
            assert f"| {arm.name} |" in text, name


@pytest.mark.parametrize("name", SWEEPS)
def test_every_arm_of_a_sweep_has_a_legal_config_on_each_data_set(name):
    for data in ("movielens-100k", "movielens-1m", "synthetic"):
        for trial in smoke(name, data).trials:
            check_config(trial.config)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", SWEEPS)
def test_the_last_arm_of_a_sweep_trains(name, tmp_path):
    sweep = smoke(name)
    end = dataclasses.replace(sweep, arms=sweep.arms[-1:], trials=sweep.trials[-1:])
    done = run_sweep(end, tmp_path, workers=0, quiet=True)
    assert [result.error for result in done] == [""]
    names = [arm.name for arm in load_results([tmp_path]).arms]
    assert names == [arm.name for arm in end.arms]


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
