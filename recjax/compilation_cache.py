"""Compiled programs kept on disk: what one process has compiled, the next one reads."""

import contextlib
import hashlib
import os
import pathlib
import platform
import tempfile

import jax
from absl import logging

from recjax.parallel import describe_devices, num_cores

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_MOST_BYTES = 2**30
# What /proc/cpuinfo names an instruction set by; the rest of it changes from core to core.
_CPU_KEYS = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")


def keep_compiled_programs(folder: str | None = None) -> pathlib.Path | None:
    """Makes JAX keep what it compiles in a folder, and read what lies there.

    A program is machine code for one processor: each kind of machine has a subfolder of its own.
    Where the folder cannot be written, that is one warning, and programs are compiled anew. It acts
    on the whole process and starts JAX's devices, so commands call it, and no library function
    does. The least recently read programs go where all together exceed 1 GiB now. What JAX cannot
    read, such as a program half written when its process was killed, it compiles anew.

    Args:
      folder: '' for none; None for `recjax/compiled` in the user's cache. Where
        JAX_COMPILATION_CACHE_DIR is set, it goes before any folder: nothing is changed then.

    Returns:
      The subfolder; None where none was chosen.
    """
    if folder == "":
        jax.config.update("jax_compilation_cache_dir", None)
        return None
    if _VARIABLE in os.environ:
        return None
    path = pathlib.Path(folder or "~/.cache")
    try:
        root = _user_cache() if folder is None else path.expanduser().absolute()
        path = root / machine_kind()
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        _prune(root, _MOST_BYTES)
    except (OSError, RuntimeError) as error:  # the latter where no home is known
        logging.warning(
            "%s cannot be written (%s): programs are compiled anew. --compilation_cache=DIR names "
            "another folder, --compilation_cache= none",
            path,
            error,
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return path


def machine_kind() -> str:
    """A folder's name, the same only where code compiled on one machine is right on the other.

    It counts the processor's model and instruction sets, the cores at hand, by which XLA divides
    its work, the devices and JAX's version.
    """
    parts = [_processor(), str(num_cores()), describe_devices()]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return f"{platform.machine()}-jax{jax.__version__}-{jax.default_backend()}-{digest}"


def _user_cache() -> pathlib.Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return pathlib.Path(home or "~/.cache").expanduser() / "recjax" / "compiled"


def _processor() -> str:
    """The model and instruction sets; where the system does not say, the machine's own name."""
    file = pathlib.Path("/proc/cpuinfo")
    lines = file.read_text().split("\n\n")[0].splitlines() if file.exists() else []
    pairs = [line.partition(":") for line in lines]
    known = [f"{key.strip()}:{text.strip()}" for key, _, text in pairs if key.strip() in _CPU_KEYS]
    return "\n".join(known) or platform.node()


def _prune(root: pathlib.Path, most_bytes: int) -> None:
    """Removes the programs that were read or written longest ago, until the others fit."""
    files = []
    for file in root.glob("*-jax*/*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process prunes too
            files.append((file.stat(), file))
    excess = sum(stat.st_size for stat, _ in files) - most_bytes
    for stat, file in sorted(files, key=lambda each: max(each[0].st_atime, each[0].st_mtime)):
        if excess <= 0:
            break
        file.unlink(missing_ok=True)
        excess -= stat.st_size
