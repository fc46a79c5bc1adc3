"""Commands about one run: demo, train, evaluate, predict, report, params, convert."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from ofa_jax.cli.options import (
    Baselines,
    Config,
    Json,
    Reading,
    Run,
    Sets,
    Source,
    Target,
    Trunk,
    numbers,
    print_json,
    reading_settings,
    say,
)
from ofa_jax.errors import OfaError, TooShort
from ofa_jax.train.progress import ConsoleReporter

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from ofa_jax.config.schema import Experiment


def demo(out: Annotated[Path, Option(help="Folder to write.")] = Path("demo")) -> None:
    """Generate data, train, compare with baselines, and plot the forecast."""
    from ofa_jax.cli.show import print_comparison
    from ofa_jax.demo import run_demo

    print("Generated hourly load and the trunk nano, which was pretrained on other series.", file=sys.stderr)
    with ConsoleReporter() as reporter:
        print_comparison(run_demo(out, reporter))
    say("", f"forecast: {out / 'forecast.csv'}", f"plot:     {out / 'forecast.png'}")
    say(f"data:     {out / 'load.csv'}")
    print(
        "\nWith your own CSV (a timestamp column, one column per series):\n"
        "  ofa-jax forecast yours.csv --horizon 48 --level 90 --plot forecast.png\n"
        "  ofa-jax fit yours.csv --horizon 48 --out runs/yours\n"
        "\nIn Python:\n"
        "  import pandas as pd\n"
        "  from ofa_jax import OneForAllForecaster\n"
        f"  load = pd.read_csv({str(out / 'load.csv')!r})\n"
        "  model = OneForAllForecaster(horizon=48, time_col='date').fit(load)\n"
        "  print(model.predict(level=90))"
    )


def train(
    config: Config,
    out: Annotated[Path, Option(help="Run folder to create or resume.")],
    overrides: Sets = None,
) -> None:
    """Train a model in a run folder. After Ctrl-C, re-run the same command to resume."""
    from ofa_jax.config.load import load_experiment

    _train(load_experiment(config, overrides or ()), out)


def fit(
    file: Annotated[Path, Argument(metavar="FILE", help="CSV, Excel or Parquet file to read.")],
    horizon: Annotated[int, Option(help="Steps to forecast.", min=1, max=2**20)],
    out: Annotated[Path, Option(help="Run folder to create or resume.")],
    overrides: Sets = None,
) -> None:
    """Adapt the trunk nano to the series of a file, as `train csv` does; what fits the data is printed."""
    from ofa_jax.config.load import load_experiment

    experiment = load_experiment("csv", overrides or ())
    try:
        _train(experiment.replace({"data.source": str(file), "task.horizon": horizon}), out)
    except TooShort as error:
        fix = str(error.fix).replace("task.horizon to", "--horizon to")
        raise TooShort(error.what, where=error.where, fix=fix, sizes=error.sizes) from None


def _train(experiment: Experiment, out: Path) -> None:
    from ofa_jax.cli.show import training_summary
    from ofa_jax.runs.train import train_run

    with ConsoleReporter() as reporter:
        result = train_run(experiment, out, reporter)
    say(training_summary(result, experiment.protocol), f"bundle: {out / 'bundle'}")
    say(f"next:   ofa-jax evaluate {shlex.quote(str(out))}")


def evaluate(
    run: Run,
    split: Annotated[Literal["train", "validation", "test"], Option(help="Windows to score.")] = "test",
    baselines: Baselines = False,
    baseline: Annotated[list[str] | None, Option(help="Train only this baseline (repeatable).")] = None,
    trunk: Trunk = None,
    source: Source = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Score a run on every window of a split and compare it with baselines."""
    from ofa_jax.baselines.compare import compare
    from ofa_jax.cli.show import print_comparison
    from ofa_jax.runs.folder import BASELINES, is_finished
    from ofa_jax.runs.train import open_run

    loaded, data = open_run(run, trunk=trunk, source=source, target=target)
    only = tuple(baseline or ()) or None
    folder = run / BASELINES if baselines or only else None
    with ConsoleReporter() as reporter:
        if not is_finished(run, reporter):
            epoch = loaded.record.best_epoch
            reporter.notice(f"training has not finished; scoring the best epoch so far, {epoch}")
        for notice in () if as_json else data.notices:  # JSON has them
            reporter.notice(notice)
        comparison = compare(loaded, data, split=split, baselines=folder, reporter=reporter, only=only)
    if as_json:
        print_json(comparison.to_dict())
    else:
        print_comparison(comparison)


def predict(
    run: Annotated[Path, Argument(metavar="RUN", help="Run folder or bundle folder.")],
    input_: Annotated[
        Path, Option("--input", help="CSV, Excel or Parquet file to read; .ts for classification.")
    ],
    output: Annotated[Path, Option(help="CSV file to write; -: standard output.")],
    plot: Annotated[Path | None, Option(help="Figure to write (.png, .svg, .pdf).")] = None,
    overrides: Reading = None,
    trunk: Trunk = None,
) -> None:
    """Apply a model to new data: forecast, detect anomalies, classify or impute, depending on its task."""
    from ofa_jax.inference import apply_model, read_input
    from ofa_jax.runs.bundle import load_bundle

    _check_outputs(input_, output, plot)
    reading = reading_settings(overrides or ())
    loaded = load_bundle(run, trunk=trunk)
    new = read_input(loaded, input_, **reading)
    for notice in new.notices:
        say(notice, file=sys.stderr)
    table = apply_model(loaded, new)
    note = "random trunk" * (loaded.experiment.trunk.source == "random")
    _write_outputs(table, new.summary(table), output, plot, partial(new.plot, table, note))


def forecast(
    file: Annotated[Path, Argument(metavar="FILE", help="CSV, Excel, Parquet or .tsf file to read.")],
    horizon: Annotated[int, Option(help="Steps to forecast.", min=1, max=2**20)],
    output: Annotated[Path, Option(help="CSV file to write; -: standard output.")] = Path("-"),
    plot: Annotated[Path | None, Option(help="Figure to write (.png, .svg, .pdf).")] = None,
    level: Annotated[str, Option(metavar="80,90", help="Percentages of prediction intervals.")] = "",
    overrides: Reading = None,
    trunk: Annotated[str, Option(help="A pretrained trunk: nano or a folder.")] = "nano",
) -> None:
    """Forecast the series of a file without training."""
    from ofa_jax.estimators.intervals import check_levels
    from ofa_jax.estimators.zero_shot import zero_shot

    _check_outputs(file, output, plot)
    levels, reading = check_levels(numbers(level, "level")), reading_settings(overrides or ())
    made = zero_shot(file, horizon, levels=levels, trunk=trunk, reading=reading)
    if plot is not None and made.plot is None:
        fix = "Leave --plot out"
        raise OfaError("only tables whose series have the same times are drawn", where=str(file), fix=fix)
    for notice in made.notices:
        say(notice, file=sys.stderr)
    note = f"zero-shot, {max(levels):g} % interval" if levels else "zero-shot"
    draw = made.plot and partial(made.plot, note)
    _write_outputs(made.table, made.summary, output, plot, draw)


def _check_outputs(input_: Path, output: Path, plot: Path | None) -> None:
    from ofa_jax.data import sheets
    from ofa_jax.data.frames import PARQUET
    from ofa_jax.files import check_output
    from ofa_jax.plots.style import check_kind

    check_output(output, inputs=[input_])
    if output.suffix.lower() in (*sheets.ENDINGS, *PARQUET):
        raise OfaError(f"{output} is no CSV", where="output", fix="Name a file that ends in .csv")
    if plot is not None:
        check_kind(plot)
        check_output(plot, inputs=[input_, output], where="plot")


def _write_outputs(
    table: pd.DataFrame, summary: str, output: Path, plot: Path | None, draw: Callable[[], Figure] | None
) -> None:
    from ofa_jax.files import STANDARD_OUTPUT
    from ofa_jax.inference import formula_names, write_table

    if plot is not None and draw is not None:
        from ofa_jax.plots.style import save_figure

        save_figure(draw(), plot)
    write_table(table, output)
    if formulas := formula_names(table):
        listed = ", ".join(formulas[:3]) + ", …" * (len(formulas) > 3)
        say(f"a spreadsheet may run these texts as formulas: {listed}", file=sys.stderr)
    lines = [f"{summary}: {output}", *([f"plot: {plot}"] if plot else [])]
    say(*lines, file=sys.stderr if STANDARD_OUTPUT & {str(output), str(plot)} else None)


def report(
    run: Run,
    out: Annotated[Path | None, Option(help="HTML file to write; default: RUN/report.html.")] = None,
    baselines: Baselines = False,
    trunk: Trunk = None,
    source: Source = None,
    target: Target = None,
) -> None:
    """Write a self-contained HTML report of a run."""
    from ofa_jax.report.page import write_report

    moved = {"trunk": trunk, "source": source, "target": target}
    with ConsoleReporter() as reporter:
        say(f"report: {write_report(run, reporter, out=out, baselines=baselines, **moved)}")


def params(config: Config, overrides: Sets = None, as_json: Json = False) -> None:
    """Count parameters and bytes without loading weights."""
    from dataclasses import asdict

    from ofa_jax.build import footprint
    from ofa_jax.config.load import load_experiment

    counts = asdict(footprint(load_experiment(config, overrides or ())))
    if as_json:
        print_json(counts)
        return
    meanings = {
        "trainable": "trainable parameters",
        "adapters": "  in adapters",
        "trained_base": "  in base layers",
        "frozen": "frozen parameters",
        "bundle_bytes": "bytes of the bundle's tensors",
        "inference_bytes": "bytes of all base parameters (float32), needed for inference",
    }
    for name, meaning in meanings.items():
        print(f"{counts[name]:>15,}  {meaning}")


def convert(
    source: Annotated[
        str,
        Argument(metavar="SOURCE", help="Hugging Face GPT-2 (a folder or a hub id), or a pretraining run."),
    ],
    out: Annotated[Path, Option(help="Trunk folder to write.")],
    layers: Annotated[int | None, Option(help="Blocks to keep, from the first; default: all.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], Option(help="Data type of the stored weights.")
    ] = "float32",
    revision: Annotated[str | None, Option(help="Revision on the hub.")] = None,
    as_json: Json = False,
) -> None:
    """Convert Hugging Face GPT-2 weights, or a pretraining run, to a verified trunk folder."""
    from ofa_jax.model.convert import convert as convert_trunk
    from ofa_jax.model.convert import save_trunk
    from ofa_jax.runs.folder import CONFIG_FILE
    from ofa_jax.runs.trunk import trunk_of_run

    if (Path(source) / CONFIG_FILE).is_file():
        report = save_trunk(trunk_of_run(source), out, dtype)
    else:
        report = convert_trunk(source, out, n_layer=layers, revision=revision, dtype=dtype)
    if as_json:
        print_json(report)
        return
    size = f"{report['layers']} layers, {report['dtype']}, {report['bytes']:,} bytes"
    say(f"{report['parameters']:,} parameters in {size}: {out}")
    if dropped := sum(report["dropped"].values()):
        print(f"{dropped} tensors are not part of the trunk and were left out; --json lists them")
    source = shlex.quote(f"trunk.source={out}")
    say(f"use it: --set {source} --set trunk.n_layer={report['layers']}")
