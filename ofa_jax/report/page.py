"""One page about a run: settings, training, test metrics with baselines, windows, errors, attention, size.

The page is a single HTML file without scripts; its figures are embedded and it loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from ofa_jax.baselines.compare import Comparison, compare
from ofa_jax.baselines.trained import RECORD, trained_baselines
from ofa_jax.build import RANDOM, REPLACED
from ofa_jax.config.schema import Experiment
from ofa_jax.files import check_output, readable_folder, write_output
from ofa_jax.plots import style
from ofa_jax.report import run as sections
from ofa_jax.report.attention import attention_section
from ofa_jax.report.forecasts import Evaluation
from ofa_jax.report.parts import number, page
from ofa_jax.report.run import Events
from ofa_jax.report.tasks import RESULTS
from ofa_jax.runs.bundle import LoadedModel
from ofa_jax.runs.folder import BASELINES, METRICS_FILE, read_config
from ofa_jax.runs.train import open_run
from ofa_jax.tasks.base import TaskData
from ofa_jax.tasks.table import TASKS
from ofa_jax.train.events import read_events
from ofa_jax.train.progress import Reporter

REPORT_FILE = "report.html"


def write_report(
    run: str | Path,
    reporter: Reporter,
    *,
    out: str | Path | None = None,
    baselines: bool = False,
    trunk: str | None = None,
    source: str | None = None,
    target: str | None = None,
) -> Path:
    """Write the page about a run atomically and return its path.

    Args:
        run: The run folder, with at least one epoch done.
        reporter: Progress of training baselines.
        out: The file to write; default: ``RUN/report.html``.
        baselines: Also train the baselines that the run lacks, and keep them in it.
        trunk: Current path of the trunk's weights, if it moved.
        source: Current path of the data, if it moved.
        target: Current path of the zero-shot target data set, if it moved.

    Raises:
        OfaError: ``out`` is a folder; or as :func:`~ofa_jax.runs.train.open_run` and
            :func:`~ofa_jax.baselines.compare.compare`.
    """
    run = Path(run)
    out = run / REPORT_FILE if out is None else Path(out)
    check_output(out, where="out")
    loaded, data = open_run(run, trunk=trunk, source=source, target=target)
    _, made = read_config(run)
    events, evaluation = read_events(run / METRICS_FILE, reporter.notice), Evaluation(loaded, data)
    results = RESULTS[loaded.experiment.task.name](evaluation)
    comparison = _compared(run, evaluation, results.metrics, baselines, reporter)
    place, epoch = sections.shown_place(loaded.experiment.data.source), loaded.record.best_epoch
    content = page(
        title=f"{_task_title(loaded.experiment, data)}: {place}",
        summary=_summary(comparison, epoch),
        warnings=_warnings(loaded, data, events),
        sections=[
            sections.settings_section(loaded, data, made),
            sections.training_section(events, data.task.objective),
            sections.baselines_section(comparison),
            results.windows,
            *([results.future] if results.future else []),
            results.errors,
            attention_section(evaluation),
            sections.footprint_section(run, loaded, events),
            sections.gradient_section(events, loaded.experiment.adapters.rank),
        ],
        footer=f"Written by ofa-jax {metadata.version('ofa-jax')}, from the bundle of epoch {epoch}.",
    )
    write_output(out, content)
    return out


def _compared(
    run: Path, evaluation: Evaluation, metrics: Mapping[str, float], train: bool, reporter: Reporter
) -> Comparison:
    """The model's test metrics with those of the baselines that the run has, or of all."""
    loaded, data, folder = evaluation.loaded, evaluation.data, run / BASELINES
    names = [baseline.name for baseline in trained_baselines(loaded.experiment, data)]
    kept = tuple(name for name in names if (readable_folder(folder / name) / RECORD).exists())
    only = None if train else kept
    return compare(loaded, data, baselines=folder, reporter=reporter, only=only, metrics=metrics)


def _task_title(experiment: Experiment, data: TaskData) -> str:
    horizon, percent = data.task.spec.horizon, experiment.data.percent
    steps = f" of {horizon} steps" if horizon else ""
    few = f", {percent} % of the training part" if percent < 100 else ""
    return f"{TASKS[experiment.task.name].title}{steps}{few}"


def _summary(comparison: Comparison, epoch: int) -> list[str]:
    model = comparison.rows[0]
    found = ", ".join(f"{style.spelled(name)} {number(value)}" for name, value in model.metrics.items())
    return [
        f"{model.method}, on {comparison.windows:,} test windows, {comparison.conditions}: {found}.",
        f"{model.trainable:,} trainable parameters, of epoch {epoch}, the best on the validation part.",
        *([comparison.verdict] if comparison.verdict else []),
    ]


def _warnings(loaded: LoadedModel, data: TaskData, events: Events) -> list[str]:
    source, found = loaded.experiment.trunk.source, []
    if source == RANDOM:
        found.append("The trunk's weights are random: this run says nothing about a pretrained GPT-2.")
    if source in REPLACED:
        found.append("There is no GPT-2 in this network: it is a baseline.")
    if not any(event["event"] == "finished" for event in events):
        found.append("Training has not finished; this is the best epoch so far.")
    return found + [f"{notice}." for notice in data.notices]
