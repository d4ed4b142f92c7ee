"""The loop: trains an experiment in a workdir, from wherever the last run of it stopped."""

import collections
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import rich.console

from recjax.baselines import oracle_ranker, popularity_ranker, random_ranker
from recjax.checkpoint import Checkpointer
from recjax.config import check_resume, config_from_json, config_to_json
from recjax.data.loader import make_batches
from recjax.errors import CheckpointError, DivergenceError
from recjax.evaluate import Evaluation, evaluate, protocol_record
from recjax.experiment import Experiment
from recjax.files import write_file
from recjax.progress import Progress
from recjax.scoring import Ranker
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
    try:
        finished = _Loop(experiment, workdir, writer, checkpointer, quiet).run(should_stop)
        if finished:
            _test_best(experiment, workdir, writer, checkpointer)
        return finished
    finally:
        writer.close()
        checkpointer.close()


def prepare_workdir(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Writes config.json and protocol.json, or checks that the workdir's are this run's.

    Raises:
      CheckpointError: naming the config keys or the parts of the protocol that differ.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    config_file, protocol_file = workdir / "config.json", workdir / "protocol.json"
    protocol = json.loads(json.dumps(protocol_of(experiment)))
    if config_file.exists():
        old = config_from_json(config_file.read_text(), str(config_file))
        check_resume(old, experiment.config, str(workdir))
        if protocol_file.exists():
            known = json.loads(protocol_file.read_text())
            differ = [k for k in protocol if k != "ks" and known.get(k) != protocol[k]]
            if differ:
                raise CheckpointError(
                    f"{workdir} holds a run under another protocol: {', '.join(differ)} differ "
                    f"(see {protocol_file}); give this run another --workdir"
                )
    write_file(config_file, config_to_json(experiment.config))
    write_file(protocol_file, json.dumps(protocol, indent=2) + "\n")


def protocol_of(experiment: Experiment) -> dict[str, Any]:
    """What two results must share to be compared: data, split, corpus, policies, metric."""
    config = experiment.config
    return {
        "dataset": experiment.dataset.name,
        "dataset_hash": experiment.dataset.hash,
        "split": experiment.split.name,
        "split_params": dict(experiment.split.params),
        "split_hash": experiment.split.hash,
        "history": config.examples.history,
        "selection_metric": f"valid/{config.eval.metric}",
        **protocol_record(
            part="test",
            corpus=config.eval.corpus,
            num_candidates=int(experiment.corpus_mask_N.sum()),
            seen=config.eval.seen,
            ks=config.eval.ks,
        ),
    }


def model_ranker(experiment: Experiment, variables: PyTree) -> Ranker:
    """Ranks what the model can score of the corpus."""
    mask_N = experiment.corpus_mask_N & experiment.rankable_mask_N
    return experiment.scorer.ranker(variables, experiment.arrays, mask_N)


def evaluate_ranker(experiment: Experiment, ranker: Ranker, part: str, **settings: Any) -> Evaluation:
    """Measures a ranker on the queries of `valid` or `test`, under the experiment's protocol."""
    config = experiment.config
    queries = experiment.queries(part)
    return evaluate(
        queries,
        ranker,
        part=part,
        user_ids_U=experiment.dataset.users.ids,
        corpus_mask_N=experiment.corpus_mask_N,
        popularity_N=experiment.popularity_N,
        **{
            "ks": config.eval.ks,
            "seen": config.eval.seen,
            "batch_size": config.eval.batch_size,
            "samples": config.eval.bootstrap,
            "rankable_mask_N": experiment.corpus_mask_N,
            "in_flight": experiment.parallel.steps_in_flight - 1,
        }
        | settings,
    )


def evaluate_model(
    experiment: Experiment, variables: PyTree, part: str, **settings: Any
) -> Evaluation:
    """Measures the model; queries and items that it cannot score count as misses."""
    return evaluate_ranker(
        experiment,
        model_ranker(experiment, variables),
        part,
        servable_Q=experiment.serves(experiment.queries(part)),
        rankable_mask_N=experiment.rankable_mask_N,
        **settings,
    )


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
        console = rich.console.Console(quiet=True) if quiet else None
        self._progress = Progress(self._total, unit=config.train.batch_size, console=console)
        self._pending: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self._seconds, self._logged = time.perf_counter(), 0

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """Trains to the end; False if `should_stop` ended it before."""
        experiment, config = self._experiment, self._config
        state, start = self._restore()
        self._writer.truncate_after(start)
        self._logged = start
        train_step = experiment.parallel.compile(experiment.step, experiment.state_specs)
        batches = make_batches(
            experiment.examples,
            batch_size=config.train.batch_size,
            seed=config.seed,
            start=start,
            stop=self._total,
            prefetch=config.train.prefetch,
        )
        with self._progress as progress:
            if start:
                progress.message(f"resumed at step {start} of {self._total}")
            for step in range(start + 1, self._total + 1):
                if self._is_stale() or should_stop():
                    break
                batch = experiment.parallel.put_batch(next(batches))
                state, metrics = train_step(state, batch, experiment.arrays)
                self._pending.append((step, metrics))
                self._settle(experiment.parallel.steps_in_flight)
                self._at(step, state)
            else:
                step = self._total + 1
            batches.close()
            self._settle(0)
            if step <= self._total and not self._is_stale():
                self._save(step - 1, state)
                self._checkpointer.wait()
                progress.message(f"stopped after step {step - 1}; the same command goes on there")
                return False
        return True

    def _restore(self) -> tuple[TrainState, int]:
        restored = self._checkpointer.restore_latest(self._experiment.abstract_state)
        if restored is None:
            return self._experiment.init_state(), 0
        step, state, record = restored
        self._best = _Best(**record["best"])
        return state, step

    def _is_stale(self) -> bool:
        return 0 < self._config.eval.patience <= self._best.stale

    def _at(self, step: int, state: TrainState) -> None:
        """What is due after a step."""
        is_last = step == self._total
        improved = False
        if step % self._eval_every == 0 or is_last:
            self._settle(0)
            improved = self._validate(step, state)
        if improved:
            self._checkpointer.save_best(step, state, self._record())
        if step % self._save_every == 0 or is_last or self._is_stale():
            self._settle(0)
            self._save(step, state)

    def _settle(self, in_flight: int) -> None:
        """Waits until at most `in_flight` steps run, and reads the results of the others."""
        while len(self._pending) > in_flight:
            step, metrics = self._pending.popleft()
            loss = float(metrics["loss"])
            if int(metrics["bad_step"]) >= 0:
                raise DivergenceError(
                    f"the loss became {loss} at step {int(metrics['bad_step'])}; the last good "
                    f"checkpoint is kept in {self._workdir / 'checkpoints'}. Try a lower "
                    "optim.learning_rate, optim.clip_norm=1.0 or a higher model.temperature, in "
                    "another --workdir"
                )
            batch_size = self._config.train.batch_size
            self._progress.update(step, loss=loss)
            if step % self._config.log.every == 0 or step == self._total:
                self._writer.write(step, {"train/loss": loss})
                now = time.perf_counter()
                rate = (step - self._logged) * batch_size / (now - self._seconds)
                self._writer.write_timings(step, {"train/examples_per_second": rate})
                self._seconds, self._logged = now, step

    def _validate(self, step: int, state: TrainState) -> bool:
        began = time.perf_counter()
        found = evaluate_model(self._experiment, variables_of(state), "valid", samples=0)
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
        self._checkpointer.save(step, state, self._record())

    def _record(self) -> dict[str, Any]:
        return {"best": dataclasses.asdict(self._best)}


def restore_best(experiment: Experiment, checkpointer: Checkpointer) -> tuple[int, TrainState]:
    """The best checkpoint by the validation metric: (step, state).

    Raises:
      CheckpointError: the workdir has none.
    """
    restored = checkpointer.restore_best(experiment.abstract_state)
    if restored is None:
        raise CheckpointError("this workdir holds no finished validation yet: train it first")
    return restored[0], restored[1]


def _test_best(
    experiment: Experiment,
    workdir: pathlib.Path,
    writer: MetricsWriter,
    checkpointer: Checkpointer,
) -> None:
    """Measures the best checkpoint and its baselines on `test`, and writes what came out."""
    checkpointer.wait()
    step, state = restore_best(experiment, checkpointer)
    found = {"model": evaluate_model(experiment, variables_of(state), "test")}
    mask_N, world = experiment.corpus_mask_N, experiment.dataset.world
    baselines = {
        "popularity": popularity_ranker(experiment.popularity_N, mask_N),
        "random": random_ranker(mask_N, experiment.config.seed),
    }
    if world is not None:
        baselines["oracle"] = oracle_ranker(world, mask_N)
    for name, ranker in baselines.items():
        found[name] = evaluate_ranker(experiment, ranker, "test", samples=0)
    found["model"].write(workdir / "eval" / "test.parquet")
    record = {
        "step": step,
        "queries": experiment.queries("test").size,
        "rankers": {
            name: {"metrics": one.metrics, "intervals": one.intervals, "slices": one.slices}
            for name, one in found.items()
        },
    }
    write_file(workdir / "eval" / "test.json", json.dumps(record, indent=2) + "\n")
    scalars = {
        f"test/{name}/{metric}": value
        for name in baselines
        for metric, value in found[name].metrics.items()
    }
    scalars |= {f"test/{metric}": value for metric, value in found["model"].metrics.items()}
    writer.write(experiment.total_steps, scalars)
