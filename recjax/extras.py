"""Libraries that only some commands need, installed by an extra."""

import importlib
from types import ModuleType

from recjax.errors import ConfigError


def require(module: str, extra: str) -> ModuleType:
    """Imports a module of an optional dependency.

    Raises:
      ConfigError: it is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise ConfigError(
            f"this needs {error.name}, which is not installed: pip install -e '.[{extra}]'"
        ) from error
