"""Preparing and training on more interactions than memory should hold, beside reading them whole.

    python experiments/benchmarks/larger_than_memory.py --rows=100_000_000 --out=large.json
    python experiments/benchmarks/larger_than_memory.py --smoke

Writes made-up interactions (user, item, time) as Parquet files, a few million rows at a time, makes
a data set of them by `python -m recjax.prepare`, and trains a two-tower model on it with in-batch
softmax: once with the arrays left on disk (`prepared`), once with them in memory (`memory`: the
Parquet files read whole or, of more than 20 M rows, the prepared arrays copied). In `turns` one
process takes steps from either in turn: what the ratio is of, since neighbours slow both alike.
`main` is the command itself, with its validation, test and checkpoints. Each row of the table is a
process of its own; its memory is sampled 20 times a second: `anonymous` is what the process
allocated, `file` the pages of files that it had mapped, which the system takes back when it needs
them, and `peak` their sum at its largest. Linux only.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.benchmarks import harness
from experiments.benchmarks.launch import ROOT

CONFIG = ROOT / "configs" / "two_tower.py"
PACKAGES = ("jax", "polars", "numpy")
STAGES = ("generate", "prepared", "memory", "turns")
MEGABYTE = 1e6
_SHARD = 4_000_000
_TURNS = 13
_READ_WHOLE = 20_000_000  # rows that the `memory` arm reads from the Parquet files


def main() -> None:
    """Generates, prepares and trains, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, default=0, help="default: a fiftieth of the rows")
    parser.add_argument("--items", type=int, default=0, help="default: a hundredth of the rows")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=1024)
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2, help="of the arms, turn by turn")
    parser.add_argument("--main", type=int, default=1, help="0: without the command itself")
    parser.add_argument("--folder", type=Path, help="for the data; default: a temporary one")
    parser.add_argument("--keep", action="store_true", help="leave the data there")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--smoke", action="store_true", help="100,000 rows, in less than a minute")
    parser.add_argument("--one", choices=STAGES, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.smoke:
        flags.rows, flags.steps, flags.rounds, flags.main = 100_000, 20, 1, 0
    flags.users = flags.users or max(flags.rows // 50, 10)
    flags.items = flags.items or max(flags.rows // 100, 10)
    if flags.one:
        stages = {"generate": _generate, "turns": _take_turns}
        print(json.dumps(stages.get(flags.one, _train)(flags)))
        return
    folder = flags.folder or Path(tempfile.mkdtemp(prefix="recjax-large-"))
    flags.folder = folder
    try:
        report = _measure(flags)
    finally:
        if not flags.keep:
            for name in ("source", "prepared", ".prepared.preparing", "run"):
                shutil.rmtree(folder / name, ignore_errors=True)
            if not any(folder.iterdir()):
                folder.rmdir()
    _print(report)
    if flags.out:
        flags.out.write_text(json.dumps(report, indent=2) + "\n")


def _measure(flags: argparse.Namespace) -> dict[str, Any]:
    out = flags.folder / "prepared"
    source, rows = flags.folder / "source", []
    if not (source / "interactions.parquet").exists():
        rows.append(_in_process("generate", _self("generate", flags)))
    if not out.exists():
        words = ["-m", "recjax.prepare", f"--source={source}", f"--out={out}"]
        rows.append(_in_process("prepare", words, count=flags.rows))
    for _ in range(flags.rounds):
        for arm in ("prepared", "memory"):
            rows.append(_in_process(arm, _self(arm, flags)))
    if flags.main:
        rows.append(_in_process("main", _main_words(flags), count=flags.steps * flags.batch_size))
    turns = _in_process("turns", _self("turns", flags))
    rows.append(turns)
    sized = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    keys = ("rows", "users", "items", "steps", "batch_size", "history", "dim")
    return {
        **{key: getattr(flags, key) for key in keys},
        "prepared_bytes": sized,
        "prepared_over_memory": turns["prepared_over_memory"],
        "load": os.getloadavg(),
        "machine": {**harness.machine(), **harness.versions(PACKAGES)},
        "runs": rows,
    }


def _generate(flags: argparse.Namespace) -> dict[str, Any]:
    """Users alike, items by a power law, times of a year; ids are no positions."""
    import numpy as np
    import polars as pl

    folder = flags.folder / "source" / "interactions.parquet"
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, flags.rows, _SHARD)):
        draw, size = np.random.default_rng(number), min(_SHARD, flags.rows - first)
        rank = flags.items ** draw.random(size) - 1.0
        frame = pl.DataFrame(
            {
                "user": draw.integers(0, flags.users, size) * 7 + 1_000_003,
                "item": rank.astype(np.int64) * 7919 % flags.items + 5,
                "time": 1_700_000_000 + draw.integers(0, 31_536_000, size),
            }
        )
        frame.write_parquet(folder / f"part-{number:05}.parquet", row_group_size=1 << 19)
    return {"count": flags.rows}


def _train(flags: argparse.Namespace) -> dict[str, Any]:
    """Examples a second of the steps and of the batches alone; losses, to compare."""
    import jax
    import numpy as np

    from recjax.config import load_config
    from recjax.data.loader import make_batches
    from recjax.data.registry import load_dataset
    from recjax.experiment import make_experiment

    began = time.perf_counter()
    source, out = flags.folder / "source", flags.folder / "prepared"
    if flags.one == "memory" and flags.rows <= _READ_WHOLE:
        dataset = load_dataset("table", source)
    else:
        dataset = load_dataset("prepared", out)
        if flags.one == "memory":
            dataset = _in_memory(dataset)
    experiment = make_experiment(load_config(f"{CONFIG}:prepared", **_settings(flags)), dataset)
    state = experiment.init_state()
    loaded = time.perf_counter() - began

    def batches(stop: int) -> Any:
        return make_batches(
            experiment.examples,
            batch_size=flags.batch_size,
            seed=0,
            start=0,
            stop=stop,
            prefetch=experiment.config.train.prefetch,
        )

    ends, losses, used = [], [], time.process_time()
    for batch in batches(flags.steps):
        batch = experiment.parallel.put_batch(batch)
        state, metrics = experiment.train_step(state, batch, experiment.arrays)
        losses.append(float(metrics["loss"]))  # of this step: one is in flight
        ends.append(time.perf_counter())
    jax.block_until_ready(state)
    used = time.process_time() - used
    window = max(len(ends) // 20, 1)
    spans = np.diff(np.array(ends)[::window])
    alone = time.perf_counter()
    for _ in batches(flags.steps):
        pass
    alone = time.perf_counter() - alone
    return {
        "count": flags.steps * flags.batch_size,
        "load_seconds": loaded,
        "examples/s": window * flags.batch_size / float(np.median(spans)),
        "cpu_us/example": 1e6 * used / (flags.steps * flags.batch_size),
        "batches_alone/s": flags.steps * flags.batch_size / alone,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "hash": dataset.hash,
    }


def _take_turns(flags: argparse.Namespace) -> dict[str, Any]:
    """The median over turns of how many examples a second either way has, one over the other."""
    import numpy as np

    from recjax.config import load_config
    from recjax.data.loader import make_batches
    from recjax.data.registry import load_dataset
    from recjax.experiment import make_experiment

    dataset = load_dataset("prepared", flags.folder / "prepared")
    config = load_config(f"{CONFIG}:prepared", **_settings(flags))
    experiments = [make_experiment(config, data) for data in (dataset, _in_memory(dataset))]
    one = experiments[0]
    state, window = one.init_state(), max(flags.steps // 25, 1)
    sources = [
        make_batches(
            experiment.examples,
            batch_size=flags.batch_size,
            seed=0,
            start=0,
            stop=window * _TURNS,
            prefetch=config.train.prefetch,
        )
        for experiment in experiments
    ]
    seconds = np.zeros((_TURNS, 2))
    for turn in range(_TURNS):
        for place, source in enumerate(sources):
            began = time.perf_counter()
            for _ in range(window):
                batch = one.parallel.put_batch(next(source))
                state, metrics = one.train_step(state, batch, one.arrays)
                float(metrics["loss"])
            seconds[turn, place] = time.perf_counter() - began
    seconds = seconds[1:]  # the first turn compiles
    return {
        "count": 2 * window * _TURNS * flags.batch_size,
        "examples/s": window * flags.batch_size / float(np.median(seconds)),
        "prepared_over_memory": float(np.median(seconds[:, 1] / seconds[:, 0])),
    }


def _in_memory(dataset: Any) -> Any:
    import dataclasses

    import numpy as np

    inter = dataset.interactions
    copies = {key: np.array(getattr(inter, key)) for key in ("user", "item", "offsets", "time")}
    copied = dataclasses.replace(dataset, interactions=dataclasses.replace(inter, **copies))
    vars(copied)["hash"] = dataset.hash
    return copied


def _settings(flags: argparse.Namespace) -> dict[str, Any]:
    return {
        "examples.history_length": flags.history,
        "model.dim": flags.dim,
        "model.feature_dim": flags.dim,
        "model.query.features": ("history",),
        "model.query.hidden": (2 * flags.dim,),
        "model.item.features": ("item_id",),
        "model.item.hidden": (2 * flags.dim,),
        "tables.mode": "rows",
        "loss.candidates": "in_batch",
        "optim.name": "adagrad",
        "train.batch_size": flags.batch_size,
        "train.steps": flags.steps,
        "parallel.data": 1,
    }


def _main_words(flags: argparse.Namespace) -> list[str]:
    from recjax.flags import override_words

    more = {
        "data.dir": str(flags.folder / "prepared"),
        "eval.max_queries": 1000,
        "eval.bootstrap": 10,
        "log.tensorboard": False,
    }
    return [
        *("-m", "recjax.main", "--compilation_cache=", f"--config={CONFIG}:prepared"),
        f"--workdir={flags.folder / 'run'}",
        *override_words(_settings(flags) | more),
    ]


def _self(stage: str, flags: argparse.Namespace) -> list[str]:
    keys = ("rows", "users", "items", "steps", "batch_size", "history", "dim", "folder")
    return [__file__, f"--one={stage}", *(f"--{key}={getattr(flags, key)}" for key in keys)]


def _in_process(arm: str, words: list[str], count: int = 0) -> dict[str, Any]:
    """Runs Python with these words, and watches its memory."""
    began = time.perf_counter()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
    )
    row: dict[str, Any] = {"arm": arm, "anonymous": 0, "file": 0, "peak": 0}
    watch = threading.Thread(target=_watch, args=(process, row), daemon=True)
    watch.start()
    printed, _ = process.communicate()
    watch.join()
    row["seconds"] = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{arm}: {' '.join(words)} exited with {process.returncode}")
    found = printed.splitlines()[-1] if printed else ""
    row |= json.loads(found) if found.startswith("{") else {"count": count}
    print(f"{arm}: {row['seconds']:.1f} s, peak {row['peak'] / MEGABYTE:,.0f} MB", file=sys.stderr)
    return row


def _watch(process: subprocess.Popen, row: dict[str, Any]) -> None:
    keys = {"RssAnon": "anonymous", "RssFile": "file", "VmHWM": "peak"}
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            return
        for line in lines:
            key, _, value = line.partition(":")
            if key in keys:
                row[keys[key]] = max(row[keys[key]], int(value.split()[0]) * 1024)
        time.sleep(0.05)


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = (
        f"{report['rows']:,} interactions, {report['users']:,} users, {report['items']:,} items, "
        f"{report['prepared_bytes'] / MEGABYTE:,.0f} MB prepared; {report['steps']:,} steps of "
        f"{report['batch_size']:,}, history {report['history']}, d {report['dim']}; MB"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("run")
    names = ("seconds", "rows/s", "load s", "examples/s", "CPU us/ex.", "batches alone/s")
    for column in ("anonymous", "file", "peak", *names, "last loss"):
        table.add_column(column, justify="right")
    for row in report["runs"]:
        cells = [f"{row[key] / MEGABYTE:,.0f}" for key in ("anonymous", "file", "peak")]
        is_made = row["arm"] in ("generate", "prepare")
        rate = row["count"] / row["seconds"] if is_made else None
        numbers = (row["seconds"], rate, row.get("load_seconds"), row.get("examples/s"))
        for value in (*numbers, row.get("cpu_us/example"), row.get("batches_alone/s")):
            cells.append("" if value is None else f"{value:,.1f}")
        loss = row.get("last_loss")
        table.add_row(row["arm"], *cells, "" if loss is None else f"{loss:.6f}")
    console = Console(width=140)
    console.print(table)
    ratio = report["prepared_over_memory"]
    console.print(f"examples/s of prepared over memory, turn by turn: {ratio:.3f}")
    console.print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))


if __name__ == "__main__":
    main()
