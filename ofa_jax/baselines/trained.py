"""Trained baselines of a run: linear models, and the same network without its language model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ofa_jax.baselines.ridge import solve_nlinear
from ofa_jax.build import RANDOM, REPLACED, build_model, build_network, trunk_config
from ofa_jax.config.load import upgrade_settings
from ofa_jax.config.recipes import RECIPES, Rule
from ofa_jax.config.schema import PRETRAINED, Experiment, TrainConfig
from ofa_jax.errors import CheckpointError, ConfigError
from ofa_jax.files import (
    FileRecord,
    Sha256,
    atomic_folder,
    find_damage,
    parse_record,
    read_json,
    run_lock,
    sha256_file,
    write_json,
)
from ofa_jax.model import trees
from ofa_jax.model.networks import Network, base_shapes
from ofa_jax.runs.folder import differences
from ofa_jax.runs.train import with_fitted_epochs
from ofa_jax.tasks.base import LinearBaseline, Predict, Task, TaskData
from ofa_jax.tasks.table import TASKS
from ofa_jax.tensors import read_tensors
from ofa_jax.train.devices import make_layout, usable_fsdp
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.fit import fit
from ofa_jax.train.program import resolve_auto_batch_sizes
from ofa_jax.train.progress import Reporter
from ofa_jax.train.step import Params

RECORD, WEIGHTS = "control.json", "weights.safetensors"


@dataclass(frozen=True)
class Baseline:
    """A baseline to train.

    Attributes:
        name: Its folder, and what ``--baseline`` calls it.
        title: What tables call it.
        build: Gives ``(predict, frozen, initial parameters)``; called only when needed.
        settings: How to train it.
        solve: Gives its parameters where it is not trained.
    """

    name: str
    title: str
    build: Callable[[], tuple[Predict, Params, Params]]
    settings: TrainConfig
    solve: Callable[[Task, Reporter], Params] | None = None


class BaselineRecord(FileRecord):
    """``control.json``: which baseline a folder has, and how it was trained."""

    newest: ClassVar[int] = 2
    control: str
    protocol: Literal["strict", "published"]
    settings: dict[str, Any]
    validation: dict[str, float]
    sha256: Sha256


def trained_baselines(
    experiment: Experiment, data: TaskData, *, only: tuple[str, ...] | None = None
) -> list[Baseline]:
    """The baselines of a run's task, in the order of tables.

    Args:
        experiment: The run's settings.
        data: Its data.
        only: Names to select; default: all.

    Raises:
        ConfigError: ``only`` names a baseline that the task does not have.
    """
    experiment, _ = with_fitted_epochs(experiment, data.task)  # a run in closed form has no such settings
    linear = TASKS[data.settings.name].baselines
    known = [*(_linear(one, experiment, data) for one in linear), *_networks(experiment, data)]
    names = [baseline.name for baseline in known]
    if wrong := [name for name in only or () if name not in names]:
        what = f"the task {data.settings.name!r} has no baseline {wrong[0]!r}"
        raise ConfigError(what, where="baseline", fix=f"Choose from {', '.join(names)}")
    return [baseline for baseline in known if only is None or baseline.name in only]


def _linear(baseline: LinearBaseline, experiment: Experiment, data: TaskData) -> Baseline:
    """With its training settings, the run's seed and at most the run's batch size."""
    own = experiment.train
    if baseline.training is not None:
        batch_size = min(own.batch_size, baseline.training.get("batch_size", own.batch_size))
        own = TrainConfig(**{**baseline.training, "seed": own.seed, "batch_size": batch_size})

    def build() -> tuple[Predict, Params, Params]:
        predict, start = baseline.make(data.settings)
        return predict, {}, start

    solve = solve_nlinear if baseline.closed_form else None
    return Baseline(baseline.name, baseline.title, build, own, solve)


def _networks(experiment: Experiment, data: TaskData) -> list[Baseline]:
    """The same network with another trunk or other rules, trained as the run was."""
    trunk, config = experiment.trunk, trunk_config(experiment.trunk)
    experiment = experiment.replace({"task": data.settings, "train.solver": "auto"})
    width = {f"trunk.random.{name}": getattr(config, name) for name in ("n_embd", "n_head", "n_positions")}
    if config.forecaster:  # other trunks have no layers around them; they read the same tokens
        width |= {f"network.{name}": config.forecaster.patch for name in ("patch", "stride")}

    def with_trunk(source: str, **changes: Any) -> Experiment:
        return experiment.replace({"trunk.source": source, **width, **changes})

    everything = (("train", ".*"),)
    variants = [("attention", "one attention layer (PAttn)", with_trunk("attention", rules=everything))]
    bare = with_trunk("none")
    if trunk.source != "none" and any(action != "freeze" for action, _ in _deciding(bare)):
        variants.append(("no_trunk", "no trunk, same recipe", bare))
    if trunk.source != RANDOM:
        variants.append(("random_trunk", "random trunk, same recipe", with_trunk(RANDOM)))
    if experiment.recipe != "gpt4ts":
        tuned = experiment.replace({"rules": RECIPES["gpt4ts"].rules})
        variants.append(("gpt4ts", f"gpt4ts{trunk_remark(trunk.source)}", tuned))
    return [
        Baseline(name, title, partial(_built, own), resolve_auto_batch_sizes(own.train, _network(own)))
        for name, title, own in variants
    ]


def trunk_remark(source: str) -> str:
    """What a table appends to a method's name if its trunk is not GPT-2."""
    remarks = {RANDOM: ", random trunk", **{name: f", {name} for a trunk" for name in REPLACED}}
    remarks |= {name: f", trunk {name}" for name in PRETRAINED}
    return remarks.get(source, "")


def _built(experiment: Experiment) -> tuple[Predict, Params, Params]:
    model = build_model(experiment.replace({"rules": _deciding(experiment)}))
    return model.predict, model.frozen, model.trainable


def _deciding(experiment: Experiment) -> list[Rule]:
    """The rules that decide at least one parameter of the network."""
    kept, left = [], set(base_shapes(_network(experiment)))
    for action, expression in experiment.rules:
        decided = {path for path in left if re.fullmatch(expression, path)}
        if decided:
            kept.append((action, expression))
            left -= decided
    return kept


def _network(experiment: Experiment) -> Network:
    return build_network(experiment, trunk_config(experiment.trunk))


def load_or_train(
    baseline: Baseline, data: TaskData, folder: Path, reporter: Reporter
) -> tuple[Predict, Params, Params]:
    """A baseline with its trained parameters: read from the folder, or trained now and kept there.

    Raises:
        CheckpointError: The kept baseline is damaged or was trained with other settings (that change more
            than rounding), or another process is training it.
    """
    from safetensors.numpy import save_file

    place = folder / baseline.name
    settings = baseline.settings.model_dump(mode="json", exclude={"solver"})  # always by gradient steps
    with run_lock(folder, kind="folder of baselines", fix="Wait for it to end, then run this again"):
        predict, frozen, start = baseline.build()
        if place.exists():
            return predict, frozen, _load(baseline, data, place, settings, start)
        reporter.notice(f"training the baseline {baseline.title}")
        if baseline.solve is not None:
            made = baseline.solve(data.task, reporter)
            sums = WindowPredictor(predict, data.task, data.task.sums)
            validation = data.task.metrics(sums(data.task.tables["validation"], frozen, made))
        else:
            result = fit(
                predict,
                data.task,
                frozen=frozen,
                trainable=start,
                settings=baseline.settings,
                reporter=reporter,
                layout=make_layout(baseline.settings.parallel, usable_fsdp(baseline.settings.fsdp)),
            )
            made, validation = result.best, result.progress.best_metrics
        best = {path: np.ascontiguousarray(leaf) for path, leaf in trees.flatten(made).items()}
        with atomic_folder(place, size=sum(leaf.nbytes for leaf in best.values())) as scratch:
            save_file(best, scratch / WEIGHTS)
            record = {
                "control": baseline.name,
                "protocol": data.task.protocol,
                "settings": settings,
                "validation": validation,
                "sha256": sha256_file(scratch / WEIGHTS),
            }
            write_json(scratch / RECORD, record, version=BaselineRecord.newest)
        return predict, frozen, made


def _load(
    baseline: Baseline, data: TaskData, place: Path, settings: Mapping[str, Any], start: Params
) -> Params:
    fix = "Delete this folder to train it again"
    content = read_json(place / RECORD, kind="baseline")
    record = parse_record(content, BaselineRecord, where=str(place / RECORD), fix=fix)
    if find_damage(place, {WEIGHTS: record.sha256}):
        raise CheckpointError(f"the weights of {baseline.title} are damaged", where=str(place), fix=fix)
    kept = upgrade_settings({"train": record.settings}, record.format)
    best = read_tensors(place / WEIGHTS)
    same = (record.control, record.protocol) == (baseline.name, data.task.protocol)
    same &= not differences(kept, {"train": settings})
    if not same or {path: leaf.shape for path, leaf in best.items()} != trees.shapes(start):
        what = f"the kept {baseline.title} was trained with other settings"
        raise CheckpointError(what, where=str(place), fix=fix)
    empty: Params = {name: {} for name, leaf in start.items() if isinstance(leaf, Mapping) and not leaf}
    return trees.unflatten(best) | empty
