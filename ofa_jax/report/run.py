"""The sections of a report that every task has: settings, training, baselines, size, gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ofa_jax.baselines.compare import Comparison
from ofa_jax.build import RANDOM, REPLACED, footprint
from ofa_jax.config.schema import Experiment
from ofa_jax.data.catalog.load import CATALOG
from ofa_jax.files import readable_folder
from ofa_jax.model.weights import hub_origin
from ofa_jax.plots import run as plots_run
from ofa_jax.plots import studies as plots
from ofa_jax.plots import style
from ofa_jax.report.parts import Section, Table, number, number_table, picture
from ofa_jax.runs.bundle import LoadedModel, public_settings
from ofa_jax.runs.folder import BUNDLE, Provenance
from ofa_jax.runs.reduced_rank import MAX_WINDOWS
from ofa_jax.runs.ridge import is_closed_form
from ofa_jax.tasks.base import TaskData

Events = Sequence[Mapping[str, Any]]

SHOWN_SERIES = 20
"""Names of series in the table of settings."""

HOW_TO_LOG = "Gradients were not logged; --set train.gradient_log=50 in training logs them every 50 steps."
HOW_TO_TRAIN = "No trained baselines yet; ofa-jax report RUN --baselines trains them once and keeps them."
NOT_CLIPPED = "The gradient was never clipped: train.clip_norm is not set."


def shown_place(place: str) -> str:
    """The name of a data set; of a path its last part only, as a page is passed on."""
    is_path = place not in CATALOG and (Path(place).is_absolute() or Path(place).exists())
    return Path(place).name if is_path else place


def settings_section(loaded: LoadedModel, data: TaskData, made: Provenance) -> Section:
    """Settings, data, trunk and versions; ``made`` is the run's ``provenance``."""
    settings = public_settings(loaded.experiment, loaded.model.trunk_source)
    rows = [
        *_summary_rows(loaded, data),
        ("sha256 of the data", made.data_sha256),
        ("sha256 of the trunk", loaded.model.trunk_sha256 or "—"),
    ]
    versions = Table("Versions at the start of the run", ("package", "version"), [*made.versions.items()], 2)
    return Section(
        "settings",
        "Settings",
        tables=[Table("Summary", ("setting", "value"), rows, 2)],
        folded=[versions],
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
    )


def _summary_rows(loaded: LoadedModel, data: TaskData) -> list[tuple[str, str]]:
    experiment, task, names = loaded.experiment, data.settings, loaded.names
    adapters, train, target = experiment.adapters, experiment.train, experiment.data.target
    series = "any"
    if names is not None:
        more = " …" if len(names) > SHOWN_SERIES else ""
        series = f"{len(names)}: {', '.join(names[:SHOWN_SERIES])}{more}"
    rank = (
        f"rank {adapters.rank}, alpha {adapters.alpha:g}, {adapters.scaling} scaling, {adapters.init} "
        f"initialization, dropout {adapters.dropout:g}"
    )
    training = (
        f"at most {train.epochs} epochs of batches of {train.batch_size}, {train.optimizer}, learning rate "
        f"{train.learning_rate:g} ({train.schedule}), seed {train.seed}"
    )
    if is_closed_form(loaded.model, data.task, train):
        train_most, validation_most = (f"{MAX_WINDOWS[split]:,}" for split in ("train", "validation"))
        training = (
            f"reduced-rank ridge regression in closed form, of at most {train_most} windows; at most "
            f"{validation_most} of validation chose penalty and step, and its metrics are of them"
        )
    steps, horizon = f"{task.name}, {task.input_length} input steps", data.task.spec.horizon
    return [
        ("task", steps + (f", horizon {horizon}" if horizon else "")),
        ("data", shown_place(experiment.data.source) + (f" → {shown_place(target)}" if target else "")),
        ("series", series),
        ("windows", ", ".join(f"{table.size:,} {split}" for split, table in data.task.tables.items())),
        ("protocol", experiment.protocol),
        ("recipe", experiment.recipe),
        ("trunk", _trunk_text(experiment, loaded.model.trunk_source)),
        ("adapters", rank if loaded.model.targets else "none"),
        ("adapted layers", ", ".join(loaded.model.targets) or "none"),
        ("training", training),
        ("compute type", experiment.trunk.compute_dtype),
    ]


def _trunk_text(experiment: Experiment, origin: str) -> str:
    trunk, shape = experiment.trunk, experiment.trunk.random
    if trunk.source in REPLACED:
        return {"attention": "none; one attention layer in its place", "none": "none"}[trunk.source]
    if trunk.source == RANDOM:
        blocks = f"{trunk.n_layer} blocks of width {shape.n_embd} with {shape.n_head} heads"
        return f"RANDOM weights, {blocks}, seed {shape.seed}"
    hub_id = hub_origin(origin)
    name = "weights from a folder" if hub_id is None else "@".join(hub_id)
    return f"{name}, the first {trunk.n_layer} blocks"


def training_section(events: Events, objective: str) -> Section:
    """Curves of training and validation, from the run's events."""
    epochs = pd.DataFrame([event for event in events if event["event"] == "epoch"])
    title, column = "Training", f"validation_{objective}"
    if column not in epochs:
        return Section("training", title, ["metrics.jsonl has no epoch of this run, so there are no curves."])
    steps_per_epoch = epochs["step"].iloc[0] / epochs["epoch"].iloc[0]
    logged = pd.DataFrame([event for event in events if event["event"] == "train"])
    steps = logged.assign(epoch=logged["step"] / steps_per_epoch) if len(logged) else None
    best, last = epochs.iloc[int(epochs[column].argmin())], epochs.iloc[-1]
    said = (
        f"The smallest validation {style.spelled(objective)} is {number(best[column])}, of epoch "
        f"{best['epoch']:g}; after the last epoch, {last['epoch']:g}, it is {number(last[column])} and the "
        f"training loss {number(last['train_loss'])}."
    )
    reasons = [event["reason"] for event in events if event["event"] == "finished"]
    ended = "".join(f" Training ended: {reason}." for reason in reasons)
    shown = epochs.filter(regex="^(epoch|train_loss|learning_rate|validation_.*)$")
    by_epoch = shown.set_index(shown["epoch"].map("{:g}".format)).drop(columns="epoch")
    curves = picture(
        plots_run.training_curves(epochs, objective, steps),
        f"Training loss and validation metric by epoch. {said}",
        "Training loss, and the metric that chooses the epoch.",
    )
    sentences = [said + ended, "The training loss is measured with dropout, the validation metric without."]
    folded = [number_table("All epochs", [style.spelled(name) for name in shown], by_epoch)]
    return Section("training", title, sentences, pictures=[curves], folded=folded)


def baselines_section(comparison: Comparison) -> Section:
    """The table of the model and its baselines, the best first."""
    names, ranked = comparison.metric_names, comparison.ranked
    columns = [style.aligned(row.metrics.get(name) for row in ranked) for name in names]
    sizes = [
        (f"{row.trainable:,}", style.bytes_text(row.bytes)) if row.trainable else (style.MISSING,) * 2
        for row in ranked
    ]
    numbers = zip(*columns, strict=True)
    rows = [(row.method, *own, *size) for row, own, size in zip(ranked, numbers, sizes, strict=True)]
    best = {
        (place, column)
        for place, row in enumerate(ranked)
        for column, name in enumerate(names, 1)
        if name in row.metrics and row.metrics[name] == comparison.best.get(name)
    }
    head = ("method", *map(style.spelled, names), "trainable", "as float32")
    said = f"Every method is scored on the same windows with the same metrics, and sorted by {head[1]}."
    sentences = [said, *([comparison.verdict] if comparison.verdict else [])]
    if not any(row.trainable for row in comparison.rows[1:]):
        sentences.append(HOW_TO_TRAIN)
    caption = f"Metrics over all {comparison.windows:,} test windows, {comparison.conditions}; bold: the best"
    table = Table(caption, head, rows, best=best)
    return Section("baselines", "Comparison with baselines", sentences, [table])


def footprint_section(run: Path, loaded: LoadedModel, events: Events) -> Section:
    """Parameters, bytes and seconds."""
    counts = footprint(loaded.experiment)
    bundle = sorted(path for path in readable_folder(run / BUNDLE).iterdir() if path.is_file())
    sizes = {path.name: path.stat().st_size for path in bundle}
    rows = [
        ("trainable parameters", f"{counts.trainable:,}"),
        ("of these in adapters", f"{counts.adapters:,}"),
        ("of these in base layers", f"{counts.trained_base:,}"),
        ("frozen parameters", f"{counts.frozen:,}"),
        ("trainable share", f"{100 * counts.trainable / (counts.trainable + counts.frozen):.3g} %"),
        ("tensors of the bundle", style.bytes_text(counts.bundle_bytes)),
        ("bundle on disk", style.bytes_text(sum(sizes.values()))),
        ("base parameters in memory, float32", style.bytes_text(counts.inference_bytes)),
    ]
    if seconds := sum(event.get("seconds", 0) for event in events if event["event"] == "epoch"):
        rows.append(("training time, as logged", f"{seconds:,.0f} s"))
    table = Table("Size of the model", ("quantity", "size"), rows)
    files = [(name, style.bytes_text(size)) for name, size in sizes.items()]
    folded = [Table("Files of the bundle", ("file", "size"), files)]
    return Section("footprint", "Footprint", tables=[table], folded=folded)


def gradient_section(events: Events, rank: int) -> Section:
    """Gradient norms and update ratios, where the run logged them."""
    logged, title = [event for event in events if event["event"] == "gradient"], "Gradients"
    if not logged:
        return Section("gradients", title, [HOW_TO_LOG])
    records = [
        {"step": event["step"], "module": module, "rank": rank, **values}
        for event in logged
        for module, values in event["modules"].items()
    ]
    table = pd.DataFrame(records).astype({"gradient_norm": float, "update_ratio": float})
    modules = table.groupby("module", sort=False)
    found = modules["gradient_norm"].agg(["first", "last", "min", "max"])
    found["update ratio"] = modules["update_ratio"].median()
    clipped = pd.Series([event.get("clip_rate") for event in logged], dtype=float)
    clipping = f"The gradient was clipped in {100 * clipped.mean():.3g} % of the logged steps."
    sentences = [
        f"Root mean squares over the steps between two records: {len(logged):,} records up to step "
        f"{logged[-1]['step']:,}.",
        clipping if clipped.notna().any() else NOT_CLIPPED,
    ]
    drawn = {
        "gradient_norm": "Gradient norm",
        "update_ratio": "Norm of an update over the norm of the parameter",
    }
    pictures = []
    for column, what in drawn.items():
        if (values := table[column]).notna().any():
            span = f"between {number(values.min())} and {number(values.max())}"
            alt = f"{what} over training of {len(found)} parameters, {span}."
            pictures.append(picture(plots.gradient_norms(table, column), alt, f"{what}, by parameter."))
    head = ("parameter", "first norm", "last norm", "smallest", "largest", "median update ratio")
    tables = [number_table("Gradient norms by parameter", head, found)]
    return Section("gradients", title, sentences, tables, pictures)
