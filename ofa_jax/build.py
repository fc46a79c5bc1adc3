"""From settings to a model: the network and its two parameter trees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from ofa_jax.adapters.bundle import Bundle
from ofa_jax.adapters.partition import AdapterTarget, combine, partition
from ofa_jax.adapters.rslora import LoraConfig, init_adapters, merge, with_adapters
from ofa_jax.config.schema import PRETRAINED, AdapterConfig, Experiment, TrunkConfig
from ofa_jax.config.tasks import TaskSettings
from ofa_jax.data.catalog.load import CATALOG
from ofa_jax.errors import CheckpointError, ConfigError, TrainError
from ofa_jax.model import frozen_init, trees
from ofa_jax.model.gpt2 import GPT2Config, GPT2Trunk
from ofa_jax.model.networks import AttentionTrunk, Network, NoTrunk, TrunkModule, base_shapes, init_base
from ofa_jax.model.weights import Trunk, hub_origin, load_trunk, random_trunk, read_config
from ofa_jax.tasks.table import TASKS

RANDOM = "random"
"""The value of ``trunk.source`` that asks for random weights."""

REPLACED: dict[str, type[AttentionTrunk] | type[NoTrunk]] = {"attention": AttentionTrunk, "none": NoTrunk}
"""Values of ``trunk.source`` that replace the trunk, with the width of ``trunk.random``."""

NAMED = (RANDOM, *REPLACED, *PRETRAINED)
"""Values of ``trunk.source`` that name no folder and no hub id."""


@dataclass(frozen=True)
class Model:
    """A network with its parameters in two trees.

    ``frozen`` (nested) never changes; ``trainable``, ``{"adapters": {module path: {a, b}}, "base": nested}``,
    is optimized and saved. ``targets`` are the adapted layers, ``trunk_sha256`` is the fingerprint of the
    trunk's weights as loaded.
    """

    network: Network
    frozen: dict[str, Any]
    trainable: dict[str, Any]
    targets: dict[str, AdapterTarget]
    lora: LoraConfig
    trunk_sha256: str
    trunk_source: str

    @cached_property
    def predict(self) -> Callable[..., jax.Array]:
        """``predict(frozen, trainable, x_btc, x_mask, dropout_keys=, scale=)``, always the same function."""

        def apply(params, *xs, dropout_keys=None):
            return self.network.apply({"params": params}, *xs, dropout_keys=dropout_keys)

        def predict(frozen, trainable, x_btc, x_mask=None, *, dropout_keys=None, scale=None):
            adapted = with_adapters(apply, self.lora, scale=scale)
            params = combine(frozen, trainable["base"])
            return adapted(params, trainable["adapters"], x_btc, x_mask, dropout_keys=dropout_keys)

        return predict

    def merged(self) -> dict[str, Any]:
        """The network's parameters with the adapters folded in, for serving."""
        return merge(combine(self.frozen, self.trainable["base"]), self.trainable["adapters"], self.lora)


def trunk_config(settings: TrunkConfig) -> GPT2Config:
    """The trunk's shapes without weights; only for an unknown hub id or folder is a config.json read."""
    if settings.source in (RANDOM, *REPLACED):
        shape = settings.random.model_dump(exclude={"seed"})
        config = GPT2Config(n_layer=settings.n_layer, **shape)
    else:
        config = read_config(settings.source, revision=settings.revision, n_layer=settings.n_layer)
    return _with_dropout(config, settings.dropout)


def obtain_trunk(settings: TrunkConfig) -> Trunk:
    """The trunk's weights from a folder or the hub; random ones only where the settings name them."""
    if settings.source in REPLACED:
        return Trunk(trunk_config(settings), {}, settings.source)
    if settings.source == RANDOM:
        return random_trunk(trunk_config(settings), settings.random.seed)
    trunk = load_trunk(settings.source, n_layer=settings.n_layer, revision=settings.revision)
    return replace(trunk, config=_with_dropout(trunk.config, settings.dropout))


def _with_dropout(config: GPT2Config, rate: float | None) -> GPT2Config:
    return config if rate is None else replace(config, embd_pdrop=rate, attn_pdrop=rate, resid_pdrop=rate)


def build_network(experiment: Experiment, config: GPT2Config) -> Network:
    """The network of an experiment.

    Raises:
        ConfigError: Sizes of the data (channels, classes) are not known from settings and catalog.
    """
    settings, dtype = experiment.trunk, jnp.dtype(compute_dtype(experiment.trunk))
    trunk: TrunkModule = GPT2Trunk(config, experiment.network.positions, dtype, settings.remat)
    if settings.source in REPLACED:
        trunk = REPLACED[settings.source](config, dtype)
    task = _with_sizes(experiment.task, experiment.data.source)
    row, known = TASKS[task.name], {**experiment.network.model_dump(), **task.model_dump()}
    kind = row.network
    if config.forecaster and row.pretrained:
        kind, known["patch"] = row.pretrained, config.forecaster.patch
    own = {field.name for field in fields(kind)} - {"name", "parent"}  # which are flax's
    return kind(trunk=trunk, **{name: known[name] for name in own & known.keys()})


def _with_sizes(task: TaskSettings, source: str) -> TaskSettings:
    """The task's settings with the sizes of its data, from the catalog where they are absent."""
    known: dict[str, int | None] = {}
    if entry := CATALOG.get(source):
        calendar = 5 if (entry.frequency or "").endswith("min") else 4
        known = {"channels": entry.n_channels, "classes": entry.n_classes, "calendar": calendar}
    sizes = ("input_length", "channels", "classes", "calendar")
    absent = [name for name in sizes if getattr(task, name, 1) is None]
    for name in absent:
        if known.get(name) is None:
            what = f"the data's {name} are not known without reading them"
            raise ConfigError(what, where=f"task.{name}", fix=f"Set task.{name}")
    return type(task).model_validate(task.model_dump() | {name: known[name] for name in absent})


def compute_dtype(settings: TrunkConfig) -> str:
    """Type of matrix products; ``auto`` is float32 on a CPU and bfloat16 elsewhere."""
    if settings.compute_dtype != "auto":
        return settings.compute_dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def lora_config(settings: AdapterConfig) -> LoraConfig:
    """The adapters' configuration of an experiment."""
    return LoraConfig(**settings.model_dump(exclude={"seed"}))


def build_model(experiment: Experiment) -> Model:
    """Load the trunk, draw the frozen layers, partition by the rules, initialize the adapters.

    Raises:
        WeightsError: The trunk cannot be loaded.
        ConfigError: Shapes or rules do not fit.
        TrainError: The rules leave nothing to train.
    """
    trunk = obtain_trunk(experiment.trunk)
    network = build_network(experiment, trunk.config)
    split = partition(init_base(network, trunk.params, experiment.network.seed), experiment.rules)
    lora = lora_config(experiment.adapters)
    adapters = init_adapters(split.targets, lora, seed=experiment.adapters.seed)
    if not adapters and not split.trained:
        raise TrainError("the rules freeze every parameter", where="rules", fix="Adapt or train at least one")
    trainable = {"adapters": adapters, "base": split.trained}
    return Model(network, split.frozen, trainable, split.targets, lora, trunk.sha256, trunk.source)


def frozen_record(model: Model, seed: int) -> dict[str, Any]:
    """What identifies the parameters that a bundle does not contain: trunk, rule, seed and fingerprints.

    The trunk's origin is named only where it is no folder of this machine.
    """
    origin = model.trunk_source
    return {
        "trunk_source": origin if origin in NAMED or hub_origin(origin) else None,
        "trunk_sha256": model.trunk_sha256,
        "trunk_config": trunk_mathematics(model.network.trunk.config),
        "rule": frozen_init.RULE,
        "seed": seed,
        "sha256": trees.fingerprint(trees.flatten(model.frozen).items()),
    }


def trunk_mathematics(config: GPT2Config) -> dict[str, Any]:
    """What a trunk computes apart from its weights; dropout is for training."""
    content = asdict(config)
    around = content.pop("forecaster") or {}
    content |= {f"forecaster.{name}": value for name, value in around.items()}
    return {name: value for name, value in content.items() if not name.endswith("_pdrop")}


def restore_model(experiment: Experiment, bundle: Bundle, *, where: str = "bundle") -> Model:
    """Rebuild the network of a bundle and check that every frozen bit is the one it was trained with.

    ``experiment`` has the bundle's settings, except that its ``trunk.source`` may be another path.

    Raises:
        CheckpointError: The trunk, the rule of the frozen layers or their bits differ, or the bundle's
            parameters do not fit its settings.
    """
    model, saved, source = build_model(experiment), bundle.record.frozen, experiment.trunk.source
    found, trainable = frozen_record(model, saved.seed), {"adapters": bundle.adapters, "base": bundle.trained}
    other = [name for name, value in found["trunk_config"].items() if saved.trunk_config.get(name) != value]
    fix = "Use the version of ofa-jax that made the bundle"
    if saved.rule != found["rule"]:
        what = f"the frozen layers were drawn by rule {saved.rule!r}, this version uses {found['rule']!r}"
    elif saved.trunk_sha256 != found["trunk_sha256"]:
        origin = saved.trunk_source or "a folder"
        what = f"the trunk {source} is not the one of training, which came from {origin}"
        what += f" and has the sha256 {saved.trunk_sha256}"
        fix = "Pass the original trunk's folder or hub id as `trunk`"
    elif other:
        what = f"the trunk {source} has the right weights but another {', '.join(other)} than in training"
        fix = "Restore the trunk's original config.json"
    elif saved.sha256 != found["sha256"]:
        what = "the frozen layers around the trunk differ from those of training"
    elif (stored := bundle.record.adapters) and lora_config(stored) != model.lora:
        what = f"the settings are of {model.lora}, but the bundle's adapters are of {lora_config(stored)}"
        fix = "Use the settings that the bundle was made with"
    elif trees.shapes(trainable) != trees.shapes(model.trainable):
        what, fix = "the bundle's parameters do not fit its settings", "Copy the bundle again"
    else:
        return replace(model, trainable=trainable)
    raise CheckpointError(what, where=where, fix=fix)


@dataclass(frozen=True)
class Footprint:
    """Parameter counts of an experiment, and bytes in float32."""

    trainable: int
    adapters: int
    trained_base: int
    frozen: int
    bundle_bytes: int
    inference_bytes: int


def footprint(experiment: Experiment) -> Footprint:
    """Count parameters from shapes; no weights are loaded.

    ``bundle_bytes`` counts the bundle's tensors (its two JSON files add a few kB); ``inference_bytes`` counts
    all base parameters, which inference with merged weights needs.
    """
    shapes = base_shapes(build_network(experiment, trunk_config(experiment.trunk)))
    leaves = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    split = partition(trees.unflatten(leaves), experiment.rules)
    adapters = experiment.adapters.rank * sum(sum(target.shape) for target in split.targets.values())
    trained = sum(leaf.size for leaf in trees.flatten(split.trained).values())
    frozen = sum(leaf.size for leaf in trees.flatten(split.frozen).values())
    trainable = adapters + trained
    return Footprint(trainable, adapters, trained, frozen, 4 * trainable, 4 * (trained + frozen))
