"""Runs small enough for tests: trained once and shared, killed on the way, compared bit by bit."""

import atexit
import functools
import json
import os
import pathlib
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from recjax import Run, load_config, train
from recjax.checkpoint import Checkpointer
from recjax.data.loader import Batches
from recjax.experiment import make_experiment
from recjax.processes import start_processes
from recjax.run import train_until
from tests.tiny import tiny_dataset

ROOT = pathlib.Path(__file__).parents[1]
# No interval divides another or the number of steps.
TINY = {
    "data.synthetic.users": 120,
    "data.synthetic.items": 60,
    "data.synthetic.interactions_per_user": 10,
    "examples.history_length": 5,
    "model.dim": 8,
    "model.feature_dim": 4,
    "train.batch_size": 32,
    "train.steps": 20,
    "eval.every": 7,
    "eval.ks": (5, 10),
    "eval.batch_size": 64,
    "eval.bootstrap": 50,
    "checkpoint.every": 3,
    "log.every": 4,
    "parallel.data": 1,
}
# By config: what it takes to have dropout, drawn candidates, a source with a state and both modes
# of tables among them.
MODELS = {
    "mf": {"tables.mode": "rows"},
    "softmax": {
        "model.query.hidden": (8,),
        "model.query.dropout": 0.2,
        "model.query.pooling": ("mean", "attention"),
        "tables.mode": "rows",
        "loss.candidates": "unigram",
        "loss.num_sampled": 16,
    },
    "two_tower": {
        "model.query.hidden": (8,),
        "model.item.hidden": (8,),
        "model.item.dropout": 0.2,
        "optim.name": "adagrad",
        "loss.candidates": "mixed",
        "loss.mixed": ("memory", "uniform"),
        "loss.memory": 48,
        "loss.num_sampled": 16,
        "loss.frequency": "streaming",
    },
}


def small_config(name, **overrides):
    """The shipped config `name` at a size for tests."""
    return load_config(str(ROOT / "configs" / f"{name}.py"), **TINY | MODELS[name] | overrides)


def small_experiment(name, **changes):
    """The experiment of a small config on `tiny_dataset`; in a key `__` stands for the dot."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return make_experiment(small_config(name, **changes), tiny_dataset())


def never_stopped(name) -> Run:
    """The finished run of a small config; whoever changes its workdir must copy it first.

    It is trained once in a process for each way of compiling, which decide the last bits.
    """
    return _never_stopped(name, jax.config.read("jax_disable_most_optimizations"))


@functools.cache
def _never_stopped(name, quickly_compiled):
    del quickly_compiled  # tells the runs apart
    folder = tempfile.mkdtemp(prefix="recjax-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return train(small_config(name), pathlib.Path(folder) / name, quiet=True)


def stopper(steps):
    """A `should_stop` that is true after so many steps."""
    asked = iter(range(steps))
    return lambda: next(asked, None) is None


def train_and_be_killed(name, workdir, steps, while_saving):
    """Trains until SIGKILL: after so many steps or, `while_saving`, at the first save from then on.

    For another process to call.
    """
    stop, save = stopper(steps), Checkpointer.save
    due = False

    def on_step():
        nonlocal due
        due = due or stop()
        if due and not while_saving:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    def save_and_die(*args):
        save(*args)  # goes on in the background
        if due:
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpointer.save = save_and_die
    train_until(on_step, small_config(name), workdir, quiet=True)


def slow_main(seconds):
    """`python -m recjax.main` with the words of `sys.argv`, each batch taking so long to make."""
    make = Batches.__call__

    def make_slowly(self, step):
        time.sleep(seconds)
        return make(self, step)

    Batches.__call__ = make_slowly
    runpy.run_module("recjax.main", run_name="__main__")


def train_in_turn(jobs, coordinator, count, process_id):
    """Trains each (name of a config, overrides, workdir), as one of several processes."""
    start_processes(coordinator, count, process_id)
    for name, overrides, workdir in jobs:
        train(small_config(name, **overrides), workdir, quiet=True)


def main_on_a_full_disk(limit):
    """`python -m recjax.main` with the words of `sys.argv`, no file growing past so many bytes."""
    jax.config.update("jax_enable_compilation_cache", False)  # which would warn of it too
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    runpy.run_module("recjax.main", run_name="__main__")


def start(function, *args, words=()):
    """Starts `function(*args)` of this module in another process, with `words` in `sys.argv`."""
    call = f"from tests.runs import {function.__name__} as f; f(*{list(args)!r})"
    return _start("-c", call, *words)


def start_main(*words):
    """Starts `python -m recjax.main` with these words."""
    return _start("-m", "recjax.main", *words)


def _start(*words):
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def flags_of(name, workdir, **overrides):
    """The words that make `recjax.main` train `small_config(name, **overrides)`."""
    keys = TINY | MODELS[name] | overrides
    return [
        f"--config=configs/{name}.py",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in keys.items()),
    ]


def lines_of(workdir):
    """The records of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def checkpoints_of(run, workdir=None):
    """(latest, best) of the run's workdir, or another of its kind: each (step, state, record)."""
    checkpointer = Checkpointer((workdir or run.workdir) / "checkpoints", read_only=True)
    target = run.experiment.abstract_state
    found = checkpointer.restore_latest(target), checkpointer.restore_best(target)
    checkpointer.close()
    return found


def assert_same_state(state, expected):
    """Every leaf is equal bit for bit."""
    found, wanted = (jax.tree_util.tree_leaves_with_path(tree) for tree in (state, expected))
    assert [path for path, _ in found] == [path for path, _ in wanted]
    for (path, x), (_, y) in zip(found, wanted, strict=True):
        assert x.dtype == y.dtype, path
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=str(path))


def assert_same_run(workdir, run):
    """A workdir holds what the run's holds: parameters, tables, optimizers, metrics, results."""
    for found, wanted in zip(checkpoints_of(run, workdir), checkpoints_of(run), strict=True):
        assert found[::2] == wanted[::2]
        assert_same_state(found[1], wanted[1])
    for name in ("metrics.jsonl", "protocol.json", "eval/test.json", "eval/test.parquet"):
        assert (workdir / name).read_bytes() == (run.workdir / name).read_bytes(), name
