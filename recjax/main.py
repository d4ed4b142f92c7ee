"""The main job, trained, tested and resumed: `python -m recjax.main --config=configs/mf.py`."""

import sys

from absl import app, flags, logging

from recjax.errors import CheckpointError, ConfigError, DataError, DivergenceError
from recjax.flags import define_config_flag, parse_flags, parse_seeds
from recjax.parallel import select_accelerator
from recjax.run import train_until
from recjax.seeds import MODES, train_seeds_until
from recjax.signals import stop_on_signals

_CONFIG = define_config_flag()
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Where everything is left; one that holds a run resumes it. Default: a new one."
)
_ACCELERATOR = flags.DEFINE_enum(
    "accelerator", "auto", ["auto", "cpu", "gpu", "tpu"], "The platform to run on."
)
_SEEDS = flags.DEFINE_string(
    "seeds", "", "Trains under each of these in place of config.seed: 0,1,2 in WORKDIR/seed0, ..."
)
_SEEDS_MODE = flags.DEFINE_enum(
    "seeds_mode",
    "auto",
    MODES,
    "vmap: all seeds in one program; sequential: one after another, compiled once.",
)


def main(argv: list[str]) -> None:
    """Flags in, one function call out."""
    logging.set_verbosity(logging.WARNING)
    stop = stop_on_signals()
    try:
        if len(argv) > 1:
            raise ConfigError(f"what is {argv[1]!r}? options start with --")
        select_accelerator(_ACCELERATOR.value)
        config, workdir = _CONFIG.value, _WORKDIR.value
        if _SEEDS.value:
            seeds, mode = parse_seeds(_SEEDS.value), _SEEDS_MODE.value
            train_seeds_until(stop.is_set, config, seeds, workdir, mode=mode)
        else:
            train_until(stop.is_set, config, workdir)
    except (ConfigError, DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except DivergenceError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(3) from error


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
