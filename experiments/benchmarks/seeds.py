"""What many seeds of one setting cost: separate processes, one process, one vmapped program.

    python experiments/benchmarks/seeds.py --config=configs/softmax.py:movielens-100k \\
        --config.data.dir=DIR --config.model.query.pooling=last,mean \\
        --config.model.query.hidden=128 --config.model.feature_dim=32
    python experiments/benchmarks/seeds.py --config=configs/mf.py --smoke

`separate` runs `python -m recjax.main` once for each seed, one after another; `sequential` and
`vmap` run it once, with `--seeds` and that `--seeds_mode`. Wall and CPU seconds are from the start
of the first process to the end of the last: imports, data, compilation (no cache of earlier runs is
read), training, validations and tests. Beside them is the training step alone, compiled and with
its batch on the device, as steps of one seed a second: a vmapped step counts once for each of its
seeds. The best of its times are shown, since other work on the machine can only add to them; it
adds to the wall seconds too.
"""

import importlib.metadata
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags, logging

from recjax.config import Config
from recjax.flags import define_config_flag, parse_flags
from recjax.tables import markdown_table

WAYS = ("separate", "sequential", "vmap")

_CONFIG = define_config_flag()
_SEEDS = flags.DEFINE_integer("seeds", 8, "How many seeds.")
_STEPS = flags.DEFINE_integer("steps", 300, "Steps of each, in place of the config's.")
_WAYS = flags.DEFINE_multi_enum("ways", WAYS, WAYS, "Those to measure.")
_SMOKE = flags.DEFINE_bool("smoke", False, "Two seeds and a few steps: does it run?")


def main(argv: list[str]) -> None:
    """Measures each way and prints a table."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)
    count, steps = (2, 4) if _SMOKE.value else (_SEEDS.value, _STEPS.value)
    words = [word for word in sys.argv[1:] if word.startswith("--config")]
    words.append(f"--config.train.steps={steps}")
    load = os.getloadavg()[0]
    spent = {way: measure(way, count, words) for way in _WAYS.value}
    rate = steps_per_second(_CONFIG.value, count, repeats=4 if _SMOKE.value else 20)
    rows = []
    for way, (wall, processor) in spent.items():
        row: dict[str, object] = {"way": way, "wall s": f"{wall:.0f}", "CPU s": f"{processor:.0f}"}
        row["steps/s alone"] = f"{rate['vmap' if way == 'vmap' else 'sequential']:.1f}"
        if "separate" in spent:
            row["wall, of separate"] = f"{wall / spent['separate'][0]:.2f}"
            row["CPU, of separate"] = f"{processor / spent['separate'][1]:.2f}"
        rows.append(row)
    print(f"{count} seeds, {steps} steps of {_CONFIG.value.train.batch_size} examples each\n")
    print(markdown_table(rows))
    print(f"{machine()}; load {load:.1f} before the first process, {os.getloadavg()[0]:.1f} after")


def measure(way: str, count: int, words: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of training and testing all seeds."""
    began, before = time.perf_counter(), _processor_seconds()
    with tempfile.TemporaryDirectory() as folder:
        if way == "separate":
            for seed in range(count):
                workdir = pathlib.Path(folder) / str(seed)
                _run(f"--config.seed={seed}", f"--workdir={workdir}", *words)
        else:
            seeds = ",".join(map(str, range(count)))
            _run(f"--seeds={seeds}", f"--seeds_mode={way}", f"--workdir={folder}", *words)
    return time.perf_counter() - began, _processor_seconds() - before


def steps_per_second(config: Config, count: int, repeats: int) -> dict[str, float]:
    """Steps of one seed a second, by the compiled step alone: `sequential` and `vmap`."""
    import jax

    from recjax.data.loader import Batches
    from recjax.experiment import make_experiment

    experiment = make_experiment(config)
    parallel = experiment.parallel
    makers = [Batches(experiment.examples, config.train.batch_size, seed) for seed in range(count)]
    states = [experiment.with_seed(seed).init_state() for seed in range(count)]
    together = parallel.stack(states)
    together_step = parallel.compile_many(experiment.step)

    def best(step: Any, state: Any, batch: Any) -> float:
        seconds = []
        for _ in range(1 + repeats):  # the first compiles
            began = time.perf_counter()
            state, _ = step(state, batch, experiment.arrays)
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    one = best(experiment.train_step, states[0], parallel.put_batch(makers[0](0)))
    batches = parallel.put_batches([maker(0) for maker in makers])
    return {"sequential": 1 / one, "vmap": count / best(together_step, together, batches)}


def machine() -> str:
    """The processor, its cores, the devices and versions, for the record."""
    from recjax.parallel import describe_devices

    cpu = platform.machine()
    if pathlib.Path("/proc/cpuinfo").exists():
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), cpu)
    jax = importlib.metadata.version("jax")
    python = platform.python_version()
    return f"{os.cpu_count()} cores of {cpu}, {describe_devices()}, Python {python}, JAX {jax}"


def _run(*words: str) -> None:
    command = [sys.executable, "-m", "recjax.main", "--compilation_cache=", *words]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
