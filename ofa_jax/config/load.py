"""Settings from a YAML file and ``PATH=VALUE`` overrides, and the list of all settings.

Later layers win: recipe and task, file, overrides. The result is validated once; every error names its path.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ofa_jax.config.reading import MAX_BYTES, parse_yaml
from ofa_jax.config.recipes import RECIPES, nest, overlay
from ofa_jax.config.schema import Experiment
from ofa_jax.config.tasks import TaskSettings, task_class, task_settings
from ofa_jax.errors import ConfigError
from ofa_jax.files import describe, short

FORMAT = 3
"""Format of stored settings: 2 gave every task its own settings and renamed ``train.lowest_rate``; 3 has more
settings of how tables are read."""


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read settings from a YAML file and apply overrides.

    Args:
        path: A file, the name of an installed one (``long/etth1``), or a run's config.yaml.
        overrides: ``PATH=VALUE`` texts with values in YAML (``train.epochs=3``).

    Raises:
        ConfigError: The file is missing or not a YAML mapping, or a path or value is wrong.
    """
    content = read_yaml(_find(Path(path)), shown=str(path))
    provenance = content.pop("provenance", None)
    if isinstance(provenance, Mapping) and "format" in provenance:
        content = upgrade_settings(content, provenance["format"])
    return build_experiment(content, overrides, where=str(path))


def build_experiment(
    content: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str = "config"
) -> Experiment:
    """Settings from a nested mapping and ``PATH=VALUE`` overrides.

    Raises:
        ConfigError: A path or value is wrong; the message lists every mistake with its path.
    """
    layered = overlay(content, {})
    for override in overrides:
        layered = overlay(layered, _parse_override(override))
    try:
        return Experiment.model_validate(layered)
    except ValidationError as error:
        problems = error.errors()
        given = [override.partition("=")[0].strip() for override in overrides]
        found = [".".join(map(str, problem["loc"])) for problem in problems]
        from_overrides = all(
            any(f"{path}.".startswith(f"{place}.") or f"{place}.".startswith(f"{path}.") for path in given)
            for place in found
        )
        text = "; ".join(_explain(problem) for problem in problems)
        raise ConfigError(text, where="overrides" if from_overrides else where) from None


def dump_experiment(experiment: Experiment) -> dict[str, Any]:
    """All settings as a plain nested dict; :func:`build_experiment` restores them."""
    return experiment.model_dump(mode="json")


def upgrade_settings(content: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Stored settings in the current format; in format 1 every task has all fields, one of another name."""
    upgraded = overlay(content, {})
    train, task = upgraded.get("train", {}), upgraded.get("task", {})
    if version == 1 and isinstance(train, dict) and "lowest_rate" in train:
        train["min_learning_rate"] = train.pop("lowest_rate")
    if version == 1 and (kind := task_class(task)):
        upgraded["task"] = {name: task[name] for name in task if name in kind.model_fields}
    return upgraded


def read_yaml(path: Path, *, shown: str | None = None) -> dict[str, Any]:
    """A YAML mapping without duplicate keys.

    Raises:
        ConfigError: It is missing, not readable, or not a mapping.
    """
    where = shown or str(path)
    try:
        with open(path, "rb") as file:
            content = _parse_yaml(file.read(MAX_BYTES + 1), where, "")
    except FileNotFoundError:
        raise ConfigError("file not found", where=where, fix=_suggest_config(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=where) from None
    if not isinstance(content, dict):
        raise ConfigError("is not a mapping of settings", where=where)
    return content


def _parse_yaml(text: str | bytes, where: str, what: str, path: str = "") -> Any:
    try:
        return parse_yaml(text, _name_settings(), path)
    except ValueError as error:
        raise ConfigError(f"{what}not readable as YAML ({error})", where=where) from None


@cache
def _name_settings() -> dict[str, bool]:
    """Settings that are names of files, columns or data sets, and whether they are lists of names."""
    return {
        path: kind is not str
        for path, field in _fields(Experiment, "")
        for kind in _options(field.annotation)
        if kind in (str, tuple[str, ...])
    }


def _options(kind: Any) -> tuple[Any, ...]:
    """The types that a setting may have, without annotations."""
    if get_origin(kind) in (Union, UnionType):
        return tuple(option for part in get_args(kind) for option in _options(part))
    return _options(get_args(kind)[0]) if get_origin(kind) is Annotated else (kind,)


def _installed_root() -> Path:
    return Path(str(resources.files("ofa_jax.configs")))


def _find(path: Path) -> Path:
    """The file itself, or the installed settings file of that name."""
    if path.is_file() or path.is_absolute():
        return path
    name = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    installed = _installed_root() / name.with_suffix(".yaml")
    return installed if installed.is_file() else path


def installed_configs() -> list[str]:
    """Names of the settings files that are installed with the package."""
    root = _installed_root()
    return sorted(file.relative_to(root).with_suffix("").as_posix() for file in root.rglob("*.yaml"))


def _suggest_config(path: Path) -> str:
    """Installed files of a similar name, or else all of them."""
    known = installed_configs()
    typed = path.with_suffix("").as_posix().removeprefix("configs/")
    if nearest := difflib.get_close_matches(typed, known, n=3, cutoff=0.7):
        return f"Did you mean {' or '.join(nearest)}?"
    folders: dict[str, list[str]] = {}
    for name in known:
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, []).append(file)
    shown = [*folders.pop("", []), *(f"{folder}/{{{','.join(files)}}}" for folder, files in folders.items())]
    return f"Name a YAML file or an installed one: {', '.join(shown)}"


def _parse_override(override: str) -> dict[str, Any]:
    """``a.b=1`` as ``{"a": {"b": 1}}``; names and lists of names are taken as they are written."""
    path, equals, text = (part.strip() for part in override.partition("="))
    if not equals or not re.fullmatch(r"\w+(\.\w+){,9}", path):
        fix = "Write for example train.epochs=3"
        raise ConfigError(f"{short(override)} is not of the form PATH=VALUE", where="overrides", fix=fix)
    names, quotes = _name_settings(), ("'", '"')
    is_list = names.get(path) and text.startswith("[") and text.endswith("]")
    if path not in names or text in ("", "~", "null") or text.startswith(quotes):
        value = _parse_yaml(text, "overrides", f"the value of {path!r} is ", path)
    elif is_list and not any(part.strip().startswith(quotes) for part in text[1:-1].split(",")):
        value = [part.strip() for part in text[1:-1].split(",")] if text[1:-1].strip() else []
    elif is_list:
        value = _parse_yaml(text, "overrides", f"the value of {path!r} is ", path)
    else:
        value = text
    return nest(path, value)


@dataclass(frozen=True)
class Setting:
    """One row of the table of settings."""

    path: str
    type: str
    default: str
    description: str


def settings() -> list[Setting]:
    """Every setting that ``--set`` takes; a setting of some tasks only ends with their names."""
    tasks, found = task_settings(), dict[str, list[FieldInfo]]()
    for path, field in _fields(Experiment, ""):
        found.setdefault(path, []).append(field)
    rows = []
    for path, fields in found.items():
        kinds = dict.fromkeys(_type_name(field.annotation) for field in fields)
        defaults = dict.fromkeys(_default(path, field) for field in fields)
        own = path.removeprefix("task.")
        readers = [name for name, kind in tasks.items() if path in kind.reads or own in kind.model_fields]
        only = f" ({', '.join(readers)})" if 0 < len(readers) < len(tasks) else ""
        default = "by task" if len(defaults) > 1 else next(iter(defaults))
        rows.append(Setting(path, " | ".join(kinds), default, f"{fields[0].description}{only}"))
    return rows


def _fields(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    """Every setting by path, once for each task that has it."""
    for name, field in section.model_fields.items():
        kind, path = field.annotation, f"{prefix}{name}"
        if kind is TaskSettings:
            for task in task_settings().values():
                yield from _fields(task, f"{path}.")
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _fields(kind, f"{path}.")
        else:
            yield path, field


def _default(path: str, field: FieldInfo) -> str:
    section, _, name = path.rpartition(".")
    if path == "rules" or any(name in getattr(recipe, section, {}) for recipe in RECIPES.values()):
        return "from the recipe"
    if path == "task.name":
        return "forecast"
    if field.is_required():
        return "required"
    return yaml.safe_dump(field.default, default_flow_style=True).split("\n")[0]


def _type_name(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " | ".join("none" if part is NoneType else _type_name(part) for part in parts)
    if origin is Annotated:
        return _type_name(parts[0])
    if origin is Literal:
        return " | ".join(map(str, parts))
    return "list" if origin is tuple else kind.__name__


_QUOTES = "'\""


def _explain(problem: Any) -> str:
    path, value = ".".join(map(str, problem["loc"])) or "settings", problem["input"]
    known = [setting.path for setting in settings()]
    match problem["type"]:
        case "extra_forbidden" if path in known:
            return f"{path} is not a setting of this task"
        case "extra_forbidden":
            same_name = [name for name in known if name.rpartition(".")[2] == path.rpartition(".")[2]]
            nearest = same_name or difflib.get_close_matches(path, known, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else "`ofa-jax train --help` lists all"
            return f"{path} is not a setting ({hint})"
        case "model_type":
            first = next(name for name in known if name.startswith(f"{path}.")).rpartition(".")[2]
            return f"{path} should be a section of settings, such as {{{first}: …}} (found {short(value)})"
        case "tuple_type":
            return f"{path} should be a list, such as [{short(value).strip(_QUOTES)}]"
        case "missing":
            return f"{path} is missing"
    return f"{path}: {describe(problem, value=not isinstance(value, Mapping | BaseModel))}"
