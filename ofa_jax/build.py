"""From settings to the two parameter trees and the function that joins them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ofa_jax.adapters.bundle import Bundle
from ofa_jax.adapters.partition import AdapterTarget, actions, adapter_targets, combine, is_trained, partition
from ofa_jax.adapters.rslora import LoraConfig, init_adapters, merge, with_adapters
from ofa_jax.config import Experiment, TrunkConfig
from ofa_jax.data.catalog.load import CATALOG
from ofa_jax.errors import CheckpointError, ConfigError, TrainError
from ofa_jax.model import frozen_init, trees
from ofa_jax.model.gpt2 import GPT2Config
from ofa_jax.model.networks import ForecastNetwork, Network, TrunkKind, base_shapes, init_base
from ofa_jax.model.variants import ClassifyNetwork, ImputeNetwork, ReconstructNetwork, ShortTermNetwork
from ofa_jax.model.weights import Trunk, load_trunk, random_trunk, read_config

RANDOM = "random"
"""The value of ``trunk.source`` that asks for random weights."""

WITHOUT: dict[str, TrunkKind] = {"attention": "attention", "none": "none"}
"""Values of ``trunk.source`` that put one attention layer, or nothing, in the trunk's place: controls, of ``trunk.random``'s width."""


@dataclass(frozen=True)
class Model:
    """A network with its parameters in two trees.

    Attributes:
        network: The Flax module.
        frozen: Parameters that never change, nested.
        trainable: ``{"adapters": {module path: {a, b}}, "base": nested}``; what is optimised and saved.
        targets: The adapted layers.
        lora: The adapters' rank, scale, dropout and initialization.
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
        """:func:`predict_function` of this network; one function, so that jax compiles it once however often it is asked for."""
        return predict_function(self.network, self.lora)

    def merged(self) -> dict[str, Any]:
        """The network's parameters with the adapters folded in, for serving."""
        base = combine(self.frozen, self.trainable["base"])
        return merge(base, self.trainable["adapters"], self.lora)


def predict_function(
    network: Network, lora: LoraConfig, *, scale: jax.Array | None = None
) -> Callable[..., jax.Array]:
    """``predict(frozen, trainable, x_btc, x_mask=None, dropout_keys=None)`` of a network with adapters.

    ``scale`` replaces ``lora.scale`` and may be traced.
    """

    def apply(params, x_btc, x_mask, *, dropout_keys=None):
        return network.apply({"params": params}, x_btc, x_mask, dropout_keys=dropout_keys)

    adapted = with_adapters(apply, lora, scale=scale)

    def predict(frozen, trainable, x_btc, x_mask=None, *, dropout_keys=None):
        return adapted(
            combine(frozen, trainable["base"]),
            trainable["adapters"],
            x_btc,
            x_mask,
            dropout_keys=dropout_keys,
        )

    return predict


def trunk_config(settings: TrunkConfig) -> GPT2Config:
    """The trunk's shapes without loading weights; for a hub id that is not a published GPT-2 its config.json is read."""
    if settings.source == RANDOM or settings.source in WITHOUT:
        shape = settings.random
        config = GPT2Config(
            n_embd=shape.n_embd, n_layer=settings.n_layer, n_head=shape.n_head, n_positions=shape.n_positions
        )
    else:
        config = read_config(settings.source, revision=settings.revision, n_layer=settings.n_layer)
    return _with_dropout(config, settings.dropout)


def obtain_trunk(settings: TrunkConfig) -> Trunk:
    """The trunk's weights: from a folder or the hub, or random ones where the settings ask for them by name."""
    if settings.source in WITHOUT:
        return Trunk(trunk_config(settings), {}, settings.source)
    if settings.source == RANDOM:
        return random_trunk(trunk_config(settings), settings.random.seed)
    trunk = load_trunk(settings.source, n_layer=settings.n_layer, revision=settings.revision)
    return replace(trunk, config=_with_dropout(trunk.config, settings.dropout))


def _with_dropout(config: GPT2Config, rate: float | None) -> GPT2Config:
    return config if rate is None else replace(config, embd_pdrop=rate, attn_pdrop=rate, resid_pdrop=rate)


def build_network(experiment: Experiment, config: GPT2Config) -> Network:
    """The network that an experiment describes.

    Raises:
        ConfigError: The task's channels or classes are not known without its data.
    """
    task, network = experiment.task, experiment.network
    shared: dict[str, Any] = {
        "trunk": config,
        "input_length": task.input_length,
        "positions": network.positions,
        "compute_dtype": jnp.dtype(compute_dtype(experiment.trunk)),
        "remat": experiment.trunk.remat,
        "kind": WITHOUT.get(experiment.trunk.source, "gpt2"),
    }
    patches: dict[str, Any] = {"patch": network.patch, "stride": network.stride}
    if task.name in ("forecast", "zero_shot"):
        return ForecastNetwork(**shared, **patches, horizon=task.horizon)
    if task.name == "short_term":
        return ShortTermNetwork(
            **shared, horizon=task.horizon, embed_width=network.embed_width, read_width=network.read_width
        )
    channels = _size(experiment, "channels")
    if task.name == "anomaly":
        return ReconstructNetwork(
            **shared, channels=channels, segment=network.segment, read_width=network.read_width
        )
    if task.name == "imputation":
        return ImputeNetwork(**shared, channels=channels, calendar=_size(experiment, "calendar"))
    return ClassifyNetwork(**shared, **patches, channels=channels, classes=_size(experiment, "classes"))


def _size(experiment: Experiment, name: Literal["channels", "classes", "calendar"]) -> int:
    """A size of the data, from the settings or, where they do not say, from the catalogue."""
    given = getattr(experiment.task, name)
    entry = CATALOG.get(experiment.data.source)
    if given is None and entry is not None:
        if name == "calendar":
            given = 5 if entry.frequency and entry.frequency.endswith("min") else 4
        else:
            given = entry.n_channels if name == "channels" else entry.n_classes
    if given is None:
        raise ConfigError(
            f"the data's {name} are not known from the settings alone",
            where=f"task.{name}",
            fix=f"--set task.{name}=…",
        )
    return given


def compute_dtype(settings: TrunkConfig) -> Literal["float32", "bfloat16"]:
    """The type of matrix products; ``auto`` is float32 on a CPU and bfloat16 elsewhere."""
    if settings.compute_dtype != "auto":
        return settings.compute_dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def lora_config(experiment: Experiment) -> LoraConfig:
    adapters = experiment.adapters
    return LoraConfig(adapters.rank, adapters.alpha, adapters.scaling, adapters.dropout, adapters.init)


def build_model(experiment: Experiment) -> Model:
    """Load the trunk, draw the frozen layers, split by the rules, start the adapters.

    Raises:
        WeightsError: The trunk cannot be had.
        ConfigError: Shapes or rules do not fit.
        TrainError: The rules leave nothing to train.
    """
    trunk = obtain_trunk(experiment.trunk)
    network = build_network(experiment, trunk.config)
    split = partition(init_base(network, trunk.params, experiment.network.seed), experiment.rules)
    lora = lora_config(experiment)
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
    """What a bundle says of the parameters it does not hold: trunk, rule, seed and fingerprint (design of ``ofa.json``)."""
    return {
        "trunk_source": model.trunk_source,
        "trunk_sha256": model.trunk_sha256,
        "trunk_config": trunk_mathematics(model.network.trunk),
        "rule": frozen_init.RULE,
        "seed": seed,
        "sha256": trees.fingerprint(trees.flatten(model.frozen).items()),
    }


def trunk_mathematics(config: GPT2Config) -> dict[str, Any]:
    """What a trunk computes besides its weights: another number of heads fits the same weights. Dropout is for training alone."""
    return {name: value for name, value in asdict(config).items() if not name.endswith("_pdrop")}


def restore_model(experiment: Experiment, bundle: Bundle, *, where: str = "bundle") -> Model:
    """Rebuild the network of a bundle and check that every frozen bit is the one it was trained with.

    Args:
        experiment: The settings in the bundle; ``trunk.source`` may name another place.
        bundle: What was read.
        where: The bundle's place, for errors.

    Raises:
        CheckpointError: The trunk, the rule or seed of the frozen layers, their bits or the scaling differ, or the bundle's
            parameters do not fit.
    """
    _check_settings(experiment, bundle, where)
    saved = bundle.record.frozen
    model = build_model(experiment)
    if model.trunk_sha256 != saved.trunk_sha256:
        raise CheckpointError(
            f"the trunk {experiment.trunk.source} is not the one the bundle was trained with (its weights' sha256 differs; "
            f"that one came from {saved.trunk_source})",
            where=where,
            fix="Give the original trunk's folder or hub id with --trunk",
        )
    mathematics = trunk_mathematics(model.network.trunk)
    changed = [name for name, value in mathematics.items() if saved.trunk_config.get(name) != value]
    if changed:
        raise CheckpointError(
            f"the trunk {experiment.trunk.source} has the right weights but another {', '.join(changed)} than the bundle was trained with",
            where=where,
            fix="Restore the trunk's original config.json",
        )
    if frozen_record(model, saved.seed)["sha256"] != saved.sha256:
        raise CheckpointError(
            "the frozen layers around the trunk differ from those the bundle was trained with",
            where=where,
            fix="The settings in ofa.json or the rule of the frozen layers changed; use the version that made the bundle",
        )
    trainable = {"adapters": bundle.adapters, "base": bundle.trained}
    if _shapes(trainable) != _shapes(model.trainable):
        raise CheckpointError(
            "the bundle's parameters are not those its settings describe",
            where=where,
            fix="Copy the bundle again",
        )
    return replace(model, trainable=trainable)


def _check_settings(experiment: Experiment, bundle: Bundle, where: str) -> None:
    saved, fix = bundle.record.frozen, "Use the settings that the bundle was made with"
    if saved.rule != frozen_init.RULE:
        raise CheckpointError(
            f"the frozen layers were drawn by rule {saved.rule!r}, this version draws them by {frozen_init.RULE!r}",
            where=where,
            fix="Use the version of ofa-jax that made the bundle",
        )
    if experiment.network.seed != saved.seed:
        what = f"network.seed is {experiment.network.seed}, but the bundle's frozen layers were drawn from seed {saved.seed}"
        raise CheckpointError(what, where=where, fix=fix)
    for name in ("rank", "alpha", "scaling") if bundle.record.adapters else ():
        given, trained = getattr(experiment.adapters, name), getattr(bundle.record.adapters, name)
        if given != trained:
            what = f"adapters.{name} is {given}, but the bundle was trained with {trained}"
            raise CheckpointError(what, where=where, fix=fix)


def _shapes(tree: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in trees.flatten(tree).items()}


@dataclass(frozen=True)
class Footprint:
    """How many parameters and bytes an experiment has; float32 is 4 bytes a parameter."""

    trainable: int
    adapters: int
    trained_base: int
    frozen: int
    bundle_bytes: int
    inference_bytes: int


def footprint(experiment: Experiment) -> Footprint:
    """Count parameters from shapes alone; no weights are loaded.

    ``bundle_bytes`` counts the bundle's tensors (its two JSON files add a few kB); ``inference_bytes`` is everything that must be at
    hand to forecast with merged weights: all base parameters.
    """
    network = build_network(experiment, trunk_config(experiment.trunk))
    shapes = base_shapes(network)
    decided = actions(shapes, experiment.rules)
    targets = adapter_targets(shapes, decided)
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    adapters = sum(experiment.adapters.rank * sum(target.shape) for target in targets.values())
    trained = sum(size for path, size in sizes.items() if is_trained(decided[path]))
    return Footprint(
        trainable=adapters + trained,
        adapters=adapters,
        trained_base=trained,
        frozen=sum(sizes.values()) - trained,
        bundle_bytes=4 * (adapters + trained),
        inference_bytes=4 * sum(sizes.values()),
    )
