"""Commands that train many adapters: sweep, gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from ofa_jax.cli.options import Baselines, Config, Json, Sets, print_json
from ofa_jax.train.progress import ConsoleReporter


def _list(values: str) -> Any:
    return Option(metavar="LIST", help=f"Comma-separated {values}.")


def sweep(
    config: Config,
    ranks: Annotated[str, _list("ranks, such as 2,4,8,16")],
    out: Annotated[Path, Option(help="Sweep folder to create or resume.")],
    seeds: Annotated[int, Option(help="Number of seeds; seed k adds k to train.seed and adapters.seed.")] = 1,
    alphas: Annotated[str, _list("values of adapters.alpha")] = "",
    scalings: Annotated[str, _list("values of adapters.scaling: rslora, lora, none")] = "",
    inits: Annotated[str, _list("values of adapters.init: peft_gaussian, theorem, kaiming")] = "",
    learning_rates: Annotated[str, _list("values of train.learning_rate")] = "",
    baselines: Baselines = False,
    at_once: Annotated[
        int | None, Option(help="Maximum adapters to train at once; default: what fits.")
    ] = None,
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Train one adapter per combination of rank, seed and other settings. Re-run to resume."""
    from ofa_jax.cli.show import print_sweep
    from ofa_jax.config.load import load_experiment
    from ofa_jax.studies.sweep.cells import Axes
    from ofa_jax.studies.sweep.folder import run_sweep

    experiment = load_experiment(config, overrides or ())
    lists: dict[str, Any] = {
        "ranks": ranks,
        "alphas": alphas or None,
        "scalings": scalings or None,
        "inits": inits or None,
        "learning_rates": learning_rates or None,
    }
    with ConsoleReporter() as reporter:
        axes = Axes(seeds=seeds, **lists)
        made = run_sweep(experiment, axes, out, reporter, at_once=at_once, baselines=baselines)
    if as_json:
        print_json(made.record)
    else:
        print_sweep(made)


def gradients(
    config: Config,
    out: Annotated[Path, Option(help="New folder for tables and figures.")],
    ranks: Annotated[str, _list("ranks")] = "2,4,8,16,32,64,128,256,512,1024",
    scalings: Annotated[str, _list("scalings: rslora, lora, none")] = "rslora,lora,none",
    inits: Annotated[
        str, _list("inits: theorem, peft_gaussian, kaiming, inverse_rank (std 1/r)")
    ] = "theorem,peft_gaussian,kaiming",
    optimizers: Annotated[str, _list("optimizers: sgd, adam")] = "sgd,adam",
    steps: Annotated[str, _list("steps after which to measure")] = "0,1,10",
    seeds: Annotated[int, Option(help="Random initializations per configuration.")] = 5,
    windows: Annotated[int, Option(help="Windows per step and per measurement.")] = 64,
    sgd_learning_rate: Annotated[
        float, Option(help="SGD's learning rate; theory assumes a small one.")
    ] = 1e-6,
    adam_learning_rate: Annotated[
        float | None, Option(help="Adam's learning rate; default: train.learning_rate.")
    ] = None,
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Measure how adapters change in their first steps, by rank, scaling and init (docs/theory.md)."""
    from ofa_jax.cli.show import print_slopes
    from ofa_jax.config.load import load_experiment
    from ofa_jax.studies.gradients.folder import run_study
    from ofa_jax.studies.gradients.study import Grid

    experiment = load_experiment(config, overrides or ())
    chosen: dict[str, Any] = {
        "ranks": ranks,
        "scalings": scalings,
        "inits": inits,
        "optimizers": optimizers,
        "steps": steps,
        "seeds": seeds,
        "windows": windows,
        "sgd_learning_rate": sgd_learning_rate,
        "adam_learning_rate": adam_learning_rate,
    }
    with ConsoleReporter() as reporter:
        made = run_study(experiment, Grid(**chosen), out, reporter.notice)
    if as_json:
        print_json(made.to_dict())
    else:
        print_slopes(made)
