"""A run's folder is a session of TensorBoard's HParams dashboard."""

import json

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.record_writer import RecordWriter

from recjax.config import flatten_config
from recjax.hparams import best_results, write_session
from tests.runs import never_stopped, small_config


def values_of(path):
    """By tag, the step and value of every summary in an event file."""
    data, found = path.read_bytes(), {}
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found |= {value.tag: (event.step, value) for value in event.summary.value}
        data = data[16 + length :]
    return found


def session_of(values, tag):
    data = values[f"_hparams_/{tag}"][1].metadata.plugin_data
    assert data.plugin_name == "hparams"
    return getattr(HParamsPluginData.FromString(data.content), tag)


def test_a_finished_run_is_a_session_of_its_config_and_best_results():
    run = never_stopped("mf")
    values = values_of(run.workdir / "tensorboard" / "events.out.tfevents.hparams")
    found = session_of(values, "session_start_info").hparams
    assert set(found) == set(flatten_config(small_config("mf")))
    assert found["model.dim"].number_value == 8
    assert found["optim.name"].string_value == "adam"
    assert found["eval.ks"].string_value == "(5, 10)"
    assert found["log.tensorboard"].bool_value is True
    assert session_of(values, "session_end_info").status == 1  # STATUS_SUCCESS
    names = [f"test/{name}@10" for name in ("recall", "ndcg", "mrr", "coverage")]
    for name in names:
        step, value = values[f"best/{name}"]
        assert (step, value.simple_value) == (run.step, pytest.approx(run.metrics[name]))
    assert len(values) == 2 + len(names) + 1
    assert values["best/valid/recall@10"][1].simple_value > 0


def test_the_best_validation_is_that_of_the_tested_checkpoint(tmp_path):
    lines = (7, 0.2), (14, 0.4), (21, 0.3)
    records = [{"step": step, "valid/mrr@5": value} for step, value in lines]
    (tmp_path / "m").write_text("".join(json.dumps(record) + "\n" for record in records))
    test = {"test/mrr@5": 0.1, "test/recall@5": 0.5, "test/recall@10": 0.6}
    expected = {"best/test/mrr@5": 0.1, "best/test/recall@5": 0.5, "best/valid/mrr@5": 0.4}
    assert best_results(tmp_path / "m", test, "mrr@5", 14) == expected
    del expected["best/valid/mrr@5"]
    assert best_results(tmp_path / "m", test, "mrr@5", 10) == expected


def test_records_are_those_of_tensorboard(tmp_path):
    write_session(tmp_path, {"a.b": 1, "c": "x"}, {"best/test/loss": 0.5}, step=3)
    (path,) = tmp_path.iterdir()
    data, writer = path.read_bytes(), RecordWriter(str(tmp_path / "again"))
    while data:
        length = int.from_bytes(data[:8], "little")
        writer.write(data[12 : 12 + length])
        data = data[16 + length :]
    writer.close()
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
