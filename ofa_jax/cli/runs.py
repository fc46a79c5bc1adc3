"""Commands about one run: demo, train, evaluate, predict, params, convert."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ofa_jax.cli.options import (
    Baselines,
    Config,
    DataPath,
    Json,
    OldBaselines,
    Run,
    Sets,
    TargetPath,
    Trunk,
    console_reporter,
    print_json,
)


def demo(out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("demo")) -> None:
    """Generate data, train, compare with baselines, and plot the forecast."""
    from ofa_jax.cli.show import print_comparison
    from ofa_jax.demo import run_demo

    note = "Generated load and a small random trunk: this demonstrates usage, not accuracy."
    print(note, file=sys.stderr)
    with console_reporter() as reporter:
        made = run_demo(out, reporter)
    print_comparison(made.comparison)
    print(f"\nforecast: {made.forecast}\nplot:     {made.picture}\ndata:     {made.data}")
    print(
        "\nWith your own CSV (a timestamp column, one column per series):\n"
        "  ofa-jax train csv --set data.source=yours.csv --out runs/yours    (downloads GPT-2 once)\n"
        "  ofa-jax evaluate runs/yours --baselines\n"
        "  ofa-jax predict runs/yours --input yours.csv --output forecast.csv --plot forecast.png"
    )


def train(
    config: Config,
    out: Annotated[Path, typer.Option(help="Run folder to create or resume.")],
    set_: Sets = None,
) -> None:
    """Train a model in a run folder. Ctrl-C saves a checkpoint; re-run the same command to resume."""
    from ofa_jax.config.load import load_experiment
    from ofa_jax.runs.train import train_run

    experiment = load_experiment(config, set_ or ())
    with console_reporter() as reporter:
        result = train_run(experiment, out, reporter)
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in result.progress.best_metrics.items())
    best = f"best epoch {result.progress.best_epoch}, validation {metrics}"
    print(f"{result.reason}; {best} (protocol {experiment.protocol})")
    print(f"bundle: {out / 'bundle'}\nnext:   ofa-jax evaluate {out}")


def evaluate(
    run: Run,
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Windows to score.")] = "test",
    baselines: Baselines = False,
    controls: OldBaselines = False,
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", metavar="NAME", help="Train only this baseline (repeatable)."),
    ] = None,
    control: Annotated[list[str] | None, typer.Option("--control", hidden=True)] = None,
    trunk: Trunk = None,
    data_path: DataPath = None,
    target_path: TargetPath = None,
    as_json: Json = False,
) -> None:
    """Score a run on every window of a split, compared with baselines."""
    from ofa_jax.baselines.compare import compare
    from ofa_jax.cli.show import print_comparison
    from ofa_jax.runs.folder import BASELINES, is_finished
    from ofa_jax.runs.train import open_run

    loaded, data = open_run(run, trunk=trunk, source=data_path, target=target_path)
    only = (*(baseline or ()), *(control or ()))
    folder = run / BASELINES if baselines or controls or only else None
    with console_reporter() as reporter:
        if not is_finished(run):
            epoch = loaded.record.best_epoch
            reporter.notice(f"training has not finished; scoring the best epoch so far, {epoch}")
        for notice in () if as_json else data.notices:  # JSON has them
            reporter.notice(notice)
        comparison = compare(
            loaded, data, split=split, baselines=folder, reporter=reporter, only=only or None
        )
    if as_json:
        print_json(comparison.to_dict())
    else:
        print_comparison(comparison)


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder or bundle folder.", metavar="RUN")],
    input_: Annotated[
        Path, typer.Option("--input", help="File to read: CSV or Parquet, .ts for classification.")
    ],
    output: Annotated[Path, typer.Option(help="CSV file to write.")],
    plot: Annotated[Path | None, typer.Option(help="Figure to write (.png, .svg, .pdf).")] = None,
    trunk: Trunk = None,
) -> None:
    """Apply a model to new data: forecast, score anomalies, classify, or fill gaps, by its task."""
    from ofa_jax.inference import apply_model, read_input, write_table
    from ofa_jax.plots.style import save_figure
    from ofa_jax.runs.bundle import load_bundle

    loaded = load_bundle(run, trunk=trunk)
    new = read_input(loaded, input_)
    table = apply_model(loaded, new)
    if plot is not None:  # first, because its file type may be refused
        save_figure(
            new.plot(table, "random trunk" if loaded.experiment.trunk.source == "random" else ""), plot
        )
    write_table(table, output)
    print(f"{new.summary(table)}: {output}")
    if plot is not None:
        print(f"plot: {plot}")


def params(config: Config, set_: Sets = None, as_json: Json = False) -> None:
    """Count parameters and bytes without loading weights."""
    from dataclasses import asdict

    from ofa_jax.build import footprint
    from ofa_jax.config.load import load_experiment

    counts = asdict(footprint(load_experiment(config, set_ or ())))
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
        str, typer.Argument(help="Hugging Face GPT-2: a folder or a hub id.", metavar="SOURCE")
    ],
    out: Annotated[Path, typer.Option(help="Trunk folder to write.")],
    layers: Annotated[int | None, typer.Option(help="Blocks to keep, from the first; default: all.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Data type of the stored weights.")
    ] = "float32",
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    as_json: Json = False,
) -> None:
    """Convert Hugging Face GPT-2 weights to a verified trunk folder."""
    from ofa_jax.model.convert import convert as convert_trunk

    report = convert_trunk(source, out, n_layer=layers, revision=revision, dtype=dtype)
    if as_json:
        print_json(report)
        return
    size = f"{report['layers']} layers, {report['dtype']}, {report['bytes']:,} bytes"
    print(f"{report['parameters']:,} parameters in {size}: {out}")
    if dropped := sum(report["dropped"].values()):
        print(f"{dropped} tensors are not part of the trunk and were left out; trunk.json names them")
    print(f"use it: --set trunk.source={out} --set trunk.n_layer={report['layers']}")
