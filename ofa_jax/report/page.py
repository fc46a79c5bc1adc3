"""One page about a run: what was run, how training went, what it does on the test part and beside which controls.

The page is a single HTML file without scripts; its pictures are inside it, and it asks no other file or machine for anything.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ofa_jax.baselines.compare import Comparison, compare
from ofa_jax.baselines.controls import trained_controls
from ofa_jax.build import RANDOM, WITHOUT
from ofa_jax.config.schema import Experiment
from ofa_jax.errors import OfaError
from ofa_jax.files import readable_folder, write_atomic
from ofa_jax.plots import style as style
from ofa_jax.report import run as report_run
from ofa_jax.report.forecasts import Scored
from ofa_jax.report.parts import number, page
from ofa_jax.report.tasks import SECTIONS
from ofa_jax.runs.train import METRICS_FILE, Loaded, open_run, read_config
from ofa_jax.tasks.base import TaskData
from ofa_jax.train.events import read_events
from ofa_jax.train.loop import Reporter

REPORT_FILE = "report.html"
CONTROLS = "controls"


def write_report(
    run: str | Path,
    reporter: Reporter,
    *,
    out: str | Path | None = None,
    controls: bool = False,
    trunk: str | None = None,
    source: str | None = None,
    target: str | None = None,
) -> Path:
    """Write the page about a run, whole or not at all, and say where it is.

    Args:
        run: The run folder; at least one epoch of it is done.
        reporter: What tells a person how it goes.
        out: The file to write; ``RUN/report.html`` when None.
        controls: Also train the controls that the run does not hold yet, and keep them there.
        trunk: Where the trunk's weights are now, if not where they were.
        source: Where the data are now, if not where they were.
        target: The same of the data that a zero-shot run forecasts.

    Raises:
        OfaError: ``out`` is a folder; and as :func:`~ofa_jax.runs.train.open_run` and :func:`~ofa_jax.baselines.compare.compare`.
    """
    run = Path(run)
    out = run / REPORT_FILE if out is None else Path(out)
    if out.is_dir():
        raise OfaError(
            "this is a folder, so no report can be written there",
            where=str(out),
            fix=f"Name a file, such as {out / REPORT_FILE}",
        )
    loaded, data = open_run(run, trunk=trunk, source=source, target=target)
    _, made = read_config(run)
    events = read_events(run / METRICS_FILE)
    comparison = _compared(run, loaded, data, controls, reporter)
    windows, errors = SECTIONS[loaded.experiment.task.name](Scored(loaded, data))
    sections = [
        report_run.settings_section(loaded, data, made),
        report_run.training_section(events, data),
        report_run.controls_section(comparison),
        windows,
        errors,
        report_run.attention_section(loaded, data),
        report_run.footprint_section(run, loaded, events),
        report_run.gradient_section(events, loaded.experiment.adapters.rank),
    ]
    title = f"{_task_title(loaded.experiment)}: {report_run.shown_place(loaded.experiment.data.source)}"
    footer = f"Written by ofa-jax {metadata.version('ofa-jax')}{_commit()}, from the bundle of epoch {loaded.record.best_epoch}."
    write_atomic(
        out, page(title, _summary(comparison, loaded), _warnings(loaded, data, events), sections, footer)
    )
    return out


def _compared(run: Path, loaded: Loaded, data: TaskData, train: bool, reporter: Reporter) -> Comparison:
    """The table of the test part, with the controls that the run holds, or all of them."""
    if train:
        return compare(loaded, data, split="test", controls=run / CONTROLS, reporter=reporter)
    known = [control.name for control in trained_controls(loaded.experiment, data)]
    kept = tuple(name for name in known if (readable_folder(run / CONTROLS / name) / "control.json").exists())
    return compare(
        loaded,
        data,
        split="test",
        controls=run / CONTROLS if kept else None,
        reporter=reporter,
        only=kept or None,
    )


def _task_title(experiment: Experiment) -> str:
    task = experiment.task
    if task.name == "forecast":
        few = f", {experiment.data.percent} % of the training part" if experiment.data.percent < 100 else ""
        return f"Forecasting {task.horizon} steps{few}"
    words = {
        "zero_shot": f"Zero-shot forecasting of {task.horizon} steps",
        "short_term": f"Short-term forecasting of {task.horizon} steps",
        "anomaly": "Anomaly detection",
        "classification": "Classification",
        "imputation": "Imputation",
    }
    return words[task.name]


def _summary(comparison: Comparison, loaded: Loaded) -> list[str]:
    model = comparison.rows[0]
    found = ", ".join(f"{style.spelled(name)} {number(value)}" for name, value in model.metrics.items())
    return [
        f"{model.method}, on {comparison.windows:,} test windows under the protocol “{comparison.protocol}”: {found}.",
        f"{model.trainable:,} trainable parameters, as they were after epoch {loaded.record.best_epoch}, which the validation part chose.",
    ]


def _warnings(loaded: Loaded, data: TaskData, events: Sequence[Mapping[str, Any]]) -> list[str]:
    source = loaded.experiment.trunk.source
    found = []
    if source == RANDOM:
        found.append(
            "The trunk's weights are random: this run says nothing about what a pretrained GPT-2 would do."
        )
    if source in WITHOUT:
        found.append("There is no GPT-2 in this network: it is a control.")
    if not any(event["event"] == "finished" for event in events):
        found.append("Training has not come to its end; this is the best epoch so far.")
    return found + [f"{notice[0].upper()}{notice[1:]}." for notice in data.notices]


def _commit() -> str:
    """The commit of the code at work, where it can be known: from the installation's own record, or from the checkout it lies in."""
    try:
        record = json.loads(metadata.distribution("ofa-jax").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, json.JSONDecodeError):
        record = {}
    if commit := record.get("vcs_info", {}).get("commit_id"):
        return f", commit {commit[:12]}"
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # an installed copy may lie within somebody else's checkout
        changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return f", commit {git('rev-parse', '--short=12', 'HEAD')}{changed}"
    except (OSError, subprocess.SubprocessError):
        return ""
