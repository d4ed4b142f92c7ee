"""A run's settings and results as TensorBoard's HParams dashboard reads them."""

import json
import pathlib
import struct
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.proto import plugin_hparams_pb2
from tensorboardX.proto.api_pb2 import Status  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import (
    SummaryMetadata,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.record_writer import masked_crc32c

from recjax.files import write_file
from recjax.writer import Event

# The last of the folder's event files by name, which is the order they are read in.
FILE = "events.out.tfevents.hparams"
SHOWN = ("recall", "ndcg", "mrr", "coverage")  # five columns, with the best validation

PluginData = plugin_hparams_pb2.HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]
SessionStartInfo = plugin_hparams_pb2.SessionStartInfo  # pyright: ignore[reportAttributeAccessIssue]
SessionEndInfo = plugin_hparams_pb2.SessionEndInfo  # pyright: ignore[reportAttributeAccessIssue]


def write_session(
    folder: pathlib.Path,
    settings: Mapping[str, Any],
    results: Mapping[str, float],
    *,
    step: int,
) -> None:
    """Makes a run's folder a session of the dashboard: one row, beside those of other runs.

    There is no summary of the whole experiment, which would be that of one run: without it the
    dashboard compares the sessions itself and shows first the settings that differ among them.

    Args:
      folder: the run's TensorBoard files, whose scalars are the session's metrics; gets one more.
      settings: by dotted name; numbers, texts and booleans as they are, others as text.
      results: scalars to be added; names such as `best/...` sort first, and so are shown.
      step: that they belong to.

    Raises:
      CheckpointError: the file cannot be written.
    """
    begin, end = SessionStartInfo(), SessionEndInfo(status=Status.Value("STATUS_SUCCESS"))
    for name, value in settings.items():
        if isinstance(value, bool):
            begin.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            begin.hparams[name].number_value = value
        else:
            begin.hparams[name].string_value = str(value)
    end.end_time_secs = time.time()
    events = [Event(file_version="brain.Event:2"), Event(), Event(step=step)]
    for tag, content in (
        ("session_start_info", PluginData(session_start_info=begin)),
        ("session_end_info", PluginData(session_end_info=end)),
    ):
        data = {"plugin_name": "hparams", "content": content.SerializeToString()}
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(**data))
        events[1].summary.value.add(tag=f"_hparams_/{tag}", metadata=metadata)
    for name, value in results.items():
        events[2].summary.value.add(tag=name, simple_value=value)
    for event in events:
        event.wall_time = time.time()
    write_file(folder / FILE, b"".join(map(_record, events)))


def best_results(
    metrics: pathlib.Path, scalars: Mapping[str, float], metric: str, step: int
) -> dict[str, float]:
    """What the dashboard shows first: `best/test/...`, and `best/valid/...` of the same checkpoint.

    Args:
      metrics: the run's metrics.jsonl.
      scalars: of the test, by name.
      metric: that chose the checkpoint, such as `recall@10`.
      step: of the checkpoint.
    """
    k = metric.rpartition("@")[2]
    names = dict.fromkeys([metric, *(f"{name}@{k}" for name in SHOWN)])
    found = {f"test/{name}": scalars.get(f"test/{name}") for name in names}
    for line in metrics.read_text().splitlines():
        record = json.loads(line)
        if record["step"] == step and f"valid/{metric}" in record:
            found[f"valid/{metric}"] = record[f"valid/{metric}"]
    return {f"best/{name}": value for name, value in found.items() if value is not None}


def _record(event: Any) -> bytes:
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    checks = (struct.pack("<I", masked_crc32c(each)) for each in (length, data))
    return length + next(checks) + data + next(checks)
