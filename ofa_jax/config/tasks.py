"""The settings of each task, with those of its data and of the layers around the trunk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.types import PositiveFloat

from ofa_jax.config.recipes import SHORT_TERM_REFERENCE

Missing = Literal["error", "linear", "ffill"]
Timestamps = Literal["error", "as_is"]
Decimal = Literal["point", "comma", "1,234.5", "1.234,5"]
SplitRule = Literal["ett_hour", "ett_minute", "ratio"]
ForecastLoss = Literal["mse", "smape", "mape"]
GENERATED = "generated"
"""The value of ``data.source`` that asks for generated series."""

READING = (
    *("columns", "exclude", "id_columns", "missing", "missing_words", "decimal", "comment", "sheet"),
    *("timestamps", "timestamp_column", "timestamp_format", "frequency"),
)
"""Settings of the data that say how a table is read."""
Ratios = tuple[float, float, float]

Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Steps = Annotated[int, Field(ge=1, le=2**20)]
Percent = Annotated[int, Field(ge=1, le=100)]


def _expanded(path: str) -> str:
    if "\0" in path:
        raise ValueError("a path has no zero characters")
    return os.path.expanduser(path)


PathText = Annotated[str, AfterValidator(_expanded)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A group of settings: frozen, no unknown names, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("input should be neither true nor false")  # pydantic would read them as 1 and 0
        return value


class DataConfig(Section):
    """Which series, and how they are read and split."""

    source: PathText = Field(description="cataloged data set (etth1, …), or path of your own file or folder")
    target: PathText | None = Field(None, description="data set to forecast without training on it")
    parts: tuple[str, ...] | None = Field(None, description="streams to use (machine-1-2, …); default: all")
    timestamp_column: str | None = Field(None, description="timestamp column; default: detected")
    columns: tuple[str, ...] | None = Field(None, description="columns to use; default: all but exclude")
    exclude: tuple[str, ...] | None = Field(None, description="columns to leave out")
    id_columns: tuple[str, ...] | None = Field(
        None, min_length=1, description="columns that name the series of a long table; default: text"
    )
    label_column: str | None = Field(
        None, description="column of labels (anomalous: 1; default none) or of classes (default: label)"
    )
    labels: PathText | None = Field(
        None, description="table of a class per case; default: in the cases' rows"
    )
    missing: Missing = Field("error", description="how to treat missing values")
    missing_words: tuple[str, ...] | None = Field(None, description="texts in cells that mean no value")
    decimal: Decimal = Field(
        "point",
        description="decimal sign of numbers in text, or how they are written with signs of thousands",
    )
    comment: str | None = Field(None, min_length=1, description="how comment lines begin")
    sheet: str | None = Field(None, description="sheet of an Excel file that has several")
    timestamps: Timestamps | None = Field(
        None, description="duplicate or irregular timestamps; default: catalog, else error"
    )
    timestamp_format: str | None = Field(
        None, description="%d.%m.%Y or the like, excel, or s, ms, us, ns (since 1970); default: recognized"
    )
    frequency: str | None = Field(
        None, description="step between rows (h, B, MS, M-15, …); default: catalog, else inferred"
    )
    split: SplitRule | None = Field(None, description="default: the catalog's rule, else ratio")
    ratios: Ratios = Field((0.7, 0.1, 0.2), description="train, validation, test shares of split ratio")
    percent: Percent = Field(100, description="percentage of the training part to use, from its start")
    season: Positive | None = Field(None, description="season length in steps; default: catalog or frequency")

    @property
    def reading(self) -> dict[str, Any]:
        """The settings of how a table is read that are given or have a default, by ``read_frame``'s names."""
        values = {name: getattr(self, name) for name in READING}
        return {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _check_ratios(self) -> Self:
        if min(self.ratios) <= 0 or abs(sum(self.ratios) - 1) > 1e-6:
            raise ValueError(f"ratios {self.ratios} must be positive and add up to 1")
        return self


class NetworkConfig(Section):
    """The layers around the trunk."""

    patch: Steps = Field(description="patch length")
    stride: Steps = Field(description="steps from one patch to the next")
    read_width: Steps | None = Field(None, description="dimensions the head reads, d_ff; default: all")
    embed_width: Steps | None = Field(None, description="embedding width; default: the trunk's")
    segment: Steps = Field(25, description="steps that are normalized together")
    positions: bool = Field(True, description="add GPT-2's position embedding")
    seed: Seed = Field(0, description="seed of the random layers around the trunk")


_SERIES = frozenset(f"data.{name}" for name in READING)
_SPLIT = frozenset({"data.split", "data.ratios", "data.percent"})
_HORIZON = Field(96, description="forecast steps, H")
_CHANNELS = Field(None, description="channels; default: the data's")
_BY_STEP = {"network": {"patch": 1, "stride": 1}}


class TaskSettings(Section):
    """What all tasks have; each task is a subclass with its own settings.

    Class attributes:
        reads: Settings of other sections that this task reads and some other task does not.
        patched: Whether the network reads patches; otherwise it reads step by step.
        refits: Whether ``train.refit`` may train on its validation and test part.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    patched: ClassVar[bool] = True
    refits: ClassVar[bool] = False

    name: str
    input_length: Steps = Field(336, description="input steps, L")

    @classmethod
    def defaults(cls, *, recipe: str, protocol: str, source: str) -> Mapping[str, Any]:
        """Values of this task on top of the recipe's and below those that are given."""
        return {} if cls.patched else _BY_STEP

    def check(self, data: DataConfig, network: NetworkConfig) -> None:
        """Raise ValueError where settings of other sections contradict this task."""


class ForecastSettings(TaskSettings):
    """Long-term forecasting; few-shot with ``data.percent``."""

    reads = _SERIES | _SPLIT | {"data.season"}
    refits = True

    name: Literal["forecast"] = Field(
        "forecast", description="the task; few-shot is forecast with data.percent"
    )
    horizon: Steps = _HORIZON
    loss: ForecastLoss = Field("mse", description="training loss")


class ZeroShotSettings(TaskSettings):
    """Transfer from one collection of series to another."""

    reads = _SERIES | {"data.target", "data.percent", "data.season"}

    name: Literal["zero_shot"]
    horizon: Steps = _HORIZON
    loss: ForecastLoss = Field("smape", description="training loss")

    @classmethod
    def defaults(cls, *, recipe: str, protocol: str, source: str) -> Mapping[str, Any]:
        """The published transfer from M4 differs in share and loss (protocol §5 row 7)."""
        if protocol != "published" or source not in ("m4_yearly", "m4_quarterly", "m4_monthly"):
            return _BY_STEP
        loss = "smape" if source == "m4_yearly" else "mape"
        return {**_BY_STEP, "data": {"percent": 10}, "task": {"loss": loss}}

    def check(self, data: DataConfig, network: NetworkConfig) -> None:
        if data.target is None:
            raise ValueError("data.target is missing")


class ShortTermSettings(TaskSettings):
    """Short-term forecasting, as in the M4 competition."""

    reads = _SERIES | {"data.season", "network.read_width", "network.embed_width"}
    patched = False
    refits = True

    name: Literal["short_term"]
    horizon: Steps = _HORIZON
    loss: ForecastLoss = Field("smape", description="training loss")
    cut_range: PositiveFloat = Field(1.5, description="horizons before its end within which a series is cut")

    @classmethod
    def defaults(cls, *, recipe: str, protocol: str, source: str) -> Mapping[str, Any]:
        return _BY_STEP | ({"rules": SHORT_TERM_REFERENCE} if recipe == "reference" else {})


class AnomalySettings(TaskSettings):
    """Anomaly detection by reconstruction."""

    reads = _SERIES | {
        *("data.parts", "data.label_column", "data.ratios"),
        *("network.read_width", "network.segment"),
    }
    patched = False

    name: Literal["anomaly"]
    input_length: Steps = Field(100, description="input steps, L")
    channels: Steps | None = _CHANNELS
    step: Positive = Field(1, description="rows from one training window to the next")
    anomaly_ratio: Annotated[float, Field(gt=0, lt=100)] = Field(
        1, description="percentage of scores flagged"
    )

    def check(self, data: DataConfig, network: NetworkConfig) -> None:
        if self.input_length % network.segment:
            length, segment = self.input_length, network.segment
            raise ValueError(f"task.input_length {length} is not a multiple of network.segment {segment}")


class ClassificationSettings(TaskSettings):
    """Classification of multivariate cases."""

    reads = frozenset(
        f"data.{name}"
        for name in (
            *("columns", "exclude", "missing", "missing_words", "decimal", "comment", "sheet"),
            *("labels", "label_column", "ratios"),
        )
    )

    name: Literal["classification"]
    input_length: Steps | None = Field(  # type: ignore[assignment]  # a number once the data are read
        336, description="input steps, L; null: the longest training case"
    )
    channels: Steps | None = _CHANNELS
    classes: Steps | None = Field(None, description="classes; default: the data's")


class ImputationSettings(TaskSettings):
    """Imputation of hidden points."""

    reads = _SERIES | _SPLIT
    patched = False
    refits = True

    name: Literal["imputation"]
    input_length: Steps = Field(96, description="input steps, L")
    channels: Steps | None = _CHANNELS
    calendar: Annotated[int, Field(ge=0, le=5)] | None = Field(
        None, description="calendar features; default: as the timestamps allow"
    )
    mask_rate: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.25, description="share of points that are hidden"
    )

    @classmethod
    def defaults(cls, *, recipe: str, protocol: str, source: str) -> Mapping[str, Any]:
        return {"trunk": {"n_layer": 3}} | _BY_STEP


class PretrainSettings(TaskSettings):
    """Pretraining of a trunk."""

    reads = _SERIES

    name: Literal["pretrain"]
    input_length: Steps = Field(512, description="input steps, L")
    horizon: Steps = Field(384, description="forecast steps, H")
    series: Steps = Field(16384, description="windows of an epoch, each seen once")
    held_out: Steps = Field(4096, description="windows of the validation part, and of the test part")
    prior_seed: Seed = Field(0, description="seed of the generated series")
    generated: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="share of generated windows next to a collection"
    )

    @classmethod
    def defaults(cls, *, recipe: str, protocol: str, source: str) -> Mapping[str, Any]:
        return {"network": {"stride": 16}}

    def check(self, data: DataConfig, network: NetworkConfig) -> None:
        for name, steps in (("input_length", self.input_length), ("horizon", self.horizon)):
            if steps % network.patch:
                raise ValueError(f"task.{name} {steps} is not a multiple of network.patch {network.patch}")


def task_settings() -> dict[str, type[TaskSettings]]:
    """The settings class of every task by ``task.name``."""
    return {get_args(kind.model_fields["name"].annotation)[0]: kind for kind in TaskSettings.__subclasses__()}


def task_class(task: Any) -> type[TaskSettings] | None:
    """The settings class of a section ``task``; None where it names no task."""
    return task_settings().get(str(task.get("name", "forecast"))) if isinstance(task, Mapping) else None
