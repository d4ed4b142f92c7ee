"""How a program is timed and what it prints; needs NumPy alone, so that peers use it too.

A program takes a few steps to warm up, then as many as fit into each of several windows, at least
`--min_steps`. Making a batch from the arrays in memory is part of a step. It ends with one line,
`RESULT ` and JSON, which `run.py` reads.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.workload import (
    Arrays,
    default_folder,
    pairwise_accuracy,
    training_pairs,
)

RESULT = "RESULT "
CURVE = 5  # steps over which a point of the loss curve is a mean


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every program has."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=default_folder(), help="folder of the data")
    parser.add_argument("--smoke", action="store_true", help="small: does it run?")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the first window")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a window")
    parser.add_argument("--min_steps", type=int, default=3, help="of a window")
    parser.add_argument(
        "--steps", type=int, default=0, help="at least so many in all, to compare losses"
    )
    return parser


class Stopwatch:
    """Times steps that somebody else takes: `took` after each, until it says that it was enough.

    Args:
      flags: what `make_parser` parsed.
      batch_size: examples of a step.
    """

    def __init__(self, flags: argparse.Namespace, batch_size: int):
        self._flags, self._batch_size = flags, batch_size
        self._losses: list[Any] = []
        self._rates: list[float] = []
        self._steps_in_window = 0
        self._began = self._window = time.perf_counter()
        self._first_seconds = self._warmup_seconds = self._processor = 0.0
        self._timed_steps = 0

    def took(self, loss: Any) -> bool:
        """Notes a step by its mean loss, a number or what becomes one when it is waited for."""
        flags, count = self._flags, len(self._losses) + 1
        self._losses.append(loss)
        if count <= flags.warmup:
            if count in (1, flags.warmup):
                self._losses[-1] = float(loss)
            now = time.perf_counter()
            if count == 1:
                self._first_seconds = now - self._began
            if count == flags.warmup:
                self._warmup_seconds = now - self._began
                self._window, self._processor = now, time.process_time()
            return False
        if len(self._rates) < flags.windows:
            self._steps_in_window += 1
            enough = time.perf_counter() - self._window >= flags.seconds
            if enough and self._steps_in_window >= flags.min_steps:
                self._close_window(loss)
        return len(self._rates) == flags.windows and count >= flags.steps

    def result(self) -> dict[str, Any]:
        """Examples a second of each window, losses, and what it took."""
        losses = [float(loss) for loss in self._losses]
        curve = {
            end: float(np.mean(losses[end - CURVE : end]))
            for end in range(CURVE, len(losses) + 1, CURVE)
        }
        return {
            "unit": "examples/s",
            "rates": self._rates,
            "cpu_ms_per_unit": 1e3 * self._processor / (self._timed_steps * self._batch_size),
            "first_loss": losses[0],
            "curve": curve,
            "batch_size": self._batch_size,
            "steps": len(losses),
            "first_step_s": self._first_seconds,
            "warmup_s": self._warmup_seconds,
        }

    def _close_window(self, loss: Any) -> None:
        self._losses[-1] = float(loss)
        now = time.perf_counter()
        self._rates.append(self._steps_in_window * self._batch_size / (now - self._window))
        self._timed_steps += self._steps_in_window
        if len(self._rates) == self._flags.windows:
            self._processor = time.process_time() - self._processor
        self._window, self._steps_in_window = now, 0


def time_steps(
    step: Callable[[], Any], flags: argparse.Namespace, batch_size: int
) -> dict[str, Any]:
    """Calls `step`, which returns its mean loss, as often as a Stopwatch wants; its result."""
    watch = Stopwatch(flags, batch_size)
    while not watch.took(step()):
        pass
    return watch.result()


class Accuracy:
    """How accurate a factorisation was after how many seconds of training (W4).

    Args:
      arrays: of `interactions.npz`.
    """

    def __init__(self, arrays: Arrays):
        self._known = training_pairs(arrays)
        self._new = arrays["test_user"], arrays["test_item"]
        self._points: list[dict[str, float]] = []
        self._seconds = 0.0

    def add(self, seconds: float, user_UxD: np.ndarray, item_NxD: np.ndarray) -> None:
        """Measures the vectors that `seconds` more of training made."""
        self._seconds += seconds
        self._points.append(
            {
                "seconds": self._seconds,
                "accuracy": pairwise_accuracy(user_UxD, item_NxD, *self._known),
                "held_out": pairwise_accuracy(user_UxD, item_NxD, *self._new),
            }
        )

    def result(self, epochs_per_point: float = 1.0) -> dict[str, Any]:
        """All points, and seconds an epoch."""
        epochs = epochs_per_point * len(self._points)
        return {
            "unit": "s/epoch",
            "rates": [self._seconds / epochs],
            "points": self._points,
        }


def time_ranking(
    rank: Callable[[int, int], np.ndarray],
    flags: argparse.Namespace,
    arrays: Arrays,
    k: int,
    block: int,
) -> dict[str, Any]:
    """Queries a second of `rank(start, end)`, the best k items of these queries, checked first.

    A first pass over all queries warms it up, and its first block is compared with NumPy's answer.
    Then each window goes on through the queries in blocks, round after round; a short last block is
    left out. A program may have begun with the next blocks before it is asked for them.
    """
    began = time.perf_counter()
    blocks = [(s, s + block) for s in range(0, len(arrays["queries"]) - block + 1, block)]
    first = np.asarray(rank(*blocks[0]))
    first_seconds = time.perf_counter() - began
    for one in blocks[1:]:
        rank(*one)
    warmup_seconds = time.perf_counter() - began
    rates, place, processor, total = [], 0, time.process_time(), 0
    for _ in range(flags.windows):
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < flags.seconds or count < flags.min_steps:
            rank(*blocks[place])
            place, count = (place + 1) % len(blocks), count + 1
        rates.append(count * block / (time.perf_counter() - began))
        total += count * block
    return {
        "unit": "queries/s",
        "rates": rates,
        "cpu_ms_per_unit": 1e3 * (time.process_time() - processor) / total,
        "first_step_s": first_seconds,
        "warmup_s": warmup_seconds,
        **_check_ranking(first, arrays, k),
    }


def seen_pairs(arrays: Arrays, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """(row within the block, item) of everything that queries start..end-1 have seen."""
    offsets = arrays["seen_offsets"]
    rows = np.repeat(np.arange(end - start), np.diff(offsets[start : end + 1]))
    return rows, arrays["seen"][offsets[start] : offsets[end]]


def _check_ranking(top_BxK: np.ndarray, arrays: Arrays, k: int) -> dict[str, Any]:
    count = len(top_BxK)
    scores = arrays["queries"][:count] @ arrays["items"].T
    rows, items = seen_pairs(arrays, 0, count)
    scores[rows, items] = -np.inf
    expected = np.argpartition(-scores, k, axis=1)[:, :k]
    found = [len(np.intersect1d(a, b)) for a, b in zip(top_BxK, expected, strict=True)]
    leaked = sum(np.isin(top_BxK[r], items[rows == r]).sum() for r in range(count))
    return {"recall": float(np.sum(found) / (count * k)), "leaked": int(leaked)}


def peak_bytes() -> int:
    """The largest resident set of this process, which must not count its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(packages: Iterable[str], **result: Any) -> None:
    """Prints the line that `run.py` reads, with peak memory and the packages' versions."""
    record = {**result, "peak_bytes": peak_bytes(), "versions": versions(packages)}
    print(RESULT + json.dumps(record), flush=True)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of each package."""
    return {name: importlib.metadata.version(name) for name in packages}


def machine() -> dict[str, Any]:
    """The processor, cores, memory and system, for the record."""
    cpu, memory = platform.machine(), 0
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), cpu)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
