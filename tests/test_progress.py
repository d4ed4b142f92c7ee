"""On a terminal a bar, elsewhere lines that can be read in a log."""

import io

import pytest
import rich.console

from recjax import progress as progress_lib


class Clock:
    """Stands in for the module `time`: a second passes only when it is told."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_lib, "time", clock)
    return clock


def shown(clock, terminal, seconds_a_step=1.0):
    out = io.StringIO()
    console = rich.console.Console(file=out, force_terminal=terminal, width=100)
    with progress_lib.Progress(40, 10, unit=512, every=10.0, console=console) as progress:
        for step in range(11, 41):
            clock.now += seconds_a_step
            progress.update(step, loss=2.5)
            if step == 20:
                progress.message("valid/recall@10 [0.1]")
    return out.getvalue()


def test_elsewhere_a_line_now_and_then_and_the_last(clock):
    assert shown(clock, terminal=False).splitlines() == [
        "step 20 of 40, loss 2.5000, 512 examples/s, 0:00:20 left",
        "valid/recall@10 [0.1]",
        "step 30 of 40, loss 2.5000, 512 examples/s, 0:00:10 left",
        "step 40 of 40, loss 2.5000, 512 examples/s, 0:00:00 left",
    ]


def test_a_rate_is_shown_also_where_a_step_takes_minutes(clock):
    lines = shown(clock, terminal=False, seconds_a_step=100.0).splitlines()
    assert lines[0] == "step 11 of 40, loss 2.5000"
    assert lines[1] == "step 12 of 40, loss 2.5000, 5 examples/s, 0:46:40 left"


def test_on_a_terminal_the_bar_and_messages_above_it(clock):
    text = shown(clock, terminal=True)
    assert "valid/recall@10 [0.1]" in text
    assert "step 40 of 40, loss 2.5000, 512 examples/s" in text
    assert "━" in text
