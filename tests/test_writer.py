"""Metrics are whole lines, equal in equal runs, and cut back to the step of a checkpoint."""

import errno
import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from recjax.errors import CheckpointError
from recjax.writer import JsonLines, MetricsWriter


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
        writer.write(start + 1, {"train/loss": 0.5, "bad": float("nan")})
        writer.write_timings(start + 1, {"examples/s": 10})
        writer.close()
    first, second = events_of(tmp_path / "tensorboard")
    tags = [(e.step, v.tag, v.simple_value) for e in second for v in e.summary.value]
    assert tags == [(2, "train/loss", 0.5), (2, "examples/s", 10.0)]
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
