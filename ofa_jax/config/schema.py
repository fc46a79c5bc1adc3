"""The settings of an experiment as frozen pydantic models.

``Experiment(data={"source": "yours.csv"}, recipe="paper")`` is complete: the recipe
and the task fill in what is not given, and the result is validated once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, model_validator
from pydantic.types import PositiveFloat

from ofa_jax.config.recipes import RECIPES, Action, nest, overlay
from ofa_jax.config.tasks import (
    DataConfig,
    ForecastSettings,
    NetworkConfig,
    PathText,
    Positive,
    Section,
    Seed,
    Steps,
    TaskSettings,
    task_class,
    task_settings,
)
from ofa_jax.files import short

Scaling = Literal["rslora", "lora", "none"]
Init = Literal["peft_gaussian", "theorem", "kaiming"]
Protocol = Literal["strict", "published"]
Width = Annotated[int, Field(ge=1, le=2**16)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[float, Field(ge=0, le=1e38)]  # float32 ends at 3.4e38


def _as_task(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value  # pydantic refuses it
    kind = task_class(value)
    if kind is None:
        options = ", ".join(map(repr, task_settings()))
        raise ValueError(f"name: input should be one of {options} (found {short(value.get('name'))})")
    made = kind.model_validate(value)
    for name in (name for name, given in value.items() if isinstance(given, _Default)):
        made.model_fields_set.discard(name)
    return made


PRETRAINED = {"nano": 4}
"""Pretrained trunks that come with the package, by ``trunk.source``, and their blocks."""


class _Default(int):
    """A default that depends on other settings; data may replace it as they may any default."""


_CONTEXT = {"task": {"input_length": _Default(512)}}  # what pretrained trunks were trained with


class RandomTrunk(Section):
    """Shape and seed of a trunk that is not loaded (``trunk.source`` random, attention or none)."""

    n_embd: Width = Field(768, description="width")
    n_head: Width = Field(12, description="attention heads")
    n_positions: Steps = Field(1024, description="positions")
    seed: Seed = Field(0, description="seed of the random weights")


class TrunkConfig(Section):
    """Which GPT-2, and how it is computed."""

    source: PathText = Field(
        "openai-community/gpt2", description="nano (pretrained), hub id, folder, or random, attention or none"
    )
    revision: str | None = Field(None, description="revision on the hub")
    n_layer: Annotated[int, Field(ge=1, le=1000)] = Field(6, description="blocks to keep, from the first")
    random: RandomTrunk = Field(RandomTrunk(), description="shape of a trunk that is not loaded")
    dropout: Rate | None = Field(None, description="dropout rate in the trunk; default: its config")
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: float32 on CPU, bfloat16 elsewhere"
    )
    remat: bool = Field(False, description="recompute blocks in the backward pass to save memory")


class AdapterConfig(Section):
    """The low-rank adapters."""

    rank: Width = Field(16, description="rank r")
    alpha: Annotated[float, Field(ge=0, le=1e6)] = Field(16, description="scale numerator")
    scaling: Scaling = Field("rslora", description="alpha/sqrt(r), alpha/r or alpha")
    init: Init = Field("peft_gaussian", description="distribution of the nonzero factor")
    dropout: Rate = Field(0.01, description="dropout on the input of dense adapters")
    seed: Seed = Field(0, description="seed of the adapters' initialization")


class TrainConfig(Section):
    """Optimization, evaluation and checkpoints."""

    epochs: Positive = Field(10, description="passes over the training windows")
    batch_size: Steps = Field(256, description="windows per step")
    solver: Literal["auto", "gradient", "ridge"] = Field(
        "auto", description="auto: ridge for an output adapter over a pretrained trunk, else gradient"
    )
    optimizer: Literal["adam", "radam", "adamw"] = Field(
        "adam", description="Adam, rectified Adam, or Adam with weight decay for pretraining"
    )
    clip_norm: Annotated[Size, Field(gt=0)] | None = Field(None, description="maximum global gradient norm")
    learning_rate: Annotated[Size, Field(gt=0)] = Field(1e-4, description="initial learning rate")
    schedule: Literal["cosine", "decay", "constant", "trapezoid"] = Field(
        "cosine", description="learning rate by epoch; trapezoid: by step, to 0 at the end"
    )
    decay: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="schedule decay: factor per epoch from the third on"
    )
    cosine_epochs: Positive = Field(20, description="epochs from initial to minimum learning rate, T_max")
    min_learning_rate: Size = Field(1e-8, description="learning rate at the cosine's end")
    patience: Positive = Field(3, description="epochs without a better validation loss before stopping")
    refit: bool = Field(False, description="also train on all parts, as long as was best, into RUN/final")
    seed: Seed = Field(2021, description="seed of batch order and dropout")
    chunk: Positive = Field(
        32, description="most steps per dispatch, of about 2 s; up to 32 give the same bits"
    )
    eval_batch_size: Steps | None = Field(None, description="windows per evaluation step; default: by device")
    log_every: Positive = Field(50, description="steps between training lines in metrics.jsonl")
    gradient_log: Positive | None = Field(None, description="steps between gradient lines in metrics.jsonl")
    checkpoint_minutes: PositiveFloat = Field(5, description="maximum minutes between checkpoints")
    micro_batch: Positive | None = Field(None, description="windows per gradient slice; default: by device")
    parallel: Literal["jit", "pmap"] = Field("jit", description="one program for all devices, or one each")
    fsdp: Positive = Field(1, description="devices to shard large frozen parameters over")

    @model_validator(mode="after")
    def _check_parallel(self) -> Self:
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ValueError(f"micro_batch {self.micro_batch} is larger than batch_size {self.batch_size}")
        if self.parallel == "pmap" and self.fsdp > 1:
            raise ValueError(f"fsdp is {self.fsdp}, but pmap cannot shard parameters; use parallel jit")
        return self


class Experiment(Section):
    """Everything that determines a run's result."""

    data: DataConfig
    task: Annotated[SerializeAsAny[TaskSettings], BeforeValidator(_as_task)] = ForecastSettings()
    trunk: TrunkConfig = TrunkConfig()
    protocol: Protocol = Field(
        "strict", description="strict, or the published practice (docs/protocol.md, §5)"
    )
    recipe: Literal[tuple(RECIPES)] = Field(  # type: ignore[valid-type]
        "reference", description="preset of partition rules and hyperparameters"
    )
    rules: tuple[tuple[Action, str], ...] = Field(
        max_length=1000, description="ordered path rules; default: the recipe's"
    )
    network: NetworkConfig
    adapters: AdapterConfig = AdapterConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """Put the recipe's and the task's values below the given ones."""
        if not isinstance(given, Mapping):
            return given
        given = {
            name: value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
            for name, value in given.items()
        }
        recipe, data = given.get("recipe", "reference"), given.get("data")
        if not isinstance(recipe, str) or recipe not in RECIPES:
            recipe = "reference"  # validation refuses the given one
        filled, trunk = asdict(RECIPES[recipe]), given.get("trunk")
        kind = task_class(given.get("task", {}))
        if isinstance(trunk, Mapping) and (blocks := PRETRAINED.get(str(trunk.get("source")))):
            filled = overlay(filled, {"trunk": {"n_layer": blocks}})
            filled = overlay(filled, _CONTEXT if kind is ForecastSettings else {})
        if kind:
            source = str(data.get("source")) if isinstance(data, Mapping) else ""
            below = kind.defaults(recipe=recipe, protocol=str(given.get("protocol")), source=source)
            filled = overlay(filled, below)
        return overlay(filled, given)

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        name, network = self.task.name, self.network
        if not self.task.patched and (network.patch, network.stride) != (1, 1):
            raise ValueError(
                f"the task {name!r} reads step by step; network.patch and network.stride must be 1"
            )
        self.task.check(self.data, network)
        if self.train.refit and not self.task.refits:
            raise ValueError(
                f"train.refit is set, but the task {name!r} trains on no other parts; leave it out"
            )
        read_by_any = frozenset().union(*(kind.reads for kind in task_settings().values()))
        for path in sorted(read_by_any - self.task.reads):
            section, _, field = path.partition(".")
            values = getattr(self, section)
            value = getattr(values, field)
            if value != type(values).model_fields[field].default:
                raise ValueError(f"{path} is {value!r}, but the task {name!r} does not read it; leave it out")
        return self

    def replace(self, changes: Mapping[str, Any]) -> Experiment:
        """The same settings with other values by path (``{"train.seed": 1}``), validated again.

        Raises:
            pydantic.ValidationError: A value that its setting does not take.
        """
        content = self.model_dump(exclude_unset=True)  # what is not given stays so: it may depend on data
        for path, value in changes.items():
            content = overlay(content, nest(path, value))
        return Experiment.model_validate(content)
