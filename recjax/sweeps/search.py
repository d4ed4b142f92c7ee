"""Searching declared ranges with Optuna, with the same number of trials for every arm."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from recjax.config import flatten_config, open_config
from recjax.errors import ConfigError
from recjax.extras import require
from recjax.run import is_finished
from recjax.sweeps.attempts import TrialResult, read_failure
from recjax.sweeps.status import read_progress
from recjax.sweeps.trials import Arm, Sweep, Trial, make_trial

SEED = 0  # of the trials that search, and of the sampler
_DIVERGED = 3


@dataclasses.dataclass(frozen=True)
class Range:
    """The values of one config key that a search may choose.

    Attributes:
      key: dotted.
      low: the least number; with `high`, or else `choices`.
      high: the greatest.
      log: whether the logarithm is searched evenly.
      choices: the values, where they are named one by one.
    """

    key: str
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def ends(self) -> tuple[Any, ...]:
        """The choices, or the least and the greatest."""
        return self.choices or (self.low, self.high)

    def distribution(self) -> Any:
        """As Optuna takes it: of several choices, the place of one."""
        found = require("optuna", "search").distributions
        if self.choices:
            return found.CategoricalDistribution(range(len(self.choices)))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return found.IntDistribution(self.low, self.high, log=self.log)
        return found.FloatDistribution(self.low, self.high, log=self.log)

    def value(self, drawn: Any) -> Any:
        """The value that Optuna drew; a float is rounded to three digits, for people to read."""
        if self.choices:
            return self.choices[drawn]
        if isinstance(drawn, float):
            assert self.low is not None and self.high is not None
            return float(min(max(float(f"{drawn:.3g}"), self.low), self.high))
        return drawn


class Search:
    """Chooses values for every arm by their validation metric, then runs the arm with its seeds.

    Each arm's trials follow one another, so that a search depends on nothing but its own results:
    one that was stopped draws the same values again and finds their trials finished.

    Args:
      sweep: whose file declares the ranges.
      workdir: of the sweep; trials that search lie in `search/ARM/`.
      count: of these for every arm.

    Raises:
      ConfigError: Optuna is missing, the file declares no ranges or wrong ones, or nothing
        validates.
    """

    def __init__(self, sweep: Sweep, workdir: pathlib.Path, count: int):
        if count < 1:
            raise ConfigError(f"--search_trials={count}: how many trials may each arm have?")
        self.count = count
        ranges = load_ranges(sweep)
        self._sweep = sweep
        self._workdir = workdir
        self._arms = {arm.name: _ArmSearch(sweep.path, arm, ranges, count) for arm in sweep.arms}

    def first(self) -> list[Trial]:
        """The trials to begin with."""
        return [trial for arm in self._sweep.arms for trial in self._advance(arm)]

    def follow(self, trial: Trial, result: TrialResult) -> Sequence[Trial]:
        """The trials that come after one that has ended: of its arm, the next or the last ones."""
        if not _is_search(trial) or result.state not in ("finished", "failed"):
            return ()
        search = self._arms[trial.arm]
        search.tell(_outcome(trial, result.workdir))
        return self._advance(search.arm)

    def results(self, found: Mapping[str, TrialResult]) -> list[TrialResult]:
        """Of every arm's last trials, and of those of the search that failed unexpectedly."""
        results = []
        for result in found.values():
            if result.name.startswith("search/") and result.state == "failed":
                failure = json.loads(read_failure(result.workdir) or "{}")
                if failure.get("status") != _DIVERGED:
                    results.append(result)
        for arm in self._sweep.arms:
            search = self._arms[arm.name]
            results += [found[trial.name] for trial in search.final if trial.name in found]
            if search.is_done and search.best is None:
                text = f"none of the {self.count} trials of the search finished"
                results.append(
                    TrialResult(search.folder, "failed", self._workdir / search.folder, text)
                )
            elif not search.is_done:
                folder = self._workdir / search.folder
                results.append(TrialResult(search.folder, "waiting", folder))
        return results

    def to_come(self) -> int:
        """How many trials there will be beside those that were handed out, at most."""
        return sum(search.to_come for search in self._arms.values())

    @property
    def trials(self) -> list[Trial]:
        """The last trials of the arms whose search has ended."""
        return [trial for arm in self._sweep.arms for trial in self._arms[arm.name].final]

    def record(self) -> dict[str, Any]:
        """What was tried and found, for search.json."""
        return {name: search.tried for name, search in self._arms.items()}

    def _advance(self, arm: Arm) -> list[Trial]:
        search = self._arms[arm.name]
        while not search.is_done:
            trial = search.ask()
            folder = self._workdir / trial.name
            failure = read_failure(folder)
            diverged = failure is not None and json.loads(failure)["status"] == _DIVERGED
            if not is_finished(folder) and not diverged:
                return [trial]
            search.tell(_outcome(trial, folder))
        return search.final


class _ArmSearch:
    """The search of one arm: `ask` for a trial, `tell` its metric, and so on."""

    def __init__(self, path: str, arm: Arm, ranges: Sequence[Range], count: int):
        optuna = require("optuna", "search")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.arm = arm
        self.folder = f"search/{make_trial(path, arm, SEED).name.partition('-seed')[0]}"
        self.tried: list[dict[str, Any]] = []
        self._path = path
        self._ranges = ranges
        self._count = count
        self._study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(
                seed=SEED, n_startup_trials=min(10, max(count // 2, 1))
            ),
        )
        self._asked: tuple[Any, dict[str, Any]] | None = None

    @property
    def is_done(self) -> bool:
        return len(self.tried) == self._count

    @property
    def best(self) -> dict[str, Any] | None:
        """The values of the first of the best trials; None where none finished."""
        finished = [tried for tried in self.tried if tried["valid"] is not None]
        if not finished:
            return None
        return max(finished, key=lambda tried: tried["valid"])["values"]

    @property
    def final(self) -> list[Trial]:
        """Once it is done: the arm with each of its seeds and the best values."""
        best = self.best if self.is_done else None
        if best is None:
            return []
        return [
            make_trial(self._path, self.arm, seed, best, self._count) for seed in self.arm.seeds
        ]

    @property
    def to_come(self) -> int:
        """Trials after the one that was asked for last."""
        return 0 if self.is_done else self._count - len(self.tried) - 1 + len(self.arm.seeds)

    def ask(self) -> Trial:
        drawn = self._study.ask({range_.key: range_.distribution() for range_ in self._ranges})
        values = {range_.key: range_.value(drawn.params[range_.key]) for range_ in self._ranges}
        self._asked = drawn, values
        trial = make_trial(self._path, self.arm, SEED, values)
        return dataclasses.replace(trial, name=f"{self.folder}/{trial.name}")

    def tell(self, metric: float | None) -> None:
        """Takes in the validation metric of what was asked last; a failure counts as 0."""
        assert self._asked is not None
        drawn, values = self._asked
        self._study.tell(drawn, 0.0 if metric is None else metric)
        self.tried.append({"values": values, "valid": metric})


def load_ranges(sweep: Sweep) -> tuple[Range, ...]:
    """The ranges that a sweep's file declares: `suggest(key, low=..., high=...)` or `choices=...`.

    Raises:
      ConfigError: no `search(suggest)`, no range, or one that is wrong for its key or an arm.
    """
    require("optuna", "search")
    ranges: dict[str, Range] = {}

    def suggest(
        key: str,
        *,
        low: float | int | None = None,
        high: float | int | None = None,
        log: bool = False,
        choices: Sequence[Any] = (),
    ) -> None:
        if key in ranges:
            raise ConfigError(f"{sweep.path}: search suggests {key} twice")
        ranges[key] = _checked(Range(key, low, high, log, tuple(choices)), sweep.path)

    with open_config(sweep.path) as (_, module):
        search: Callable | None = getattr(module, "search", None)
        if not callable(search):
            raise ConfigError(
                f"{sweep.path} has no function search(suggest), which declares what is searched: "
                "suggest('optim.learning_rate', low=1e-4, high=1e-1, log=True)"
            )
        search(suggest)
    if not ranges:
        raise ConfigError(f"{sweep.path}: search(suggest) suggests nothing")
    for arm in sweep.arms:
        _check_arm(sweep.path, arm, ranges.values())
    flat = flatten_config(sweep.arms[0].config)
    return tuple(_as_floats(found, flat[found.key]) for found in ranges.values())


def _checked(found: Range, path: str) -> Range:
    where = f"{path}: suggest({found.key!r})"
    if found.key == "seed":
        raise ConfigError(f"{where}: every trial of a search has seed {SEED}; search another key")
    numbers = [type(end) in (int, float) for end in (found.low, found.high)]
    if bool(found.choices) == any(numbers) or any(numbers) and not all(numbers):
        raise ConfigError(f"{where} needs the numbers low= and high=, or else choices=")
    if found.choices and len(set(map(repr, found.choices))) < len(found.choices):
        raise ConfigError(f"{where}: a choice stands there twice: {found.choices!r}")
    if not found.choices:
        assert found.low is not None and found.high is not None
        if found.low >= found.high:
            raise ConfigError(f"{where}: low={found.low} is not below high={found.high}")
        if found.log and found.low <= 0:
            raise ConfigError(f"{where}: with log=True, low={found.low} must be above 0")
    return found


def _check_arm(path: str, arm: Arm, ranges: Iterable[Range]) -> None:
    for found in ranges:
        if found.key in arm.settings:
            who = f"arm {arm.name!r}" if found.key in arm.overrides else "--config (or --smoke)"
            raise ConfigError(f"{path}: {found.key} is searched, but {who} sets it: leave one out")
        for value in found.ends:
            make_trial(path, arm, SEED, {found.key: value})
    if arm.config.split.fit == "train_and_valid":
        raise ConfigError(
            f"arm {arm.name!r}: config.split.fit=train_and_valid leaves nothing to search by"
        )


def _as_floats(found: Range, default: Any) -> Range:
    """The range of a float key, its ends made floats, between which any number may be drawn."""
    if found.choices or not isinstance(default, float):
        return found
    assert found.low is not None and found.high is not None
    return dataclasses.replace(found, low=float(found.low), high=float(found.high))


def _is_search(trial: Trial) -> bool:
    return trial.name.startswith("search/")


def _outcome(trial: Trial, folder: pathlib.Path) -> float | None:
    """The best validation metric of a finished trial; None of one that failed."""
    if not is_finished(folder):
        return None
    return read_progress(folder, trial.config.eval.metric).best
