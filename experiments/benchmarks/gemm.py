"""The machine's floor, through JAX: float32 products, and memory read and written in rows.

    python experiments/benchmarks/gemm.py
    python experiments/benchmarks/gemm.py --smoke

| what | operations or bytes |
|---|---|
| product [M, K] x [K, N] | 2 M K N: a square one, and the shapes of W1, W2, W3 and W5 |
| copy | every number of a large array read, its negative written into another |
| gather | random rows of 256 bytes of a table of 1e5 to 1e7: read, and written side by side |
| scatter-add | such rows of the table read and written in place, what is added to them read |

The best call is the floor, since other work can only add to its time; the median stands beside it.
A result is written over the last one: JAX maps fresh pages for each new one, and their faults would
cost more than the arithmetic. It ends with one line, `RESULT ` and JSON, which `run.py` reads:
`gemm`, operations a second of the square product.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.benchmarks import flops, harness, launch, workload

ROW = 64  # float32 numbers of a row: 256 bytes
_MIN_CALLS = 3


def main() -> None:
    """Measures everything, and prints a table and the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="of each row of the table")
    parser.add_argument("--smoke", action="store_true", help="small: does it run?")
    flags = parser.parse_args()
    seconds = 0.02 if flags.smoke else flags.seconds
    rows = [*measure_products(seconds, flags.smoke), *measure_memory(seconds, flags.smoke)]
    launch.make_console().print(make_table(rows))
    square = next(row for row in rows if row["what"] == "product")
    harness.report(("jax", "jaxlib", "numpy"), gemm=square["best"] * 1e9, rows=rows)


def shapes(smoke: bool) -> dict[str, tuple[int, int, int]]:
    """(M, K, N) by what has such a product; the square one first."""
    sizes, dim = workload.sizes_of(smoke), workload.DIM
    small = 16 if smoke else 1
    side = 2048 // small
    return {
        "product": (side, side, side),
        "W1 scores": (4096 // small, dim, 4096 // small),
        "W1 tower": (4096 // small, flops.QUERY_WIDTH, workload.HIDDEN[0]),
        "W2 scores": (512 // small, dim, sizes.items),
        "W3 scores": (1024 // small, dim, 1024 // small),
        "W3 scores, 8,192": (1024 // small, dim, 8192 // small),
        "W5 scores": (256 // small, dim, sizes.corpus),
    }


def measure_products(seconds: float, smoke: bool) -> Iterator[dict[str, Any]]:
    """A row for each of `shapes`, in GFLOP/s."""
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    for what, (m, k, n) in shapes(smoke).items():
        left_MxK = jnp.asarray(rng.standard_normal((m, k), np.float32))
        right_NxK = jnp.asarray(rng.standard_normal((n, k), np.float32))
        times = _times(
            lambda out_MxN, a_MxK, b_NxK: a_MxK @ b_NxK.T,
            (jnp.zeros((m, n), jnp.float32), left_MxK, right_NxK),
            seconds,
        )
        yield _row(what, f"[{m}, {k}] x [{k}, {n}]", times, 2.0 * m * k * n, "GFLOP/s")


def measure_memory(seconds: float, smoke: bool) -> Iterator[dict[str, Any]]:
    """A row for copying, and one for gathers and scatter-adds of each size, in GB/s."""
    import jax.numpy as jnp

    row_bytes = 4.0 * ROW
    sizes = (1_000, 4_000) if smoke else (100_000, 1_000_000, 10_000_000)
    count = 1024 if smoke else 131_072

    def ones(rows: int) -> Any:
        return jnp.ones((rows, ROW), jnp.float32)

    times = _times(lambda out_RxD, x_RxD: -x_RxD, (ones(sizes[1]), ones(sizes[1])), seconds)
    yield _row("copy", f"{sizes[1]:,} rows", times, 2 * sizes[1] * row_bytes, "GB/s")
    for size in sizes:
        shape = f"{count:,} of {size:,} rows"
        ids_M = jnp.asarray(np.random.default_rng(0).integers(0, size, count, np.int32))
        times = _times(
            lambda out_MxD, table_RxD, ids_M: table_RxD.at[ids_M].get(mode="promise_in_bounds"),
            (ones(count), ones(size), ids_M),
            seconds,
        )
        yield _row("gather", shape, times, 2 * count * row_bytes, "GB/s")
        times = _times(
            lambda table_RxD, ids_M, x_MxD: table_RxD.at[ids_M].add(x_MxD),
            (ones(size), ids_M, ones(count)),
            seconds,
        )
        yield _row("scatter-add", shape, times, 3 * count * row_bytes, "GB/s")


def make_table(rows: list[dict[str, Any]]) -> Table:
    """A line for each row."""
    table = Table(title="the machine's floor", title_justify="left")
    table.add_column("what", no_wrap=True)
    for column in ("shape", "best", "median", "unit", "ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        rates = [f"{row[key]:,.1f}" for key in ("best", "median")]
        table.add_row(row["what"], row["shape"], *rates, row["unit"], f"{row['ms']:.3f}")
    return table


def _row(what: str, shape: str, times: list[float], amount: float, unit: str) -> dict[str, Any]:
    """Rates in billions of the amount a second, and the best time."""
    best, median = min(times), statistics.median(times)
    rates = {"best": amount / best / 1e9, "median": amount / median / 1e9}
    return {"what": what, "shape": shape, **rates, "unit": unit, "ms": 1e3 * best}


def _times(function: Callable[..., Any], arrays: tuple[Any, ...], seconds: float) -> list[float]:
    """Seconds of each call; the first, which compiles, is left out.

    The result is written over the first array, which the next call gets in its place.
    """
    import jax

    call = jax.jit(function, donate_argnums=0, keep_unused=True)
    out, *others = arrays
    out = jax.block_until_ready(call(out, *others))
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times) < _MIN_CALLS:
        start = time.perf_counter()
        out = jax.block_until_ready(call(out, *others))
        times.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
