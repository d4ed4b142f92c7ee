"""Runs the benchmarks W1 to W5, recjax alone or beside its peers, and prints one table.

    python experiments/benchmarks/run.py --smoke
    python experiments/benchmarks/run.py --scaling=items,rows
    python experiments/benchmarks/run.py --larger_than_memory=100_000_000
    python experiments/benchmarks/peers/make_envs.py --envs=ENVS
    python experiments/benchmarks/run.py --peers --envs=ENVS --out=results.json
    python experiments/benchmarks/run.py --only=w1,w5 --peers --rounds=1

Every program is a process of its own. The programs of a case run in turn, round after round (A B A
B), so that what else the machine does falls on all of them; the table has the median of all windows
of all rounds with the lowest and the highest. In W4 it has seconds of training until a share of the
pairs is ranked rightly: 90 % of those trained on, 80 % of others; it is looked at after every
sixteenth of an epoch, and after every epoch of implicit, which cannot be stopped within. `others`
is the share of the machine that other processes took while a program ran: above 5 % nothing is to
be trusted. Linux only.

`gemm.py` measures the machine first: `of GEMM` is the rate of the operations that a workload's
maths needs (`flops.py`), over that of a product of square matrices by JAX. W4 has none.

`--scaling` and `--larger_than_memory` run the programs of these names instead, or, with `--only`,
besides. `--smoke` runs everything small, two programs at a time: its figures mean nothing.

`--hugepages=yes` starts every program with GLIBC_TUNABLES=glibc.malloc.hugetlb=1, so that large
arrays lie in huge pages and fault less often; `both` runs every program with and without.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.benchmarks import gemm, harness, launch, scaling, workload
from experiments.benchmarks.peers.make_envs import default_folder
from experiments.benchmarks.programs import CASES, TARGETS, Case, Program

HUGE_PAGES = "glibc.malloc.hugetlb=1"
TOO_BUSY = 0.05


def main() -> None:
    """Runs what is asked for, prints tables and may write them as JSON."""
    flags = parse()
    cases = choose(flags.only, smoke=flags.smoke) if flags.only is not None else []
    for name in ("interactions", "labels_big", "labels_huge", "ranking") if cases else ():
        workload.load(flags.data, name, smoke=flags.smoke)
    progress = Console(stderr=True)
    jobs: dict[str, Callable[[], Any]] = {}
    if any(case.flops for case in cases):
        jobs["floor"] = functools.partial(run_floor, flags)
    for name, words in flags.scripts.items():
        jobs[name] = functools.partial(run_script, name, words, flags.smoke)
    for case in cases:
        jobs[f"{case.workload} {case.name}"] = functools.partial(run_case, case, flags, progress)
    if flags.smoke:
        with ThreadPoolExecutor(2) as pool:
            found = dict(zip(jobs, pool.map(lambda job: job(), jobs.values()), strict=True))
    else:
        found = {name: job() for name, job in jobs.items()}
    floor = found.get("floor", {})
    rows = []
    for case in cases:
        for measure in TARGETS if case.workload == "w4" else ("",):
            some = summarize(case, found[f"{case.workload} {case.name}"], measure)
            add_share_of_gemm(some, case, workload.sizes_of(flags.smoke), floor.get("gemm"))
            rows += some
    scripts = {name: found[name] for name in flags.scripts}
    report = {
        "command": " ".join(["python", "experiments/benchmarks/run.py", *sys.argv[1:]]),
        "machine": harness.machine(),
        "rounds": flags.rounds,
        "smoke": flags.smoke,
        "floor": floor,
        "rows": rows,
        **scripts,
    }
    console = launch.make_console()
    if "rows" in floor:
        console.print(gemm.make_table(floor["rows"]))
    if rows:
        console.print(make_table(rows))
    for name, one in {"gemm": floor, **scripts}.items():
        console.print(one.pop("printed", ""), markup=False, highlight=False, end="")
        if "error" in one:
            console.print(f"{name} failed: {one['error']}", markup=False)
    print_notes(report, console)
    if flags.out:
        flags.out.write_text(json.dumps(report, indent=2) + "\n")
    if any("error" in one for one in (floor, *rows, *scripts.values())):
        sys.exit(1)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line; `scripts` has the arguments of other programs by name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", help="workloads, with commas: w1,w5; default all")
    parser.add_argument("--scaling", nargs="?", const=",".join(scaling.CURVES), help="curves")
    parser.add_argument("--larger_than_memory", nargs="?", type=int, const=10_000_000, help="rows")
    parser.add_argument("--peers", "--peer", action="store_true", help="run the peers too")
    parser.add_argument("--programs", default="", help="labels of the table, with commas")
    parser.add_argument("--rounds", type=int, default=0, help="default 3; with --smoke 1")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each of three windows")
    parser.add_argument("--hugepages", choices=("no", "yes", "both"), default="no")
    parser.add_argument("--smoke", action="store_true", help="small: does it run?")
    parser.add_argument("--data", type=Path, default=workload.default_folder())
    parser.add_argument("--envs", type=Path, default=default_folder(), help="of make_envs.py")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    flags = parser.parse_args(words)
    flags.rounds = flags.rounds or (1 if flags.smoke else 3)
    known = {case.workload for case in CASES}
    if flags.only and set(flags.only.split(",")) - known:
        parser.error(f"--only={flags.only}: workloads are {', '.join(sorted(known))}")
    if flags.only is None and flags.scaling is None and flags.larger_than_memory is None:
        flags.only = ""
        if flags.smoke:
            flags.scaling, flags.larger_than_memory = ",".join(scaling.CURVES), 100_000
    flags.scripts = {}
    if flags.scaling is not None:
        curves = f"--curves={flags.scaling}", f"--seconds={flags.seconds}"
        scaling.parse(list(curves))
        flags.scripts["scaling"] = curves
    if flags.larger_than_memory is not None:
        flags.scripts["larger_than_memory"] = (f"--rows={flags.larger_than_memory}",)
    flags.data, flags.envs = flags.data.absolute(), flags.envs.absolute()
    return flags


def choose(only: str, *, smoke: bool) -> list[Case]:
    """The cases of the workloads asked for, or of all."""
    asked = set(filter(None, only.split(",")))
    return [
        case for case in CASES if asked <= {""} or case.workload in asked if case.smoke or not smoke
    ]


def run_case(case: Case, flags: argparse.Namespace, progress: Console) -> dict[str, list[dict]]:
    """What each program printed in each round, by label."""
    runs: dict[str, list[dict]] = {}
    asked = set(filter(None, flags.programs.split(",")))
    for number in range(flags.rounds):
        for program in case.programs:
            if program.is_peer and not flags.peers or (flags.smoke and not program.smoke):
                continue
            if asked and program.label not in asked:
                continue
            for huge in {"no": (False,), "yes": (True,), "both": (False, True)}[flags.hugepages]:
                label = f"{program.label}, huge pages" if huge else program.label
                if runs.get(label, [{}])[0].get("error"):
                    continue
                found = run_program(case, program, flags, huge)
                found["is_peer"] = program.is_peer
                runs.setdefault(label, []).append(found)
                where = f"{case.workload} {case.name}, {label}, round {number + 1}"
                progress.print(f"{where}: {_short(found)}", highlight=False)
    return runs


def run_floor(flags: argparse.Namespace) -> dict[str, Any]:
    """The result that `gemm.py` printed; or `error`."""
    command = [sys.executable, "-m", "experiments.benchmarks.gemm", *["--smoke"] * flags.smoke]
    return launch.run(command, {"GLIBC_TUNABLES": HUGE_PAGES} if flags.hugepages == "yes" else {})


def run_script(name: str, words: tuple[str, ...], smoke: bool) -> dict[str, Any]:
    """What a program of this folder wrote to its `--out`, and `printed`; or `error`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *words]
        command += [f"--out={out}", *["--smoke"] * smoke]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        report = json.loads(out.read_text()) if out.exists() else {}
    if done.returncode:
        report["error"] = f"{name} ended with {done.returncode}"
    return {**report, "printed": done.stdout}


def run_program(
    case: Case, program: Program, flags: argparse.Namespace, huge: bool
) -> dict[str, Any]:
    """The result that a program printed, and `others`; or `error`."""
    python = Path(sys.executable)
    if program.env:
        python = flags.envs / program.env / "bin" / "python"
        if not python.exists():
            return {"error": f"no {python}: run experiments/benchmarks/peers/make_envs.py"}
    words = [*program.words, *case.words, f"--data={flags.data}", f"--seconds={flags.seconds}"]
    if flags.smoke:
        words += ["--smoke", "--seconds=0.2", "--windows=1", "--warmup=2", "--steps=10"]
    command = [str(python), "-m", f"experiments.benchmarks.{program.module}", *words]
    environment = {"GLIBC_TUNABLES": HUGE_PAGES} if huge else {}
    found = launch.run(command, environment)
    return found if "error" in found else {**found, "huge_pages": huge}


def summarize(case: Case, runs: dict[str, list[dict]], measure: str = "") -> list[dict[str, Any]]:
    """A row for each program: medians over rounds, and how recjax compares with the best peer.

    `value` is what is compared: units a second, more of which is better, or with a `measure` of
    TARGETS seconds until its target, less of which is better.
    """
    rows = []
    name = f"{case.name}, {measure.replace('_', ' ')}" if measure else case.name
    for label, found in runs.items():
        row: dict[str, Any] = {"workload": case.workload, "case": name, "program": label}
        row["runs"] = found
        row["is_peer"] = found[0].get("is_peer", False)
        errors = [run["error"] for run in found if "error" in run]
        if errors:
            rows.append({**row, "error": errors[0]})
            continue
        values = [value for run in found for value in _values(run, measure)]
        if values:
            row |= {"value": statistics.median(values), "low": min(values), "high": max(values)}
        row["unit"] = f"s to {TARGETS[measure]:.0%}" if measure else found[0]["unit"]
        row["others"] = max(run["others"] for run in found)
        for key in ("peak_bytes", "first_step_s", "warmup_s", "cpu_ms_per_unit", "first_loss"):
            known = [run[key] for run in found if key in run]
            if known:
                row[key] = statistics.median(known)
        rows.append(row)
    _add_losses(rows, measure)
    peers = [row for row in rows if row["is_peer"] and "value" in row]
    if peers:
        best = (min if measure else max)(peers, key=lambda row: row["value"])
        for row in rows:
            if "value" in row:
                ratio = row["value"] / best["value"]
                row["of_best_peer"], row["best_peer"] = (
                    1 / ratio if measure else ratio,
                    best["program"],
                )
    return rows


def add_share_of_gemm(
    rows: list[dict[str, Any]], case: Case, sizes: workload.Sizes, gemm_flops: float | None
) -> None:
    """Adds `of_gemm`: what the maths needs, at a row's rate, over what the machine multiplies.

    Args:
      rows: of `summarize`.
      case: whose rows these are; nothing is added where it has no count.
      sizes: of the workload.
      gemm_flops: operations a second of a product of square matrices; None where not measured.
    """
    for row in rows:
        if case.flops and gemm_flops and "value" in row:
            needed = case.flops(sizes, row["runs"][0].get("batch_size", 0))
            row["of_gemm"] = needed * row["value"] / gemm_flops


def seconds_to(points: list[dict[str, float]], measure: str, target: float) -> float | None:
    """Seconds of training until a measure was reached; None if it never was."""
    return next((p["seconds"] for p in points if p[measure] >= target), None)


def make_table(rows: list[dict[str, Any]]) -> Table:
    """One line for each program."""
    table = Table(title="recjax and its peers", title_justify="left")
    for column in ("case", "program"):
        table.add_column(column, no_wrap=True)
    for column in (
        "median",
        "low - high",
        "unit",
        "of best peer",
        "of GEMM",
        "CPU ms",
        "loss: first",
        "later",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("first step s", "peak MB", "others"):
        table.add_column(column, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        here = f"{row['workload']} {row['case']}"
        if previous not in (None, here):
            table.add_section()
        first = here if here != previous else ""
        previous = here
        if "error" in row:
            table.add_row(first, row["program"], "failed", row["error"][:60])
            continue
        value = "never" if "value" not in row else _number(row["value"])
        spread = "" if "value" not in row else f"{_number(row['low'])} - {_number(row['high'])}"
        table.add_row(
            first,
            row["program"],
            value,
            spread,
            row["unit"],
            f"{row['of_best_peer']:.2f}" if "of_best_peer" in row else "",
            f"{row['of_gemm']:.2f}" if "of_gemm" in row else "",
            f"{row['cpu_ms_per_unit']:.3f}" if "cpu_ms_per_unit" in row else "",
            f"{row['first_loss']:.3f}" if "first_loss" in row else "",
            row.get("later", ""),
            f"{row['first_step_s']:.1f}" if "first_step_s" in row else "",
            f"{row['peak_bytes'] / 1e6:,.0f}",
            f"{row['others']:.0%}",
        )
    return table


def print_notes(report: dict[str, Any], console: Console) -> None:
    """Machine, versions and what must be doubted."""
    machine = report["machine"]
    console.print(
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']} GB, "
        f"Python {machine['python']}, {machine['system']}; {report['rounds']} rounds",
        highlight=False,
    )
    versions: dict[str, set[str]] = {}
    for row in report["rows"]:
        for run in row["runs"]:
            for name, version in run.get("versions", {}).items():
                versions.setdefault(name, set()).add(version)
    told = ", ".join(f"{name} {' '.join(sorted(v))}" for name, v in sorted(versions.items()))
    console.print(told, highlight=False)
    busy = [row for row in report["rows"] if row.get("others", 0) > TOO_BUSY]
    if report["smoke"]:
        console.print("small sizes, two programs at a time: the figures mean nothing")
    elif busy:
        console.print(
            f"[bold]warning:[/] other processes took up to {max(r['others'] for r in busy):.0%} of "
            f"the machine during {len(busy)} of {len(report['rows'])} rows: do not trust them"
        )


def _values(run: dict[str, Any], measure: str) -> list[float]:
    if not measure:
        return run["rates"]
    seconds = seconds_to(run["points"], measure, TARGETS[measure])
    return [] if seconds is None else [seconds]


def _add_losses(rows: list[dict[str, Any]], measure: str) -> None:
    """Adds `later`: the loss after as many steps as every program took, or the last accuracy."""
    curves = [run.get("curve", {}) for row in rows for run in row["runs"] if "error" not in run]
    common = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    last = max(common, key=int, default="")
    for row in rows:
        if "error" in row:
            continue
        if last:
            loss = statistics.median(run["curve"][last] for run in row["runs"])
            row["later"], row["later_loss"] = f"{loss:.3f} at {last}", loss
        elif measure:
            row["later"] = f"{row['runs'][0]['points'][-1][measure]:.3f} at the end"
        elif "recall" in row["runs"][0]:
            run = row["runs"][0]
            row["later"] = f"recall {run['recall']:.4f}, {run['leaked']} seen"


def _short(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"failed: {found['error']}"
    rate = statistics.median(found["rates"])
    return f"{_number(rate)} {found['unit']}, others {found['others']:.0%}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    began = time.perf_counter()
    main()
    print(f"{time.perf_counter() - began:.0f} s in all", file=sys.stderr)
