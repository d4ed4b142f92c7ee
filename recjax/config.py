"""Config files: loaded, overridden and compared, with every wrong key or type an error."""

import ast
import dataclasses
import importlib.util
import inspect
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from recjax.errors import CheckpointError, ConfigError

# A ConfigDict: its keys are attributes, which no type checker can know.
Config = Any

# What may change when a workdir is resumed: a whole key, or every key of a group ('log.'). Not how
# the best checkpoint is chosen. Where the data lies may: its hash is compared (protocol.json).
RESUMABLE = (
    "train.steps",
    "train.epochs",
    "train.prefetch",
    "eval.every",
    "eval.ks",
    "eval.patience",
    "eval.batch_size",
    "eval.bootstrap",
    "log.",
    "diagnostics.",
    "profile.",
    "checkpoint.",
    "parallel.",
    "data.dir",
    "data.download",
)


@dataclasses.dataclass(frozen=True)
class Word:
    """The value of a key as a command line has it; None where the key stands alone."""

    text: str | None


def load_config(path: str, /, **overrides: Any) -> ConfigDict:
    """The config that a file's `get_config` returns, with some keys set to other values.

    Args:
      path: a Python file, and after a colon the argument of its `get_config`:
        'configs/two_tower.py' or 'configs/two_tower.py:movielens-1m'. Relative to the current
        folder.
      **overrides: dotted keys and their values, `**{'model.dim': 128}`; a `Word` is read as the
        key's type.

    Returns:
      The config, locked: keys can be set but none added. Sequences are tuples.

    Raises:
      ConfigError: no such file, an argument that it does not know, an unknown key (near ones
        are listed) or a value of another type than the key has.
    """
    with open_config(path) as (config, _):
        set_keys(config, overrides)
        return config


@contextmanager
def open_config(path: str) -> Iterator[tuple[ConfigDict, ModuleType]]:
    """The config of a file, and the file as a module whose functions can import its neighbours.

    They can as long as the context lasts. `path` and errors are those of `load_config`.
    """
    name, _, argument = path.partition(".py:")
    file = pathlib.Path(f"{name}.py" if argument else path).absolute()
    if not file.is_file():
        raise ConfigError(_no_such_file(file))
    with _importing_from(file):
        module = _import_file(file)
        yield _call_get_config(module, file, argument), module


def set_keys(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Sets dotted keys of a config in place; errors are those of `load_config`."""
    for key, value in overrides.items():
        _override(config, key, value)


def flatten_config(config: ConfigDict) -> dict[str, Any]:
    """Every leaf of a config by its dotted key, in alphabetical order."""
    flat: dict[str, Any] = {}
    for key, value in config.items(preserve_field_references=False):
        if isinstance(value, ConfigDict):
            flat.update({f"{key}.{inner}": leaf for inner, leaf in flatten_config(value).items()})
        else:
            flat[key] = value
    return flat


def check_choices(config: ConfigDict, choices: Mapping[str, Sequence[Any]]) -> None:
    """Checks that keys have legal values: `{'loss.candidates': ('full', 'in_batch')}`.

    Of a key that holds a tuple, each element is checked.

    Raises:
      ConfigError: naming the key, its value, the legal values and the nearest of them.
    """
    flat = flatten_config(config)
    for key, legal in choices.items():
        if key not in flat:
            raise ConfigError(f"the config has no key {key!r}; it is one of {_list(legal)}")
        value = flat[key]
        for element in value if isinstance(value, tuple) else (value,):
            if element not in legal:
                near = get_close_matches(str(element), [str(choice) for choice in legal], 1, 0.5)
                hint = f"; did you mean {_list(near)}?" if near else ""
                raise ConfigError(
                    f"config.{key}={element!r} is none of the legal values {_list(legal)}{hint}"
                )


def config_to_json(config: ConfigDict) -> str:
    """The config as indented JSON; `config_from_json` reads it back equal."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def config_from_json(text: str, source: str = "config.json") -> ConfigDict:
    """Reads what `config_to_json` wrote; `source` names the file in errors."""
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source}, line {error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{source}: expected a JSON object, found {type(record).__name__}")
    return _normalise(ConfigDict(record))


def config_differences(a: ConfigDict, b: ConfigDict) -> list[str]:
    """The dotted keys, sorted, whose values differ or that only one of two configs has."""
    flat_a, flat_b = flatten_config(a), flatten_config(b)
    return sorted(
        key
        for key in flat_a.keys() | flat_b.keys()
        if _described(flat_a, key) != _described(flat_b, key)
    )


def check_resume(old: ConfigDict, new: ConfigDict, workdir: str = "the workdir") -> None:
    """Checks that a run with config `new` may go on where one with `old` stopped.

    Raises:
      CheckpointError: naming the keys that differ and must not (see `RESUMABLE`).
    """
    keys = [key for key in config_differences(old, new) if not _is_resumable(key)]
    if keys:
        flat_old, flat_new = flatten_config(old), flatten_config(new)
        changes = "; ".join(
            f"{key} was {_described(flat_old, key)}, is {_described(flat_new, key)}" for key in keys
        )
        raise CheckpointError(
            f"{workdir} holds a run of another config ({changes}): "
            "give the new run another --workdir, or set these keys back to resume this one"
        )


def _call_get_config(module: ModuleType, file: pathlib.Path, argument: str) -> ConfigDict:
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"{file} has no function get_config")
    arguments = [argument] if argument else []
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        what = f"takes no argument {argument!r}" if argument else "needs an argument, FILE.py:X"
        raise ConfigError(f"{file}: get_config {what}") from error
    try:
        config = get_config(*arguments)
    except ValueError as error:
        source = f"{file}:{argument}" if argument else file
        raise ConfigError(f"{source}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{file}: get_config returned {type(config).__name__}, not a ConfigDict")
    return _normalise(config)


def _no_such_file(path: pathlib.Path) -> str:
    if path.suffix != ".py" and path.with_suffix(".py").is_file():
        return f"no config file {path}; did you mean {path.with_suffix('.py')}?"
    folder = path.parent if path.parent.is_dir() else pathlib.Path("configs").absolute()
    known = sorted(file.name for file in folder.glob("*.py") if file.name != "__init__.py")
    if not known:
        return f"no config file {path} (is the current folder the project's root?)"
    near = get_close_matches(path.name, known, 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"no config file {path}; {folder} holds {', '.join(known)}{hint}"


@contextmanager
def _importing_from(path: pathlib.Path) -> Iterator[None]:
    """Lets the file import its project (`from configs import ...`), and leaves no trace.

    The project is the folder above the file's own, the nearest one above that holds `configs`,
    and the current folder. What is imported is imported afresh: a package of the same name from
    another project is set aside, and an edited config is read again.
    """
    above = path.parent.parent
    project = next((folder for folder in path.parents if (folder / "configs").is_dir()), above)
    own = {path.parent.name, "configs", path.relative_to(project).parts[0]}

    def is_own(name: str) -> bool:
        return name.partition(".")[0] in own

    paths = list(sys.path)
    aside = {name: module for name, module in sys.modules.items() if is_own(name)}
    for name in aside:
        del sys.modules[name]
    sys.path[:0] = dict.fromkeys(map(str, (above, project, pathlib.Path.cwd())))
    try:
        yield
    finally:
        sys.path[:] = paths
        for name in [name for name in sys.modules if is_own(name)]:
            del sys.modules[name]
        sys.modules.update(aside)


def _import_file(path: pathlib.Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}.{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _normalise(config: ConfigDict) -> ConfigDict:
    """Makes every list a tuple, so that a config equals its copy read from JSON, and locks it."""
    for key, value in config.items(preserve_field_references=False):
        if isinstance(value, ConfigDict):
            _normalise(value)
        elif isinstance(value, list | tuple):
            with config.unlocked():
                del config[key]  # assignment alone would make the tuple a list again
                config[key] = _as_tuple(value)
    return config.lock()


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


def _override(config: ConfigDict, key: str, value: Any) -> None:
    flat = flatten_config(config)
    if key not in flat:
        inner = [known for known in flat if known.startswith(f"{key}.")]
        if inner:
            raise ConfigError(f"config key {key!r} is a group: set one of its keys {_list(inner)}")
        last = key.rpartition(".")[2]
        near = [known for known in flat if known.rpartition(".")[2] == last]
        near += [known for known in get_close_matches(key, flat, 3, 0.5) if known not in near]
        hint = f"did you mean {_list(near)}?" if near else f"the keys are {_list(flat)}"
        raise ConfigError(f"unknown config key {key!r}: {hint}")
    group, _, last = key.rpartition(".")
    node: Any = config
    for name in group.split(".") if group else ():
        node = node[name]
    kind, default = node.get_type(last), flat[key]
    if isinstance(value, Word):
        node[last] = _parse(key, value.text, kind, default)
    else:
        node[last] = _cast(key, value, kind, default)


def _cast(key: str, value: Any, kind: type, default: Any) -> Any:
    """The value as the key's type: an int serves as a float, a list as a tuple; no more."""
    if isinstance(value, np.generic):
        value = value.item()
    if kind is type(None):
        if value is None or isinstance(value, bool | int | float | str):
            return value
    elif value is None and default is None:
        return None
    elif kind is tuple and isinstance(value, list | tuple):
        return tuple(
            _cast(f"{key}[{i}]", element, _element_kind(default) or type(element), element)
            if not isinstance(element, list | tuple)
            else _as_tuple(element)
            for i, element in enumerate(value)
        )
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif type(value) is kind:
        return value
    raise _wrong_type(key, value, kind, default)


def _parse(key: str, text: str | None, kind: type, default: Any) -> Any:
    """The value that a word of the command line stands for, given the key's type."""
    if text is None:
        if kind is bool:
            return True
        raise ConfigError(f"config key {key!r} needs a value: --config.{key}=VALUE")
    word = text.strip()
    try:
        if kind is str:
            return text
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[word.lower()]
        if kind in (int, float):
            return None if default is None and word.lower() == "none" else kind(word)
        if kind is tuple:
            return _cast(key, _parse_tuple(word, default), tuple, default)
        return _cast(key, _literal(word), kind, default)
    except (KeyError, ValueError) as error:
        raise _wrong_type(key, text, kind, default) from error


def _parse_tuple(word: str, default: Any) -> tuple[Any, ...]:
    """Reads '256,128', '(256, 128)' or 'age,country'."""
    if isinstance(value := _literal(word), list | tuple):
        return tuple(value)
    inside = word[1:-1] if word[:1] + word[-1:] in ("()", "[]") else word
    words = [part.strip() for part in inside.split(",") if part.strip()]
    return tuple(words if _element_kind(default) is str else map(_literal, words))


def _element_kind(default: Any) -> type | None:
    """What a tuple holds, by its default's elements; None where that does not tell."""
    kinds = {type(element) for element in default or ()}
    if kinds == {int, float}:
        return float
    return kinds.pop() if len(kinds) == 1 else None


def _literal(word: str) -> Any:
    """The Python literal that a word is, or the word itself."""
    try:
        return ast.literal_eval(word)
    except (SyntaxError, ValueError):
        return word


def _wrong_type(key: str, value: Any, kind: type, default: Any) -> ConfigError:
    if kind is tuple:
        element = _element_kind(default)
        expected = f"a tuple of {element.__name__}" if element else "a tuple"
    else:
        expected = {bool: "true or false", type(None): "a number or a word"}.get(kind)
        expected = expected or kind.__name__
    return ConfigError(
        f"config key {key!r} must be {expected} (default {default!r}), not {value!r}"
    )


def _is_resumable(key: str) -> bool:
    return any(key == legal or legal[-1] == "." and key.startswith(legal) for legal in RESUMABLE)


def _described(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "absent"


def _list(values: Any) -> str:
    return ", ".join(map(repr, values))
