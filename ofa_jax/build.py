"""From settings to a model: the network and its two parameter trees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from ofa_jax.adapters.bundle import Bundle
from ofa_jax.adapters.partition import AdapterTarget, actions, adapter_targets, combine, is_trained, partition
from ofa_jax.adapters.rslora import LoraConfig, init_adapters, merge, with_adapters
from ofa_jax.config.schema import AdapterConfig, Experiment, TrunkConfig
from ofa_jax.config.tasks import TaskSettings
from ofa_jax.data.catalog.load import CATALOG
from ofa_jax.errors import CheckpointError, ConfigError, TrainError
from ofa_jax.model import frozen_init, trees
from ofa_jax.model.gpt2 import GPT2Config, GPT2Trunk
from ofa_jax.model.networks import AttentionTrunk, Network, NoTrunk, TrunkModule, base_shapes, init_base
from ofa_jax.model.weights import Trunk, load_trunk, random_trunk, read_config
from ofa_jax.tasks.table import TASKS

RANDOM = "random"
"""The value of ``trunk.source`` that asks for random weights."""

REPLACED: dict[str, type[AttentionTrunk] | type[NoTrunk]] = {"attention": AttentionTrunk, "none": NoTrunk}
"""Values of ``trunk.source`` that replace the trunk, with the width of ``trunk.random``."""


@dataclass(frozen=True)
class Model:
    """A network with its parameters in two trees.

    Attributes:
        network: The Flax module.
        frozen: Parameters that never change, nested.
        trainable: ``{"adapters": {module path: {a, b}}, "base": nested}``; what is optimized and saved.
        targets: The adapted layers.
        lora: The adapters' configuration.
        trunk_sha256: Fingerprint of the trunk's weights as loaded.
        trunk_source: Where they came from.
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
        """``predict(frozen, trainable, x_btc, x_mask=None, dropout_keys=None, scale=None)``, always the same function."""
        return partial(_predict, self.network, self.lora)

    def merged(self) -> dict[str, Any]:
        """The network's parameters with the adapters folded in, for serving."""
        return merge(combine(self.frozen, self.trainable["base"]), self.trainable["adapters"], self.lora)


def _predict(
    network: Network,
    lora: LoraConfig,
    frozen: Any,
    trainable: Any,
    x_btc: jax.Array,
    x_mask: jax.Array | None = None,
    *,
    dropout_keys: jax.Array | None = None,
    scale: jax.Array | None = None,
) -> jax.Array:
    def apply(params: Any, *xs: Any, dropout_keys: jax.Array | None = None) -> Any:
        return network.apply({"params": params}, *xs, dropout_keys=dropout_keys)

    adapted = with_adapters(apply, lora, scale=scale)
    params = combine(frozen, trainable["base"])
    return adapted(params, trainable["adapters"], x_btc, x_mask, dropout_keys=dropout_keys)


def trunk_config(settings: TrunkConfig) -> GPT2Config:
    """The trunk's shapes without weights; only for an unknown hub id or folder is a config.json read."""
    if settings.source == RANDOM or settings.source in REPLACED:
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
    trunk: TrunkModule
    if settings.source in REPLACED:
        trunk = REPLACED[settings.source](config, dtype)
    else:
        trunk = GPT2Trunk(config, experiment.network.positions, dtype, settings.remat)
    task = _with_sizes(experiment.task, experiment.data.source)
    kind, known = TASKS[task.name].network, {**experiment.network.model_dump(), **task.model_dump()}
    own = {field.name for field in fields(kind)} - {"name", "parent"}  # which are flax's
    return kind(trunk=trunk, **{name: known[name] for name in own & known.keys()})


def _with_sizes(task: TaskSettings, source: str) -> TaskSettings:
    """The task's settings with the sizes of its data, from the catalog where they are absent."""
    entry, sizes = CATALOG.get(source), {}
    if entry is not None:
        minutes = bool(entry.frequency and entry.frequency.endswith("min"))
        known = {"channels": entry.n_channels, "classes": entry.n_classes, "calendar": 5 if minutes else 4}
        sizes = {name: value for name, value in known.items() if value is not None}
    for name in ("channels", "classes", "calendar"):
        if getattr(task, name, 1) is None and name not in sizes:
            what = f"the data's {name} are not known without reading them"
            raise ConfigError(what, where=f"task.{name}", fix=f"Set task.{name}")
    absent = {name: size for name, size in sizes.items() if getattr(task, name, 1) is None}
    return type(task).model_validate(task.model_dump() | absent)


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
    return Model(
        network=network,
        frozen=split.frozen,
        trainable={"adapters": adapters, "base": split.trained},
        targets=split.targets,
        lora=lora,
        trunk_sha256=trunk.sha256,
        trunk_source=trunk.source,
    )


def frozen_record(model: Model, seed: int) -> dict[str, Any]:
    """What identifies the parameters that a bundle does not contain: trunk, rule, seed and fingerprints."""
    return {
        "trunk_source": model.trunk_source,
        "trunk_sha256": model.trunk_sha256,
        "trunk_config": trunk_mathematics(model.network.trunk.config),
        "rule": frozen_init.RULE,
        "seed": seed,
        "sha256": trees.fingerprint(trees.flatten(model.frozen).items()),
    }


def trunk_mathematics(config: GPT2Config) -> dict[str, Any]:
    """What a trunk computes apart from its weights (other heads fit the same weights); dropout is for training."""
    return {name: value for name, value in asdict(config).items() if not name.endswith("_pdrop")}


def restore_model(experiment: Experiment, bundle: Bundle, *, where: str = "bundle") -> Model:
    """Rebuild the network of a bundle and check that every frozen bit is the one it was trained with.

    Args:
        experiment: The bundle's settings; ``trunk.source`` may be another path.
        bundle: What was read.
        where: The bundle's path, for errors.

    Raises:
        CheckpointError: The trunk, the rule or seed of the frozen layers, or their bits differ, or the bundle's
            parameters do not fit its settings.
    """
    saved, source = bundle.record.frozen, experiment.trunk.source
    original = "Use the settings that the bundle was made with"
    same_version = "Use the version of ofa-jax that made the bundle"

    def refused(what: str, fix: str) -> CheckpointError:
        return CheckpointError(what, where=where, fix=fix)

    if saved.rule != frozen_init.RULE:
        what = f"the frozen layers were drawn by rule {saved.rule!r}, this version uses {frozen_init.RULE!r}"
        raise refused(what, same_version)
    if (seed := experiment.network.seed) != saved.seed:
        what = f"network.seed is {seed}, but the frozen layers were drawn from seed {saved.seed}"
        raise refused(what, original)
    trained_with = bundle.record.adapters
    for name in ("rank", "alpha", "scaling") if trained_with else ():
        given, trained = getattr(experiment.adapters, name), getattr(trained_with, name)
        if given != trained:
            raise refused(f"adapters.{name} is {given}, but the bundle was trained with {trained}", original)
    model = build_model(experiment)
    if model.trunk_sha256 != saved.trunk_sha256:
        what = f"the trunk {source} is not the one of training (other sha256), which came from {saved.trunk_source}"
        raise refused(what, "Pass the original trunk's folder or hub id as `trunk`")
    mathematics = trunk_mathematics(model.network.trunk.config)
    if changed := [name for name, value in mathematics.items() if saved.trunk_config.get(name) != value]:
        what = f"the trunk {source} has the right weights but another {', '.join(changed)} than in training"
        raise refused(what, "Restore the trunk's original config.json")
    if frozen_record(model, saved.seed)["sha256"] != saved.sha256:
        raise refused("the frozen layers around the trunk differ from those of training", same_version)
    trainable = {"adapters": bundle.adapters, "base": bundle.trained}
    if trees.shapes(trainable) != trees.shapes(model.trainable):
        raise refused("the bundle's parameters do not fit its settings", "Copy the bundle again")
    return replace(model, trainable=trainable)


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

    ``bundle_bytes`` counts the bundle's tensors (its two JSON files add a few kB); ``inference_bytes`` counts all base
    parameters, which inference with merged weights needs.
    """
    shapes = base_shapes(build_network(experiment, trunk_config(experiment.trunk)))
    decided = actions(shapes, experiment.rules)
    targets = adapter_targets(shapes, decided)
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    adapters = sum(experiment.adapters.rank * sum(target.shape) for target in targets.values())
    trained = sum(size for path, size in sizes.items() if is_trained(decided[path]))
    total = sum(sizes.values())
    trainable = adapters + trained
    return Footprint(trainable, adapters, trained, total - trained, 4 * trainable, 4 * total)
