"""The trunk that a pretraining run made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ofa_jax.adapters.partition import combine
from ofa_jax.config.tasks import PretrainSettings
from ofa_jax.errors import ConfigError
from ofa_jax.model.gpt2 import Forecaster
from ofa_jax.model.weights import Trunk
from ofa_jax.runs.bundle import load_bundle


def trunk_of_run(run: str | Path) -> Trunk:
    """The best trunk of a pretraining run, with the layers around it.

    Raises:
        ConfigError: The run is of another task.
        CheckpointError: It has no bundle, or a damaged one.
    """
    loaded = load_bundle(run)
    task, network = loaded.experiment.task, loaded.experiment.network
    if not isinstance(task, PretrainSettings):
        what = f"a run of the task {task.name!r} makes no trunk"
        raise ConfigError(what, where=str(run), fix="Name a run of the task 'pretrain'")
    params = dict(combine(loaded.model.frozen, loaded.model.trainable["base"]))
    around = Forecaster(network.patch, task.input_length, task.horizon)
    config = replace(loaded.model.network.trunk.config, forecaster=around)
    return Trunk(config, {**params.pop("gpt2"), **params}, "pretrained")
