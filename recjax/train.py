"""The loop: trains an experiment in a workdir, from wherever the last run of it stopped."""

import collections
import contextlib
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
from absl import logging as absl_logging
from jaxtyping import Array

from recjax.checkpoint import Checkpointer
from recjax.config import Config, check_resume, config_from_json, config_to_json
from recjax.data.loader import make_batches
from recjax.diagnostics import EstimatorError
from recjax.errors import CheckpointError, DivergenceError
from recjax.experiment import Experiment
from recjax.files import write_file
from recjax.measure import evaluate_model, protocol_of, write_test_results
from recjax.progress import Progress
from recjax.step import TrainState
from recjax.writer import MetricsWriter

PyTree = Any


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


def train_experiment(
    experiment: Experiment,
    workdir: pathlib.Path,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    quiet: bool = False,
) -> bool:
    """Trains until the last step, resuming what `workdir` holds, and tests the best checkpoint.

    Args:
      experiment: what is trained.
      workdir: where everything is left.
      should_stop: asked before every step; if true, the state is saved and training ends.
      quiet: show no progress.

    Returns:
      Whether the run is finished; False if `should_stop` ended it before its last step.

    Raises:
      CheckpointError: the workdir holds another run, or cannot be written.
      DivergenceError: the loss is no longer finite.
    """
    prepare_workdir(experiment, workdir)
    writer = MetricsWriter(workdir, tensorboard=experiment.config.log.tensorboard)
    checkpointer = Checkpointer(workdir / "checkpoints", keep=experiment.config.checkpoint.keep)
    with contextlib.closing(writer), contextlib.closing(checkpointer):
        last = _Loop(experiment, workdir, writer, checkpointer, quiet).run(should_stop)
        if last is None:
            return False
        checkpointer.wait()
        step, state = restore_best(experiment, checkpointer)
        writer.write(last, write_test_results(experiment, variables_of(state), step, workdir))
        return True


def check_workdir(config: Config, workdir: pathlib.Path) -> None:
    """Checks that the workdir is new, or holds a run that this config may go on with.

    Raises:
      CheckpointError: naming the config keys that differ.
    """
    file = workdir / "config.json"
    if file.exists():
        check_resume(config_from_json(file.read_text(), str(file)), config, str(workdir))


def prepare_workdir(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Writes config.json and protocol.json, or checks that the workdir's are this run's.

    Raises:
      CheckpointError: naming the config keys or the parts of the protocol that differ.
    """
    check_workdir(experiment.config, workdir)
    file = workdir / "protocol.json"
    protocol = json.loads(json.dumps(protocol_of(experiment)))
    if file.exists():
        known = json.loads(file.read_text())
        differ = [k for k in protocol if k != "ks" and known.get(k) != protocol[k]]
        if differ:
            raise CheckpointError(
                f"{workdir} holds a run under another protocol: {', '.join(differ)} differ "
                f"(see {file}); give this run another --workdir"
            )
    write_file(workdir / "config.json", config_to_json(experiment.config))
    write_file(file, json.dumps(protocol, indent=2) + "\n")


def restore_best(experiment: Experiment, checkpointer: Checkpointer) -> tuple[int, TrainState]:
    """The best checkpoint by the validation metric: (step, state).

    Raises:
      CheckpointError: the workdir has none.
    """
    restored = checkpointer.restore_best(experiment.abstract_state)
    if restored is None:
        raise CheckpointError("this workdir holds no finished validation yet: train it first")
    return restored[0], restored[1]


class _Loop:
    """Steps, logs, validations and checkpoints, each at the step that the config names."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: pathlib.Path,
        writer: MetricsWriter,
        checkpointer: Checkpointer,
        quiet: bool,
    ):
        config = experiment.config
        self._experiment = experiment
        self._config = config
        self._workdir = workdir
        self._writer = writer
        self._checkpointer = checkpointer
        self._total = experiment.total_steps
        self._eval_every = config.eval.every or min(experiment.steps_per_epoch, self._total)
        self._save_every = config.checkpoint.every or self._eval_every
        self._best = _Best()
        self._console = rich.console.Console(quiet=True) if quiet else None
        self._pending: collections.deque[tuple[int, dict[str, Array]]] = collections.deque()
        self._loss = self._logit_scale = float("nan")
        self._validates = not experiment.split.trains_on_valid
        self._seconds, self._logged = time.perf_counter(), 0

    def run(self, should_stop: Callable[[], bool]) -> int | None:
        """Trains to the end and returns the last step; None if `should_stop` ended it before."""
        experiment, config = self._experiment, self._config
        state, start = self._restore()
        self._writer.truncate_after(start)
        self._logged = start
        self._progress = Progress(
            self._total, start, unit=config.train.batch_size, console=self._console
        )
        train_step = experiment.parallel.compile(experiment.step, experiment.state_specs)
        batches = make_batches(
            experiment.examples,
            batch_size=config.train.batch_size,
            seed=config.seed,
            start=start,
            stop=self._total,
            prefetch=config.train.prefetch,
        )
        with self._progress as progress, contextlib.closing(batches):
            if start:
                progress.message(f"resumed at step {start} of {self._total}")
            step = start
            while step < self._total and not self._is_stale():
                if should_stop():
                    self._settle(0)
                    self._save(step, state)
                    self._checkpointer.wait()
                    progress.message(f"stopped after step {step}; the same command goes on there")
                    return None
                batch = experiment.parallel.put_batch(next(batches))
                state, metrics = train_step(state, batch, experiment.arrays)
                step += 1
                self._pending.append((step, metrics))
                self._settle(experiment.parallel.steps_in_flight - 1)
                self._at(step, state)
        self._ensure_best(step, state)
        return step

    def _restore(self) -> tuple[TrainState, int]:
        best_step = self._intact_best()  # before the latest, so that memory holds one of the two
        restored = self._checkpointer.restore_latest(self._experiment.abstract_state)
        if restored is None:
            return self._experiment.init_state(), 0
        step, state, record = restored
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
        return state, step

    def _intact_best(self) -> int:
        """The step of the best checkpoint; 0 if there is none that can be read."""
        try:
            return restore_best(self._experiment, self._checkpointer)[0]
        except CheckpointError:
            return 0

    def _ensure_best(self, step: int, state: TrainState) -> None:
        """Takes the last state as the best where that was lost and no validation is to come."""
        if self._best.step:
            return
        absl_logging.warning(
            "No best checkpoint is left: the last, of step %d, takes its place", step
        )
        self._best = _Best(step=step, stale=self._best.stale)
        self._checkpointer.save_best(step, state, self._record())
        self._save(step, state)

    def _is_stale(self) -> bool:
        return 0 < self._config.eval.patience <= self._best.stale

    def _at(self, step: int, state: TrainState) -> None:
        """What is due after a step."""
        is_last = step == self._total
        validates = is_last or step % self._eval_every == 0
        saves = step % self._save_every == 0
        every = self._config.diagnostics.every
        if every and step % every == 0:
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

    def _settle(self, in_flight: int) -> None:
        """Waits until at most `in_flight` steps run, and reads the results of the others."""
        while len(self._pending) > in_flight:
            step, metrics = self._pending.popleft()
            self._loss = float(metrics["loss"])
            self._logit_scale = float(metrics["logit_scale"])
            if int(metrics["bad_step"]) >= 0:
                raise self._diverged(f"the loss became NaN or infinite at step {step}")
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
        self._writer.write_timings(step, {"train/examples_per_second": rate})
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
        improved = self._best.update(found.metrics[name], step)
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
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
