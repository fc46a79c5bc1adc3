"""The controls of a run: what a simple method, or the same network without its language model, makes of the same windows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax.adapters.partition import Rule, actions
from ofa_jax.baselines.dlinear import (
    dlinear,
    filled_dlinear,
    init_dlinear,
    init_linear_classifier,
    linear_classifier,
)
from ofa_jax.baselines.fill import interpolate, window_mean, zeros
from ofa_jax.baselines.nlinear import init_nlinear, nlinear
from ofa_jax.baselines.seasonal_naive import seasonal_naive
from ofa_jax.build import RANDOM, WITHOUT, build_model, build_network, trunk_config
from ofa_jax.config.recipes import RECIPES
from ofa_jax.config.schema import Experiment, TrainConfig
from ofa_jax.errors import CheckpointError, ConfigError
from ofa_jax.files import atomic_folder, read_json, run_lock, sha256_file, write_json
from ofa_jax.model import trees
from ofa_jax.model.networks import Network, base_shapes
from ofa_jax.runs.train import differences
from ofa_jax.tasks.base import TaskData
from ofa_jax.train.devices import make_layout, usable_fsdp
from ofa_jax.train.loop import Params, Predict, Reporter, fit
from ofa_jax.train.program import resolve_auto_batch_sizes

LINEAR_TRAINING = TrainConfig(learning_rate=1e-3, epochs=10, batch_size=256, cosine_epochs=10)
"""How the linear controls of forecasting are trained, with the run's batch size up to 256.

The step size was chosen for NLinear on ETTh1's validation part.
"""

SERIES_TRAINING = TrainConfig(learning_rate=1e-2, epochs=10, schedule="decay", decay=0.5)
"""How they are trained on collections of short series, with the run's batch size up to 256.

Chosen on validation of M3 Yearly and M4 Weekly.
"""

RECONSTRUCTION_TRAINING = TrainConfig(learning_rate=1e-2, epochs=20, schedule="cosine", cosine_epochs=20)
"""How DLinear is trained for anomaly detection, with the run's batch size up to 256: its weights have to grow from 1/L to about 1.

Chosen on SMAP's validation part.
"""

IMPUTATION_TRAINING = TrainConfig(learning_rate=2e-3, epochs=10, schedule="decay", decay=0.5)
"""How it is trained for imputation, with the run's batch size up to 256; chosen on ETTh1's validation part."""


@dataclass(frozen=True)
class Control:
    """A control that is trained.

    Attributes:
        name: Its folder, and what ``--control`` calls it.
        title: What tables call it.
        build: Gives ``(predict, frozen, trainable)`` at the start of training; called only when it is needed.
        settings: How it is trained.
    """

    name: str
    title: str
    build: Callable[[], tuple[Predict, Params, Params]]
    settings: TrainConfig


def untrained_controls(data: TaskData) -> dict[str, Predict]:
    """Methods without parameters that read windows, by title."""
    task, settings = data.task, data.settings
    if task.name == "forecast":
        return {f"seasonal naive ({data.season} steps)": seasonal_naive(data.season, task.spec.horizon)}
    if task.name == "anomaly":
        return {"distance from the mean": zeros}
    if task.name == "imputation":
        assert settings.channels is not None
        return {
            "linear interpolation": interpolate(settings.channels),
            "mean of the window": window_mean(settings.channels),
        }
    return {}


def trained_controls(
    experiment: Experiment, data: TaskData, *, only: tuple[str, ...] | None = None
) -> list[Control]:
    """The controls that fit a run's task, in the order of tables.

    Args:
        experiment: The run's settings.
        data: Its data.
        only: Names of those that are wanted; all when None.

    Raises:
        ConfigError: ``only`` names a control that the task does not have.
    """
    known = [*_linear_controls(experiment, data), *_network_controls(experiment, data)]
    names = [control.name for control in known]
    wrong = [name for name in only or () if name not in names]
    if wrong:
        raise ConfigError(
            f"the task {data.task.name!r} has no control {wrong[0]!r}",
            where="--control",
            fix=f"Name {', '.join(names)}",
        )
    return [control for control in known if only is None or control.name in only]


def _linear_controls(experiment: Experiment, data: TaskData) -> list[Control]:
    task, settings, own = data.task, data.settings, experiment.train
    length, horizon = task.spec.input_length, task.spec.horizon

    def trained_as(training: TrainConfig) -> TrainConfig:
        return training.model_copy(
            update={"seed": own.seed, "batch_size": min(own.batch_size, training.batch_size)}
        )

    if task.name in ("forecast", "zero_shot", "short_term"):
        training = trained_as(LINEAR_TRAINING if task.name == "forecast" else SERIES_TRAINING)
        return [
            Control("nlinear", "NLinear", lambda: (nlinear, {}, init_nlinear(length, horizon)), training),
            Control("dlinear", "DLinear", lambda: (dlinear, {}, init_dlinear(length, horizon)), training),
        ]
    channels = settings.channels or 1
    if task.name == "classification":
        start = partial(init_linear_classifier, length, channels, settings.classes or 2)
        return [Control("linear", "softmax regression", lambda: (linear_classifier, {}, start()), own)]
    hidden = task.name == "imputation"
    predict = _values_only(filled_dlinear, channels) if hidden else dlinear
    training = trained_as(IMPUTATION_TRAINING if hidden else RECONSTRUCTION_TRAINING)
    return [Control("dlinear", "DLinear", lambda: (predict, {}, init_dlinear(length, length)), training)]


def _values_only(predict: Predict, channels: int) -> Predict:
    def reduced(frozen, trainable, x_btc, x_mask, *, dropout_keys=None):
        return predict(frozen, trainable, x_btc[..., :channels], x_mask[..., :channels])

    return reduced


def _network_controls(experiment: Experiment, data: TaskData) -> list[Control]:
    """The same network with another trunk or other rules, trained as the run was."""
    trunk = experiment.trunk
    config = trunk_config(trunk)
    shape = trunk.random.model_copy(
        update={"n_embd": config.n_embd, "n_head": config.n_head, "n_positions": config.n_positions}
    )
    experiment = experiment.model_copy(update={"task": data.settings})

    def swapped(source: str) -> Experiment:
        return experiment.model_copy(
            update={"trunk": trunk.model_copy(update={"source": source, "random": shape})}
        )

    everything, tuned = (
        (("train", ".*"),),
        tuple((action, path) for action, path in RECIPES["gpt4ts"]["rules"]),
    )
    variants: list[tuple[str, str, Experiment]] = [
        (
            "attention",
            "one attention layer (PAttn)",
            swapped("attention").model_copy(update={"rules": everything}),
        )
    ]
    if WITHOUT.get(trunk.source) != "none" and _trains(swapped("none")):
        variants.append(("no_trunk", "no trunk, same recipe", swapped("none")))
    if trunk.source != RANDOM:
        variants.append(("random_trunk", "random trunk, same recipe", swapped(RANDOM)))
    if experiment.recipe != "gpt4ts":
        variants.append(
            ("gpt4ts", f"gpt4ts{trunk_remark(trunk.source)}", experiment.model_copy(update={"rules": tuned}))
        )
    return [
        Control(
            name, title, partial(_built, variant), resolve_auto_batch_sizes(variant.train, _network(variant))
        )
        for name, title, variant in variants
    ]


def trunk_remark(source: str) -> str:
    """What a table says behind a method's name of a trunk that is no language model; nothing where it is one."""
    return {RANDOM: ", random trunk", **{name: f", {name} for a trunk" for name in WITHOUT}}.get(source, "")


def _built(experiment: Experiment) -> tuple[Predict, Params, Params]:
    rules = tuple(_deciding(_shapes(experiment), experiment.rules))
    model = build_model(experiment.model_copy(update={"rules": rules}))
    return model.predict, model.frozen, model.trainable


def _trains(experiment: Experiment) -> bool:
    """Whether the rules leave anything to train: those that adapt the trunk alone leave nothing without one."""
    shapes = _shapes(experiment)
    return any(action != "freeze" for action in actions(shapes, _deciding(shapes, experiment.rules)).values())


def _shapes(experiment: Experiment) -> dict[str, tuple[int, ...]]:
    return base_shapes(_network(experiment))


def _network(experiment: Experiment) -> Network:
    return build_network(experiment, trunk_config(experiment.trunk))


def _deciding(shapes: Mapping[str, Any], rules: Sequence[Rule]) -> list[Rule]:
    """The rules that decide at least one parameter of a network: those for the trunk fall away where there is none."""
    kept, left = [], set(shapes)
    for action, expression in rules:
        decided = {path for path in left if re.fullmatch(expression, path)}
        if decided:
            kept.append((action, expression))
            left -= decided
    return kept


def kept_or_trained(
    control: Control, data: TaskData, folder: Path, reporter: Reporter
) -> tuple[Predict, Params, Params]:
    """A control with its trained parameters: read from the run's controls, or trained now and kept there.

    Raises:
        CheckpointError: The kept control is damaged, was trained otherwise (only settings that change no number of a run may differ),
            or another process is working on it.
    """
    from safetensors.numpy import load_file, save_file

    place = folder / control.name
    said = {"control": control.name, "protocol": data.task.protocol}
    settings = control.settings.model_dump(mode="json")
    with run_lock(folder):
        predict, frozen, start = control.build()
        if place.exists():
            record = read_json(place / "control.json", kind="control")
            kept = place / "weights.safetensors"
            if not kept.exists() or record.get("sha256") != sha256_file(kept):
                raise CheckpointError(
                    f"the kept weights of {control.title} are damaged",
                    where=str(place),
                    fix="Delete this folder; it is trained anew",
                )
            best = load_file(kept)
            shapes = {path: leaf.shape for path, leaf in trees.flatten(start).items()}
            otherwise = any(record.get(name) != value for name, value in said.items())
            otherwise |= bool(differences({"train": record.get("settings")}, {"train": settings}))
            if otherwise or {path: leaf.shape for path, leaf in best.items()} != shapes:
                raise CheckpointError(
                    f"the kept {control.title} was trained otherwise than it would be now",
                    where=str(place),
                    fix="Delete this folder; it is trained anew",
                )
            empty: Params = {
                name: {} for name, leaf in start.items() if isinstance(leaf, Mapping) and not leaf
            }
            return predict, frozen, trees.unflatten(best) | empty
        reporter.notice(f"training the control {control.title}, which is then kept")
        result = fit(
            predict,
            data.task,
            frozen=frozen,
            trainable=start,
            settings=control.settings,
            layout=make_layout(control.settings.parallel, usable_fsdp(control.settings.fsdp)),
            reporter=reporter,
        )
        best = {path: np.ascontiguousarray(leaf) for path, leaf in trees.flatten(result.best).items()}
        with atomic_folder(place) as scratch:
            save_file(best, scratch / "weights.safetensors")
            digest = sha256_file(scratch / "weights.safetensors")
            record = {
                **said,
                "settings": settings,
                "validation": result.progress.best_metrics,
                "sha256": digest,
            }
            write_json(scratch / "control.json", record)
        return predict, frozen, result.best
