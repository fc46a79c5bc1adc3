"""Commands about many runs or one run in depth: sweep, gradients, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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


def sweep(
    config: Config,
    ranks: Annotated[str, typer.Option(metavar="RANKS", help="Comma-separated ranks: 2,4,8,16.")],
    out: Annotated[Path, typer.Option(help="Sweep folder to create or resume.")],
    seeds: Annotated[
        int, typer.Option(help="Number of seeds; seed k is added to train.seed and adapters.seed.")
    ] = 1,
    alphas: Annotated[str, typer.Option(metavar="NUMBERS", help="Values of adapters.alpha.")] = "",
    scalings: Annotated[
        str, typer.Option(metavar="NAMES", help="Values of adapters.scaling: rslora, lora, none.")
    ] = "",
    inits: Annotated[
        str, typer.Option(metavar="NAMES", help="Values of adapters.init: peft_gaussian, theorem, kaiming.")
    ] = "",
    learning_rates: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Values of train.learning_rate.")
    ] = "",
    baselines: Baselines = False,
    controls: OldBaselines = False,
    at_once: Annotated[
        int | None,
        typer.Option(metavar="N", help="Maximum adapters to train in parallel; default: what fits."),
    ] = None,
    set_: Sets = None,
    as_json: Json = False,
) -> None:
    """Train many adapters with one program per bucket of ranks. Re-run the same command to resume."""
    from ofa_jax.cli.show import print_sweep
    from ofa_jax.config.load import load_experiment
    from ofa_jax.studies.sweep.cells import parse_axes
    from ofa_jax.studies.sweep.folder import run_sweep

    experiment = load_experiment(config, set_ or ())
    axes = parse_axes(
        ranks, seeds, alphas=alphas, scalings=scalings, inits=inits, learning_rates=learning_rates
    )
    with console_reporter() as reporter:
        made = run_sweep(experiment, axes, out, reporter, at_once=at_once, baselines=baselines or controls)
    if as_json:
        print_json(made.record)
    else:
        print_sweep(made)


def gradients(
    config: Config,
    out: Annotated[Path, typer.Option(help="Folder to create for tables and figures.")],
    ranks: Annotated[
        str, typer.Option(metavar="RANKS", help="Comma-separated ranks.")
    ] = "2,4,8,16,32,64,128,256,512,1024",
    scalings: Annotated[
        str, typer.Option(metavar="NAMES", help="Scalings: rslora, lora, none.")
    ] = "rslora,lora,none",
    inits: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Inits: theorem, peft_gaussian, kaiming, inverse_rank (std 1/r)."),
    ] = "theorem,peft_gaussian,kaiming",
    optimizers: Annotated[str, typer.Option(metavar="NAMES", help="Optimizers: sgd, adam.")] = "sgd,adam",
    steps: Annotated[str, typer.Option(metavar="STEPS", help="Steps after which to measure.")] = "0,1,10",
    seeds: Annotated[int, typer.Option(help="Random initializations per configuration.")] = 5,
    windows: Annotated[int, typer.Option(help="Windows per step and per measurement.")] = 64,
    sgd_learning_rate: Annotated[
        float,
        typer.Option(
            "--sgd-learning-rate", "--sgd-rate", help="Learning rate of SGD; theory assumes a small one."
        ),
    ] = 1e-6,
    adam_learning_rate: Annotated[
        float | None,
        typer.Option(
            "--adam-learning-rate", "--adam-rate", help="Learning rate of Adam; default: train.learning_rate."
        ),
    ] = None,
    set_: Sets = None,
    as_json: Json = False,
) -> None:
    """Measure how a few steps change every adapter, by rank, scaling and init (docs/theory.md)."""
    from ofa_jax.cli.show import print_slopes
    from ofa_jax.config.load import load_experiment
    from ofa_jax.studies.gradients.folder import parse_grid, run_study

    experiment = load_experiment(config, set_ or ())
    grid = parse_grid(
        ranks,
        scalings,
        inits,
        optimizers,
        steps,
        seeds=seeds,
        windows=windows,
        sgd_learning_rate=sgd_learning_rate,
        adam_learning_rate=adam_learning_rate,
    )
    with console_reporter() as reporter:
        made = run_study(experiment, grid, out, reporter.notice)
    if as_json:
        print_json(made.to_dict())
    else:
        print_slopes(made)


def report(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="HTML file to write; default: RUN/report.html.")
    ] = None,
    baselines: Baselines = False,
    controls: OldBaselines = False,
    trunk: Trunk = None,
    data_path: DataPath = None,
    target_path: TargetPath = None,
) -> None:
    """Write a self-contained HTML report of a run."""
    from ofa_jax.report.page import write_report

    with console_reporter() as reporter:
        written = write_report(
            run,
            reporter,
            out=out,
            baselines=baselines or controls,
            trunk=trunk,
            source=data_path,
            target=target_path,
        )
    print(f"report: {written}")
