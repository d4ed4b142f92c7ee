"""What is due at each step of a run: logs, validations, checkpoints, and where it resumes."""

import collections
import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import logging as absl_logging
from jaxtyping import Array

from recjax.allocator import prefer_huge_pages
from recjax.checkpoint import Checkpointer
from recjax.data.loader import make_batches
from recjax.diagnostics import EstimatorError
from recjax.errors import CheckpointError, DivergenceError
from recjax.experiment import Experiment
from recjax.measure import evaluate_model
from recjax.parallel import STOP
from recjax.processes import from_first, is_first
from recjax.profiling import TABLE, WAIT, StepProfiler
from recjax.progress import Progress
from recjax.rounding import as_float32
from recjax.step import TrainState
from recjax.writer import RATE, MetricsWriter

PyTree = Any
Metrics = Mapping[str, Array]


@dataclasses.dataclass
class _Best:
    """The best validation so far; part of every checkpoint's record."""

    value: float | None = None
    step: int = 0
    stale: int = 0  # validations since

    def update(self, value: float, step: int) -> bool:
        """Whether this validation is the best so far."""
        if self.value is None or value > self.value:
            self.value, self.step, self.stale = value, step, 0
            return True
        self.stale += 1
        return False


def variables_of(state: TrainState) -> PyTree:
    """The variables that `model.apply` takes."""
    return {"params": state.params, "tables": state.tables}


def restore_best(experiment: Experiment, checkpointer: Checkpointer) -> tuple[int, TrainState]:
    """The best checkpoint by the validation metric: (step, state).

    Raises:
      CheckpointError: the workdir has none.
    """
    restored = checkpointer.restore_best(experiment.abstract_state)
    if restored is None:
        raise CheckpointError("this workdir holds no finished validation yet: train it first")
    return restored[0], restored[1]


class Loop:
    """One run's logs, validations and checkpoints, each at the step that the config names.

    `run` trains it. Whoever takes the steps of several runs at once calls `restore` and `begin` for
    each; then, until it `is_over`, `took` after every step and `do_due` where something `is_due`.

    Attributes:
      step: steps taken.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: pathlib.Path,
        writer: MetricsWriter,
        checkpointer: Checkpointer,
    ):
        config = experiment.config
        self.step = 0
        self._experiment = experiment
        self._config = config
        self._workdir = workdir
        self._writer = writer
        self._checkpointer = checkpointer
        self._total = experiment.total_steps
        self._eval_every = config.eval.every or min(experiment.steps_per_epoch, self._total)
        self._save_every = config.checkpoint.every or self._eval_every
        self._best = _Best()
        self._pending: collections.deque[tuple[int, Metrics, Any]] = collections.deque()
        self._loss = self._logit_scale = float("nan")
        self._told_to_stop = False
        self._validates = not experiment.split.trains_on_valid
        self._seconds, self._logged = time.perf_counter(), 0

    def run(self, should_stop: Callable[[], bool], quiet: bool) -> int | None:
        """Trains to the end and returns the last step; None if `should_stop` ended it before."""
        experiment = self._experiment
        state = self.restore()
        progress = Progress(
            self._total,
            self.step,
            unit=self._config.train.batch_size,
            console=rich.console.Console(quiet=True) if quiet else None,
        )
        profiler = self._make_profiler()
        with progress, profiler, contextlib.closing(self.batches()) as batches:
            self.begin(progress)
            alone = experiment.parallel.is_one_process
            while not self.is_over:
                asked = should_stop()
                if self._told_to_stop or (asked and alone):
                    self.stop(state)
                    return None
                self._seconds += profiler.before(self.step, state)
                with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
                    with jax.profiler.TraceAnnotation(WAIT):
                        host_batch = next(batches)
                    batch = experiment.parallel.put_batch(host_batch, stop=asked)
                    state, metrics = experiment.train_step(state, batch, experiment.arrays)
                    self.took(metrics)
                self._seconds += profiler.after(self.step, state)
                if self.is_due:
                    self.do_due(state)
        self._ensure_best(state)
        return self.step

    def batches(self) -> Generator[dict[str, np.ndarray], None, None]:
        """The batches from the next step to the last."""
        return make_batches(
            self._experiment.examples,
            batch_size=self._config.train.batch_size,
            seed=self._config.seed,
            start=self.step,
            stop=self._total,
            prefetch=self._config.train.prefetch,
            rows=self._experiment.parallel.local_rows(self._config.train.batch_size),
        )

    def begin(self, progress: Progress) -> None:
        """Cuts the metrics back to what was restored, and says where the run goes on."""
        self._writer.truncate_after(self.step)
        self._logged = self.step
        self._progress = progress
        if self.step:
            progress.message(f"resumed at step {self.step} of {self._total}")

    @property
    def is_over(self) -> bool:
        """Whether the last step is taken, or validations have not gained for too long."""
        return self.step >= self._total or self._is_stale()

    def took(self, metrics: Metrics, place: Any = ()) -> None:
        """Notes a step; of the metrics of several runs, those at `place` are this one's."""
        self.step += 1
        self._pending.append((self.step, metrics, place))
        self._settle(self._experiment.parallel.steps_in_flight - 1)

    @property
    def is_due(self) -> bool:
        """Whether the state after this step is to be diagnosed, validated or saved."""
        return self._diagnoses_now or self._validates_now or self._saves_now

    def do_due(self, state: TrainState) -> None:
        """What is due after this step."""
        step, is_last = self.step, self.step == self._total
        validates, saves = self._validates_now, self._saves_now
        if self._diagnoses_now:
            self._diagnose(step, state)
        if not validates and not saves:
            return
        self._settle(0)
        if not _all_finite((state.params, state.tables)):
            raise self._diverged(f"parameters became NaN or infinite at step {step}")
        if self._validates:
            improved = validates and self._validate(step, state)
        else:  # nothing is held out to choose by: the last state is the model
            improved = is_last
            self._best = _Best(step=step) if is_last else self._best
        is_last = is_last or self._is_stale()
        if is_last and self._logged != step:
            self._log(step)
        if improved:
            self._checkpointer.save_best(step, state, self._record())
        if saves or is_last:
            self._save(step, state)

    def stop(self, state: TrainState) -> None:
        """Saves the state, so that the run can go on there."""
        self._settle(0)
        self._save(self.step, state)
        self._checkpointer.wait()
        self._progress.message(f"stopped after step {self.step}; the same command goes on there")

    def restore(self) -> TrainState:
        """The state to go on from, after `step` steps."""
        best_step = self._intact_best()  # before the latest, so that memory holds one of the two
        restored = self._checkpointer.restore_latest(self._experiment.abstract_state)
        if restored is None:
            return self._experiment.init_state()
        step, state, record = restored
        prefer_huge_pages(state)
        self.step = step
        self._best = _Best(**record["best"])
        if step and step == self._best.step:  # its own checkpoint may not have been completed
            self._checkpointer.save_best(step, state, record)
        elif self._best.step not in (0, best_step):
            if best_step <= step:  # else the run was killed after a later best: it comes again
                absl_logging.warning(
                    "The best checkpoint, of step %d, is damaged or missing: the best is chosen "
                    "anew from step %d on",
                    self._best.step,
                    step,
                )
            self._best = _Best(stale=self._best.stale)
        return state

    def _intact_best(self) -> int:
        """The step of the best checkpoint; 0 if there is none that can be read."""
        try:
            return restore_best(self._experiment, self._checkpointer)[0]
        except CheckpointError:
            return 0

    def _ensure_best(self, state: TrainState) -> None:
        """Takes the last state as the best where that was lost and no validation is to come."""
        if self._best.step:
            return
        absl_logging.warning(
            "No best checkpoint is left: the last, of step %d, takes its place", self.step
        )
        self._best = _Best(step=self.step, stale=self._best.stale)
        self._checkpointer.save_best(self.step, state, self._record())
        self._save(self.step, state)

    def _make_profiler(self) -> StepProfiler:
        """Of the first process, whose own devices it traces; the others trace nothing."""
        config, folder = self._config.profile, self._workdir / "profile"
        steps = config.steps if is_first() else 0
        if steps and self.step > config.start and not (folder / TABLE).exists():
            absl_logging.warning(
                "Nothing is traced: the run goes on at step %d, past config.profile.start=%d",
                self.step,
                config.start,
            )
        return StepProfiler(folder, start=config.start, steps=steps)

    def _is_stale(self) -> bool:
        return 0 < self._config.eval.patience <= self._best.stale

    @property
    def _diagnoses_now(self) -> bool:
        every = self._config.diagnostics.every
        return every > 0 and self.step % every == 0

    @property
    def _validates_now(self) -> bool:
        return self.step == self._total or self.step % self._eval_every == 0

    @property
    def _saves_now(self) -> bool:
        return self.step % self._save_every == 0

    def _settle(self, in_flight: int) -> None:
        """Waits until at most `in_flight` steps run, and reads the results of the others."""
        while len(self._pending) > in_flight:
            step, metrics, place = self._pending.popleft()
            self._loss = float(np.asarray(metrics["loss"])[place])
            self._logit_scale = float(np.asarray(metrics["logit_scale"])[place])
            if int(np.asarray(metrics["bad_step"])[place]) >= 0:
                raise self._diverged(f"the loss became NaN or infinite at step {step}")
            # The same on all processes at the same step, so that all stop after one step.
            self._told_to_stop |= bool(np.asarray(metrics.get(STOP, 0)))
            self._progress.update(step, loss=self._loss)
            if step % self._config.log.every == 0:
                self._log(step)

    def _log(self, step: int) -> None:
        record = {"train/loss": self._loss, "train/logit_scale": self._logit_scale}
        if self._logit_scale > 0:
            record["train/effective_temperature"] = 1.0 / self._logit_scale
        self._writer.write(step, record)
        now = time.perf_counter()
        rate = (step - self._logged) * self._config.train.batch_size / (now - self._seconds)
        self._writer.write_timings(step, {RATE: rate})
        self._seconds, self._logged = now, step

    def _diagnose(self, step: int, state: TrainState) -> None:
        """Writes how far the estimator's gradient is from the exact one."""
        self._settle(0)
        began = time.perf_counter()
        found = self._estimator_error(variables_of(state), state.source, step)
        self._writer.write(step, {f"diagnostics/{name}": value for name, value in found.items()})
        took = time.perf_counter() - began
        self._writer.write_timings(step, {"diagnostics/seconds": took})
        self._seconds += took

    @functools.cached_property
    def _estimator_error(self) -> EstimatorError:
        experiment, config = self._experiment, self._config
        return EstimatorError(
            experiment.step.objective,
            experiment.examples,
            experiment.arrays,
            batch_size=config.train.batch_size,
            queries=config.diagnostics.queries,
            draws=config.diagnostics.draws,
            seed=config.seed,
        )

    def _validate(self, step: int, state: TrainState) -> bool:
        """Whether the state is the best so far."""
        began = time.perf_counter()
        try:
            found = evaluate_model(self._experiment, variables_of(state), "valid", samples=0)
        except DivergenceError as error:
            raise self._diverged(f"scores became NaN or infinite at step {step}") from error
        self._writer.write(step, {f"valid/{name}": value for name, value in found.metrics.items()})
        took = time.perf_counter() - began
        self._writer.write_timings(step, {"valid/seconds": took})
        self._seconds += took
        name = self._config.eval.metric
        improved = self._best.update(from_first(found.metrics[name]), step)
        note = " (best so far)" if improved else ""
        self._progress.message(f"step {step}: valid/{name} {found.metrics[name]:.4f}{note}")
        return improved

    def _save(self, step: int, state: TrainState) -> None:
        if step != self._best.step:
            self._checkpointer.wait()  # the best that this record names must be complete first
        self._checkpointer.save(step, state, self._record())

    def _record(self) -> dict[str, Any]:
        return {"best": dataclasses.asdict(self._best)}

    def _diverged(self, what: str) -> DivergenceError:
        return DivergenceError(
            f"{what}; the last good checkpoint is kept in {self._workdir / 'checkpoints'}. Try a "
            "lower optim.learning_rate, optim.clip_norm=1.0 or a higher model.temperature, in "
            "another --workdir"
        )


@jax.jit
def _all_finite(tree: PyTree) -> Array:
    return jnp.stack([jnp.isfinite(as_float32(leaf)).all() for leaf in jax.tree.leaves(tree)]).all()
