"""Settings of a run from the words of a command line, from Python values, and from YAML files.

`tyro` alone parses them: the values of files and of Python by the same types as the command line, whose defaults the
files become, so that the last one wins.
"""

import dataclasses
import sys
from collections.abc import Collection
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

import tyro
import yaml

from hfgen.checks import nearest
from hfgen.errors import ConfigError
from hfgen.logging import warn
from hfgen.training.engine.settings import AnySettings, Settings, check_settings

SETTINGS = "config.yaml"
"""The file of a run's settings in its folder."""


@dataclass(kw_only=True)
class _Sources:
    """Fields that decide which YAML files are read, and which of their values count."""

    output_dir: Path | None = None
    config: Path | None = None
    resume: bool = False
    max_steps: int | None = None
    budget: str | None = None


def program_of(cls: type) -> str:
    """Return the words before the options of a recipe, whose settings are `cls`."""
    return f"hfgen train {cls.__module__.rpartition('.')[2]}"


def print_help(documented: type) -> NoReturn:
    """Print the help of a class made for it, and exit."""
    tyro.cli(documented, args=["--help"], prog=program_of(documented), config=(tyro.conf.OmitArgPrefixes,))
    raise AssertionError("tyro exits after the help")


def parse(cls: type[AnySettings], arguments: list[str] | None = None) -> AnySettings:
    """Return settings of class `cls` from command-line `arguments` (default: sys.argv) and the YAML that they name.

    With --resume the run's own `config.yaml` comes first, so that only changes have to be repeated. The last of
    --max-steps and --budget counts. Raises ConfigError for values that no run can use, and ends with tyro's usage
    message and exit code 2 where words or required fields are wrong or missing.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    program = program_of(cls)
    # read the YAML files that the arguments name, the run's own first
    given, _ = tyro.cli(_Sources, args=arguments, prog=program, add_help=False, return_unknown_args=True)
    if given.budget is not None and given.max_steps is not None:
        raise ConfigError("give --max-steps or --budget, not both")
    values = _from_files(cls, given.config, given.output_dir, given.resume)
    values = _overridden(values, {"max_steps": given.max_steps, "budget": given.budget})
    # parse the rest, with their values as defaults
    required = [field.name for field in dataclasses.fields(cls) if _is_required(field)]
    default = cls(**{**dict.fromkeys(required, tyro.MISSING), **values})
    settings = tyro.cli(cls, args=arguments, default=default, prog=program, config=(tyro.conf.OmitSubcommandPrefixes,))
    check_settings(settings)
    return settings


def settings_from(cls: type[AnySettings], values: dict[str, Any], where: str) -> AnySettings:
    """Return settings of class `cls` from `values` by name, checked like those of a command line; None is not given.

    With `resume` and with `config` the values of these files come first, as in `parse`. Raises ConfigError, naming the
    nearest field, for an unknown name, and for values that a field does not take. `where`: place, for messages.
    """
    # parse each value like the words of a command line
    fields = {field.name: field for field in dataclasses.fields(cls)}
    given: dict[str, Any] = {}
    for name, value in values.items():
        known = _known_name(name, fields, where)
        if value is not None:
            given[known] = _parsed(known, value, fields[known].type, where)
    if "max_steps" in given and "budget" in given:
        raise ConfigError(f"{where}: give max_steps or budget, not both")
    # put them over the values of files
    files = _from_files(cls, given.get("config"), given.get("output_dir"), given.get("resume", False))
    merged = _overridden(files, given)
    missing = [name for name, field in fields.items() if _is_required(field) and name not in merged]
    if missing:
        raise ConfigError(f"{where}: needs {', '.join(missing)}")
    settings = cls(**merged)
    check_settings(settings)
    return settings


def _parsed(name: str, value: Any, kind: Any, where: str) -> Any:
    """Return a Python value as the command line would read it. Raises ConfigError unless the field takes it."""
    named = dataclasses.make_dataclass("Named", [(name, kind)])
    listed = list(value) if isinstance(value, tuple) else value
    try:
        with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            parsed: Any = tyro.cli(named, args=_words(name, listed, kind), prog=where, add_help=False)
    except SystemExit as ended:
        raise ConfigError(f"{where}: {name} must be {_kind_in_words(kind)}, got {value!r}") from ended
    return getattr(parsed, name)


def _kind_in_words(kind: Any) -> str:
    """Return the type of a field as text, such as "int or tuple[int, int]", without None."""
    # a plain type
    if isinstance(kind, type) and not get_args(kind):
        return kind.__name__
    # parts of an annotated type, a choice, or a union
    parts = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) is Annotated:
        return _kind_in_words(parts[0])
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_kind_in_words, parts))
    return str(kind)


def _from_files(
    cls: type[AnySettings], config: Path | None, output_dir: Path | None, resume: bool
) -> dict[str, Any]:
    """Return the values of the file `config`, over those of the run in the output folder if it is to be resumed."""
    given = _typed(cls, _read_yaml(config), config) if config else {}
    folder = output_dir or given.get("output_dir")
    values: dict[str, Any] = {}
    if resume and folder and folder.is_dir():
        stored = _of_run(folder)
        values = cls.before | _typed(cls, stored, folder / SETTINGS) if stored else {}
    return _overridden(values, given)


def _of_run(folder: Path) -> dict[str, Any]:
    """Return the settings of a run: of its `config.yaml`, else, with a warning, of its newest checkpoint.

    {} where both are missing. Raises ConfigError for a broken file without a checkpoint.
    """
    # read the file
    path, problem = folder / SETTINGS, "is missing"
    if path.is_file():
        try:
            return _read_yaml(path)
        except ConfigError as error:
            problem = str(error).removeprefix(f"{path}: ").splitlines()[0]
    # read the checkpoint in its place
    from hfgen import runs  # imports torch, which help does not need
    from hfgen.loading.files import read_json

    stored = runs.newest_checkpoint(folder)
    if stored is not None:
        warn(f"{path}: {problem}; took the settings of {stored.name} in its place")
        values: dict[str, Any] = read_json(stored / "state.json")["settings"]
        return {name: value for name, value in values.items() if name not in ("config", "resume")}
    if path.is_file():
        raise ConfigError(f"{path}: {problem}")
    return {}


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _overridden(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Return `earlier` values with the `later` ones over them; another budget ends a number of steps, and vice versa.

    A run stores its budget and the number of steps that fit into it; the same budget again keeps both.
    """
    values = dict(earlier)
    later = {name: value for name, value in later.items() if value is not None}
    for name, other in (("budget", "max_steps"), ("max_steps", "budget")):
        if name in later and later[name] != earlier.get(name):
            values.pop(other, None)
    return values | later


def _read_yaml(path: Path) -> dict[str, Any]:
    """Return the values of a YAML file by name. Raises ConfigError naming the file."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold `field: value` lines, found {type(values).__name__}")
    return values


def _typed(cls: type[Settings], values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the `values` of a file as the fields of `cls` have them. Raises ConfigError naming file and field."""
    # turn each value into the words that a user would type
    fields = {field.name: field for field in dataclasses.fields(cls)}
    words: dict[str, list[str]] = {}
    for key, value in values.items():
        name = _known_name(key, fields, path)
        if value is not None:
            words[name] = _words(name, value, fields[name].type)
    # parse those words by the types of the fields
    named = dataclasses.make_dataclass("Named", [(name, fields[name].type) for name in words])
    arguments = list(chain.from_iterable(words.values()))
    try:
        parsed: Any = tyro.cli(named, args=arguments, prog=str(path), add_help=False)
    except SystemExit as ended:
        raise ConfigError(f"{path}: holds a value that its field does not take, named above") from ended
    return {name: getattr(parsed, name) for name in words}


def _known_name(key: Any, fields: Collection[str], where: str | Path) -> str:
    """Return a key of a file or a call as the name of a field. Raises ConfigError, with the nearest, for others."""
    name = str(key).replace("-", "_")
    if name in fields:
        return name
    raise ConfigError(f"{where}: unknown field {key!r}; {nearest(name, fields)}")


def _words(name: str, value: Any, kind: Any) -> list[str]:
    """Return the words that a user would have typed for a YAML value."""
    if value is False and kind is not bool:                # YAML reads a bare `no` as false
        value = "no"
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
