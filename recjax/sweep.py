"""Many runs of one config file: `python -m recjax.sweep --sweep=FILE --workdir=DIR`."""

import sys
from collections.abc import Sequence

from absl import app, flags, logging

from recjax.config import Word
from recjax.errors import CheckpointError, ConfigError, DataError
from recjax.flags import parse_seeds, parse_words, split_overrides
from recjax.signals import stop_on_signals
from recjax.sweeps.launch import run_sweep
from recjax.sweeps.trials import load_sweep

_SWEEP = flags.DEFINE_string(
    "sweep", "", "File with get_config and sweep(add), and after a colon get_config's argument."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Where each trial has a folder; finished ones are skipped, others resumed."
)
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Trials at a time; 0: in this process. Default: 1, with Slurm all of them."
)
_LAUNCHER = flags.DEFINE_enum(
    "launcher", "local", ["local", "slurm"], "Processes, or jobs with --slurm.partition=NAME etc."
)
_SEARCH = flags.DEFINE_enum(
    "search", "", ["", "optuna"], "First choose the keys for which the file declares ranges."
)
_SEARCH_TRIALS = flags.DEFINE_integer("search_trials", 10, "Of every arm, when it is searched.")
_SEEDS = flags.DEFINE_string("seeds", "", "Of every arm, as 0,1,2. Default: those in the file.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print each trial's command and start nothing.")
_SMOKE = flags.DEFINE_bool("smoke", False, "Two steps with one seed: does every arm run?")
_ACCELERATOR = flags.DEFINE_enum(
    "accelerator", "auto", ["auto", "cpu", "gpu", "tpu"], "The platform that trials run on."
)

_overrides: dict[str, Word] = {}
_slurm: dict[str, Word] = {}


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line; a wrong flag is one message and status 2."""
    overrides, rest = split_overrides(argv)
    slurm, rest = split_overrides(rest, "slurm")
    _overrides.update(overrides)
    _slurm.update(slurm)
    return parse_words(rest)


def main(argv: list[str]) -> None:
    """Flags in, one function call out."""
    logging.set_verbosity(logging.WARNING)
    stop = stop_on_signals()
    try:
        if len(argv) > 1:
            raise ConfigError(f"what is {argv[1]!r}? options start with --")
        if not _SWEEP.value:
            raise ConfigError("which sweep? --sweep=experiments/ablations/candidates.py")
        if not _WORKDIR.value:
            raise ConfigError("where to? --workdir=DIR; the same one goes on where it stopped")
        seeds = parse_seeds(_SEEDS.value) if _SEEDS.value else None
        for name in ("seeds", "smoke"):
            if name in _overrides:
                raise ConfigError(f"unknown config key {name!r}: did you mean --{name}?")
        sweep = load_sweep(_SWEEP.value, seeds=seeds, smoke=_SMOKE.value, **_overrides)
        if _slurm and _LAUNCHER.value != "slurm":
            raise ConfigError(f"--slurm.{next(iter(_slurm))} is an option of --launcher=slurm")
        if _DRY_RUN.value and _SEARCH.value:
            raise ConfigError("--dry_run: what --search runs depends on what it finds")
        if _DRY_RUN.value:
            commands = [trial.command(_WORKDIR.value, _ACCELERATOR.value) for trial in sweep.trials]
            print("\n".join(commands))
            return
        results = run_sweep(
            sweep,
            _WORKDIR.value,
            workers=_WORKERS.value,
            launcher=_LAUNCHER.value,
            slurm={key: word.text for key, word in _slurm.items()},
            search=_SEARCH.value,
            search_trials=_SEARCH_TRIALS.value,
            accelerator=_ACCELERATOR.value,
            should_stop=stop.is_set,
        )
    except (ConfigError, DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if any(result.state == "failed" for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
