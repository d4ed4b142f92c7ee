"""Runs one program as a process of its own, and says how busy the machine was beside it."""

import json
import os
import resource
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.benchmarks.harness import RESULT

ROOT = Path(__file__).resolve().parents[2]


def run(
    command: Sequence[str], environment: Mapping[str, str], timeout: float = 1800.0
) -> dict[str, Any]:
    """The last result that a program printed, and `others`; or `error`, the last that it said.

    Args:
      command: to be run in the root of the repository.
      environment: variables beside those of this process.
      timeout: seconds.
    """
    return run_many(command, environment, timeout)[-1]


def run_many(
    command: Sequence[str], environment: Mapping[str, str], timeout: float = 1800.0
) -> list[dict[str, Any]]:
    """As `run`, all results that a program printed; one, `error`, where it failed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    spent, ticks = _spent_seconds(), _machine_ticks()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return [{"error": f"took more than {timeout:.0f} s"}]
    others = share_of_others(ticks, _machine_ticks(), _spent_seconds() - spent)
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return [{"error": said[-1]}]
    return [{**json.loads(line.removeprefix(RESULT)), "others": others} for line in lines]


def make_console() -> Console:
    """Standard output, wide enough for a table where it is a file."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def share_of_others(before: tuple[int, int], after: tuple[int, int], own_seconds: float) -> float:
    """The share of all cores' time that was neither idle nor ours.

    Args:
      before: (busy, all) clock ticks of the machine.
      after: the same, later.
      own_seconds: processor time of our own processes in between.
    """
    busy, total = after[0] - before[0], after[1] - before[1]
    return max(0.0, (busy - own_seconds * os.sysconf("SC_CLK_TCK")) / max(total, 1))


def _spent_seconds() -> float:
    """Processor time of this process and of its children that have ended, with theirs."""
    own, ended = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def _machine_ticks() -> tuple[int, int]:
    """(busy, all) clock ticks of the machine since it started."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    ticks = [int(word) for word in words[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
