"""Prepares files of any size for training: `python -m recjax.prepare --source=DIR --out=DIR`.

DIR holds interactions.parquet (a file, or a folder of Parquet files) or interactions.csv and,
optionally, users.*, items.* and schema.json. Memory holds a few million interactions at a time. A
preparation that was stopped goes on where it was, by the same command. Then train with
`--config=configs/two_tower.py:prepared --config.data.dir=OUT`.
"""

import pathlib
import sys
import time
from collections.abc import Sequence

from absl import app, flags, logging

from recjax.data.files import decode, read_bytes
from recjax.data.prepare import SHARD_ROWS, prepare_dataset
from recjax.data.schema import Schema
from recjax.errors import ConfigError, DataError
from recjax.flags import parse_words

_SOURCE = flags.DEFINE_string("source", "", "The folder with the files.")
_OUT = flags.DEFINE_string("out", "", "The folder to make.")
_SCHEMA = flags.DEFINE_string(
    "schema", "", "A schema file. Default: schema.json in --source, or one that is inferred."
)
_UNKNOWN_ITEMS = flags.DEFINE_enum(
    "unknown_items",
    "error",
    ["error", "drop"],
    "Interactions whose item the item table lacks.",
)
_ROWS = flags.DEFINE_integer(
    "rows", SHARD_ROWS, "Interactions that memory holds at a time.", lower_bound=1
)


def main(argv: Sequence[str]) -> None:
    """Flags in, one function call out."""
    logging.set_verbosity(logging.WARNING)
    began = time.monotonic()
    try:
        if argv[1:] or not _SOURCE.value or not _OUT.value:
            raise ConfigError("--source=DIR and --out=DIR say what is prepared, and where to")
        path = pathlib.Path(_SCHEMA.value)
        schema = Schema.from_json(decode(read_bytes(path), path), str(path)) if path.name else None
        prepare_dataset(
            _SOURCE.value,
            _OUT.value,
            schema=schema,
            unknown_items=_UNKNOWN_ITEMS.value,
            shard_rows=_ROWS.value,
            report=lambda line: print(f"{time.monotonic() - began:7.1f} s  {line}", flush=True),
        )
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    app.run(main, flags_parser=parse_words)
