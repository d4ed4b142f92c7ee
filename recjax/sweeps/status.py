"""The state of a sweep's trials: a live table on a terminal, a line for each change elsewhere."""

import contextlib
import dataclasses
import datetime
import json
import pathlib
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import rich.box
import rich.console
import rich.live
import rich.table

from recjax.run import is_finished
from recjax.sweeps.attempts import TrialResult
from recjax.sweeps.trials import Trial
from recjax.tables import table_text

_SHOWN_FIRST = ("running", "failed", "stopped", "elsewhere", "finished", "waiting")
_STYLES = {"running": "bold", "failed": "red", "finished": "green", "waiting": "dim"}


@dataclasses.dataclass(frozen=True)
class TrialProgress:
    """How far a trial is, read from its own files; None for what they do not hold yet."""

    step: int | None = None
    total: int | None = None
    best: float | None = None  # of the validation metric
    rate: float | None = None  # examples per second


def read_progress(folder: pathlib.Path, metric: str) -> TrialProgress:
    """The progress of the trial in a folder; `metric` is its config's `eval.metric`."""
    metrics, timings = _records(folder / "metrics.jsonl"), _records(folder / "timings.jsonl")
    found = [record.get(f"valid/{metric}") for record in metrics]
    rates = [record.get("train/examples_per_second") for record in timings]
    return TrialProgress(
        step=max((record["step"] for record in metrics), default=None),
        total=_total(folder / "log.txt"),
        best=max((value for value in found if value is not None), default=None),
        rate=next((rate for rate in reversed(rates) if rate is not None), None),
    )


class Status:
    """Shows the trials of a sweep while they run, as a context manager.

    Args:
      trials: in the order of the table.
      workdir: of the sweep.
      console: where it is shown.
      to_come: how many others are still to be added.
    """

    def __init__(
        self,
        trials: Iterable[Trial],
        workdir: pathlib.Path,
        console: rich.console.Console,
        to_come: Callable[[], int] = lambda: 0,
    ):
        self._workdir = workdir
        self._console = console
        self._to_come = to_come
        self._lock = threading.Lock()
        self._trials: list[Trial] = []
        self._states: dict[str, str] = {}
        self.add(trials)
        self._began: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._live = (
            rich.live.Live(
                console=console,
                get_renderable=self._live_table,
                refresh_per_second=1,
                transient=True,
            )
            if console.is_terminal
            else contextlib.nullcontext()
        )

    def __enter__(self) -> "Status":
        self._live.__enter__()
        before = sum(state == "finished" for state in self._states.values())
        if before:
            self.message(f"{before} of {self._total()} trials were finished before")
        return self

    def __exit__(self, *details: Any) -> None:
        self._live.__exit__(*details)
        self.message(table_text(self.table()))

    def add(self, trials: Iterable[Trial]) -> None:
        """Takes in trials that come up, once each."""
        with self._lock:
            for trial in trials:
                if trial.name not in self._states:
                    finished = is_finished(self._workdir / trial.name)
                    self._states[trial.name] = "finished" if finished else "waiting"
                    self._trials.append(trial)

    def change(self, trial: Trial, result: TrialResult) -> None:
        """Takes in a new state; safe to call from any thread."""
        with self._lock:
            before = self._states[trial.name]
            self._states[trial.name] = result.state
            now = time.monotonic()
            if result.state == "running":
                self._began[trial.name] = now
            elif trial.name in self._began:
                self._took[trial.name] = now - self._began.pop(trial.name)
            if before != result.state and not self._console.is_terminal:
                self.message(self._line(trial, result))

    def message(self, text: str) -> None:
        """Prints lines, above the table where there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def table(self, most: int | None = None) -> rich.table.Table:
        """One row a trial, of at most so many: those that run first, then those that failed."""
        trials, states = list(self._trials), dict(self._states)
        counts = Counter(states.values())
        counts["waiting"] += self._to_come()
        shown = sorted(trials, key=lambda trial: _SHOWN_FIRST.index(states[trial.name]))
        chosen = {trial.name for trial in shown[:most]}
        table = rich.table.Table(
            box=rich.box.SIMPLE_HEAD,
            show_edge=False,
            caption=", ".join(f"{counts[state]} {state}" for state in _SHOWN_FIRST if counts[state])
            + f" of {counts.total()}",
            caption_justify="left",
        )
        table.add_column("arm")
        for name in ("seed", "state", "step", "best valid", "examples/s", "time"):
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        for trial in trials:
            if trial.name in chosen:
                state = states[trial.name]
                table.add_row(*self._cells(trial, state), style=_STYLES.get(state, ""))
        return table

    def _total(self) -> int:
        return len(self._states) + self._to_come()

    def _live_table(self) -> rich.table.Table:
        return self.table(max(self._console.height - 6, 3))

    def _cells(self, trial: Trial, state: str) -> list[str]:
        began = self._began.get(trial.name)  # another thread may take it out
        took = self._took.get(trial.name) if began is None else time.monotonic() - began
        found = TrialProgress()
        if state != "waiting":
            found = read_progress(self._workdir / trial.name, trial.config.eval.metric)
        step = "" if found.step is None else f"{found.step:,}"
        if step and found.total:
            step += f" of {found.total:,}"
        return [
            _label(trial),
            str(trial.seed),
            state,
            step,
            "" if found.best is None else f"{found.best:.4f}",
            "" if found.rate is None else f"{found.rate:,.0f}",
            "" if took is None else _duration(took),
        ]

    def _line(self, trial: Trial, result: TrialResult) -> str:
        done = sum(state in ("finished", "failed") for state in self._states.values())
        total = self._total()
        text = f"{done} of {total} done; {result.state}: {_label(trial)}, seed {trial.seed}"
        if result.state in ("finished", "stopped"):
            metric = trial.config.eval.metric
            found = read_progress(result.workdir, metric)
            if found.best is not None:
                text += f", valid/{metric} {found.best:.4f}"
            if trial.name in self._took:
                text += f", {_duration(self._took[trial.name])}"
        if result.error:
            text += f": {result.error.splitlines()[-1]}"
        return text


def _label(trial: Trial) -> str:
    return f"{trial.arm} (search)" if trial.name.startswith("search/") else trial.arm


def _records(file: pathlib.Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON objects that may be growing."""
    try:
        lines = file.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except (OSError, ValueError):
        return []


def _total(log: pathlib.Path) -> int | None:
    """The steps of a run, which the plan at the head of its log names."""
    try:
        with open(log, errors="replace") as file:
            found = re.search(r"([\d,]+) steps of ", file.read(8192))
    except OSError:
        return None
    return int(found[1].replace(",", "")) if found else None


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
