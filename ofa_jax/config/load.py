"""Settings from a YAML file and ``PATH=VALUE`` overrides, and the list of all settings.

Later layers win: recipe and task, file, overrides. The result is validated once, so every error names its path.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from ofa_jax.config.recipes import RECIPES, overlay
from ofa_jax.config.schema import Experiment, task_settings
from ofa_jax.errors import ConfigError

FORMAT = 2
"""Format of stored settings: 2 gave every task its own settings and renamed ``train.lowest_rate``."""


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
        given = {override.partition("=")[0].strip() for override in overrides}
        from_overrides = all(".".join(map(str, problem["loc"])) in given for problem in problems)
        text = "; ".join(_explain(problem) for problem in problems)
        raise ConfigError(text, where="overrides" if from_overrides else where) from None


def dump_experiment(experiment: Experiment) -> dict[str, Any]:
    """All settings as a plain nested dict; :func:`build_experiment` restores them."""
    return experiment.model_dump(mode="json")


def upgrade_settings(content: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Stored settings in the present format; of format 1 one field is renamed and only fields that the task has stay."""
    if version != 1:
        return dict(content)
    upgraded = overlay(content, {})
    train, task = upgraded.get("train"), upgraded.get("task")
    if isinstance(train, dict) and "lowest_rate" in train:
        train["min_learning_rate"] = train.pop("lowest_rate")
    kind = task_settings().get(str(task.get("name", "forecast"))) if isinstance(task, dict) else None
    if isinstance(task, dict) and kind is not None:
        upgraded["task"] = {name: value for name, value in task.items() if name in kind.model_fields}
    return upgraded


def read_yaml(path: Path, *, shown: str | None = None) -> dict[str, Any]:
    """A YAML mapping without duplicate keys.

    Raises:
        ConfigError: It is missing, not readable, or not a mapping.
    """
    where = shown or str(path)
    try:
        content = yaml.load(path.read_text(), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError("file not found", where=where, fix=_suggest_config(path)) from None
    except IsADirectoryError:
        raise ConfigError("is a folder, not a YAML file", where=where) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"not readable as YAML ({' '.join(str(error).split())})", where=where) from None
    if not isinstance(content, dict):
        raise ConfigError("is not a mapping of settings", where=where)
    return content


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"duplicate key {key.value!r}"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


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
    """``a.b=1`` as ``{"a": {"b": 1}}``."""
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not path:
        fix = "Write for example train.epochs=3"
        raise ConfigError(f"{override!r} is not of the form PATH=VALUE", where="overrides", fix=fix)
    _check_path(path)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = f"the value of {path!r} is not readable as YAML ({' '.join(str(error).split())})"
        raise ConfigError(what, where="overrides") from None
    *sections, name = path.split(".")
    nested: dict[str, Any] = {name: value}
    for section in reversed(sections):
        nested = {section: nested}
    return nested


def _check_path(path: str) -> None:
    known = [setting.path for setting in settings()]
    if path in known:
        return
    if inside := [name for name in known if name.startswith(f"{path}.")]:
        fix = f"Set its settings one by one: {inside[0]}=…"
        raise ConfigError(f"{path!r} is a section of settings", where="overrides", fix=fix)
    same_name = [name for name in known if name.rpartition(".")[2] == path.rpartition(".")[2]]
    nearest = difflib.get_close_matches(path, known, n=3, cutoff=0.4) or same_name
    fix = f"Did you mean {' or '.join(nearest)}?" if nearest else "`ofa-jax train --help` lists all settings"
    raise ConfigError(f"there is no setting {path!r}", where="overrides", fix=fix)


@dataclass(frozen=True)
class Setting:
    """One row of the table of settings."""

    path: str
    type: str
    default: str
    description: str


def settings() -> list[Setting]:
    """Every setting that ``--set`` takes; a setting of some tasks only ends with their names."""
    found: dict[str, Setting] = {}
    for setting in _settings(Experiment, ""):
        found[setting.path] = setting
    tasks = task_settings()
    readers: dict[str, list[str]] = {}
    for name, kind in tasks.items():
        for path in kind.reads | {f"task.{field}" for field in kind.model_fields}:
            readers.setdefault(path, []).append(name)
    for path, names in readers.items():
        if len(names) < len(tasks):
            only = found[path]
            found[path] = Setting(path, only.type, only.default, f"{only.description} ({', '.join(names)})")
    return list(found.values())


def _settings(section: type[BaseModel], prefix: str) -> Iterator[Setting]:
    for name, field in section.model_fields.items():
        kind, path = field.annotation, f"{prefix}{name}"
        if path == "task":
            yield from _task_settings()
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _settings(kind, f"{path}.")
        else:
            yield Setting(path, _type_name(kind), _default(path, field), field.description or "")


def _task_settings() -> list[Setting]:
    """The union of all tasks' settings; a default that differs is the task's."""
    found: dict[str, Setting] = {}
    for kind in task_settings().values():
        for own in _settings(kind, "task."):
            if own.path == "task.name":
                own = Setting(own.path, " | ".join(task_settings()), "forecast", own.description)
            before = found.setdefault(own.path, own)
            if before.default != own.default:
                found[own.path] = Setting(own.path, own.type, "by task", before.description)
    return list(found.values())


def _default(path: str, field: Any) -> str:
    section, _, name = path.rpartition(".")
    if path == "rules" or any(name in recipe.settings().get(section, {}) for recipe in RECIPES.values()):
        return "from the recipe"
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


def _explain(problem: Any) -> str:
    path = ".".join(map(str, problem["loc"])) or "settings"
    if problem["type"] == "extra_forbidden":
        known = [setting.path for setting in settings()]
        section = path.rpartition(".")[0]
        if path in known:
            return f"{path} is not a setting of this task"
        siblings = [name for name in known if name.startswith(f"{section}.")] if section else known
        nearest = difflib.get_close_matches(path, siblings, n=2, cutoff=0.5)
        return f"{path} is not a setting" + (f" (did you mean {' or '.join(nearest)}?)" if nearest else "")
    if problem["type"] == "tuple_type":
        return f"{path} should be a list, such as [{problem['input']}]"
    if problem["type"] == "missing":
        return f"{path} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(problem["input"], Mapping | BaseModel) else f" (found {problem['input']!r})"
    return f"{path}: {message[0].lower()}{message[1:]}{shown}"
