"""The command line: `--config=FILE` and `--config.KEY=VALUE`."""

import keyword
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from recjax.config import Word, load_config
from recjax.errors import ConfigError


def define_config_flag() -> flags.FlagHolder:
    """Defines `--config=FILE[:ARGUMENT]`; its value is a ConfigDict after `parse_flags`.

    Each key is a flag too: `--config.model.dim=128`, `--config.model.hidden=256,128`,
    `--config.data.download` (true).
    """
    return flags.DEFINE(
        flags.ArgumentParser(),
        "config",
        None,
        "Config file, and after a colon its argument. Any key of it is set by --config.KEY=VALUE.",
    )


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line: `app.run(main, flags_parser=parse_flags)`.

    What is wrong with a flag, a config file, a key or a value is printed as one message, and the
    program exits with status 2.
    """
    try:
        overrides, rest = split_overrides(argv)
        rest = flags.FLAGS(rest)
        flag = flags.FLAGS["config"]
        if flag.value is None:
            raise ConfigError("which config? for example --config=configs/two_tower.py")
        flag.value = load_config(flag.value, **overrides)
    except (ConfigError, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    return rest


def parse_words(argv: Sequence[str]) -> list[str]:
    """As `parse_flags`, for a command without a config."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def split_overrides(argv: Sequence[str], name: str = "config") -> tuple[dict[str, Word], list[str]]:
    """Divides argv into the value of each `--name.key=value`, by key, and what is left.

    A key may stand alone, or before its value.
    """
    overrides: dict[str, Word] = {}
    rest: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            rest += [word, *words]
            break
        match = re.fullmatch(rf"--?{name}\.([^=]+)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            rest.append(word)
            continue
        key, text = match.groups()
        if text is None:
            text = words.pop(0) if words and not words[0].startswith("--") else None
        overrides[key] = Word(text)
    return overrides, rest


def override_words(overrides: Mapping[str, Any]) -> list[str]:
    """The words that `split_overrides` and a config read as these values of these keys."""
    return [f"--config.{key}={_text(value)}" for key, value in overrides.items()]


def parse_seeds(text: str) -> list[int]:
    """The seeds that `--seeds=0,1,2` names.

    Raises:
      ConfigError: it is no list of whole numbers.
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds={text}: expected whole numbers, such as 0,1,2") from error


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        if value and all(type(element) in (int, float) for element in value):
            return ",".join(map(repr, value))
        if value and all(map(_is_plain, value)):
            return ",".join(value)
    return repr(value)


def _is_plain(element: Any) -> bool:
    return isinstance(element, str) and element.isidentifier() and not keyword.iskeyword(element)
