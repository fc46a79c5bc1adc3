"""What an experiment is: frozen, typed settings; YAML in; overrides; the recipes as data.

Three layers are laid over one another, later ones winning: the recipe's numbers, the file, ``--set PATH=VALUE``. The result is
validated once, so a wrong value is named with its path whichever layer it came from.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ofa_jax.errors import ConfigError

Missing = Literal["error", "linear", "ffill"]
Timestamps = Literal["error", "as_is"]
SplitRule = Literal["ett_hour", "ett_minute", "ratio"]
Action = Literal["freeze", "train", "adapt", "train_and_adapt"]
Scaling = Literal["rslora", "lora", "none"]
Init = Literal["peft_gaussian", "theorem", "kaiming"]
Protocol = Literal["strict", "published"]
TaskName = Literal["forecast", "zero_shot", "short_term", "anomaly", "classification", "imputation"]
LossName = Literal["mse", "smape", "mape", "cross_entropy"]

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        if (
            isinstance(value, bool)
            and info.field_name
            and cls.model_fields[info.field_name].annotation is not bool
        ):
            raise ValueError("input should be neither true nor false")  # pydantic would read them as 1 and 0
        return value


class DataConfig(_Section):
    """Which series, and how they are read and split."""

    source: str = Field(
        description="name of a catalogued data set (etth1, …), or path of a file (or folder of cases) of your own"
    )
    target: str | None = Field(
        None, description="zero_shot: the data set that is forecast without training on it"
    )
    parts: tuple[str, ...] | None = Field(
        None, description="anomaly: which streams of the set (machine-1-2, …); all when not given"
    )
    timestamp_column: str | None = Field(
        None, description="column of timestamps; found by itself when not given"
    )
    columns: tuple[str, ...] | None = Field(
        None, description="columns to forecast; all numeric ones when not given"
    )
    missing: Missing = Field("error", description="what to do with missing values")
    timestamps: Timestamps | None = Field(
        None, description="duplicate or irregular timestamps; not given: the catalog's word, else error"
    )
    split: SplitRule | None = Field(None, description="not given: the catalog's rule, else ratio")
    ratios: tuple[float, float, float] = Field(
        (0.7, 0.1, 0.2), description="train, validation and test shares for split ratio"
    )
    percent: Annotated[int, Field(ge=1, le=100)] = Field(
        100, description="share of the training part used, from its start (few-shot)"
    )
    season: Positive | None = Field(
        None, description="steps of the main cycle, for seasonal naive; not given: catalog or frequency"
    )

    @model_validator(mode="after")
    def _check_ratios(self) -> DataConfig:
        if min(self.ratios) <= 0 or abs(sum(self.ratios) - 1) > 1e-6:
            raise ValueError(f"ratios {self.ratios} must be positive and add up to 1")
        return self


class TaskConfig(_Section):
    """What is asked of the model."""

    name: TaskName = Field(
        "forecast", description="what the model does; few-shot is forecast with data.percent"
    )
    input_length: Positive = Field(336, description="input steps, L")
    horizon: Annotated[int, Field(ge=0)] = Field(
        96, description="forecast steps, H; 0 for tasks that forecast nothing"
    )
    channels: Positive | None = Field(
        None, description="channels of a multivariate task; not given: the data's"
    )
    classes: Positive | None = Field(None, description="classification: classes; not given: the data's")
    calendar: Annotated[int, Field(ge=0)] | None = Field(
        None, description="imputation: calendar features; not given: the timestamps'"
    )
    loss: LossName = Field("mse", description="what training makes small")
    step: Positive = Field(1, description="anomaly: rows from one training window to the next")
    anomaly_ratio: Annotated[float, Field(gt=0, lt=100)] = Field(
        1, description="anomaly: percentage of scores above the threshold"
    )
    mask_rate: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.25, description="imputation: share of points that are hidden"
    )
    cut_range: Annotated[float, Field(gt=0)] = Field(
        1.5, description="short_term: horizons before a series' end within which it is cut"
    )

    @model_validator(mode="after")
    def _check_loss(self) -> TaskConfig:
        fitting = _LOSSES[self.name]
        if self.loss not in fitting:
            raise ValueError(
                f"the loss {self.loss!r} is not one of {', '.join(fitting)}, which the task {self.name!r} knows"
            )
        if self.name in ("forecast", "zero_shot", "short_term") and not self.horizon:
            raise ValueError(f"the task {self.name!r} needs a horizon of at least 1")
        return self


_LOSSES: dict[str, tuple[str, ...]] = {
    "forecast": ("mse", "smape", "mape"),
    "zero_shot": ("mse", "smape", "mape"),
    "short_term": ("mse", "smape", "mape"),
    "anomaly": ("mse",),
    "classification": ("cross_entropy",),
    "imputation": ("mse",),
}


class RandomTrunk(_Section):
    """Shape and seed of a random trunk, used only with ``trunk.source: random``."""

    n_embd: Positive = Field(768, description="width")
    n_head: Positive = Field(12, description="attention heads")
    n_positions: Positive = Field(1024, description="positions")
    seed: Seed = Field(0, description="seed of the random weights")


class TrunkConfig(_Section):
    """Which GPT-2, and how it is computed."""

    source: str = Field(
        "openai-community/gpt2",
        description="hub id, folder of weights, or the word random, attention or none",
    )
    revision: str | None = Field(None, description="revision on the hub")
    n_layer: Positive = Field(6, description="blocks kept, from the first")
    random: RandomTrunk = Field(RandomTrunk(), description="shape of a random trunk")
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="dropout of embeddings, attention and residuals; not given: the trunk's own"
    )
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: float32 on CPU, bfloat16 elsewhere"
    )
    remat: bool = Field(False, description="recompute blocks in the backward pass to save memory")


class NetworkConfig(_Section):
    """The layers around the trunk."""

    patch: Positive = Field(description="patch length")
    stride: Positive = Field(description="steps from one patch to the next")
    read_width: Positive | None = Field(
        None, description="hidden dimensions that the head reads, d_ff; not given: all (anomaly, short_term)"
    )
    embed_width: Positive | None = Field(
        None, description="short_term: width before zero-padding to the trunk's; not given: the trunk's"
    )
    segment: Positive = Field(25, description="anomaly: steps that are normalised together")
    positions: bool = Field(True, description="add GPT-2's position embedding")
    seed: Seed = Field(0, description="seed of the random layers around the trunk")


class AdapterConfig(_Section):
    """The low-rank adapters' numbers."""

    rank: Positive = Field(16, description="rank r")
    alpha: Annotated[float, Field(ge=0)] = Field(16, description="scale numerator")
    scaling: Scaling = Field("rslora", description="alpha/sqrt(r), alpha/r or alpha")
    init: Init = Field("peft_gaussian", description="distribution of the factor that is not zero")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.01, description="dropout on the input of dense adapters"
    )
    seed: Seed = Field(0, description="seed of the adapters' start")


class TrainConfig(_Section):
    """How the trainable tree is fitted."""

    epochs: Positive = Field(10, description="passes over the training windows")
    batch_size: Positive = Field(256, description="windows per step")
    optimizer: Literal["adam", "radam"] = Field("adam", description="Adam, or rectified Adam")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="largest norm of the whole gradient; not given: no limit"
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-4, description="step size at the start")
    schedule: Literal["cosine", "decay", "constant"] = Field(
        "cosine", description="change of the step size from epoch to epoch"
    )
    decay: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="schedule decay: factor per epoch, from the third epoch on"
    )
    cosine_epochs: Positive = Field(20, description="epochs from the first step size to the lowest, T_max")
    lowest_rate: Annotated[float, Field(ge=0)] = Field(1e-8, description="step size at the end of the cosine")
    patience: Positive = Field(3, description="epochs without a better validation loss before stopping")
    seed: Seed = Field(2021, description="seed of batch order and dropout")
    chunk: Positive = Field(
        32,
        description="steps per dispatch; up to 32 the same bits, above another program that may round otherwise",
    )
    eval_batch_size: Positive | None = Field(
        None,
        description="windows per evaluation step; not given: 512, on a CPU fewer; changes rounding alone",
    )
    log_every: Positive = Field(50, description="steps between training lines in metrics.jsonl")
    gradient_log: Positive | None = Field(
        None, description="steps between lines about gradients in metrics.jsonl; not given: none"
    )
    checkpoint_minutes: Annotated[float, Field(gt=0)] = Field(
        5, description="longest time between checkpoints, besides every epoch's end"
    )
    micro_batch: Positive | None = Field(
        None,
        description="windows of a step that are worked on at a time; not given: all, on a CPU fewer; changes rounding alone",
    )
    parallel: Literal["jit", "pmap"] = Field(
        "jit", description="several devices: one program for all, or one each; changes rounding alone"
    )
    fsdp: Positive = Field(
        1, description="parallel jit: devices that share out the large frozen parameters among them"
    )

    @model_validator(mode="after")
    def _check_parallel(self) -> TrainConfig:
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ValueError(
                f"micro_batch is {self.micro_batch}, more than the {self.batch_size} windows of batch_size"
            )
        if self.parallel == "pmap" and self.fsdp > 1:
            raise ValueError(
                f"fsdp is {self.fsdp}, but parallel pmap keeps all frozen parameters on every device; take parallel jit"
            )
        return self


class Experiment(_Section):
    """Everything that decides a run's result."""

    data: DataConfig
    task: TaskConfig = TaskConfig()
    trunk: TrunkConfig = TrunkConfig()
    protocol: Protocol = Field(
        "strict", description="strict, or the published practice where it differs (docs/protocol.md, §5)"
    )
    recipe: Literal["uniform", "reference", "paper", "gpt4ts", "full", "head_only"] = Field(
        "reference", description="where rules and numbers start"
    )
    rules: tuple[tuple[Action, str], ...] = Field(description="ordered path rules; the recipe's if not given")
    network: NetworkConfig
    adapters: AdapterConfig = AdapterConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _check_task(self) -> Experiment:
        name, network = self.task.name, self.network
        if name in _STEPWISE and (network.patch, network.stride) != (1, 1):
            raise ValueError(
                f"the task {name!r} reads step by step, so network.patch and network.stride are 1"
            )
        if name == "anomaly" and self.task.input_length % network.segment:
            raise ValueError(
                f"task.input_length {self.task.input_length} is no multiple of network.segment {network.segment}; choose one"
            )
        if name == "zero_shot" and self.data.target is None:
            raise ValueError("data.target is missing")
        for path, tasks in _READ_BY.items():
            section, _, field = path.partition(".")
            given, model = getattr(getattr(self, section), field), type(getattr(self, section))
            if name not in tasks and given != model.model_fields[field].default:
                raise ValueError(f"{path} is {given!r}, but the task {name!r} does not read it; leave it out")
        if name in ("anomaly", "classification", "imputation") and self.task.horizon:
            raise ValueError(
                f"task.horizon is {self.task.horizon}, but the task {name!r} forecasts nothing; leave it out"
            )
        return self


_SERIES = ("forecast", "imputation")
_FORECASTING = ("forecast", "zero_shot", "short_term")
_READ_BY: dict[str, tuple[str, ...]] = {
    "data.target": ("zero_shot",),
    "data.parts": ("anomaly",),
    "data.columns": _SERIES,
    "data.missing": (*_FORECASTING, "classification", "imputation"),
    "data.timestamps": (*_FORECASTING, "imputation"),
    "data.timestamp_column": (*_FORECASTING, "imputation"),
    "data.split": _SERIES,
    "data.ratios": _SERIES,
    "data.percent": ("forecast", "zero_shot", "imputation"),
    "data.season": _FORECASTING,
    "task.channels": ("anomaly", "classification", "imputation"),
    "task.classes": ("classification",),
    "task.calendar": ("imputation",),
    "task.step": ("anomaly",),
    "task.anomaly_ratio": ("anomaly",),
    "task.mask_rate": ("imputation",),
    "task.cut_range": ("short_term",),
    "network.read_width": ("anomaly", "short_term"),
    "network.embed_width": ("short_term",),
    "network.segment": ("anomaly",),
}
"""Settings that only these tasks read; given to another they are refused, because they would have no effect."""

_PATCHES = {"patch": 16, "stride": 8, "positions": True}
_ADAPTERS = {"rank": 16, "alpha": 16.0, "scaling": "rslora", "init": "peft_gaussian", "dropout": 0.01}
_TWO_ADAPTERS = [["adapt", "gpt2/wpe/embedding"], ["adapt", "out_layer/kernel"], ["freeze", ".*"]]
_TUNED = r"gpt2/(wpe|ln_f|h/\d+/ln_[12])/.*"

RECIPES: dict[str, dict[str, Any]] = {
    # The authors' code: overlapping patches, position embedding added and adapted, alpha 16 (protocol §1.7, §5 row 2).
    "reference": {"network": _PATCHES, "adapters": _ADAPTERS, "rules": _TWO_ADAPTERS},
    # The paper's text: patches side by side, no position embedding, alpha 1, Theorem 1's rank-independent start.
    "paper": {
        "network": {"patch": 16, "stride": 16, "positions": False},
        "adapters": {"rank": 16, "alpha": 1.0, "scaling": "rslora", "init": "theorem", "dropout": 0.01},
        "rules": [["adapt", "out_layer/kernel"], ["freeze", ".*"]],
    },
    # The method's two adapters for every task, also where the authors' code does otherwise (protocol §5 row 4).
    "uniform": {"network": _PATCHES, "adapters": _ADAPTERS, "rules": _TWO_ADAPTERS},
    # GPT4TS (Zhou et al., 2023): layer norms, position embedding and every layer around the trunk trained, no adapters.
    "gpt4ts": {"network": _PATCHES, "rules": [["train", _TUNED], ["train", "(?!gpt2/).*"], ["freeze", ".*"]]},
    "full": {"network": _PATCHES, "rules": [["train", ".*"]]},
    "head_only": {"network": _PATCHES, "rules": [["train", "out_layer/.*"], ["freeze", ".*"]]},
}
"""Rules and numbers of each recipe; a file and ``--set`` go over them."""

_BY_STEP = {"patch": 1, "stride": 1}

TASK_NUMBERS: dict[str, dict[str, Any]] = {
    "forecast": {},
    "zero_shot": {"task": {"loss": "smape"}, "network": _BY_STEP},
    "short_term": {"task": {"loss": "smape"}, "network": _BY_STEP},
    "anomaly": {"task": {"input_length": 100, "horizon": 0}, "network": _BY_STEP},
    "classification": {"task": {"horizon": 0, "loss": "cross_entropy"}},
    "imputation": {"task": {"input_length": 96, "horizon": 0}, "trunk": {"n_layer": 3}, "network": _BY_STEP},
}
"""What a task needs besides, laid over the recipe's numbers and below the file's: most tasks read step by step, without patches."""

_STEPWISE = ("short_term", "anomaly", "imputation")

SHORT_TERM_REFERENCE = [
    ["train_and_adapt", "gpt2/wpe/embedding"],
    ["train", r"gpt2/(ln_f|h/\d+/ln_[12])/.*"],
    ["train", "(?!gpt2/).*"],
    ["freeze", ".*"],
]
"""What the authors' short-term code really trains: GPT4TS's set and an adapter on top of the trained ``wpe`` (protocol §5 row 4)."""


PUBLISHED_TRANSFER: dict[str, dict[str, Any]] = {
    "m4_yearly": {"data": {"percent": 10}},
    "m4_quarterly": {"data": {"percent": 10}, "task": {"loss": "mape"}},
    "m4_monthly": {"data": {"percent": 10}, "task": {"loss": "mape"}},
}
"""What the published transfer from M4 does otherwise (protocol §5 row 7), by source, below what the file says."""


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read a YAML file and lay overrides over it.

    Args:
        path: The file, or the name of one that is installed with the package (``configs/long/etth1.yaml``, ``long/etth1``). A run's
            own config.yaml is read too; its ``provenance`` is not a setting and left aside.
        overrides: ``PATH=VALUE`` texts, values read as YAML (``train.epochs=3``).

    Raises:
        ConfigError: The file is missing or no YAML mapping, or a path or value is wrong.
    """
    typed, path = str(path), Path(path)
    if not path.is_file():  # a folder of that name does not hide an installed file
        path = _installed(path) or path
    try:
        content = yaml.load(path.read_text(), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError("there is no such file", where=str(path), fix=_instead_of(path)) from None
    except IsADirectoryError:
        raise ConfigError("this is a folder, not a YAML file", where=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not readable as YAML ({' '.join(str(error).split())})", where=str(path)) from None
    if not isinstance(content, dict):
        raise ConfigError("holds no mapping of settings", where=str(path))
    content.pop("provenance", None)
    return build_experiment(content, overrides, where=typed)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key standing twice in one mapping: the first value would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _installed(path: Path) -> Path | None:
    name = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    found = _installed_root() / name.with_suffix(".yaml")
    return found if not path.is_absolute() and found.is_file() else None


def _installed_root() -> Path:
    from importlib import resources

    return Path(str(resources.files("ofa_jax.configs")))


def installed_configs() -> list[str]:
    """Names of the settings files that are installed with the package."""
    root = _installed_root()
    return sorted(file.relative_to(root).with_suffix("").as_posix() for file in root.rglob("*.yaml"))


def _instead_of(path: Path) -> str:
    """What to name where there is no such file: the installed files of a similar name, or else all of them."""
    known = installed_configs()
    nearest = difflib.get_close_matches(
        path.with_suffix("").as_posix().removeprefix("configs/"), known, n=3, cutoff=0.7
    )
    if nearest:
        return f"Did you mean {' or '.join(nearest)}?"
    folders: dict[str, list[str]] = {}
    for name in known:
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, []).append(file)
    shown = [*folders.pop("", []), *(f"{folder}/{{{','.join(files)}}}" for folder, files in folders.items())]
    return f"Name a YAML file, or one that is installed: {', '.join(shown)}"


def build_experiment(
    content: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str = "config"
) -> Experiment:
    """Settings from a nested mapping, over the recipe's numbers and below ``overrides``.

    Raises:
        ConfigError: A path or value is wrong; the message lists every mistake with its path.
    """
    layered = _copy(content)
    for override in overrides:
        _set(layered, override)
    try:
        return Experiment.model_validate(_overlay(_defaults(layered), layered))
    except ValidationError as error:
        problems = error.errors()
        given = {override.partition("=")[0].strip() for override in overrides}
        if all(".".join(map(str, problem["loc"])) in given for problem in problems):
            where = "--set"
        raise ConfigError("; ".join(_explain(problem) for problem in problems), where=where) from None


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of recipe and task below what is given; an unknown recipe or task is told by the validation, alone."""
    recipe, task = given.get("recipe", "reference"), given.get("task")
    name = task.get("name", "forecast") if isinstance(task, Mapping) else "forecast"
    below = _copy(RECIPES.get(recipe if isinstance(recipe, str) else "", RECIPES["reference"]))
    _overlay(below, _copy(TASK_NUMBERS.get(name if isinstance(name, str) else "", {})))
    if (recipe, name) == ("reference", "short_term"):
        below["rules"] = SHORT_TERM_REFERENCE
    if (given.get("protocol"), name) == ("published", "zero_shot"):
        data = given.get("data")
        _overlay(
            below,
            _copy(PUBLISHED_TRANSFER.get(str(data.get("source")) if isinstance(data, Mapping) else "", {})),
        )
    return below


def dump_experiment(experiment: Experiment) -> dict[str, Any]:
    """All settings as a plain nested dict that :func:`build_experiment` reads back unchanged."""
    return experiment.model_dump(mode="json")


def _copy(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {name: _copy(value) for name, value in node.items()}
    return node


def _overlay(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(name), dict):
            _overlay(below[name], value)
        else:
            below[name] = value
    return below


def _set(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not path:
        raise ConfigError(
            f"{override!r} is not of the form PATH=VALUE",
            where="--set",
            fix="Write for example train.epochs=3",
        )
    known = [setting.path for setting in settings()]
    if path not in known:
        nearest = difflib.get_close_matches(path, known, n=3, cutoff=0.4) or [
            name for name in known if name.rpartition(".")[2] == path.rpartition(".")[2]
        ]
        if any(name.startswith(f"{path}.") for name in known):
            first = next(name for name in known if name.startswith(f"{path}."))
            raise ConfigError(
                f"{path!r} is a section of settings",
                where="--set",
                fix=f"Set what is in it, one by one: {first}=…",
            )
        raise ConfigError(
            f"there is no setting {path!r}",
            where="--set",
            fix=f"Did you mean {' or '.join(nearest)}?"
            if nearest
            else "`ofa-jax train --help` lists all settings",
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"the value of {path!r} is not readable as YAML ({' '.join(str(error).split())})", where="--set"
        ) from None
    *sections, name = path.split(".")
    node = content
    for section in sections:
        inner = node.get(section)
        if not isinstance(inner, dict):
            inner = {}
            node[section] = inner
        node = inner
    node[name] = value


def _paths(node: Mapping[str, Any], prefix: str = "") -> set[str]:
    paths = set()
    for name, value in node.items():
        paths |= _paths(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}"}
    return paths


class Setting(BaseModel):
    """One line of the table of settings."""

    path: str
    type: str
    default: str
    description: str


def settings(section: type[BaseModel] = Experiment, prefix: str = "") -> Iterator[Setting]:
    """Every setting that ``--set`` takes, with type, default and meaning."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings(kind, f"{prefix}{name}.")
            continue
        path = f"{prefix}{name}"
        if any(path in _paths(recipe) for recipe in RECIPES.values()):
            default = "from the recipe"
        else:
            default = (
                "required"
                if field.is_required()
                else yaml.safe_dump(field.default, default_flow_style=True).split("\n")[0]
            )
        yield Setting(
            path=f"{prefix}{name}",
            type=_type_name(kind),
            default=default,
            description=field.description or "",
        )


def _type_name(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " | ".join("none" if part is NoneType else _type_name(part) for part in parts)
    if origin is Annotated:
        return _type_name(parts[0])
    if origin is Literal:
        return " | ".join(str(value) for value in parts)
    return "list" if origin is tuple else kind.__name__


def _explain(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"]) or "settings"
    if problem["type"] == "extra_forbidden":
        known = [setting.path for setting in settings()]
        section = path.rpartition(".")[0]
        siblings = [name for name in known if name.startswith(f"{section}.")] if section else known
        nearest = difflib.get_close_matches(path, siblings, n=2, cutoff=0.5)
        return f"{path} is not a setting" + (f" (did you mean {' or '.join(nearest)}?)" if nearest else "")
    if problem["type"] == "tuple_type":
        return f"{path} should be a list, such as [{problem['input']}]"
    if problem["type"] == "missing":
        return f"{path} is missing"
    shown = "" if isinstance(problem["input"], Mapping) else f" (found {problem['input']!r})"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path}: {message[0].lower()}{message[1:]}{shown}"
