"""Where runs lie: the workdirs in a folder, the sweep that they belong to, their JSON files."""

import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from recjax.errors import ReportError


def runs_in(folder: pathlib.Path, depth: int = 2) -> Iterable[pathlib.Path]:
    """Workdirs of runs: the folder itself, or those in it; of a sweep, all that it plans."""
    if (folder / "config.json").exists() or (folder / "trial.json").exists():
        yield folder
    elif "trials" in (plan := plan_of(folder)):  # none yet where a search is under way
        yield from (folder / name for name in plan["trials"])
    elif depth:
        for path in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield from runs_in(path, depth - 1)


def plan_of(folder: pathlib.Path) -> dict[str, Any]:
    """What sweep.json says; nothing where the folder is not a sweep's."""
    file = folder / "sweep.json"
    return read_json(file) if file.exists() else {}


def owner_of(run: pathlib.Path) -> pathlib.Path:
    """The folder that a run is one of: the sweep's, that of its seeds, or its own."""
    run = run.absolute()
    return run.parent if (run / "trial.json").exists() or _is_seed(run) else run


def arm_of(run: pathlib.Path) -> str:
    """The name of a run's arm: its trial's, else the folder's, of `NAME/seed0` NAME."""
    trial = run / "trial.json"
    return read_json(trial)["arm"] if trial.exists() else owner_of(run).name


def short_names(folders: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    """The fewest last parts of each path that tell it from the others."""
    different = list(dict.fromkeys(folders))
    for length in range(1, max(len(folder.parts) for folder in different) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in different]
        if len(set(names)) == len(names):
            break
    return dict(zip(different, names, strict=True))


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      ReportError: it cannot be read or is no JSON object.
    """
    try:
        record = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ReportError(f"{file}, line {error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(record, dict):
        raise ReportError(f"{file}: expected a JSON object, found {type(record).__name__}")
    return record


def read_text(file: pathlib.Path) -> str:
    """The text of a file.

    Raises:
      ReportError: it cannot be read.
    """
    try:
        return file.read_text()
    except OSError as error:
        raise ReportError(f"{file} cannot be read: {error.strerror}") from error


def _is_seed(run: pathlib.Path) -> bool:
    return re.fullmatch(r"seed\d+", run.name) is not None
