"""One setting under many seeds: data loaded once, programs compiled once, a workdir for each seed.

Either one after another or side by side, `jax.vmap` over the training step. Measured by
`experiments/benchmarks/seeds.py` on 2 CPU cores, 8 seeds of a small model on MovieLens-100K take
half of the CPU time of separate processes one after another, and 0.7 of it side by side: there a
vmapped step is slower than the steps it stands for. On an accelerator, which one small model leaves
mostly idle, it should be the other way round; that is not measured yet.
"""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import rich.console

from recjax.allocator import prefer_huge_pages
from recjax.checkpoint import Checkpointer
from recjax.config import Config
from recjax.cost import COST
from recjax.data.dataset import Dataset
from recjax.errors import ConfigError
from recjax.experiment import Experiment, make_experiment
from recjax.loop import Loop
from recjax.parallel import Parallel
from recjax.processes import check_shared, is_first
from recjax.progress import Progress
from recjax.run import Run, open_run
from recjax.summary import describe
from recjax.train import check_workdir, prepare_workdir, train_experiment
from recjax.writer import MetricsWriter

MODES = ("auto", "vmap", "sequential")


def train_seeds(
    config: Config,
    seeds: Sequence[int],
    workdir: str | os.PathLike[str] = "",
    dataset: Dataset | None = None,
    *,
    mode: str = "auto",
    quiet: bool = False,
) -> list[Run]:
    """Trains a config under each of some seeds, or goes on where that stopped, and tests each.

    `sequential` gives what `train` gives for each seed by itself, bit for bit. `vmap` gives the
    same but for the order of sums in float32 (after ten steps of SGD, parameters differ by less
    than 1e-5): every seed has its own data order, validations, best checkpoint and early stop. Its
    times, in timings.jsonl and cost.json, are those of the program that all seeds share.

    Args:
      config: as `load_config` returns it; its own `seed` does not count.
      seeds: each in place of `config.seed`.
      workdir: seed k is left in `workdir/seed<k>`, which is a run's workdir like any other; a new
        folder in the system's temporary one where empty.
      dataset: in place of the one that `config.data` names.
      mode: `vmap`, on one device; `sequential`; `auto` is `vmap` on one GPU or TPU and `sequential`
        elsewhere.
      quiet: print nothing.

    Returns:
      The runs, in the order of the seeds.

    Raises:
      ConfigError: seeds or a mode that cannot be; what `train` raises besides.
      DataError: data that is missing or wrong.
      CheckpointError: a workdir holds another run, or cannot be written.
      DivergenceError: the loss under one of the seeds became NaN or infinite; its message names the
        workdir.
    """
    runs = train_seeds_until(lambda: False, config, seeds, workdir, dataset, mode=mode, quiet=quiet)
    assert runs is not None
    return runs


def train_seeds_until(
    should_stop: Callable[[], bool],
    config: Config,
    seeds: Sequence[int],
    workdir: str | os.PathLike[str] = "",
    dataset: Dataset | None = None,
    *,
    mode: str = "auto",
    quiet: bool = False,
) -> list[Run] | None:
    """As `train_seeds`, but asks `should_stop` before every step: if true, saves and returns None.

    Under `vmap` it is asked once for all seeds.
    """
    seeds = _checked_seeds(seeds)
    if mode not in MODES:
        raise ConfigError(f"seeds: no mode {mode!r}; it is one of {', '.join(MODES)}")
    for seed in seeds if workdir else ():
        check_workdir(_with_seed(config, seed), _folder(workdir, seed))
    experiment = make_experiment(_with_seed(config, seeds[0]), dataset)
    experiments = {seed: experiment.with_seed(seed) for seed in seeds}
    together = _is_together(mode, experiment.parallel, seeds)
    if together and config.profile.steps:
        raise ConfigError(
            f"config.profile.steps={config.profile.steps} with seeds side by side: a trace is of "
            "one run's steps; set it to 0 or use mode=sequential"
        )
    check_shared(workdir)
    quiet = quiet or not is_first()
    path = pathlib.Path(workdir or tempfile.mkdtemp(prefix="recjax-"))
    folders = {seed: _folder(path, seed) for seed in seeds}

    def show(text: str) -> None:
        if not quiet:
            print(text, flush=True)

    how = "side by side in one program" if together else "one after another"
    show(describe(experiment, path))
    show(f"{'seeds':<11} {', '.join(map(str, seeds))}, {how}")
    if together and not _train_together(experiments, folders, should_stop, quiet):
        return None
    runs = []
    for seed, one in experiments.items():
        if not together:
            show(f"seed {seed}")
        # What was trained together has taken its steps: it is tested here.
        if not train_experiment(
            one, folders[seed], should_stop=should_stop, quiet=quiet or together
        ):
            return None
        runs.append(open_run(one, folders[seed]))
    show(_summary(runs, path))
    return runs


def _checked_seeds(seeds: Sequence[int]) -> list[int]:
    seeds = [int(seed) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds={seeds}: there must be at least one, and none twice")
    return seeds


def _folder(workdir: str | os.PathLike[str], seed: int) -> pathlib.Path:
    return pathlib.Path(workdir) / f"seed{seed}"


def _with_seed(config: Config, seed: int) -> Config:
    config = config.copy_and_resolve_references()
    config.seed = seed
    return config


def _is_together(mode: str, parallel: Parallel, seeds: Sequence[int]) -> bool:
    if mode == "vmap" and not parallel.is_one_device:
        raise ConfigError(
            "seeds: mode=vmap trains all of them on one device, and here are parallel.data="
            f"{parallel.data} x parallel.model={parallel.model}; set both to 1 or use "
            "mode=sequential"
        )
    on_accelerator = parallel.is_one_device and not parallel.is_cpu
    return mode == "vmap" or (mode == "auto" and on_accelerator and len(seeds) > 1)


@dataclasses.dataclass
class _Lane:
    """One of the runs that are trained together; once it is over, it rides along as it is."""

    loop: Loop
    batches: Iterator[Mapping[str, np.ndarray]]
    batch: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def next_batch(self) -> Mapping[str, np.ndarray]:
        if not self.loop.is_over:
            self.batch = next(self.batches)
        return self.batch


class _Voice(Progress):
    """What one of the runs that are trained together says, beside the progress that they share."""

    def __init__(self, seed: int, shared: Progress):
        super().__init__(0, console=rich.console.Console(quiet=True))
        self._seed = seed
        self._together = shared

    def update(self, step: int, loss: float | None = None) -> None:
        """The steps of all are shown as one."""

    def message(self, text: str) -> None:
        """Prints a line that names the seed."""
        self._together.message(f"seed {self._seed}: {text}")


def _train_together(
    experiments: Mapping[int, Experiment],
    folders: Mapping[int, pathlib.Path],
    should_stop: Callable[[], bool],
    quiet: bool,
) -> bool:
    """Takes the steps of all runs as one program; whether all are over.

    Each is at a step of its own, which differs from another's where a kill came between two saves.
    A run that is over rides along until as many are over as are not: each number of runs is another
    program to compile.
    """
    first = next(iter(experiments.values()))
    parallel = first.parallel
    with contextlib.ExitStack() as stack:
        loops = {seed: _open_loop(one, folders[seed], stack) for seed, one in experiments.items()}
        states = {seed: loop.restore() for seed, loop in loops.items()}
        progress = Progress(
            first.total_steps,
            min(loop.step for loop in loops.values()),
            unit=first.config.train.batch_size * len(loops),
            console=rich.console.Console(quiet=True) if quiet else None,
        )
        stack.enter_context(progress)
        for seed, loop in loops.items():
            loop.begin(_Voice(seed, progress))
        seeds = [seed for seed, loop in loops.items() if not loop.is_over]
        if not seeds:
            return True
        lanes = []
        for seed in seeds:
            batches = stack.enter_context(contextlib.closing(loops[seed].batches()))
            lanes.append(_Lane(loops[seed], batches))
        state = parallel.stack([states[seed] for seed in seeds])
        prefer_huge_pages(state)
        del states
        train_step = parallel.compile_many(first.step)
        while left := _places_left(lanes):
            if 2 * len(left) <= len(lanes):
                state = parallel.pick(state, np.asarray(left))
                lanes = [lanes[place] for place in left]
                continue
            if should_stop():
                for place in left:
                    lanes[place].loop.stop(parallel.pick(state, place))
                return False
            batch = parallel.put_batches([lane.next_batch() for lane in lanes])
            state, metrics = train_step(state, batch, first.arrays)
            for place in left:
                lanes[place].loop.took(metrics, place)
            progress.update(min(lanes[place].loop.step for place in left))
            for place in left:
                if lanes[place].loop.is_due:
                    lanes[place].loop.do_due(parallel.pick(state, place))
    return True


def _places_left(lanes: Sequence[_Lane]) -> list[int]:
    return [place for place, lane in enumerate(lanes) if not lane.loop.is_over]


def _open_loop(experiment: Experiment, workdir: pathlib.Path, stack: contextlib.ExitStack) -> Loop:
    prepare_workdir(experiment, workdir)
    (workdir / COST).unlink(missing_ok=True)
    writer = MetricsWriter(workdir, tensorboard=experiment.config.log.tensorboard)
    checkpointer = Checkpointer(workdir / "checkpoints", keep=experiment.config.checkpoint.keep)
    for each in (writer, checkpointer):
        stack.enter_context(contextlib.closing(each))
    return Loop(experiment, workdir, writer, checkpointer)


def _summary(runs: Sequence[Run], workdir: pathlib.Path) -> str:
    """A line for each seed, and the mean."""
    metric = runs[0].config.eval.metric
    values = [run.metrics[f"test/{metric}"] for run in runs]
    lines = [
        f"seed {run.config.seed}: test/{metric} {value:.4f}, the model of step {run.step:,}"
        for run, value in zip(runs, values, strict=True)
    ]
    if len(runs) > 1:
        spread = f"mean {np.mean(values):.4f}, standard deviation {np.std(values, ddof=1):.4f}"
        lines.append(f"test/{metric} of {len(runs)} seeds: {spread}")
    return "\n".join([*lines, f"Everything lies in {workdir}: a workdir for each seed"])
