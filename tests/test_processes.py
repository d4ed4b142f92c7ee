"""Several processes train one run: what one would have got, whoever dies on the way."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from recjax.errors import ConfigError
from recjax.processes import check_same, from_first, is_loss, largest, leave, start_processes
from recjax.run import train
from tests.runs import ROOT, checkpoints_of, flags_of, lines_of, small_config
from tests.tiny import quickly_compiled

# Adam would turn rounding in a gradient near zero into a whole step.
MF = {"optim.name": "adagrad", "optim.learning_rate": 0.1, "checkpoint.every": 5}
TOWERS = {
    "tables.mode": "rows",
    "loss.candidates": "uniform",
    "loss.frequency": "exact",
    "model.item.dropout": 0.0,
    "optim.name": "sgd",
    "checkpoint.keep": 9,
}
ALL_DEVICES = {"parallel.data": 0}
# Few features and one validation, which compile in seconds.
SHORT = {"eval.every": 20, "checkpoint.every": 20, "log.tensorboard": False}
FEW = {"model.query.features": ("history", "age")}
IN_TURN = {
    "two_tower": {
        "loss.candidates": "in_batch",
        "model.item.features": ("item_id", "categories"),
        **FEW,
        **SHORT,
    },
    "softmax": {"loss.candidates": "full", "optim.name": "adagrad", **FEW, **SHORT},
}


def start_all(count, words, slow=0.0, **last):
    """`python -m recjax.main` as so many processes of one device; a batch takes `slow` seconds.

    `last` are config keys of the last process alone.
    """
    call = ["-c", f"from tests.runs import slow_main as f; f({slow})"]
    words = [*(call if slow else ["-m", "recjax.main"]), *words]
    where = [f"--coordinator={free_place()}", f"--num_processes={count}"] if count > 1 else []
    own = [[f"--process_id={i}"] if where else [] for i in range(count)]
    own[-1] += [f"--config.{key}={value}" for key, value in last.items()]
    return [start([*words, *where, *own[i]]) for i in range(count)]


def free_place():
    """HOST:PORT for processes to meet at."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def start(words, **environment):
    """Python with these words, as a process of one device."""
    inherited = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends_of(processes, timeout=120):
    """(exit status, standard output, standard error) of each."""
    said = [process.communicate(timeout=timeout) for process in processes]
    return [(p.returncode, *each) for p, each in zip(processes, said, strict=True)]


def wait_for_step(processes, workdir, step):
    """Until the metrics hold a step from this one on."""
    file = workdir / "metrics.jsonl"
    while not file.exists() or max([0, *(line["step"] for line in lines_of(workdir))]) < step:
        assert all(process.poll() is None for process in processes), ends_of(processes)
        time.sleep(0.05)


def assert_near(workdir, run):
    """The workdir holds the run's state to 1e-5, its loss as a mean, and its metrics."""
    for found, wanted in zip(checkpoints_of(run, workdir), checkpoints_of(run), strict=True):
        assert found[0] == wanted[0]
        states = [x[1].replace(loss_sum=x[1].loss_sum / x[1].weight_sum) for x in (found, wanted)]
        leaves = [jax.tree_util.tree_leaves_with_path(state) for state in states]
        for (path, x), (_, y) in zip(*leaves, strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-5, err_msg=str(path))
    for name, values in results_of(run.workdir).items():
        assert results_of(workdir)[name] == pytest.approx(values, abs=1e-6), name


def results_of(workdir):
    return json.loads((workdir / "eval" / "test.json").read_text())["rankers"]["model"]["metrics"]


@pytest.mark.slow
def test_four_stop_together_two_go_on_until_one_dies_and_the_other_ends_the_run(tmp_path):
    words = flags_of("mf", tmp_path, **MF, **ALL_DEVICES)
    four = start_all(4, words, slow=0.3)
    wait_for_step(four, tmp_path, 4)
    four[3].send_signal(signal.SIGTERM)  # one is told, all stop
    ends = ends_of(four)
    assert [status for status, _, _ in ends] == [0] * 4, ends
    stopped = re.search(r"stopped after step (\d+); the same command goes on there", ends[0][1])
    assert stopped and not any("stopped" in out for _, out, _ in ends[1:])

    two = start_all(2, words, slow=0.3)
    wait_for_step(two, tmp_path, 12)  # where nothing is saved, which would take a heartbeat's time
    two[1].kill()
    began = time.monotonic()
    (status, out, errors), _ = ends_of(two)
    assert time.monotonic() - began < 30
    assert f"resumed at step {stopped[1]} of 20" in out
    assert status == 4
    assert re.search("error: process 0: another of the 2 processes died .* same --workdir", errors)

    ((status, out, errors),) = ends_of(start_all(1, words))
    assert (status, errors) == (0, "")
    assert re.search(r"resumed at step \d+ of 20", out)
    assert_near(tmp_path, train(small_config("mf", **MF), quiet=True))
    steps = [line["step"] for line in lines_of(tmp_path) if "train/loss" in line]
    assert steps == sorted(set(steps))


def start_in_turn(count, folder):
    """So many processes that train each of IN_TURN, into a folder of its name."""
    jobs = [(name, keys | ALL_DEVICES, str(folder / name)) for name, keys in IN_TURN.items()]
    call, place = "from tests.runs import train_in_turn as f; f(*{!r})", free_place()
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return [start(["-c", call.format((jobs, place, count, i))], **quick) for i in range(count)]


@pytest.mark.slow
def test_two_and_four_processes_and_eight_devices_train_what_one_trains(tmp_path):
    with contextlib.ExitStack() as stack:
        running = {count: start_in_turn(count, tmp_path / str(count)) for count in (2, 4)}
        for process in itertools.chain(*running.values()):
            stack.callback(process.kill)
        alone = {}
        for name, keys in IN_TURN.items():
            with quickly_compiled():
                alone[name] = train(small_config(name, **keys), quiet=True)
                eight = train(small_config(name, **keys | ALL_DEVICES), quiet=True)
            assert eight.experiment.parallel.data == 8
            assert_near(eight.workdir, alone[name])
        for count, processes in running.items():
            for status, _, errors in ends_of(processes, timeout=280):
                assert status == 0, errors
            for name, run in alone.items():
                assert_near(tmp_path / str(count) / name, run)


@pytest.mark.slow
def test_tables_split_over_two_processes_go_on_from_one_and_come_back_to_one(tmp_path):
    alone = train(small_config("two_tower", **TOWERS), tmp_path / "alone", quiet=True)
    folder = shutil.copytree(alone.workdir, tmp_path / "two")
    for checkpoint in (folder / "checkpoints" / "latest").iterdir():
        if checkpoint.name != "6":
            shutil.rmtree(checkpoint)
    words = flags_of("two_tower", folder, **TOWERS, **ALL_DEVICES, **{"parallel.model": 2})
    (status, out, errors), second = ends_of(start_all(2, words))
    assert (status, errors, second[0], second[2]) == (0, "", 0, "")
    assert "2 x cpu (cpu) in 2 processes, shard_map, data 1 x model 2" in out
    assert "resumed at step 6 of 20" in out
    assert_near(folder, alone)


@pytest.mark.slow
def test_processes_of_different_configs_are_told_so(tmp_path):
    for status, _, errors in ends_of(start_all(2, flags_of("mf", tmp_path, **ALL_DEVICES), seed=1)):
        assert status == 2
        assert "process 1 has not the same config or data as process 0" in errors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost:1", 2, -1), "give all three"),
        (("", 2, 0), "give all three"),
        (("localhost", 2, 0), "HOST:PORT"),
        (("localhost:1", 2, 2), "from 0 on"),
    ],
)
def test_what_names_no_process_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        start_processes(*given)


def test_alone_there_is_nobody_to_ask(capsys):
    assert (from_first(0.1), largest(0.2)) == (0.1, 0.2)
    check_same("anything", "config")
    assert not is_loss(ValueError("Gloo all-reduce failed: Connection reset by peer"))
    with pytest.raises(SystemExit, match="2"):
        leave(2, "what is wrong")
    assert capsys.readouterr().err == "error: what is wrong\n"
