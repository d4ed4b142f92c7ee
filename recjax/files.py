"""Writing whole files: all of one or, on an error, none of it."""

import os
import pathlib


def write_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file so that a reader, or a crash, meets the old content or the new, never a part."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
