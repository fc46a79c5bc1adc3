"""From settings to a model and back: what is built, what a bundle restores, and what it refuses by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from ofa_jax.adapters.bundle import read_bundle, write_bundle
from ofa_jax.adapters.partition import combine
from ofa_jax.build import build_model, footprint, frozen_record, restore_model
from ofa_jax.config.load import build_experiment, dump_experiment
from ofa_jax.config.recipes import RECIPES
from ofa_jax.errors import CheckpointError, ConfigError, TrainError
from ofa_jax.model import frozen_init
from ofa_jax.model.convert import save_trunk
from ofa_jax.model.gpt2 import GPT2Config
from ofa_jax.model.trees import fingerprint, flatten
from ofa_jax.model.weights import random_trunk

SMALL = {
    "data": {"source": "etth1"},
    "task": {"input_length": 48, "horizon": 4},
    "trunk": {"source": "random", "n_layer": 1, "random": {"n_embd": 8, "n_head": 2, "n_positions": 16}},
    "adapters": {"rank": 3},
}


def settings(recipe="reference", *overrides):
    content = SMALL | {"recipe": recipe}
    if recipe not in ("reference", "paper"):
        content.pop("adapters")
    return build_experiment(content, overrides)


@pytest.fixture
def save(bundle_meta):
    def write(folder: Path, experiment, model) -> Path:
        frozen = frozen_record(model, experiment.network.seed)
        write_bundle(
            folder,
            adapters=model.trainable["adapters"],
            targets=model.targets,
            trained=model.trainable["base"],
            lora=model.lora,
            meta=bundle_meta | {"settings": dump_experiment(experiment), "frozen": frozen},
        )
        return folder

    return write


def moved(model):
    rng = np.random.default_rng(0)
    shift = lambda leaf: (leaf + rng.normal(size=leaf.shape)).astype(np.float32)  # noqa: E731
    return replace(model, trainable=jax.tree.map(shift, model.trainable))


def series():
    return np.random.default_rng(1).normal(size=(2, 48, 1)).cumsum(axis=1).astype(np.float32)


@pytest.mark.parametrize("recipe", RECIPES)
def test_footprint_is_what_is_built_and_saved(tmp_path, recipe, save):
    experiment = settings(recipe)
    model, counts = build_model(experiment), footprint(experiment)
    size = {name: sum(leaf.size for leaf in flatten(tree).values()) for name, tree in model.trainable.items()}
    assert (counts.adapters, counts.trained_base) == (size["adapters"], size["base"])
    assert counts.trainable == size["adapters"] + size["base"]
    assert counts.frozen == sum(leaf.size for leaf in flatten(model.frozen).values())
    assert counts.inference_bytes == sum(leaf.nbytes for leaf in flatten(model.merged()).values())
    folder = save(tmp_path / "bundle", experiment, model)
    tensors = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert counts.bundle_bytes < tensors < counts.bundle_bytes + 4000  # the rest is the files' headers


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_bundle_brings_the_model_back_bit_for_bit(tmp_path, recipe, save):
    experiment = settings(recipe)
    model = moved(build_model(experiment))
    restored = restore_model(experiment, read_bundle(save(tmp_path / "bundle", experiment, model)))
    for name in ("frozen", "trainable"):
        assert fingerprint(flatten(getattr(restored, name)).items()) == fingerprint(
            flatten(getattr(model, name)).items()
        )
    assert restored.targets == model.targets
    assert restored.lora == model.lora
    predict = jax.jit(model.predict)
    np.testing.assert_array_equal(
        predict(restored.frozen, restored.trainable, series()),
        predict(model.frozen, model.trainable, series()),
    )


def test_frozen_and_trained_leaves_are_the_network_s():
    model = build_model(settings("gpt4ts"))
    assert not flatten(model.frozen).keys() & flatten(model.trainable["base"]).keys()
    whole = combine(model.frozen, model.trainable["base"])
    assert jax.eval_shape(model.network.apply, {"params": whole}, series()).shape == (2, 4, 1)


def test_merged_weights_give_the_same_forecast():
    model = moved(build_model(settings()))
    adapted = np.asarray(jax.jit(model.predict)(model.frozen, model.trainable, series()))
    merged = np.asarray(jax.jit(model.network.apply)({"params": model.merged()}, series()))
    np.testing.assert_allclose(merged, adapted, rtol=0, atol=1e-5 * np.abs(adapted).max())


def test_rules_that_freeze_everything_are_refused():
    with pytest.raises(TrainError, match="the rules freeze every parameter"):
        build_model(build_experiment(SMALL | {"rules": [["freeze", ".*"]]}))


def test_a_geometry_that_does_not_fit_is_refused_by_both():
    for override, named in (
        ("network.stride=20", r"network\.stride: stride 20 is larger"),
        ("trunk.random.n_positions=2", "2 positions"),
    ):
        for build in (build_model, footprint):
            with pytest.raises(ConfigError, match=named):
                build(settings("reference", override))


@pytest.fixture
def trunk_folder(tmp_path):
    save_trunk(
        random_trunk(GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=16), seed=4), tmp_path / "trunk"
    )
    return tmp_path / "trunk"


@pytest.fixture
def from_folder(tmp_path, trunk_folder, save):
    experiment = settings("reference", f"trunk.source={trunk_folder}")
    return experiment, save(tmp_path / "bundle", experiment, build_model(experiment))


def refused(experiment, folder, message):
    with pytest.raises(CheckpointError, match=message):
        restore_model(experiment, read_bundle(folder))


def test_another_trunk_is_refused(tmp_path, from_folder):
    experiment, folder = from_folder
    other = GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=16)
    save_trunk(random_trunk(other, seed=5), tmp_path / "other")
    elsewhere = experiment.replace({"trunk.source": str(tmp_path / "other")})
    refused(elsewhere, folder, r"the trunk .*/other is not the one of training, which came from random")


def test_the_same_trunk_elsewhere_is_accepted(tmp_path, from_folder, trunk_folder):
    experiment, folder = from_folder
    shutil.move(trunk_folder, tmp_path / "elsewhere")
    elsewhere = experiment.replace({"trunk.source": str(tmp_path / "elsewhere")})
    restore_model(elsewhere, read_bundle(folder))


@pytest.mark.parametrize(
    ("name", "value"), [("n_head", 4), ("activation_function", "relu"), ("layer_norm_epsilon", 1e-3)]
)
def test_the_same_weights_under_another_config_are_refused(from_folder, trunk_folder, name, value):
    """These change every forecast, but no shape and no weight."""
    experiment, folder = from_folder
    config = json.loads((trunk_folder / "config.json").read_text()) | {name: value}
    (trunk_folder / "config.json").write_text(json.dumps(config))
    # as in a plain Hugging Face folder, where nothing guards the config
    (trunk_folder / "trunk.json").unlink()
    refused(experiment, folder, f"has the right weights but another {name} than in training")


def test_another_dropout_is_no_other_trunk(from_folder):
    experiment, folder = from_folder
    restore_model(experiment.replace({"trunk.dropout": 0.0}), read_bundle(folder))


def test_another_seed_of_the_frozen_layers_is_refused(tmp_path, save):
    folder = save(tmp_path / "bundle", settings(), build_model(settings()))
    refused(settings("reference", "network.seed=1"), folder, "the frozen layers around the trunk differ")


def test_another_rule_of_the_frozen_layers_is_refused_by_name(tmp_path, monkeypatch, save):
    folder = save(tmp_path / "bundle", settings(), build_model(settings()))
    monkeypatch.setattr(frozen_init, "RULE", "philox-2")
    refused(settings(), folder, "drawn by rule 'philox-1', this version uses 'philox-2'")


def test_other_bits_under_the_same_rule_are_refused(tmp_path, monkeypatch, save):
    folder = save(tmp_path / "bundle", settings(), build_model(settings()))
    right = frozen_init.uniform
    monkeypatch.setattr(frozen_init, "uniform", lambda *args: np.nextafter(right(*args), np.float32(1)))
    refused(settings(), folder, "the frozen layers around the trunk differ")


@pytest.mark.parametrize(
    ("name", "value", "was"),
    [("alpha", "8.0", "16.0"), ("scaling", "'lora'", "'rslora'"), ("rank", "4", "3")],
)
def test_another_scaling_is_refused_by_name(tmp_path, name, value, was, save):
    folder = save(tmp_path / "bundle", settings(), build_model(settings()))
    message = f"the settings are of .*{name}={value},.* adapters are of .*{name}={was},"
    refused(settings("reference", f"adapters.{name}={value}"), folder, message)


@pytest.mark.parametrize(
    "override", ["task.horizon=5", "network.patch=12", "rules=[[adapt, out_layer/kernel], [freeze, '.*']]"]
)
def test_another_network_is_refused(tmp_path, override, save):
    folder = save(tmp_path / "bundle", settings(), build_model(settings()))
    refused(
        settings("reference", override),
        folder,
        "frozen layers around the trunk differ|do not fit its settings",
    )
