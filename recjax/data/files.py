"""Reading whole files, with errors that name the file and the line."""

import gzip
import zlib
from pathlib import Path

from recjax.errors import DataError


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file, unpacked where its name ends in `.gz`.

    Raises:
      DataError: the file cannot be read, or its gzip stream is truncated or damaged.
    """
    try:
        if str(path).endswith(".gz"):
            with gzip.open(path) as file:
                return file.read()
        return Path(path).read_bytes()
    except EOFError as error:
        raise DataError(f"{path}: truncated gzip file; fetch or copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a sound gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def decode(data: bytes, path: str | Path, line: int = 1) -> str:
    """UTF-8 text; `line` is the number of its first line in the file.

    Raises:
      DataError: it is not, naming the line.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise DataError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error


def describe(directory: Path) -> str:
    """What a path holds, for a message: `holds ['a.csv', 'b.csv']`, or that it is no directory."""
    if not directory.is_dir():
        return "is no directory"
    names = sorted(path.name for path in directory.iterdir())
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"holds {names[:6]}{more}" if names else "holds nothing"
