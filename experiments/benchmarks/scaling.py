"""What a training step, or a ranking, costs as one thing grows; all else stays.

    python experiments/benchmarks/scaling.py --out=scaling.json
    python experiments/benchmarks/scaling.py --curves=rows --smoke

| curve | what grows | settings |
|---|---|---|
| items | items of the corpus | exact softmax (B 512), 1,024 log-uniform negatives (B 1024), and ranking the 100 best for 256 queries |
| rows | rows of a table of d 64 that a batch of 4,096 reads | matrix factorisation with 64 negatives: sgd, adagrad, row_adagrad, adam, row by row; adagrad dense; and two towers over ids, in-batch softmax (adagrad, row by row) |
| batch | examples of a step of two towers, in-batch softmax | |
| history | interactions that the query tower reads | |
| devices | fake CPU devices that share the cores: what splitting costs | data, model |

Every point is a process of its own, on uniformly random interactions; peak memory is that of the
whole process. The points of a setting go in turn, `--rounds` times, and each is the median of all its
windows. `--smoke` tries one point of each setting, all in one process. Linux only.
"""  # noqa: E501

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.benchmarks import harness, launch

CURVES = {
    "items": (10_000, 100_000, 1_000_000, 10_000_000),
    "rows": (100_000, 1_000_000, 10_000_000),
    "batch": (256, 1024, 4096, 16384),
    "history": (1, 10, 50, 200),
    "devices": (1, 2, 4, 8),
}
SMOKE = {
    "items": (1_000,),
    "rows": (1_000,),
    "batch": (64,),
    "history": (5,),
    "devices": (2,),
}
SETTINGS = {
    "items": ("softmax", "log_uniform", "rank"),
    "rows": ("sgd", "adagrad", "row_adagrad", "adam", "adagrad dense", "two towers"),
    "batch": ("in_batch",),
    "history": ("past",),
    "devices": ("data", "model"),
}
# An exact softmax over more items, or a dense optimizer of more rows, is beyond patience.
MOST = {"softmax": 1_000_000, "adagrad dense": 1_000_000}
_ADAGRAD = {"optim.name": "adagrad", "optim.learning_rate": 0.05}


def main() -> None:
    """Measures every point, and prints a table for each curve."""
    flags = parse()
    if flags.one:
        for curve, setting, value in flags.one:
            measure(curve, setting, int(value), flags)
        return
    rows = measure_all(flags)
    for curve in flags.curves:
        launch.make_console().print(
            make_table(curve, [row for row in rows if row["curve"] == curve])
        )
    machine = harness.machine()
    if flags.out:
        command = " ".join(["python", "experiments/benchmarks/scaling.py", *sys.argv[1:]])
        report = {"command": command, "machine": machine, "rows": rows}
        flags.out.write_text(json.dumps(report, indent=2) + "\n")
    if any("error" in row for row in rows):
        sys.exit(1)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = harness.make_parser(__doc__)
    parser.add_argument("--curves", default=",".join(CURVES), help="names, with commas")
    parser.add_argument("--rounds", type=int, default=1, help="times that each point is measured")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--one", nargs=3, action="append", help=argparse.SUPPRESS)
    flags = parser.parse_args(words)
    flags.curves = flags.curves.split(",")
    for curve in flags.curves:
        if curve not in CURVES:
            parser.error(f"--curves: no {curve!r}: there are {', '.join(CURVES)}")
    if flags.smoke:
        flags.seconds, flags.windows, flags.warmup = 0.1, 1, 2
    return flags


def measure_all(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Every point of the curves asked for, each in a process of its own."""
    groups = [
        [(curve, setting, value) for value in values if value <= MOST.get(setting, value)]
        for curve, values in (SMOKE if flags.smoke else CURVES).items()
        if curve in flags.curves
        for setting in SETTINGS[curve]
    ]
    if flags.smoke:
        return _in_process([point for group in groups for point in group], flags)
    rows = []
    for group in groups:
        rounds = [[_in_process([point], flags)[0] for point in group] for _ in range(flags.rounds)]
        rows += [_together(list(runs)) for runs in zip(*rounds, strict=True)]
    return rows


def measure(curve: str, setting: str, value: int, flags: argparse.Namespace) -> None:
    """Measures one point in this process, and prints its result."""
    from experiments.benchmarks import datasets

    began = time.perf_counter()
    if setting == "rank":
        _measure_ranking(value, flags)
        return
    config, sizes, overrides = _point(curve, setting, value, small=flags.smoke)
    overrides = {"parallel.data": 1, "parallel.model": 1, **overrides}
    experiment = datasets.build(config, make_dataset(**sizes), **overrides)
    datasets.time_training(experiment, flags, began)


def make_dataset(users: int, items: int, interactions: int) -> Any:
    """Uniformly random interactions, without features; one to validate and one to test on."""
    from recjax.data.dataset import Dataset, Interactions, Table
    from recjax.data.schema import Schema
    from recjax.data.split import TEST, TRAIN, VALID

    rng = np.random.default_rng(0)
    part = np.full(interactions, TRAIN, np.int8)
    part[:2] = VALID, TEST
    return Dataset(
        name="random",
        schema=Schema(time="time", part="part"),
        users=Table(np.arange(users)),
        items=Table(np.arange(items)),
        interactions=Interactions.build(
            rng.integers(0, users, interactions, np.int32),
            rng.integers(0, items, interactions, np.int32),
            users,
            time=np.arange(interactions, dtype=np.float64),
            part=part,
        ),
    )


def make_table(curve: str, rows: list[dict[str, Any]]) -> Table:
    """A line for each point; `of first` is against the first point of the setting."""
    table = Table(title=curve, title_justify="left")
    columns = (curve, "ms/step", "of first", "units/s", "low - high", "peak MB", "others")
    table.add_column("setting", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    first: dict[str, float] = {}
    for row in rows:
        point = row["setting"], f"{row['value']:,}"
        if "error" in row:
            table.add_row(*point, "failed", row["error"][:60])
            continue
        start = first.setdefault(row["setting"], row["ms"])
        table.add_row(
            *point,
            f"{row['ms']:.2f}",
            f"{row['ms'] / start:.2f}",
            f"{statistics.median(row['rates']):,.0f}",
            f"{min(row['rates']):,.0f} - {max(row['rates']):,.0f}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
            f"{row['others']:.0%}",
        )
    return table


def _point(
    curve: str, setting: str, value: int, *, small: bool
) -> tuple[str, dict[str, int], dict[str, Any]]:
    """Config, sizes of the data and overrides of a point."""
    count = 20_000 if small else 1_000_000
    sizes = {"users": count // 50, "items": count // 20, "interactions": count}
    factorisation = {"examples.history_length": 0, "examples.min_history": 0, "model.dim": 64}
    factorisation |= {"model.item.bias": False}
    if curve == "items":
        sizes["items"] = value
        full = setting == "softmax"
        return (
            "mf.py",
            sizes,
            {
                **factorisation,
                "loss.candidates": "full" if full else setting,
                "loss.num_sampled": 64 if small else 1024,
                "tables.mode": "rows",
                "train.batch_size": 64 if small else 512 if full else 1024,
                **_ADAGRAD,
            },
        )
    if curve == "rows":
        sizes["users"] = value
    if curve == "rows" and setting != "two towers":
        sizes["items"] = 1000
        name, _, mode = setting.partition(" ")
        return (
            "mf.py",
            sizes,
            {
                **factorisation,
                "loss.candidates": "uniform",
                "loss.num_sampled": 64,
                "tables.mode": mode or "rows",
                "train.batch_size": 64 if small else 4096,
                "optim.name": name,
                "optim.learning_rate": 0.01,
            },
        )
    towers = {
        "examples.history_length": 50,
        "model.dim": 64,
        "model.feature_dim": 32,
        "model.query.features": ("user_id", "history"),
        "model.query.hidden": (256, 128),
        "model.item.features": ("item_id",),
        "model.item.hidden": (256, 128),
        "tables.mode": "rows",
        "loss.candidates": "in_batch",
        "train.batch_size": 64 if small else 1024,
        **_ADAGRAD,
    }
    if curve == "rows":
        towers |= {"train.batch_size": 64 if small else 4096, "model.feature_dim": 64}
        towers |= {"examples.history_length": 0, "examples.min_history": 0}
        towers["model.query.features"] = ("user_id",)
    elif curve == "batch":
        towers["train.batch_size"] = value
    elif curve == "history":
        # Users with enough of a past that histories are full.
        sizes["users"] = count // (20 if small else 1000)
        towers |= {"examples.history_length": value, "examples.min_history": value}
    else:
        towers[f"parallel.{setting}"] = value
    return "two_tower.py", sizes, towers


def _measure_ranking(num_items: int, flags: argparse.Namespace) -> None:
    import jax

    from experiments.benchmarks.datasets import PACKAGES
    from recjax.ops.topk import top_k

    block = 64 if flags.smoke else 256
    rng = np.random.default_rng(0)
    item_NxD = jax.device_put(rng.standard_normal((num_items, 64), np.float32))
    query_BxD = jax.device_put(rng.standard_normal((block, 64), np.float32))
    seen_BxS = jax.device_put(rng.integers(0, num_items, (block, 64), np.int32))

    def rank() -> float:
        scores, _ = top_k(query_BxD, item_NxD, 100, seen_BxS=seen_BxS)
        return float(scores[0, 0])

    harness.report(PACKAGES, **harness.time_steps(rank, flags, block))


def _in_process(points: list[tuple[str, str, int]], flags: argparse.Namespace) -> list[dict]:
    """A row for each point, all measured in one process."""
    command = [sys.executable, "-m", "experiments.benchmarks.scaling"]
    for curve, setting, value in points:
        command += ["--one", curve, setting, str(value)]
    command += [f"--windows={flags.windows}", f"--seconds={flags.seconds}"]
    command += [f"--warmup={flags.warmup}", *["--smoke"] * flags.smoke]
    devices = max([value for curve, _, value in points if curve == "devices"], default=1)
    fake = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    found = launch.run_many(command, fake if devices > 1 else {})
    if "error" in found[0]:
        found *= len(points)
    rows = []
    for (curve, setting, value), result in zip(points, found, strict=True):
        row: dict[str, Any] = {**result, "curve": curve, "setting": setting, "value": value}
        if "error" not in row:
            row["ms"] = 1e3 * row["batch_size"] / statistics.median(row["rates"])
        rows.append(row)  # a result has a curve of its own, of its losses
    return rows


def _together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the rounds of a point: all its windows, and the most memory."""
    for row in runs:
        if "error" in row:
            return row
    rates = [rate for row in runs for rate in row["rates"]]
    most = {name: max(row[name] for row in runs) for name in ("peak_bytes", "others")}
    ms = 1e3 * runs[0]["batch_size"] / statistics.median(rates)
    return {**runs[0], **most, "rates": rates, "ms": ms}


if __name__ == "__main__":
    main()
