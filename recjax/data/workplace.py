"""Where a data set is prepared: of what, by whom, and how far it came."""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recjax.data.files import describe
from recjax.data.schema import Schema
from recjax.data.store import FORMAT, MANIFEST
from recjax.errors import ConfigError
from recjax.files import write_file

Report = Callable[[str], None]


def stamp(path: Path, source: Path) -> list[Any]:
    """What tells whether a file is the one it was: name, bytes and time of change."""
    found = path.stat()
    return [str(path.relative_to(source)), found.st_size, found.st_mtime_ns]


def is_finished(out: Path, made_of: dict[str, Any], schema: Schema | None) -> bool:
    """Whether `out` is the whole result; raises ConfigError where it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    manifest = out / MANIFEST
    if not manifest.exists():
        raise ConfigError(
            f"{out} {describe(out)} and is no prepared data set; give --out a folder that is new"
        )
    record = json.loads(manifest.read_text())
    same_schema = schema is None or record["schema"] == json.loads(schema.to_json())
    if record["source"] == made_of and record["format"] == FORMAT and same_schema:
        return True
    what = "of other files or settings" if same_schema else "under another schema"
    raise ConfigError(
        f"{out} holds data that were prepared {what} (see its {MANIFEST}); remove it, or give "
        "another --out"
    )


@contextlib.contextmanager
def alone(work: Path) -> Iterator[None]:
    """Keeps others from working in the folder."""
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{work}: another process is preparing this data set") from error
        yield


def begin(work: Path, plan: dict[str, Any], report: Report) -> None:
    """Starts anew, unless what the folder holds was begun under the same plan."""
    file = work / "plan.json"
    if file.exists() and json.loads(file.read_text()) == plan:
        report(f"going on with what is finished in {work}")
        return
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()
    write_file(file, json.dumps(plan, indent=2))
