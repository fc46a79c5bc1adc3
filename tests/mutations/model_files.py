"""Bundles, runs, settings, checkpoints, trunks, sweeps: valid ones, their readers, and what they say."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from plain import leaves, plain, tensors, yaml_texts, yaml_value

V1 = Path(__file__).parents[1] / "golden" / "v1"
TABLE = V1 / "data" / "table.csv"


def copied(source: Path) -> Callable[[Path], None]:
    return lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True) and None


def read_bundle(folder: Path) -> Any:
    from ofa_jax.adapters.bundle import read_bundle

    found = read_bundle(folder)
    return found.adapters, found.trained, found.record


def load_bundle(folder: Path) -> Any:
    """Settings, scaler and every parameter; trunk and network are built."""
    from ofa_jax.config.load import dump_experiment
    from ofa_jax.runs.bundle import load_bundle

    found = load_bundle(folder)
    flat = leaves(found.model.trainable), leaves(found.model.frozen)
    return dump_experiment(found.experiment), found.scaler, flat, found.record


def write_signed(folder: Path) -> None:
    """A bundle in the newest format."""
    from ofa_jax.runs.bundle import BundleWriter, about_data
    from ofa_jax.runs.train import open_run
    from ofa_jax.train.lanes import Progress

    loaded, data = open_run(V1 / "forecast" / "run", source=str(TABLE))
    progress = Progress(best_epoch=1, best_metrics={"mse": 0.5, "mae": 0.5})
    BundleWriter(folder, loaded.experiment, loaded.model, about_data(data))(loaded.model.trainable, progress)


def sign_bundle(content: dict[str, Any]) -> None:
    content.pop("sha256", None)
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def bundle_says(folder: Path, found: Any, before: Any) -> bool:
    """Whether a bundle with an edited, signed record gives exactly what the record says."""
    settings, scaler, parameters, record = found
    said = json.loads((folder / "ofa.json").read_text())
    given, experiment = leaves(said["settings"]), leaves(settings)
    recorded, written = leaves(record), leaves(said)
    return (
        parameters == before[2]
        and all(agrees(experiment[name], value) for name, value in given.items())
        and all(plain(written.get(name, value)) == value for name, value in recorded.items())
        and scaler["mean"] == plain(np.array(said["scaler"]["mean"], float))
        and scaler["std"] == plain(np.array(said["scaler"]["std"], float))
        and list(scaler["names"]) == said["scaler"]["names"]
    )


def agrees(value: Any, written: Any) -> bool:
    """Whether a setting has the value that is written in a file, perhaps as text."""
    if isinstance(value, tuple | list) or isinstance(written, list):
        return len(value) == len(written) and all(map(agrees, value, written))
    return value == written or value in yaml_value(str(written))


def read_run(folder: Path) -> Any:
    """The settings, events and bundle of a run."""
    from ofa_jax.adapters.bundle import read_bundle
    from ofa_jax.config.load import dump_experiment
    from ofa_jax.runs.folder import is_finished, read_config
    from ofa_jax.train.events import read_events

    experiment, made = read_config(folder)
    is_finished(folder)
    return (
        dump_experiment(experiment),
        made,
        read_events(folder / "metrics.jsonl"),
        read_bundle(folder / "bundle").record,
    )


def run_says(folder: Path, found: Any, before: Any) -> bool:
    """Whether settings and events are those of the changed files."""
    settings, made, events, bundle = found
    said = yaml_texts(folder / "config.yaml")
    recorded = said.pop("provenance")
    return (
        bundle == before[3]
        and settings_say(said, settings)
        and all(str(made[name]) == value for name, value in recorded.items() if name.endswith("sha256"))
        and events_say(folder / "metrics.jsonl", events)
    )


def settings_say(said: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether every setting of a file is what the file says, and the file says it."""
    experiment = leaves(settings)
    old = {"train.lowest_rate": "train.min_learning_rate"}

    for name, text in leaves(said).items():
        name = old.get(name, name)
        if name not in experiment:
            continue  # a field of format 1 that its task does not have
        if not agrees(experiment[name], text):
            return False
    return True


def events_say(path: Path, events: tuple[dict[str, Any], ...]) -> bool:
    """Whether events are those of a log's whole lines, or of the first ones."""
    lines = path.read_bytes().split(b"\n")[: len(events)] if path.exists() else []
    said = [json.loads(line) for line in lines]
    return len(said) == len(events) and all(
        plain(event[name]) == plain(line[name])
        for event, line in zip(events, said, strict=True)
        for name in event.keys() & line.keys()
    )


def read_settings(folder: Path) -> Any:
    from ofa_jax.config.load import dump_experiment, load_experiment

    return dump_experiment(load_experiment(folder / "settings.yaml"))


def settings_file(folder: Path) -> None:
    text = (V1 / "forecast" / "run" / "config.yaml").read_text().split("data:\n", 1)[1]
    content = yaml.safe_load(f"data:\n{text}")
    del content["train"]["lowest_rate"]
    content["task"] = {name: content["task"][name] for name in ("name", "input_length", "horizon")}
    (folder / "settings.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def settings_file_says(folder: Path, found: Any, before: Any) -> bool:
    return settings_say(yaml_texts(folder / "settings.yaml"), found)


def write_checkpoints(folder: Path) -> None:
    """A checkpoint of format 1 at step 10, one of the newest format at step 20."""
    from ofa_jax.train.checkpoints import Checkpoints

    shutil.copytree(V1 / "interrupted" / "run" / "checkpoints", folder, dirs_exist_ok=True)
    found = Checkpoints(folder).restore(_like())
    assert found is not None
    Checkpoints(folder).save(20, found.arrays, found.meta)


def _like() -> dict[str, Any]:
    import jax

    record = V1 / "interrupted" / "run" / "checkpoints" / "10" / "checkpoint.json"
    saved = json.loads(record.read_text())["leaves"]
    return {leaf["path"]: jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"]) for leaf in saved}


def read_checkpoint(folder: Path) -> Any:
    """Arrays and meta; both checkpoints have the same."""
    from ofa_jax.train.checkpoints import Checkpoints

    found = Checkpoints(folder).restore(_like())
    return None if found is None else (found.arrays, found.meta)


def meta_says(folder: Path, found: Any, before: Any) -> bool:
    """Whether the arrays are the same and the meta is that of a changed and signed record."""
    said = json.loads((folder / "20" / "checkpoint.json").read_text())
    signed = dict(said)
    sign_checkpoint(signed)
    return signed == said and found[0] == before[0] and found[1] == plain(said["meta"])


def sign_checkpoint(content: dict[str, Any]) -> None:
    content.pop("digest", None)
    content["digest"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_trunk(folder: Path, *, kind: str) -> None:
    """A trunk of one block: converted, as Hugging Face stores it, or in two shards."""
    from safetensors.numpy import load_file, save_file

    from ofa_jax.model.convert import save_trunk
    from ofa_jax.model.gpt2 import GPT2Config
    from ofa_jax.model.weights import random_trunk

    save_trunk(random_trunk(GPT2Config(n_embd=4, n_head=2, n_layer=1, n_positions=3), 0), folder)
    if kind != "converted":
        (folder / "trunk.json").unlink()
    if kind == "shards":
        stored = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        of = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(stored)}
        for shard in set(of.values()):
            save_file({name: stored[name] for name in stored if of[name] == shard}, folder / shard)
        index = {"metadata": {"total_size": 1}, "weight_map": of}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def read_trunk(folder: Path) -> Any:
    from ofa_jax.model.weights import load_trunk

    found = load_trunk(folder)
    return found.config, leaves(found.params), found.dropped


def trunk_says(folder: Path, found: Any, before: Any) -> bool:
    config, parameters, _ = found
    said = json.loads((folder / "config.json").read_text())
    names = {"n_embd": "hidden_size", "n_positions": "max_position_embeddings"}
    names |= {"n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}
    default = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "n_inner": None}
    default |= {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True}
    default |= {"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1}
    default |= {"scale_attn_by_inverse_layer_idx": False, "forecaster": None}
    for name, value in config.items():
        if value != said.get(name, said.get(names.get(name, ""), default[name])):
            return False
    stored: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        stored |= tensors(path)
    by_bits = sorted(plain(array) for array in stored.values())
    return all(parameter in by_bits for parameter in parameters.values())


def read_peft(folder: Path) -> Any:
    from ofa_jax.adapters.peft import read_peft

    adapters, targets, lora = read_peft(folder)
    return adapters, targets, lora


def peft_says(folder: Path, found: Any, before: Any) -> bool:
    adapters, _, lora = found
    said = json.loads((folder / "adapter_config.json").read_text())
    stored = [
        plain(np.ascontiguousarray(array.T))
        for array in tensors(folder / "adapter_model.safetensors").values()
    ]
    return (
        lora["rank"] == said.get("r", 8)
        and lora["alpha"] == said.get("lora_alpha", 8)
        and lora["dropout"] == said.get("lora_dropout", 0.0)
        and (lora["scaling"] == "rslora") is said.get("use_rslora", False)
        and all(factor in stored for pair in adapters.values() for factor in pair.values())
    )


def read_sweep(folder: Path) -> Any:
    from ofa_jax.studies.sweep.folder import read_sweep

    return read_sweep(folder).record


def sweep_says(folder: Path, found: Any, before: Any) -> bool:
    said = json.loads((folder / "sweep.json").read_text())
    found = plain(found)
    made = found["provenance"]
    found["provenance"] = {name: made[name] for name in made if name in said.get("provenance", made)}
    return all(name == "settings" or value == plain(said.get(name, value)) for name, value in found.items())


def read_baseline(folder: Path) -> Any:
    from ofa_jax.baselines.trained import load_or_train, trained_baselines
    from ofa_jax.train.progress import SilentReporter

    experiment, data = _forecast()
    [baseline] = trained_baselines(experiment, data, only=("nlinear",))
    return load_or_train(baseline, data, folder, SilentReporter())[2]


_cached: list[Any] = []


def _forecast() -> Any:
    """Experiment and data of the forecaster, read once."""
    if not _cached:
        from ofa_jax.runs.train import open_run

        loaded, data = open_run(V1 / "forecast" / "run", source=str(TABLE))
        _cached.extend((loaded.experiment, data))
    return _cached


def write_baseline(folder: Path) -> None:
    shutil.copytree(V1 / "forecast" / "run" / "controls", folder, dirs_exist_ok=True)
    (folder / ".lock").touch()


def series() -> Any:
    """Two daily series with a covariate, and the same for the next steps."""
    import pandas as pd

    draw = np.random.default_rng(0)
    table = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=64), "sale": draw.random(64) < 0.3})
    parts = [table.assign(unique_id=name, y=draw.normal(size=64) + 2 * table["sale"]) for name in "ab"]
    frame = pd.concat(parts, ignore_index=True)
    ahead = frame["ds"] >= frame["ds"].iloc[60]
    return frame[~ahead], frame.loc[ahead, ["unique_id", "ds", "sale"]]


def write_forecaster(folder: Path) -> None:
    """A saved forecaster with calibrated intervals and effects of a covariate, and its trunk."""
    from ofa_jax import OneForAllForecaster, PredictionIntervals
    from ofa_jax.model.convert import save_trunk
    from ofa_jax.model.gpt2 import Forecaster, GPT2Config
    from ofa_jax.model.weights import Trunk, random_trunk, trunk_tensors

    around = Forecaster(patch=4, context=16, horizon=4)
    config = GPT2Config(n_embd=4, n_layer=1, n_head=2, n_positions=5, forecaster=around)
    draw, params = np.random.default_rng(0), dict(random_trunk(config, 0).params)
    for path, shape in trunk_tensors(config).values():
        layer, _, leaf = path.partition("/")
        if layer in ("in_layer", "median_layer", "spread_layer"):
            params.setdefault(layer, {})[leaf] = draw.normal(0, 0.3, shape).astype(np.float32)
    save_trunk(Trunk(config, params, "pretrained"), folder / "trunk")
    model = OneForAllForecaster(4, trunk=str(folder / "trunk"), rank=2, covariates=["sale"])
    model.fit(series()[0], prediction_intervals=PredictionIntervals())
    model.save(folder / "model")


def read_forecaster(folder: Path) -> Any:
    """Parameters and forecasts."""
    from ofa_jax import OneForAllForecaster

    model = OneForAllForecaster.load(folder / "model", trunk=str(folder / "trunk"))
    made = model.predict(series()[0], futr_df=series()[1], level=80)
    parameters = {name: value for name, value in model.get_params().items() if name != "trunk"}
    return parameters, made.drop(columns=["unique_id", "ds"]).to_numpy()
