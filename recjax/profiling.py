"""Where the time of some training steps goes: a trace for TensorBoard, and a table beside it."""

import collections
import dataclasses
import pathlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import rich.box
import rich.table
from jax.profiler import ProfileData, ProfileOptions

from recjax.errors import CheckpointError
from recjax.files import write_file
from recjax.tables import table_text

PyTree = Any
Trace = Any  # a ProfileData, which jax names in a way that no type checker can follow

TABLE = "profile.txt"
WAIT = "wait for a batch"  # what the loop calls its waiting for the host in a trace
_SHOWN = 25  # operations; the others are summed


@dataclasses.dataclass(frozen=True)
class Operation:
    """What one operation of a compiled program took in a trace.

    Attributes:
      name: as XLA calls it.
      program: that it belongs to.
      seconds: summed over calls, devices and threads, without what ran within it.
    """

    name: str
    program: str
    seconds: float


class StepProfiler:
    """Traces whole steps of a run, `start` to `start + steps` counted from 0, as they are taken.

    They are alone in the trace: no step before them runs when it begins, and all of them are
    finished when it ends.

    Args:
      folder: where `plugins/profile/`, which TensorBoard reads, and `profile.txt` are left.
      start: steps that are taken before the trace begins.
      steps: that are traced; 0 for none.
    """

    def __init__(self, folder: pathlib.Path, *, start: int, steps: int):
        self._folder = folder
        self._start, self._stop = start, start + steps
        self._began: float | None = None
        self._taken = 0

    def before(self, step: int, state: PyTree) -> float:
        """Begins the trace where `step` steps have been taken and the next is the first in it.

        Returns:
          Seconds that it took to begin, which are none of the steps'.

        Raises:
          CheckpointError: the trace cannot begin: another one is under way in this process.
        """
        if not self._start == step < self._stop:
            return 0.0
        jax.block_until_ready(state)
        called = time.perf_counter()
        options = ProfileOptions()
        options.python_tracer_level = 0  # which slows the host down, and fills the trace
        try:
            jax.profiler.start_trace(self._folder, profiler_options=options)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{self._folder}: no trace can begin: {error}") from error
        self._began = time.perf_counter()
        return self._began - called

    def after(self, step: int, state: PyTree) -> float:
        """Ends the trace where the last step in it, the `step`-th, has been dispatched.

        Returns:
          Seconds that it took to write it, which are none of the steps'.

        Raises:
          CheckpointError: the trace or the table cannot be written.
        """
        self._taken = step - self._start
        if self._began is None or step < self._stop:
            return 0.0
        jax.block_until_ready(state)
        ended = time.perf_counter()
        self.close()
        return time.perf_counter() - ended

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Ends the trace, with fewer steps, if the run ended within it."""
        try:
            self.close()
        except CheckpointError:
            if error is None:  # else that one is what must be told
                raise

    def close(self) -> None:
        """Ends the trace and writes the table, if it has begun."""
        if self._began is None:
            return
        seconds, self._began = time.perf_counter() - self._began, None
        try:
            jax.profiler.stop_trace()
            (newest,) = sorted(self._folder.rglob("*.xplane.pb"), key=_age)[-1:]
        except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
            raise CheckpointError(f"{self._folder} cannot be written: {error}") from error
        if self._taken:
            trace = ProfileData.from_file(str(newest))
            steps = range(self._start + 1, self._start + self._taken + 1)
            write_file(self._folder / TABLE, describe_trace(trace, steps, seconds))


def describe_trace(trace: Trace, steps: Sequence[int], seconds: float) -> str:
    """The table of a trace: milliseconds a step of each operation and its share of all of them.

    Args:
      trace: of whole steps.
      steps: their numbers, from 1 on.
      seconds: that they took together.
    """
    operations = read_operations(trace)
    scale = 1e3 / len(steps)
    total = sum(operation.seconds for operation in operations)
    lines = [
        f"steps {steps[0]} to {steps[-1]}: {scale * seconds:.3f} ms a step, of which the loop "
        f"waited {scale * waiting_seconds(trace):.3f} ms for its batch"
    ]
    if not operations:
        lines.append("The trace names no operation of a program; TensorBoard shows what it holds.")
        return "\n".join(lines) + "\n"
    lines.append(
        f"operations: {scale * total:.3f} ms a step, summed over devices and threads; one that "
        "runs others within it counts without them\n"
    )
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_edge=False)
    for name in ("operation", "program"):
        table.add_column(name, no_wrap=True)
    for name in ("ms a step", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    rest = operations[_SHOWN:]
    rows = list(operations[:_SHOWN])
    if rest:
        rows.append(Operation(f"{len(rest)} others", "", sum(each.seconds for each in rest)))
    for row in rows:
        share = row.seconds / total if total else 0.0
        table.add_row(row.name, row.program, f"{scale * row.seconds:.3f}", f"{share:.1%}")
    return "\n".join(lines) + "\n" + table_text(table)


def read_operations(trace: Trace) -> list[Operation]:
    """The operations of compiled programs in a trace, the longest first.

    Those on accelerators where there are any, else those on the host, whose cores are the devices.
    """
    planes = list(trace.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    found = _own_seconds(devices) or _own_seconds(planes)
    operations = [Operation(name, program, found[program, name]) for program, name in found]
    return sorted(operations, key=lambda each: (-each.seconds, each.program, each.name))


def waiting_seconds(trace: Trace) -> float:
    """How long the loop waited for its batches."""
    return 1e-9 * sum(
        event.duration_ns
        for plane in trace.planes
        for line in plane.lines
        for event in line.events
        if event.name == WAIT
    )


def _own_seconds(planes: Iterable[Any]) -> dict[tuple[str, str], float]:
    """Seconds by (program, operation), without those of operations within it on its thread."""
    own: dict[tuple[str, str], float] = collections.defaultdict(float)
    for plane in planes:
        for line in plane.lines:
            around: list[tuple[tuple[str, str], float]] = []
            for key, start, end in sorted(_spans(line), key=lambda span: (span[1], -span[2])):
                while around and around[-1][1] <= start:
                    around.pop()
                own[key] += 1e-9 * (end - start)
                if around:
                    outer, outer_end = around[-1]
                    own[outer] -= 1e-9 * (min(end, outer_end) - start)
                around.append((key, end))
    return own


def _spans(line: Any) -> Iterator[tuple[tuple[str, str], float, float]]:
    """((program, operation), start, end) in nanoseconds of each event that is an operation's."""
    for event in line.events:
        stats = dict(event.stats)
        if "hlo_op" in stats:
            key = str(stats.get("hlo_module", "")), str(stats["hlo_op"])
            yield key, event.start_ns, event.start_ns + event.duration_ns


def _age(path: pathlib.Path) -> int:
    return path.stat().st_mtime_ns
