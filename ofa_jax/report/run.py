"""The sections of a report that every task has: settings, training, controls, attention, size, gradients."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from ofa_jax.baselines.compare import Comparison
from ofa_jax.build import RANDOM, WITHOUT, footprint
from ofa_jax.config.load import dump_experiment
from ofa_jax.config.schema import Experiment
from ofa_jax.data.catalog.load import CATALOG
from ofa_jax.files import readable_folder
from ofa_jax.model.gpt2 import GPT2Trunk
from ofa_jax.plots import run as plots_run
from ofa_jax.plots import studies as plots
from ofa_jax.plots import style as style
from ofa_jax.report.attention import attention_weights
from ofa_jax.report.forecasts import Scored
from ofa_jax.report.parts import Picture, Section, Table, number, picture
from ofa_jax.runs.train import BUNDLE, Loaded
from ofa_jax.tasks.base import TaskData

Events = Sequence[Mapping[str, Any]]

ATTENTION_WINDOWS = 32
"""Test windows, evenly spread, over which the picture of attention is a mean."""

SHOWN_SERIES = 20
"""Names of series in the table of settings."""

HOW_TO_LOG = "Gradients were not logged in this run. Train with --set train.gradient_log=50 to have their norms here, every 50 steps."
NOT_CLIPPED = "The gradient was never clipped: train.clip_norm is not set."


def shown_place(place: str) -> str:
    """A data set's or hub's name as it is; of a file its name alone, as a page is passed on."""
    return (
        Path(place).name
        if place not in CATALOG and (Path(place).is_absolute() or Path(place).exists())
        else place
    )


def settings_section(loaded: Loaded, data: TaskData, made: Mapping[str, Any]) -> Section:
    """What was run: settings, data, trunk and versions. ``made`` is the run's ``provenance``."""
    experiment = loaded.experiment
    settings = json.loads(json.dumps(dump_experiment(experiment)))
    for section, name in (("data", "source"), ("data", "target"), ("trunk", "source")):
        if settings[section].get(name):
            settings[section][name] = shown_place(settings[section][name])
    rows = [
        *_summary_rows(loaded, data),
        ("sha256 of the data", str(made.get("data_sha256", "—"))),
        ("sha256 of the trunk", loaded.model.trunk_sha256 or "—"),
    ]
    return Section(
        "settings",
        "What was run",
        tables=[Table("The run in short", ("setting", "value"), rows)],
        folded=[
            Table(
                "Versions when the run began",
                ("package", "version"),
                [(name, str(of)) for name, of in made["versions"].items()],
            )
        ],
        listing=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        listing_title="Every setting",
    )


def _summary_rows(loaded: Loaded, data: TaskData) -> list[tuple[str, str]]:
    experiment, names = loaded.experiment, loaded.names
    adapters, train, task, target = (
        experiment.adapters,
        experiment.train,
        data.settings,
        experiment.data.target,
    )
    scale = f"{adapters.scaling} scaling, {adapters.init} start, dropout {adapters.dropout:g}"
    how = f"{train.optimizer}, learning rate {train.learning_rate:g} ({train.schedule}), seed {train.seed}"
    listed = (
        "any"
        if names is None
        else f"{len(names)}: {', '.join(names[:SHOWN_SERIES])}" + (" …" if len(names) > SHOWN_SERIES else "")
    )
    return [
        (
            "task",
            f"{task.name}, reads {task.input_length} steps"
            + (f", forecasts {task.horizon}" if task.horizon else ""),
        ),
        ("data", shown_place(experiment.data.source) + (f" → {shown_place(target)}" if target else "")),
        ("series", listed),
        ("windows", ", ".join(f"{table.size:,} {split}" for split, table in data.task.tables.items())),
        (
            "protocol",
            experiment.protocol
            + (", the default" if experiment.protocol == "strict" else ", as the published code does"),
        ),
        ("recipe", experiment.recipe),
        ("trunk", _trunk_text(experiment)),
        (
            "adapters",
            f"rank {adapters.rank}, alpha {adapters.alpha:g}, {scale}" if loaded.model.targets else "none",
        ),
        ("adapted layers", ", ".join(loaded.model.targets) or "none"),
        ("training", f"at most {train.epochs} epochs of batches of {train.batch_size}, {how}"),
        ("computed in", experiment.trunk.compute_dtype),
    ]


def _trunk_text(experiment: Experiment) -> str:
    trunk = experiment.trunk
    if trunk.source in WITHOUT:
        return {"attention": "none; one attention layer in its place", "none": "none"}[trunk.source]
    if trunk.source == RANDOM:
        shape = trunk.random
        return f"RANDOM weights, {trunk.n_layer} blocks of width {shape.n_embd} with {shape.n_head} heads, seed {shape.seed}"
    return f"{shown_place(trunk.source)}, its first {trunk.n_layer} blocks"


def training_section(events: Events, data: TaskData) -> Section:
    """Curves of training and validation, from the run's events."""
    epochs = pd.DataFrame([event for event in events if event["event"] == "epoch"])
    title, column = "Training", f"validation_{data.task.objective}"
    if not len(epochs) or column not in epochs:
        return Section(
            "training", title, ["metrics.jsonl holds no epoch of this run, so there are no curves."]
        )
    per_epoch = float(epochs["step"].iloc[0]) / float(epochs["epoch"].iloc[0])
    logged = pd.DataFrame([event for event in events if event["event"] == "train"])
    steps = logged.assign(epoch=logged["step"] / per_epoch) if len(logged) else None
    best, last = epochs.iloc[int(np.argmin(epochs[column]))], epochs.iloc[-1]
    said = (
        f"The smallest validation {style.spelled(data.task.objective)} is {number(float(best[column]))}, of epoch {best['epoch']:g}; "
        f"after the last epoch, {last['epoch']:g}, it is {number(float(last[column]))} and the training loss "
        f"{number(float(last['train_loss']))}."
    )
    ended = "".join(
        f" Training ended: {event['reason']}." for event in events if event["event"] == "finished"
    )
    shown = [
        name
        for name in epochs
        if name in ("epoch", "train_loss", "learning_rate") or str(name).startswith("validation_")
    ]
    rows = [
        [f"{row[0]:g}", *(number(value) for value in row[1:])] for row in epochs[shown].to_numpy().tolist()
    ]
    curves = plots_run.training_curves(epochs, data.task.objective, steps)
    return Section(
        "training",
        title,
        [said + ended, "Dropout acts while the training loss is measured, and not in validation."],
        pictures=[
            picture(
                curves,
                f"Training loss and validation by epoch. {said}",
                "Training loss, and the metric that chose the epoch.",
            )
        ],
        folded=[Table("Every epoch", [style.spelled(name) for name in shown], rows)],
    )


def controls_section(comparison: Comparison) -> Section:
    """The table of the model beside its controls."""
    names = comparison.metric_names
    rows = [
        (
            row.method,
            *(number(row.metrics.get(name)) for name in names),
            f"{row.trainable:,}" if row.trainable else "—",
            style.bytes_text(row.bytes) if row.trainable else "—",
        )
        for row in comparison.rows
    ]
    head = ("method", *map(style.spelled, names), "trainable", "as float32")
    some_trained = any(row.trainable for row in comparison.rows[1:])
    hint = (
        []
        if some_trained
        else [
            "No trained control is kept in this run; ofa-jax report RUN --controls trains them once and keeps them."
        ]
    )
    table = Table(
        f"Metrics over all {comparison.windows:,} test windows, protocol {comparison.protocol}", head, rows
    )
    return Section(
        "controls",
        "Beside controls",
        ["Every method is scored on the same windows with the same metrics.", *hint],
        [table],
    )


def attention_section(loaded: Loaded, data: TaskData) -> Section:
    """Where the trunk's attention goes on some test windows."""
    title = "Attention"
    if not isinstance(loaded.model.network.trunk, GPT2Trunk):
        return Section(
            "attention", title, ["The network has no GPT-2, so there is no causal attention to show."]
        )
    scored = Scored(loaded, data)
    count = min(ATTENTION_WINDOWS, scored.table.size)
    windows = scored.windows(np.linspace(0, scored.table.size - 1, count).astype(int).tolist())
    x, x_mask = (np.stack([window[name] for window in windows]) for name in ("x", "x_mask"))
    weights = attention_weights(loaded.model, x, x_mask)
    layers, heads, tokens, _ = weights.shape
    received = weights.mean(axis=(0, 1)).sum(axis=0) / np.arange(tokens, 0, -1)
    place = int(received.argmax())
    alike = float(np.mean(1 / np.arange(place + 1, tokens + 1)))
    said = (
        f"Of {tokens} patches, patch {place} receives most: {number(float(received[place]))} of the attention of those that see it, "
        f"where it would be {number(alike)} if each looked at all it sees alike."
    )
    shown = picture(
        plots.attention_by_patch(weights),
        f"Attention of {layers} layers with {heads} heads as a map over patches and as what each patch receives. {said}",
        f"Mean over {count} test windows, evenly spread. Patches are counted from 0, the oldest; a patch sees itself and those before it.",
    )
    return Section("attention", title, [said], pictures=[shown])


def footprint_section(run: Path, loaded: Loaded, events: Events) -> Section:
    """Parameters, bytes and seconds."""
    counts = footprint(loaded.experiment)
    bundle = sorted(path for path in readable_folder(run / BUNDLE).iterdir() if path.is_file())
    rows = [
        ("trainable parameters", f"{counts.trainable:,}"),
        ("of these in adapters", f"{counts.adapters:,}"),
        ("of these in base layers", f"{counts.trained_base:,}"),
        ("frozen parameters", f"{counts.frozen:,}"),
        ("trainable share", f"{100 * counts.trainable / (counts.trainable + counts.frozen):.3g} %"),
        ("the bundle's tensors", style.bytes_text(counts.bundle_bytes)),
        ("bundle on disk", style.bytes_text(sum(path.stat().st_size for path in bundle))),
        ("base parameters in memory, float32", style.bytes_text(counts.inference_bytes)),
    ]
    seconds = sum(float(event.get("seconds", 0)) for event in events if event["event"] == "epoch")
    if seconds:
        rows.append(("training time, as logged", f"{seconds:,.0f} s"))
    files = [(path.name, style.bytes_text(path.stat().st_size)) for path in bundle]
    return Section(
        "footprint",
        "Footprint",
        tables=[Table("Size of the model", ("what", "size"), rows)],
        folded=[Table("Files of the bundle", ("file", "size"), files)],
    )


def gradient_section(events: Events, rank: int) -> Section:
    """Gradient norms and update ratios, where the run logged them."""
    logged, title = [event for event in events if event["event"] == "gradient"], "Gradient health"
    if not logged:
        return Section("gradients", title, [HOW_TO_LOG])
    records = [
        {"step": event["step"], "module": module, "rank": rank, **values}
        for event in logged
        for module, values in event["modules"].items()
    ]
    table = pd.DataFrame(records).astype({"gradient_norm": float, "update_ratio": float})
    rows = []
    for module, own in table.groupby("module", sort=False):
        norms = own["gradient_norm"]
        values = (norms.iloc[0], norms.iloc[-1], norms.min(), norms.max(), own["update_ratio"].median())
        rows.append((str(module), *(number(float(value)) for value in values)))
    clipped = [float(event["clip_rate"]) for event in logged if event.get("clip_rate") is not None]
    clipping = (
        f"The gradient was clipped in {100 * float(np.mean(clipped)):.3g} % of the logged steps."
        if clipped
        else NOT_CLIPPED
    )
    sentences = [
        f"Root mean squares over the steps between two records: {len(logged):,} records up to step {logged[-1]['step']:,}.",
        clipping,
    ]
    pictures: list[Picture] = []
    for draw, column, what in (
        (plots.gradient_norms, "gradient_norm", "Gradient norm"),
        (plots.update_ratios, "update_ratio", "Size of an update over the size of what it changes"),
    ):
        if table[column].notna().any():
            span = f"between {number(table[column].min())} and {number(table[column].max())}"
            pictures.append(
                picture(
                    draw(table),
                    f"{what} over training of {len(rows)} parameters, {span}.",
                    f"{what}, by parameter.",
                )
            )
    head = ("parameter", "first norm", "last norm", "least norm", "largest norm", "median update ratio")
    return Section(
        "gradients", title, sentences, [Table("Gradient norms by parameter", head, rows)], pictures
    )
