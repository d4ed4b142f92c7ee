"""Trains an experiment in a workdir, from wherever the last run of it stopped, and tests it."""

import contextlib
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from recjax.checkpoint import Checkpointer
from recjax.config import (
    Config,
    check_resume,
    config_from_json,
    config_to_json,
    flatten_config,
)
from recjax.cost import COST, write_cost
from recjax.errors import CheckpointError
from recjax.experiment import Experiment
from recjax.files import write_file
from recjax.hparams import best_results, write_session
from recjax.loop import Loop, restore_best, variables_of
from recjax.measure import protocol_of, write_test_results
from recjax.processes import check_same, is_first, is_loss
from recjax.projector import write_projector
from recjax.writer import MetricsWriter, Sink

PyTree = Any


def train_experiment(
    experiment: Experiment,
    workdir: pathlib.Path,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    quiet: bool = False,
    sinks: Sequence[Sink] = (),
) -> bool:
    """Trains until the last step, resuming what `workdir` holds, and tests the best checkpoint.

    Where several processes train, each calls this; the first one alone writes into the workdir,
    but for the checkpoints, which all write.

    Args:
      experiment: what is trained.
      workdir: where everything is left; the same for all processes.
      should_stop: asked before every step; if true, the state is saved and training ends. One of
        several processes that is told to stop ends all, a step later.
      quiet: show no progress.
      sinks: that get every metric and timing too; closed when training ends, however it ends.

    Returns:
      Whether the run is finished; False if `should_stop` ended it before its last step.

    Raises:
      CheckpointError: the workdir holds another run, or cannot be written.
      DivergenceError: the loss is no longer finite.
    """
    config = experiment.config
    check_same(_fingerprint(experiment), "config or data")
    checkpoints = workdir / "checkpoints"
    with contextlib.ExitStack() as stack:
        if not is_first():  # takes the same path, so that it is missed in no computation of all
            workdir = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        writer = MetricsWriter(workdir, config.log.tensorboard, sinks)
        stack.enter_context(contextlib.closing(writer))
        prepare_workdir(experiment, workdir)
        (workdir / COST).unlink(missing_ok=True)  # finished no longer, until it ends again
        checkpointer = Checkpointer(checkpoints, keep=config.checkpoint.keep)
        stack.enter_context(_closing(checkpointer))
        last = Loop(experiment, workdir, writer, checkpointer).run(should_stop, quiet)
        if last is None:
            return False
        checkpointer.wait()
        step, state = restore_best(experiment, checkpointer)
        variables = variables_of(state)
        scalars = write_test_results(experiment, variables, step, workdir)
        writer.write(last, scalars)
        if config.log.tensorboard:
            _write_dashboards(experiment, variables, scalars, step, workdir)
        write_cost(experiment, variables, last, workdir)
        return True


def _write_dashboards(
    experiment: Experiment,
    variables: PyTree,
    scalars: Mapping[str, float],
    step: int,
    workdir: pathlib.Path,
) -> None:
    """What TensorBoard shows of a finished run beside its scalars."""
    config, folder = experiment.config, workdir / "tensorboard"
    best = best_results(workdir / "metrics.jsonl", scalars, config.eval.metric, step)
    write_session(folder, flatten_config(config), best, step=step)
    write_projector(experiment, variables, folder)


@contextlib.contextmanager
def _closing(checkpointer: Checkpointer) -> Iterator[None]:
    """Closes it, but not where it would wait for a process that is gone."""
    try:
        yield
    except Exception as error:
        if not is_loss(error):
            checkpointer.close()
        raise
    checkpointer.close()


def _fingerprint(experiment: Experiment) -> str:
    return config_to_json(experiment.config) + json.dumps(protocol_of(experiment))


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
