"""What a sweep file asks for: its arms, and a trial for each arm with each seed."""

import copy
import dataclasses
import hashlib
import inspect
import json
import os
import pathlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from recjax.checks import check_config
from recjax.config import Config, flatten_config, open_config, set_keys
from recjax.errors import ConfigError
from recjax.flags import override_words

SEEDS = (0, 1, 2)
# In smoke mode, for keys that neither the user nor the arm sets.
_SMOKE = {"train.steps": 2, "eval.bootstrap": 20, "log.tensorboard": False}
_SMOKE_WORLD = {
    "data.synthetic.users": 120,
    "data.synthetic.items": 60,
    "data.synthetic.interactions_per_user": 10,
}
_SMOKE_BATCH = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One arm with one seed: one run of `recjax.main` in a workdir of its own.

    Attributes:
      arm: the arm's name.
      seed: of the run.
      name: of its folder: the arm, the seed and a hash of the whole config.
      config: of the run.
      overrides: what the arm sets, by dotted key, and what a search chose for it.
      words: `--config=FILE --config.KEY=VALUE ...`, which `recjax.main` reads as `config`.
      search_trials: the runs of this arm by which a search chose.
    """

    arm: str
    seed: int
    name: str
    config: Config = dataclasses.field(repr=False)
    overrides: Mapping[str, Any] = dataclasses.field(repr=False)
    words: tuple[str, ...] = dataclasses.field(repr=False)
    search_trials: int = 0

    def arguments(self, folder: pathlib.Path, accelerator: str = "auto") -> list[str]:
        """The arguments of `recjax.main` that run the trial in this folder."""
        platform = [] if accelerator == "auto" else [f"--accelerator={accelerator}"]
        return [*self.words, f"--workdir={folder}", *platform]

    def command(self, workdir: str | os.PathLike[str], accelerator: str = "auto") -> str:
        """The line for a shell that runs the trial where a sweep in `workdir` does."""
        arguments = self.arguments(pathlib.Path(workdir) / self.name, accelerator)
        return shlex.join(["python", "-m", "recjax.main", *arguments])


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """One setting of the config, run with each of its seeds.

    Attributes:
      name: as the report shows it.
      overrides: what the arm sets, by dotted key.
      seeds: of its trials.
      config: what it trains, but for the seed.
      settings: all that differs from what the file's `get_config` returns: what the user and smoke
        mode set, and `overrides`.
    """

    name: str
    overrides: Mapping[str, Any]
    seeds: tuple[int, ...]
    config: Config = dataclasses.field(repr=False)
    settings: Mapping[str, Any] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """Arms of one config file.

    Attributes:
      title: the first line of the file's docstring.
      about: the rest of it.
      path: the file, and after a colon the argument of its `get_config`.
      arms: in the file's order.
      trials: every arm with its first seed, then every arm with its second, and so on, so that
        what an unfinished sweep holds can be compared.
      words: flags of `python -m recjax.sweep` that ask for it.
    """

    title: str
    about: str
    path: str
    arms: tuple[Arm, ...]
    trials: tuple[Trial, ...] = dataclasses.field(repr=False)
    words: tuple[str, ...] = ()


def load_sweep(
    path: str, /, *, seeds: Sequence[int] | None = None, smoke: bool = False, **overrides: Any
) -> Sweep:
    """The sweep that a Python file with `get_config(...)` and `sweep(add)` asks for.

    `sweep` calls `add(name, seeds=(0, 1, 2), **overrides)` once an arm; overrides are dotted keys
    of the config: `add("64 draws", **{"loss.num_sampled": 64})`. Where the arms depend on the data,
    it is `sweep(add, config)`, with the config that they change.

    Args:
      path: as `load_config` takes it: 'experiments/ablations/dim.py:movielens-1m'.
      seeds: of every arm, in place of those in the file.
      smoke: two steps with one seed, on little data where it is synthetic: does every arm run?
      **overrides: dotted keys and their values, for every arm.

    Raises:
      ConfigError: what `load_config` and `check_config` raise, and a file without `sweep`, arms
        of one name or of one config, or keys that would be set twice; names the arm.
    """
    if "seed" in overrides:
        raise ConfigError("config.seed differs from trial to trial: set --seeds=0,1,2 instead")
    chosen_seeds = None if seeds is None else _checked_seeds(seeds, "--seeds")
    with open_config(path) as (config, module):
        set_keys(config, overrides)
        asked = _call_sweep(module, path, config)
    flat = flatten_config(config)
    common = {key: flat[key] for key in overrides}
    arms = []
    for name, arm_seeds, arm_overrides in asked:
        with _naming_arm(name):
            arm_seeds = chosen_seeds or _checked_seeds(arm_seeds, "seeds")
            arms.append(
                _make_arm(
                    config,
                    common,
                    name,
                    arm_seeds[:1] if smoke else arm_seeds,
                    arm_overrides,
                    smoke,
                )
            )
    _check_distinct(arms)
    title, _, about = (inspect.getdoc(module) or "").partition("\n")
    most = max(len(arm.seeds) for arm in arms)
    trials = [
        make_trial(path, arm, arm.seeds[i])
        for i in range(most)
        for arm in arms
        if i < len(arm.seeds)
    ]
    words = [f"--sweep={path}", *override_words(common)]
    if chosen_seeds is not None:
        words.append(f"--seeds={','.join(map(str, chosen_seeds))}")
    if smoke:
        words.append("--smoke")
    return Sweep(title, about.strip(), path, tuple(arms), tuple(trials), tuple(words))


def make_trial(
    path: str,
    arm: Arm,
    seed: int,
    chosen: Mapping[str, Any] | None = None,
    search_trials: int = 0,
) -> Trial:
    """One arm with one seed and, after a search, the values that it chose."""
    config, chosen = copy.deepcopy(arm.config), chosen or {}
    with _naming_arm(arm.name):
        set_keys(config, {**chosen, "seed": seed})
        check_config(config)
    text = json.dumps(config.to_dict(), sort_keys=True, separators=(",", ":"))
    slug = re.sub("[^a-z0-9]+", "-", arm.name.lower()).strip("-")[:60] or "arm"
    return Trial(
        arm=arm.name,
        seed=seed,
        name=f"{slug}-seed{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}",
        config=config,
        overrides={**arm.overrides, **chosen},
        words=(f"--config={path}", *override_words({**arm.settings, **chosen, "seed": seed})),
        search_trials=search_trials,
    )


@contextmanager
def _naming_arm(name: str) -> Iterator[None]:
    """Puts the arm's name before the message of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"arm {name!r}: {error}") from error


def _call_sweep(
    module: ModuleType, path: str, config: Config
) -> list[tuple[str, Any, dict[str, Any]]]:
    """The name, seeds and overrides of each arm that the file's `sweep` adds."""
    sweep = getattr(module, "sweep", None)
    if not callable(sweep):
        raise ConfigError(f"{path} has no function sweep(add), which names the arms of a sweep")
    asked: list[tuple[str, Any, dict[str, Any]]] = []

    def add(name: str, seeds: Sequence[int] = SEEDS, **overrides: Any) -> None:
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{path}: add(name): the name of an arm is a text, not {name!r}")
        asked.append((name, seeds, overrides))

    takes_config = len(inspect.signature(sweep).parameters) > 1
    try:
        sweep(add, copy.deepcopy(config)) if takes_config else sweep(add)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not asked:
        raise ConfigError(f"{path}: sweep(add) adds no arm: call add(name, **overrides)")
    return asked


def _make_arm(
    base: Config,
    common: Mapping[str, Any],
    name: str,
    seeds: tuple[int, ...],
    overrides: Mapping[str, Any],
    smoke: bool,
) -> Arm:
    if "seed" in overrides:
        raise ConfigError("it sets seed, which differs from trial to trial: add(seeds=(0, 1, 2))")
    if twice := [key for key in overrides if key in common]:
        raise ConfigError(
            f"it sets {', '.join(twice)} itself, so --config.{twice[0]} would not reach it: leave "
            "that out, or change the sweep's file"
        )
    config = copy.deepcopy(base)
    set_keys(config, overrides)
    small = _smoke_values(config) if smoke else {}
    small = {k: v for k, v in small.items() if k not in common and k not in overrides}
    set_keys(config, small)
    check_config(config)
    flat = flatten_config(config)
    own = {key: flat[key] for key in overrides}
    return Arm(name, own, seeds, config, {**common, **small, **own})


def _smoke_values(config: Config) -> dict[str, Any]:
    world = _SMOKE_WORLD if config.data.name == "synthetic" else {}
    return {
        **_SMOKE,
        **world,
        "train.batch_size": min(config.train.batch_size, _SMOKE_BATCH),
    }


def _checked_seeds(seeds: Any, source: str) -> tuple[int, ...]:
    seeds = tuple(seeds) if isinstance(seeds, Sequence) else (seeds,)
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ConfigError(f"{source}={seeds!r}: expected whole numbers from 0 on, such as 0,1,2")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{source}={seeds!r}: a seed stands there twice")
    return seeds


def _check_distinct(arms: Sequence[Arm]) -> None:
    names: set[str] = set()
    configs: dict[str, str] = {}
    for arm in arms:
        if arm.name in names:
            raise ConfigError(f"two arms are named {arm.name!r}: give each a name of its own")
        names.add(arm.name)
        text = json.dumps(arm.config.to_dict(), sort_keys=True)
        if text in configs:
            raise ConfigError(
                f"arms {configs[text]!r} and {arm.name!r} have the same config: leave one out"
            )
        configs[text] = arm.name
