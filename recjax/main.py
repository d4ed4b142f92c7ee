"""The main job, trained, tested and resumed: `python -m recjax.main --config=configs/mf.py`."""

import signal
import sys
import threading

from absl import app, flags, logging

from recjax.config import define_config_flag, parse_flags
from recjax.errors import CheckpointError, ConfigError, DataError, DivergenceError
from recjax.parallel import select_accelerator
from recjax.run import train_until

_CONFIG = define_config_flag()
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Where everything is left; one that holds a run resumes it. Default: a new one."
)
_ACCELERATOR = flags.DEFINE_enum(
    "accelerator", "auto", ["auto", "cpu", "gpu", "tpu"], "The platform to run on."
)


def main(argv: list[str]) -> None:
    """Flags in, one function call out."""
    logging.set_verbosity(logging.WARNING)
    stop = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        del frame
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # a second one ends the program at once

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        if len(argv) > 1:
            raise ConfigError(f"what is {argv[1]!r}? options start with --")
        select_accelerator(_ACCELERATOR.value)
        train_until(stop.is_set, _CONFIG.value, _WORKDIR.value)
    except (ConfigError, DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except DivergenceError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(3) from error


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
