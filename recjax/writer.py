"""Scalars of a run, written as they come: JSON lines to compute with, TensorBoard to look at."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from recjax.errors import CheckpointError
from recjax.files import write_file

Scalars = Mapping[str, Any]

# In timings.jsonl: examples a second since the line before, and when a run began or went on.
RATE, STARTED = "train/examples_per_second", "started"

# Protobuf makes these when it is imported, where pyright cannot see them.
Event = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
SessionLog = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]


@runtime_checkable
class Sink(Protocol):
    """Where scalars go; `MetricsWriter` hands everything to each of its sinks."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Writes named numbers as they are after `step` steps; several times for one step."""
        ...

    def close(self) -> None:
        """Writes what is pending; nothing can be written afterwards."""
        ...


@runtime_checkable
class ResumableSink(Sink, Protocol):
    """A sink that is told where a run begins, so that it does not hold later steps twice."""

    def truncate_after(self, step: int) -> None:
        """Drops what is later than `step`, from which a run begins (0) or goes on."""
        ...


class JsonLines:
    """A file of one JSON object a line: `step` and the scalars, null for what is not finite.

    Every line is in the file when `write` returns. A line that could not be written whole is
    taken back.
    """

    def __init__(self, path: str | pathlib.Path):
        """Writes to the end of the file `path`."""
        self._path = pathlib.Path(path)

    def write(self, step: int, scalars: Scalars) -> None:
        """Appends one line.

        Raises:
          CheckpointError: the file cannot be written.
        """
        numbers = {name: _number(value) for name, value in scalars.items()}
        line = json.dumps({"step": int(step), **numbers}, allow_nan=False) + "\n"
        try:
            with self._path.open("ab", buffering=0) as file:
                whole = file.tell()
                if file.write(line.encode()) < len(line.encode()):
                    file.truncate(whole)
                    raise OSError("no space left for a whole line")
        except OSError as error:
            raise CheckpointError(f"{self._path} cannot be written: {error}") from error

    def truncate_after(self, step: int) -> None:
        """Drops the lines of later steps, those of `test/` metrics, and a torn last one.

        The file is replaced at once: a kill leaves the old one or the new one. Test metrics are
        the last that a run writes, so one that goes on writes them anew.

        Raises:
          CheckpointError: a line before the last is not what `write` wrote, or the file cannot be
            written.
        """
        if not self._path.exists():
            return
        lines = self._path.read_text().splitlines(keepends=True)
        kept = []
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                break
            try:
                record = json.loads(line)
                is_test = any(name.startswith("test/") for name in record)
                if record["step"] <= step and not is_test:
                    kept.append(line)
            except (ValueError, TypeError, KeyError) as error:
                raise CheckpointError(
                    f"{self._path}, line {number}: expected an object with 'step', found {line!r}"
                ) from error
        if kept != lines:
            write_file(self._path, "".join(kept))

    def close(self) -> None:
        """Nothing is pending."""


class TensorBoard:
    """TensorBoard event files in a folder; each writer begins a file with its first scalar."""

    def __init__(self, folder: str | pathlib.Path):
        """Writes a new event file in `folder`."""
        self._folder = pathlib.Path(folder)
        self._events: EventsWriter | None = None
        self._purge_step: int | None = None

    def write(self, step: int, scalars: Scalars) -> None:
        """Writes one event that holds every finite scalar.

        Raises:
          CheckpointError: the file cannot be written.
        """
        event = Event(step=step, wall_time=time.time())
        for name, value in scalars.items():
            if (number := _number(value)) is not None:
                event.summary.value.add(tag=name, simple_value=number)
        try:
            events = self._open()
            events.write_event(event)
            events.flush()
        except OSError as error:
            raise CheckpointError(f"{self._folder} cannot be written: {error}") from error

    def truncate_after(self, step: int) -> None:
        """Tells TensorBoard to hide the later steps that earlier files hold."""
        self._purge_step = step + 1

    def close(self) -> None:
        """Closes the file."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def _open(self) -> EventsWriter:
        if self._events is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            # TensorBoardX names files by the second, and a resumed run may begin within it.
            self._events = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
            if self._purge_step is not None:
                start = SessionLog(status=SessionLog.START)
                event = Event(step=self._purge_step, wall_time=time.time(), session_log=start)
                self._events.write_event(event)
        return self._events


class MetricsWriter:
    """A run's metrics: `metrics.jsonl`, equal bit for bit in equal runs, and what is timed apart.

    Timings go to `timings.jsonl`, and both to the TensorBoard files in `tensorboard/` and to every
    further sink, as Python numbers.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        tensorboard: bool = True,
        sinks: Sequence[Sink] = (),
    ):
        """Writes in `workdir`, which exists; TensorBoard files only if `tensorboard`."""
        workdir = pathlib.Path(workdir)
        self._metrics = JsonLines(workdir / "metrics.jsonl")
        self._timings = JsonLines(workdir / "timings.jsonl")
        self._others = [*sinks]
        if tensorboard:
            self._others.insert(0, TensorBoard(workdir / "tensorboard"))

    def write(self, step: int, scalars: Scalars) -> None:
        """Writes metrics as they are after `step` steps.

        Raises:
          CheckpointError: a file cannot be written.
        """
        self._write(self._metrics, step, scalars)

    def write_timings(self, step: int, scalars: Scalars) -> None:
        """Writes seconds, examples per second and what else differs from run to run."""
        self._write(self._timings, step, scalars)

    def truncate_after(self, step: int) -> None:
        """Cuts the files back to what they held after `step` steps, for a run that begins there."""
        self._metrics.truncate_after(step)
        self._timings.truncate_after(step)
        self._timings.write(step, {STARTED: time.time()})
        for sink in self._others:
            if isinstance(sink, ResumableSink):
                sink.truncate_after(step)

    def close(self) -> None:
        """Closes the files and the other sinks."""
        with contextlib.ExitStack() as stack:  # each, though one of them fails
            for sink in (*self._others, self._timings, self._metrics):
                stack.callback(sink.close)

    def _write(self, lines: JsonLines, step: int, scalars: Scalars) -> None:
        numbers = {name: _plain(value) for name, value in scalars.items()}
        for sink in (lines, *self._others):
            sink.write(step, numbers)


def _number(value: Any) -> int | float | None:
    """As `_plain`; None if it is not finite."""
    value = _plain(value)
    return value if math.isfinite(value) else None


def _plain(value: Any) -> int | float:
    """A Python number of a Python, numpy or jax scalar."""
    return value.item() if hasattr(value, "item") else value
