"""Peak memory and time of a training step with exact softmax over n items, beside the plain loss.

    python experiments/benchmarks/softmax_memory.py --out=softmax_memory.json
    python experiments/benchmarks/softmax_memory.py --smoke

Trains matrix factorisation with a softmax head (`configs/mf.py`) on made-up interactions, at least
one for each item, by the step that `recjax.main` takes; `plain` is the same step with optax's
softmax cross-entropy on the full B x n logits in the loss's place. Each row of the table is a
process of its own. Peak memory is the process's largest resident set over the measured steps, after
a first one that compiles: no checkpoint or evaluation is taken. What exceeds parameters and
optimizer state holds Python, JAX and the data too; the row of the smallest n shows how much that
is. Linux only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.benchmarks import harness
from experiments.benchmarks.launch import ROOT

LOSSES = ("recjax", "plain")
CONFIG = ROOT / "configs" / "mf.py"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
MEGABYTE = 1e6


def main() -> None:
    """Measures every loss at every number of items, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 1_000_000])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="that are measured")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--smoke", action="store_true", help="small, in less than a minute")
    parser.add_argument("--one", nargs=2, metavar=("LOSS", "ITEMS"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        loss, items = flags.one
        print(json.dumps(measure(loss, int(items), flags.batch_size, flags.dim, flags.steps)))
        return
    if flags.smoke:
        flags.items, flags.steps = [1_000, 4_000], 2
    rows = [_in_process(loss, n, flags) for n in flags.items for loss in flags.losses]
    report = {
        "batch_size": flags.batch_size,
        "dim": flags.dim,
        "steps": flags.steps,
        "machine": {**harness.machine(), **harness.versions(PACKAGES)},
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
        "rows": rows,
    }
    _print(report)
    if flags.out:
        flags.out.write_text(json.dumps(report, indent=2) + "\n")


def measure(loss: str, items: int, batch_size: int, dim: int, steps: int) -> dict[str, Any]:
    """Bytes and seconds of this process's training steps.

    Returns:
      parameters_and_optimizer, peak and excess (their difference) in bytes; peak_with_start, that
      of the whole process; steps_alone, whether `peak` leaves the start out (it needs permission);
      seconds, the median step; loss_value, to compare.
    """
    import jax
    import numpy as np

    from recjax import losses
    from recjax.config import load_config
    from recjax.experiment import make_experiment

    function = _plain_loss if loss == "plain" else losses.softmax_loss
    overrides = {
        "examples.min_history": 0,
        "examples.history_length": 1,
        "loss.candidates": "full",
        "model.dim": dim,
        "optim.name": "adam",
        "parallel.data": 1,
        "train.batch_size": batch_size,
        "train.steps": 1_000_000,
    }
    with mock.patch.object(losses, "softmax_loss", function):
        experiment = make_experiment(load_config(str(CONFIG), **overrides), _dataset(items))
        state = experiment.init_state()
        step = experiment.parallel.compile(experiment.step, experiment.state_specs)

        def take(state: Any, number: int) -> tuple[Any, float, float]:
            rows = (number * batch_size + np.arange(batch_size)) % experiment.examples.size
            batch = experiment.examples.batch(rows, seed=0, epoch=0)
            batch = experiment.parallel.put_batch(batch)
            began = time.perf_counter()
            state, metrics = step(state, batch, experiment.arrays)
            jax.block_until_ready(state)
            return state, time.perf_counter() - began, float(metrics["loss"])

        state, _, _ = take(state, 0)
        peak_of_start = _status_bytes("VmHWM")
        can_reset = _reset_peak()
        seconds, value = [], 0.0
        for number in range(1, steps + 1):
            state, elapsed, value = take(state, number)
            seconds.append(elapsed)
    kept = state.params, state.tables, state.opt_state, state.table_state
    expected = sum(leaf.nbytes for leaf in jax.tree.leaves(kept))
    peak = _status_bytes("VmHWM")
    return {
        "loss": loss,
        "items": items,
        "parameters_and_optimizer": expected,
        "peak": peak,
        "excess": peak - expected,
        "peak_with_start": max(peak, peak_of_start),
        "steps_alone": can_reset,
        "seconds": statistics.median(seconds),
        "loss_value": value,
    }


def _plain_loss(query_BxD, item_NxD, label_BxP, label_weight_BxP, weight_B, **settings):
    """What a program without recjax would have: one label an example, dense logits."""
    import jax.numpy as jnp
    import optax

    del label_weight_BxP
    logits_BxN = settings["scale"] * (query_BxD @ item_NxD.T)
    if settings["bias_N"] is not None:
        logits_BxN += settings["bias_N"][None, :]
    logits_BxN = jnp.where(settings["mask_N"][None, :], logits_BxN, -jnp.inf)
    loss_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxN, label_BxP[:, 0])
    return jnp.sum(weight_B * loss_B), loss_B


def _dataset(items: int) -> Any:
    """A thousand users, one training interaction of each item; and one to validate and test on."""
    import numpy as np

    from recjax.data.dataset import Dataset
    from recjax.data.schema import Schema

    users = min(items, 1000)
    item = np.append(np.random.default_rng(0).permutation(items), [0, 0])
    frame = {
        "user": np.arange(items + 2) % users,
        "item": item,
        "time": np.arange(items + 2, dtype=np.float64),
        "part": np.append(np.full(items, "train"), ["valid", "test"]),
    }
    return Dataset.from_frames(frame, schema=Schema(time="time", part="part"), name="made up")


def _in_process(loss: str, items: int, flags: argparse.Namespace) -> dict[str, Any]:
    needed = 12 * flags.batch_size * items  # logits, their exponentials, their gradient
    if loss == "plain" and needed > _available_bytes():
        return {"loss": loss, "items": items, "skipped": f"needs {needed / 1e9:.0f} GB and more"}
    command = [sys.executable, __file__, "--one", loss, str(items)]
    for key in ("batch_size", "dim", "steps"):
        command.append(f"--{key}={getattr(flags, key)}")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"loss": loss, "items": items, "skipped": f"exited with {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def _reset_peak() -> bool:
    """Lowers the process's high-water mark to what it holds now, where that is permitted."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise KeyError("MemAvailable")


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"batch {report['batch_size']}, d {report['dim']}, Adam; MB"
    table = Table(title=title, title_justify="left")
    table.add_column("items", justify="right")
    table.add_column("loss")
    for column in ("parameters + optimizer", "peak", "excess", "peak with start", "ms/step"):
        table.add_column(column, justify="right")
    for row in report["rows"]:
        cells = [f"{row['items']:,}", row["loss"]]
        if "skipped" in row:
            table.add_row(*cells, row["skipped"])
            continue
        for key in ("parameters_and_optimizer", "peak", "excess", "peak_with_start"):
            cells.append(f"{row[key] / MEGABYTE:,.0f}")
        table.add_row(*cells, f"{row['seconds'] * 1e3:,.1f}")
    console = Console()
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))


if __name__ == "__main__":
    main()
