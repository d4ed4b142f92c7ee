"""How far a run is: a bar on a terminal, a plain line now and then elsewhere."""

import collections
import datetime
import time

import rich.console
import rich.progress

_RATE_SECONDS = 30.0


class Progress:
    """Shows step, loss, examples per second and the time left, as a context manager.

    Args:
      total: steps of the whole run.
      start: steps done before it was resumed.
      unit: examples of a step.
      every: seconds between lines where there is no terminal.
      console: where it is shown; standard output where None.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        *,
        unit: int = 1,
        every: float = 10.0,
        console: rich.console.Console | None = None,
    ):
        self._total = total
        self._unit = unit
        self._every = every
        self._console = console or rich.console.Console()
        self._shown = time.perf_counter()
        # (time, step) of what was done lately; begun by the first update, so that the time that
        # compiling took does not count.
        self._recent: collections.deque[tuple[float, int]] = collections.deque()
        self._bar = rich.progress.Progress(
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
            disable=self._console.quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=start, status="compiling")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, step: int, loss: float | None = None) -> None:
        """Shows that `step` steps are done, now or with the next line."""
        now = time.perf_counter()
        if not self._recent or now - self._recent[-1][0] > 0.1:
            self._recent.append((now, step))
        while len(self._recent) > 1 and self._recent[1][0] < now - _RATE_SECONDS:
            self._recent.popleft()
        every = 0.1 if self._console.is_terminal else self._every
        if now - self._shown < every and step < self._total:
            return
        self._shown = now
        status = self._status(now, step, loss)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, status=status)
        else:
            self.message(status)

    def message(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _status(self, now: float, step: int, loss: float | None) -> str:
        parts = [f"step {step:,} of {self._total:,}"]
        if loss is not None:
            parts.append(f"loss {loss:.4f}")
        then, before = self._recent[0]
        if step > before:
            rate = (step - before) / (now - then)
            left = datetime.timedelta(seconds=round((self._total - step) / rate))
            parts += [f"{rate * self._unit:,.0f} examples/s", f"{left} left"]
        return ", ".join(parts)
