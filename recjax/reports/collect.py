"""What finished runs left behind, gathered: by arm and seed, under one protocol."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from recjax.config import Config, config_differences, config_from_json
from recjax.errors import ReportError
from recjax.reports.folders import (
    arm_of,
    owner_of,
    plan_of,
    read_json,
    read_text,
    runs_in,
    short_names,
)
from recjax.run import is_finished
from recjax.slices import Slice

# Of cost.json, in the order of a table.
COST = (
    "parameters",
    "steps",
    "examples",
    "train_seconds",
    "step_ms",
    "examples_per_second",
    "query_ms",
    "query_batch",
    "devices",
    "jax",
)

# Of protocol.json, what a report cannot be written without.
_PROTOCOL = (
    "dataset",
    "dataset_hash",
    "split",
    "split_params",
    "split_hash",
    "history",
    "selection_metric",
    "corpus",
    "candidates",
    "seen",
    "ties",
    "part",
    "ks",
    "not_scored",
)

# Keys in which runs of one arm, or the machines of two, may differ.
NO_SETTING = frozenset({"seed", "data.dir", "data.download"})

# What an arm belongs to, and its name there.
ArmKey = tuple[pathlib.Path, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """One finished run: one arm with one seed.

    Attributes:
      workdir: where it lies.
      arm: the name of its setting: its trial's, or the folder's.
      seed: of the run.
      config: what it was trained under.
      protocol: what it must share with another to be compared.
      step: of the checkpoint that was tested.
      metrics: of the model on test, by names such as `recall@10`; NaN where not defined.
      intervals: 95 % bootstrap interval over queries of each per-query metric: (low, high).
      baselines: the same metrics of `popularity`, `random` and, on planted data, `oracle`.
      slices: of the model (see `recjax.slices.make_slices`).
      cost: what cost.json holds: `parameters`, `steps`, `train_seconds`, `query_ms`, ...
      search_trials: trials of the search that chose its hyperparameters; 0 where none did.
    """

    workdir: pathlib.Path
    arm: str
    seed: int
    config: Config = dataclasses.field(repr=False)
    protocol: Mapping[str, Any] = dataclasses.field(repr=False)
    step: int
    metrics: Mapping[str, float] = dataclasses.field(repr=False)
    intervals: Mapping[str, tuple[float, float]] = dataclasses.field(repr=False)
    baselines: Mapping[str, Mapping[str, float]] = dataclasses.field(repr=False)
    slices: Mapping[str, Slice] = dataclasses.field(repr=False)
    cost: Mapping[str, Any] = dataclasses.field(repr=False)
    search_trials: int = 0

    @functools.cached_property
    def per_query(self) -> pl.DataFrame:
        """One row per test query: `user`, what is known of it, and every per-query metric."""
        file = self.workdir / "eval" / "test.parquet"
        try:
            return pl.read_parquet(file)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ReportError(f"{file} cannot be read: {error}") from error

    @functools.cached_property
    def curves(self) -> pl.DataFrame:
        """Scalars on the way, one a row: step, metric (`train/loss`, `valid/recall@10`), value."""
        file = self.workdir / "metrics.jsonl"
        rows = []
        for number, line in enumerate(read_text(file).splitlines(), 1):
            try:
                scalars = dict(json.loads(line))
                step = int(scalars.pop("step"))
            except (ValueError, TypeError, KeyError) as error:
                raise ReportError(
                    f"{file}, line {number}: expected an object with 'step', found {line[:80]!r}"
                ) from error
            rows += [
                (step, name, float(value))
                for name, value in scalars.items()
                if value is not None and not name.startswith("test/")
            ]
        schema = {"step": pl.Int64, "metric": pl.String, "value": pl.Float64}
        return pl.DataFrame(rows, schema, orient="row")


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """One setting, and its results by seed."""

    name: str
    results: tuple[Result, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """In ascending order."""
        return tuple(result.seed for result in self.results)


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """Finished runs under one protocol.

    Attributes:
      title: of the sweep, or the name of the folder.
      about: what the sweep asks, in prose; empty where there is none.
      arms: in the sweep's order, the workdirs' where several are joined.
      protocol: the one that all share; its `ks` are those that all have.
      unfinished: runs that were planned or begun and have no result.
      notes: what a reader must know of what is missing, one sentence each.
    """

    title: str
    about: str
    arms: tuple[Arm, ...]
    protocol: Mapping[str, Any] = dataclasses.field(repr=False)
    unfinished: tuple[pathlib.Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def runs(self) -> tuple[Result, ...]:
        """Every run, arm by arm."""
        return tuple(result for arm in self.arms for result in arm.results)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that all runs have."""
        runs = self.runs
        return tuple(
            name for name in runs[0].metrics if all(name in run.metrics for run in runs[1:])
        )

    def baseline_means(self, metric: str) -> dict[str, float]:
        """A metric of each baseline, mean over the runs; one that an arm is named like says so."""
        arms = {arm.name for arm in self.arms}
        return {
            f"{name} (baseline)" if name in arms else name: float(
                np.mean([run.baselines.get(name, {}).get(metric, np.nan) for run in self.runs])
            )
            for name in self.runs[0].baselines
        }

    @property
    def metric(self) -> str:
        """The metric that chose the checkpoints, such as `recall@10`."""
        name = self.protocol["selection_metric"].removeprefix("valid/")
        if name in self.metrics:
            return name
        name = self.runs[0].config.eval.metric
        return name if name in self.metrics else self.metrics[0]

    @property
    def measured_on(self) -> str:
        """The part that was measured, and how many of its users where not all were asked."""
        part, users = self.protocol["part"], self.protocol.get("max_queries")
        return f"{part} of at most {users:,} users" if users else part

    def arm(self, name: str) -> Arm:
        """The arm of this name.

        Raises:
          ReportError: there is none; lists those that there are.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        known = ", ".join(repr(arm.name) for arm in self.arms)
        raise ReportError(f"no arm is named {name!r}; there are {known}")

    def frame(self) -> pl.DataFrame:
        """One row per run: arm, seed, step, search_trials, every metric and the cost."""
        rows = [
            {"arm": run.arm, "seed": run.seed, "step": run.step, "search_trials": run.search_trials}
            | {name: run.metrics[name] for name in self.metrics}
            | {name: run.cost.get(name) for name in COST}
            for run in self.runs
        ]
        return pl.DataFrame(rows, infer_schema_length=None)


def load_results(
    workdirs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> Results:
    """Reads finished runs: a sweep's workdir, a run's, a folder of runs, or several of these.

    An arm's name that two folders share is told apart by the folder's.

    Raises:
      ReportError: no finished run is found; two were measured under different protocols, naming
        the difference; two are of one arm and seed; a file is not what recjax writes.
    """
    given = [workdirs] if isinstance(workdirs, str | os.PathLike) else workdirs
    paths = [pathlib.Path(path) for path in given]
    for path in paths:
        if not path.is_dir():
            raise ReportError(f"{path} is not a folder; name a run's or a sweep's --workdir")
    runs = list({run.resolve(): run for path in paths for run in runs_in(path)}.values())
    unfinished = tuple(run for run in runs if not is_finished(run))
    results = [_load(run) for run in runs if run not in unfinished]
    if not results:
        hint = f"; not finished: {_some(list(map(str, unfinished)))}" if unfinished else ""
        raise ReportError(f"no finished run in {_some(list(map(str, paths)))}{hint}")
    _check_protocols(results)
    owners = dict.fromkeys(owner_of(result.workdir) for result in results)
    plans = {owner: plan_of(owner) for owner in owners}
    seeds_of = _group(results, plans)
    arms = _name_arms(seeds_of)
    # A sweep of which single trials are asked for has not lost its other arms.
    within = {parent for path in paths for parent in path.absolute().parents}
    planned = [
        (owner, name)
        for owner, plan in plans.items()
        if owner not in within
        for name in plan.get("arms", ())
    ]
    ks = [k for k in results[0].protocol["ks"] if all(k in run.protocol["ks"] for run in results)]
    titles, abouts = (
        list(dict.fromkeys(plan[key] for plan in plans.values() if plan.get(key)))
        for key in ("title", "about")
    )
    return Results(
        title=" / ".join(titles) or ", ".join(owner.name for owner in owners),
        about="\n\n".join(abouts),
        arms=arms,
        protocol={**results[0].protocol, "ks": ks},
        unfinished=unfinished,
        notes=(
            *_unfinished_notes(unfinished),
            *(f"Arm {arm[1]!r} has no finished run." for arm in planned if arm not in seeds_of),
            *_seed_notes(arms),
        ),
    )


def _load(workdir: pathlib.Path) -> Result:
    trial_file, config_file = workdir / "trial.json", workdir / "config.json"
    trial = read_json(trial_file) if trial_file.exists() else {}
    config = config_from_json(read_text(config_file), str(config_file))
    protocol, cost = read_json(workdir / "protocol.json"), read_json(workdir / "cost.json")
    record = read_json(workdir / "eval" / "test.json")
    if missing := [key for key in _PROTOCOL if key not in protocol]:
        raise ReportError(f"{workdir}: protocol.json has no {_some(missing)}")
    try:
        rankers = dict(record["rankers"])
        model = rankers.pop("model")
        return Result(
            workdir=workdir,
            arm=arm_of(workdir),
            seed=trial.get("seed", config.seed),
            config=config,
            protocol=protocol,
            step=record["step"],
            metrics=_numbers(model["metrics"]),
            intervals={name: (low, high) for name, (low, high) in model["intervals"].items()},
            baselines={name: _numbers(one["metrics"]) for name, one in rankers.items()},
            slices=model["slices"],
            cost=cost,
            search_trials=trial.get("search_trials", 0),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ReportError(
            f"{workdir}: eval/test.json is not what recjax writes there ({error!r})"
        ) from error


def _group(
    results: Sequence[Result], plans: Mapping[pathlib.Path, Mapping[str, Any]]
) -> dict[ArmKey, dict[int, Result]]:
    """Results of each arm by seed; the arms of each owner in its plan's order."""
    seeds_of: dict[ArmKey, dict[int, Result]] = {}
    for owner, plan in plans.items():
        names = list(plan.get("arms", ()))
        mine = [result for result in results if owner_of(result.workdir) == owner]
        mine.sort(key=lambda r: (names.index(r.arm) if r.arm in names else len(names), r.seed))
        for result in mine:
            seeds = seeds_of.setdefault((owner, result.arm), {})
            if result.seed in seeds:
                raise ReportError(
                    f"arm {result.arm!r}, seed {result.seed} stands twice: in "
                    f"{seeds[result.seed].workdir} and {result.workdir}; move one of them away"
                )
            seeds[result.seed] = result
    return seeds_of


def _name_arms(seeds_of: Mapping[ArmKey, Mapping[int, Result]]) -> tuple[Arm, ...]:
    """Arms by their names; a name that several owners use is told apart by theirs."""
    names = [name for _, name in seeds_of]
    owners = short_names([owner for owner, _ in seeds_of])
    arms = []
    for (owner, name), seeds in seeds_of.items():
        if names.count(name) > 1:
            name = owners[owner] if name == owner.name else f"{name} ({owners[owner]})"
        runs = [dataclasses.replace(seeds[seed], arm=name) for seed in sorted(seeds)]
        arms.append(Arm(name, tuple(runs)))
    return tuple(arms)


def _check_protocols(results: Sequence[Result]) -> None:
    first = results[0]
    for other in results[1:]:
        differ = [
            f"{key} is {_value(first.protocol, key)} in {first.workdir} and "
            f"{_value(other.protocol, key)} in {other.workdir}"
            for key in dict.fromkeys([*first.protocol, *other.protocol])
            if key != "ks" and _value(first.protocol, key) != _value(other.protocol, key)
        ]
        if differ:
            raise ReportError(
                "these runs were measured under different protocols, so no table can compare "
                f"them: {'; '.join(differ)}"
            )
    if not set.intersection(*(set(result.protocol["ks"]) for result in results)):
        raise ReportError("these runs have no cut-off (eval.ks) in common, so nothing to compare")


def _unfinished_notes(unfinished: Sequence[pathlib.Path]) -> Iterable[str]:
    """The failed runs with their errors, then the others."""
    others = []
    for run in unfinished:
        failure = run / "failure.json"
        if failure.exists():
            lines = str(read_json(failure).get("error", "")).strip().splitlines()
            yield f"{run.name} failed: {lines[-1] if lines else 'see its log.txt'}"
        else:
            others.append(run.name)
    if others:
        yield f"Not finished: {_some(others)}."


def _seed_notes(arms: Sequence[Arm]) -> Iterable[str]:
    most = max(len(arm.results) for arm in arms)
    for arm in arms:
        if len(arm.results) < most:
            seeds = ", ".join(map(str, arm.seeds))
            yield f"Arm {arm.name!r} has {len(arm.results)} of {most} seeds: {seeds}."
        first, *others = (run.config for run in arm.results)
        differ = {key for other in others for key in config_differences(first, other)}
        if differ := sorted(differ - NO_SETTING):
            yield f"Runs of arm {arm.name!r} differ in more than the seed: {_some(differ)}."


def _numbers(record: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float("nan") if value is None else value for name, value in record.items()}


def _value(protocol: Mapping[str, Any], key: str) -> str:
    return repr(protocol[key]) if key in protocol else "absent"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
