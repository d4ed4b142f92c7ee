"""The main job, trained, tested and resumed: `python -m recjax.main --config=configs/mf.py`."""

import traceback

from absl import app, flags, logging

from recjax.allocator import keep_freed_memory
from recjax.compilation_cache import keep_compiled_programs
from recjax.errors import CheckpointError, ConfigError, DataError, DivergenceError
from recjax.flags import define_config_flag, parse_flags, parse_seeds
from recjax.parallel import select_accelerator
from recjax.processes import LOST, is_loss, leave, loss_message, num_processes, start_processes
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
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder for compiled programs, which later runs read; empty for none. Default: one in the "
    "user's cache, or JAX_COMPILATION_CACHE_DIR, which goes before any other.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, for several processes that train one run."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0 on.")
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed", False, "One of several processes that Slurm, Open MPI or a TPU pod started."
)
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat", 30, "Seconds without a sign of one process after which all others end."
)


def main(argv: list[str]) -> None:
    """Flags in, one function call out."""
    logging.set_verbosity(logging.WARNING)
    stop = stop_on_signals()
    try:
        if len(argv) > 1:
            raise ConfigError(f"what is {argv[1]!r}? options start with --")
        if _DISTRIBUTED.value or _COORDINATOR.value or _NUM_PROCESSES.value:
            start_processes(
                _COORDINATOR.value,
                _NUM_PROCESSES.value,
                _PROCESS_ID.value,
                heartbeat_seconds=_HEARTBEAT.value,
            )
        select_accelerator(_ACCELERATOR.value)
        keep_freed_memory()
        keep_compiled_programs(_COMPILATION_CACHE.value)
        config, workdir = _CONFIG.value, _WORKDIR.value
        if _SEEDS.value:
            seeds, mode = parse_seeds(_SEEDS.value), _SEEDS_MODE.value
            train_seeds_until(stop.is_set, config, seeds, workdir, mode=mode)
        else:
            train_until(stop.is_set, config, workdir)
    except DivergenceError as error:
        leave(3, str(error))
    except Exception as error:
        if is_loss(error):
            leave(LOST, loss_message(error))
        if isinstance(error, ConfigError | DataError | CheckpointError):
            leave(2, str(error))
        if num_processes() == 1:
            raise
        leave(1, traceback.format_exc())


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
