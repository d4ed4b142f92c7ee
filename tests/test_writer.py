"""Metrics are whole lines, equal in equal runs, and cut back to the step of a checkpoint."""

import errno
import json
import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from recjax import train
from recjax.errors import CheckpointError
from recjax.train import train_experiment
from recjax.writer import JsonLines, MetricsWriter
from tests.runs import never_stopped, small_config, small_experiment


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def events_of(folder):
    """The events of each file, oldest first: length, its checksum, the event, its checksum."""
    found = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name.rpartition(".")[2]):
        data, events = path.read_bytes(), []
        while data:
            length = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
        found.append(events)
    return found


def test_each_write_is_one_line_at_once(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(1, {"train/loss": jnp.float32(0.1), "n": np.int64(3), "x": 0.1 + 0.2})
    writer.write(2, {"train/loss": float("nan"), "n": float("inf")})
    assert lines_of(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": float(np.float32(0.1)), "n": 3, "x": 0.1 + 0.2},
        {"step": 2, "train/loss": None, "n": None},
    ]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    writer.close()


def test_timings_are_kept_apart(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"train/loss": 2.0})
    writer.write_timings(1, {"examples/s": 100.0})
    writer.close()
    assert lines_of(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": 2.0}]
    assert lines_of(tmp_path / "timings.jsonl") == [{"step": 1, "examples/s": 100.0}]


def test_timings_say_when_a_run_began_and_went_on(tmp_path):
    for start in (0, 2):
        writer = MetricsWriter(tmp_path, tensorboard=False)
        writer.truncate_after(start)
        writer.write_timings(start + 2, {"examples/s": 100.0})
        writer.close()
    lines = lines_of(tmp_path / "timings.jsonl")
    assert [(line["step"], "started" in line) for line in lines] == [
        (0, True),
        (2, False),
        (2, True),
        (4, False),
    ]


class Recorder:
    """A sink that remembers what it was told."""

    def __init__(self):
        self.told = []

    def write(self, step, scalars):
        self.told.append((step, dict(scalars)))

    def close(self):
        self.told.append("closed")


class Rewinder(Recorder):
    def truncate_after(self, step):
        self.told.append(f"from {step}")


def test_further_sinks_get_metrics_and_timings_as_plain_numbers(tmp_path):
    sinks = [Recorder(), Rewinder()]
    writer = MetricsWriter(tmp_path, sinks=sinks)
    writer.truncate_after(3)
    writer.write(4, {"train/loss": jnp.float32(0.5), "n": np.int64(2)})
    writer.write_timings(4, {"examples/s": 10})
    writer.close()
    written = [(4, {"train/loss": 0.5, "n": 2}), (4, {"examples/s": 10}), "closed"]
    assert sinks[0].told == written
    assert sinks[1].told == ["from 3", *written]
    assert type(sinks[0].told[0][1]["train/loss"]) is float


def test_a_sink_that_fails_to_close_does_not_keep_the_others_open(tmp_path):
    class Fails(Recorder):
        def close(self):
            raise ConnectionError("no network")

    sinks = [Recorder(), Fails(), Recorder()]
    with pytest.raises(ConnectionError):
        MetricsWriter(tmp_path, sinks=sinks).close()
    assert sinks[0].told == sinks[2].told == ["closed"]


def test_a_run_tells_its_sinks_where_it_goes_on_all_it_writes_and_when_it_ends(tmp_path):
    workdir = shutil.copytree(never_stopped("mf").workdir, tmp_path / "run")
    sink = Rewinder()
    train(small_config("mf"), workdir, quiet=True, sinks=[sink])
    begun, (step, scalars), closed = sink.told
    assert (begun, step, closed) == ("from 20", 20, "closed")
    assert scalars == {
        k: v for k, v in lines_of(workdir / "metrics.jsonl")[-1].items() if k != "step"
    }
    sink = Recorder()
    with pytest.raises(CheckpointError, match="model.dim"):
        train_experiment(small_experiment("mf", model__dim=4), workdir, sinks=[sink])
    assert sink.told == ["closed"]


def test_a_resumed_run_writes_the_same_file_as_one_never_stopped(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        writer = MetricsWriter(folder)
        for step in range(1, 6):
            writer.write(step, {"loss": 1 / step})
        writer.close()
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    writer = MetricsWriter(killed)
    writer.truncate_after(3)
    for step in range(4, 6):
        writer.write(step, {"loss": 1 / step})
    writer.close()
    assert (whole / "metrics.jsonl").read_bytes() == (killed / "metrics.jsonl").read_bytes()


def test_cutting_back_drops_test_metrics_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    lines.truncate_after(3)
    assert not path.exists()
    for step, name in [(1, "loss"), (3, "valid/recall@10"), (3, "test/recall@10")]:
        lines.write(step, {name: 0.5})
    with path.open("a") as file:
        file.write('{"step": 2}')
    lines.truncate_after(3)
    assert lines_of(path) == [{"step": 1, "loss": 0.5}, {"step": 3, "valid/recall@10": 0.5}]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"loss": 1}'])
def test_a_line_of_something_else_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(CheckpointError, match="metrics.jsonl, line 2"):
        MetricsWriter(tmp_path).truncate_after(3)


def test_tensorboard_gets_finite_scalars_and_is_told_what_to_hide(tmp_path):
    for start in (0, 1):
        writer = MetricsWriter(tmp_path)
        writer.truncate_after(start)
        writer.write(start + 1, {"valid/recall@10": 0.5, "bad": float("nan")})
        writer.write_timings(start + 1, {"examples/s": 10})
        writer.close()
    first, second = events_of(tmp_path / "tensorboard")
    tags = [(e.step, v.tag, v.simple_value) for e in second for v in e.summary.value]
    assert tags == [(2, "valid/recall@10", 0.5), (2, "examples/s", 10.0)]
    assert [e.step for e in second if e.HasField("session_log")] == [2]
    assert len(first) == len(second)


def test_a_full_disk_is_one_error(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": 1.0})
    monkeypatch.setattr(RecordWriter, "write", no_space)
    with pytest.raises(CheckpointError, match="tensorboard cannot be written: .*No space left"):
        writer.write(2, {"loss": 1.0})
    writer.close()


def test_a_line_that_does_not_fit_is_taken_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    JsonLines(path).write(1, {"loss": 1.0})
    script = f"""
import resource
from recjax.writer import JsonLines
resource.setrlimit(resource.RLIMIT_FSIZE, ({path.stat().st_size + 5}, resource.RLIM_INFINITY))
JsonLines({str(path)!r}).write(2, {{"loss": 1.0}})
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "metrics.jsonl cannot be written" in child.stderr.splitlines()[-1]
    assert lines_of(path) == [{"step": 1, "loss": 1.0}]
