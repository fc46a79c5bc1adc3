"""The command line: parses, calls, prints. Everything heavy is imported inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from ofa_jax import __version__
from ofa_jax.errors import Interrupted, OfaError

if TYPE_CHECKING:
    from ofa_jax.baselines.compare import Comparison
    from ofa_jax.studies.gradients.folder import Written
    from ofa_jax.studies.sweep.folder import Sweep
    from ofa_jax.train.progress import ConsoleReporter

app = typer.Typer(
    name="ofa-jax",
    help="One-for-All in JAX: a frozen GPT-2 adapted to time series by rank-stabilised low-rank adapters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change one setting; may be given many times."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else.")
]
Trunk = Annotated[
    str | None,
    typer.Option("--trunk", help="Where the trunk's weights are now, if not where they were in training."),
]
Config = Annotated[
    Path, typer.Argument(help="YAML file of settings, or the name of an installed one.", metavar="CONFIG")
]
Run = Annotated[Path, typer.Argument(help="Folder that `ofa-jax train` made.", metavar="RUN")]


class CommandWithSettings(TyperCommand):
    """A command whose help ends with the table of all settings."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        from rich.console import Console
        from rich.table import Table

        from ofa_jax.config import settings

        table = Table(
            title="Settings for --set", title_justify="left", box=None, pad_edge=False, header_style="bold"
        )
        for heading in ("path", "default", "meaning"):
            table.add_column(heading, overflow="fold")
        for setting in settings():
            meaning = setting.description + (f" ({setting.type})" if " | " in setting.type else "")
            table.add_row(setting.path, setting.default, meaning)
        Console().print(table)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
) -> None:
    """Small data made on the spot: train, score beside the controls, draw the forecast."""
    from ofa_jax.demo import run_demo

    print(
        "Generated hourly load of four regions, and a small random trunk: this shows the path, not GPT-2's quality.",
        file=sys.stderr,
    )
    with _reporter() as reporter:
        made = run_demo(out, reporter)
    _print_comparison(made.comparison)
    print(f"\nForecast: {made.forecast}   Picture: {made.picture}   Data: {made.data}")
    print(
        "\nYour own CSV (a column of timestamps, a column per series):\n"
        "  ofa-jax train csv --set data.source=yours.csv --out runs/yours        (fetches GPT-2's weights from the hub once)\n"
        "  ofa-jax evaluate runs/yours --controls\n"
        "  ofa-jax predict runs/yours --input yours.csv --output forecast.csv --plot forecast.png"
    )


@app.command(cls=CommandWithSettings)
def train(
    config: Config,
    out: Annotated[Path, typer.Option(help="Run folder; a run that is there already is resumed.")],
    set_: Sets = None,
) -> None:
    """Train in a run folder; stopped by Ctrl-C or SIGTERM it saves, and the same command goes on."""
    from ofa_jax.config import load_experiment
    from ofa_jax.runs.train import train_run

    experiment = load_experiment(config, set_ or ())
    with _reporter() as reporter:
        result = train_run(experiment, out, reporter)
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in result.progress.best_metrics.items())
    print(
        f"{result.reason}; best epoch {result.progress.best_epoch}, validation {metrics} (protocol {experiment.protocol})"
    )
    print(f"bundle: {out / 'bundle'}\nnext:   ofa-jax evaluate {out}")


@app.command()
def evaluate(
    run: Run,
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Which windows.")] = "test",
    controls: Annotated[
        bool, typer.Option("--controls", help="Also train the controls, once, and keep them in the run.")
    ] = False,
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            metavar="NAME",
            help="Train this control only; may be given many times. The task's page in docs/tasks names those that it has.",
        ),
    ] = None,
    trunk: Trunk = None,
    data_file: Annotated[
        str | None,
        typer.Option("--data", help="Where the data file is now, if not where it was in training."),
    ] = None,
    target_file: Annotated[
        str | None, typer.Option("--target", help="The same of a zero-shot run's target.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a run on every window of a split, beside controls."""
    from ofa_jax.baselines.compare import compare
    from ofa_jax.runs.train import is_finished, open_run

    loaded, data = open_run(run, trunk=trunk, source=data_file, target=target_file)
    with _reporter() as reporter:
        if not is_finished(run):
            reporter.notice(
                f"the run is not finished; this is its best epoch so far, {loaded.record.best_epoch}"
            )
        comparison = compare(
            loaded,
            data,
            split=split,
            controls=run / "controls" if controls or control else None,
            reporter=reporter,
            only=tuple(control) if control else None,
        )
    if as_json:
        print(json.dumps(comparison.to_dict()))
    else:
        _print_comparison(comparison)


@app.command(cls=CommandWithSettings)
def sweep(
    config: Config,
    ranks: Annotated[str, typer.Option(metavar="RANKS", help="Ranks, with commas between: 2,4,8,16.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the sweep; one that is there already goes on where it stopped.")
    ],
    seeds: Annotated[
        int,
        typer.Option(help="How many seeds: number k, from 0, is added to train.seed and to adapters.seed."),
    ] = 1,
    alphas: Annotated[
        str,
        typer.Option(metavar="NUMBERS", help="Values of adapters.alpha; the settings' own when not given."),
    ] = "",
    scalings: Annotated[
        str, typer.Option(metavar="NAMES", help="Values of adapters.scaling: rslora, lora, none.")
    ] = "",
    inits: Annotated[
        str, typer.Option(metavar="NAMES", help="Values of adapters.init: peft_gaussian, theorem, kaiming.")
    ] = "",
    learning_rates: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Values of train.learning_rate.")
    ] = "",
    controls: Annotated[
        bool, typer.Option("--controls", help="Also train the controls, once, and keep them in the folder.")
    ] = False,
    at_once: Annotated[
        int | None,
        typer.Option(metavar="N", help="Adapters trained side by side, at most; what fits when not given."),
    ] = None,
    set_: Sets = None,
    as_json: Json = False,
) -> None:
    """Train many adapters by one program per bucket of ranks; stopped by Ctrl-C or SIGTERM it saves, and the same command goes on."""
    from ofa_jax.config import load_experiment
    from ofa_jax.studies.sweep.cells import parse_axes
    from ofa_jax.studies.sweep.folder import run_sweep

    experiment = load_experiment(config, set_ or ())
    axes = parse_axes(
        ranks, seeds, alphas=alphas, scalings=scalings, inits=inits, learning_rates=learning_rates
    )
    with _reporter() as reporter:
        made = run_sweep(experiment, axes, out, reporter, at_once=at_once, controls=controls)
    if as_json:
        print(json.dumps(made.record))
    else:
        _print_sweep(made)


@app.command(cls=CommandWithSettings)
def gradients(
    config: Config,
    out: Annotated[Path, typer.Option(help="New folder for tables and figures.")],
    ranks: Annotated[
        str, typer.Option(metavar="RANKS", help="Ranks, with commas between.")
    ] = "2,4,8,16,32,64,128,256,512,1024",
    scalings: Annotated[
        str, typer.Option(metavar="NAMES", help="Some of rslora, lora, none.")
    ] = "rslora,lora,none",
    inits: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Some of theorem, peft_gaussian, kaiming, inverse_rank (std 1/r everywhere).",
        ),
    ] = "theorem,peft_gaussian,kaiming",
    optimizers: Annotated[str, typer.Option(metavar="NAMES", help="Some of sgd, adam.")] = "sgd,adam",
    steps: Annotated[str, typer.Option(metavar="STEPS", help="After how many steps to measure.")] = "0,1,10",
    seeds: Annotated[int, typer.Option(help="Starts of the adapters for every combination.")] = 5,
    windows: Annotated[int, typer.Option(help="Windows of a step, and that are measured on.")] = 64,
    sgd_rate: Annotated[float, typer.Option(help="Step size of SGD; theory is about small ones.")] = 1e-6,
    adam_rate: Annotated[
        float | None, typer.Option(help="Step size of Adam; train.learning_rate when not given.")
    ] = None,
    set_: Sets = None,
    as_json: Json = False,
) -> None:
    """Measure what a few steps do to every adapter, by rank, scaling and start, beside theory (docs/theory.md)."""
    from ofa_jax.config import load_experiment
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
        sgd_rate=sgd_rate,
        adam_rate=adam_rate,
    )
    with _reporter() as reporter:
        made = run_study(experiment, grid, out, reporter.notice)
    if as_json:
        print(json.dumps(made.to_dict()))
    else:
        _print_slopes(made)


@app.command()
def report(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="HTML file to write; RUN/report.html when not given.")
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also train the controls, once, and keep them in the run.")
    ] = False,
    trunk: Trunk = None,
    data_file: Annotated[
        str | None,
        typer.Option("--data", help="Where the data file is now, if not where it was in training."),
    ] = None,
    target_file: Annotated[
        str | None, typer.Option("--target", help="The same of a zero-shot run's target.")
    ] = None,
) -> None:
    """Write one page about a run: settings, curves, forecasts, errors, controls, size, gradients."""
    from ofa_jax.report.page import write_report

    with _reporter() as reporter:
        written = write_report(
            run, reporter, out=out, controls=controls, trunk=trunk, source=data_file, target=target_file
        )
    print(f"report: {written}")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder or bundle folder.", metavar="RUN")],
    input_: Annotated[
        Path, typer.Option("--input", help="CSV or Parquet with the model's series, in original units.")
    ],
    output: Annotated[Path, typer.Option(help="CSV to write: the horizon after the last row.")],
    plot: Annotated[Path | None, typer.Option(help="Picture to draw (.png, .svg, .pdf).")] = None,
    trunk: Trunk = None,
) -> None:
    """Forecast what comes after the last row of a file."""
    from ofa_jax.inference import forecast, plot_forecast, read_input, save_figure, write_forecast
    from ofa_jax.runs.train import load_bundle

    loaded = load_bundle(run, trunk=trunk)
    frame = read_input(loaded, input_)
    table = forecast(loaded, frame)
    if plot is not None:  # first, because it may be refused for its ending
        history = min(loaded.experiment.task.input_length, 3 * len(table))
        note = "random trunk" if loaded.experiment.trunk.source == "random" else ""
        figure = plot_forecast(
            frame, table, title=f"{input_.name}: the next {len(table)} steps", history=history, note=note
        )
        save_figure(figure, plot)
    write_forecast(table, output)
    print(f"{len(table)} steps of {frame.n_channels} series: {output}")
    if plot is not None:
        print(f"picture: {plot}")


@app.command(cls=CommandWithSettings)
def params(config: Config, set_: Sets = None, as_json: Json = False) -> None:
    """Count parameters and bytes from the settings alone; no weights are loaded."""
    from dataclasses import asdict

    from ofa_jax.build import footprint
    from ofa_jax.config import load_experiment

    counts = asdict(footprint(load_experiment(config, set_ or ())))
    if as_json:
        print(json.dumps(counts))
        return
    meanings = {
        "trainable": "trainable parameters",
        "adapters": "  of these in adapters",
        "trained_base": "  of these in base layers",
        "frozen": "frozen parameters",
        "bundle_bytes": "bytes of a bundle's tensors",
        "inference_bytes": "bytes of all base parameters (float32), needed to forecast",
    }
    for name, meaning in meanings.items():
        print(f"{counts[name]:>15,}  {meaning}")


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(help="Hugging Face GPT-2: a folder or a hub id.", metavar="SOURCE")
    ],
    out: Annotated[Path, typer.Option(help="Trunk folder to write.")],
    layers: Annotated[
        int | None, typer.Option(help="Blocks to keep, from the first; all when not given.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Type of the stored weights.")
    ] = "float32",
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    as_json: Json = False,
) -> None:
    """Hugging Face GPT-2 weights to a checked trunk folder that loads fast."""
    from ofa_jax.model.convert import convert as convert_trunk

    report = convert_trunk(source, out, n_layer=layers, revision=revision, dtype=dtype)
    if as_json:
        print(json.dumps(report))
    else:
        dropped = sum(report["dropped"].values())
        print(
            f"{report['parameters']:,} parameters in {report['layers']} layers, {report['dtype']}, {report['bytes']:,} bytes: {out}"
        )
        if dropped:
            print(f"{dropped} tensors are not part of the trunk and were left out")
        print(f"use it: --set trunk.source={out} --set trunk.n_layer={report['layers']}")


data = typer.Typer(
    help="Published data sets: what is known of them, fetching, checking a file.", no_args_is_help=True
)
app.add_typer(data, name="data")


@data.command("list")
def data_list(as_json: Json = False) -> None:
    """Every data set that is known by name, and whether it is below OFA_JAX_DATA."""
    import os

    from ofa_jax.data.catalog.load import DATA_VARIABLE, data_root, list_entries

    entries = list_entries(data_root() if os.environ.get(DATA_VARIABLE) else None)
    if as_json:
        print(json.dumps({"data": entries}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for heading in ("name", "here", "fetchable", "kind"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what it is", no_wrap=True, overflow="ellipsis", ratio=1)
    for entry in entries:
        here = {True: "yes", False: "no", None: "?"}[entry["present"]]
        table.add_row(
            entry["name"], here, "yes" if entry["fetchable"] else "by hand", entry["kind"], entry["title"]
        )
    Console().print(table)
    if entries[0]["present"] is None:
        print(f"{DATA_VARIABLE} is not set, so it is not known what is here", file=sys.stderr)


@data.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A name that `ofa-jax data list` shows.", metavar="NAME")],
) -> None:
    """Download a data set below OFA_JAX_DATA, check it, and unpack it; a broken download is taken up where it stopped."""
    from rich.console import Console
    from rich.progress import Progress

    from ofa_jax.data.catalog.fetch import fetch
    from ofa_jax.data.catalog.load import known

    entry = known(name)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def show(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file, total=total)
            bar.update(tasks[file], completed=done, total=total)

        fetched = fetch(entry, progress=show)
    for file in fetched:
        checked = "sha256 as published" if file.verified else "no published sha256 to compare with"
        print(f"{file.path}: {file.status}" + ("" if file.sha256 is None else f", {checked}"))


@data.command("check")
def data_check(
    file: Annotated[Path, typer.Argument(help="CSV, Parquet, .tsf, .ts, M4 csv or npz.", metavar="FILE")],
    as_json: Json = False,
) -> None:
    """Read a file with every check that training would make, and say what is in it."""
    from ofa_jax.data.catalog.check import check_file

    summary = check_file(file)
    if as_json:
        print(json.dumps(summary))
        return
    for key, value in summary.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{key.replace('_', ' ')}: {shown if shown not in ('', None) else '—'}")


def _reporter() -> ConsoleReporter:
    from ofa_jax.train.progress import ConsoleReporter

    return ConsoleReporter()


def _print_comparison(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    names = comparison.metric_names
    title = f"{comparison.task}, {comparison.split} part, {comparison.windows:,} windows, protocol {comparison.protocol}"
    digits = 4 if len(names) <= 4 else 3
    table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("method", min_width=14)
    for name in names:
        table.add_column(_heading(name), justify="right")
    for heading in ("trainable", "kB"):
        table.add_column(heading, justify="right")
    for row in comparison.rows:
        shown = (f"{row.metrics[name]:.{digits}f}" if name in row.metrics else "—" for name in names)
        table.add_row(
            row.method,
            *shown,
            f"{row.trainable:,}" if row.trainable else "—",
            f"{row.bytes / 1000:,.1f}" if row.trainable else "—",
        )
    Console().print(table)


def _print_slopes(made: Written) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = made.slopes[made.slopes["quantity"] == "first_order_change"]
    if len(rows):
        title = f"slope of the first-order loss change against rank, {made.study.windows} windows"
        table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 1, 0, 0))
        names = ("module", "scaling", "init", "optimizer", "steps")
        for name in (*names, "slope", "95 % interval", "theory"):
            table.add_column(
                name, justify="right" if name in ("steps", "slope", "95 % interval", "theory") else "left"
            )
        for row in rows.to_dict("records"):
            slope, low, high, predicted = (
                "—" if row[name] != row[name] else f"{row[name]:.2f}"
                for name in ("slope", "low", "high", "predicted")
            )
            table.add_row(*(str(row[name]) for name in names), slope, f"{low} … {high}", predicted)
        Console().print(table)
    print(
        f"all quantities: {made.folder / 'slopes.csv'}; every value: {made.folder / 'study.csv'}; figures: {made.folder}"
    )


def _print_sweep(made: Sweep) -> None:
    from rich.console import Console
    from rich.table import Table

    from ofa_jax.studies.sweep.folder import summary

    cells, controls = summary(made.cells), made.controls
    told = [
        "rank",
        *(name for name in ("alpha", "scaling", "init", "learning_rate") if cells[name].nunique() > 1),
    ]
    metrics = [
        name
        for name in cells.columns
        if name.startswith(("validation_", "test_")) and not name.endswith("_std")
    ]
    objective = f"validation_{made.record['objective']}"
    shown = [name for name in metrics if name == objective or name.startswith("test_")]
    seeds = made.record["axes"]["seeds"]
    if cells["seeds"].min() < seeds:  # some diverged
        told.append("seeds")
    title = f"mean{' ± standard deviation' if seeds > 1 else ''} over {seeds} seed{'s' if seeds > 1 else ''}"
    table = Table(
        title=f"{title}, protocol {made.record['protocol']}",
        title_justify="left",
        box=None,
        header_style="bold",
    )
    for name in (*told, *(_heading_of_part(name) for name in shown), "trainable", "kB"):
        table.add_column(name, justify="right")
    for row in cells.to_dict("records"):
        spread = {
            name: "" if row[f"{name}_std"] != row[f"{name}_std"] else f" ± {row[f'{name}_std']:.4f}"
            for name in shown
        }
        own = [str(row[name]) for name in told]
        numbers = (f"{row[name]:.4f}{spread[name]}" for name in shown)
        table.add_row(*own, *numbers, f"{row['trainable']:,}", f"{row['bytes'] / 1000:,.1f}")
    for row in [] if controls is None else controls.to_dict("records"):
        numbers = (
            f"{row[name]:.4f}" if row.get(name) == row.get(name) and name in row else "—" for name in shown
        )
        table.add_row(
            row["method"],
            *[""] * (len(told) - 1),
            *numbers,
            f"{row['trainable']:,}",
            f"{row['bytes'] / 1000:,.1f}",
        )
    Console().print(table)
    print(
        f"\n{made.folder / 'sweep.csv'}, {made.folder / 'accuracy_by_rank.png'}; a cell: ofa-jax evaluate {made.folder / 'cells' / 'NAME'}"
    )


def _heading_of_part(column: str) -> str:
    """``validation_mse`` as a heading of a table."""
    part, _, metric = column.partition("_")
    return f"{part} {_heading(metric)}"


def _heading(metric: str) -> str:
    """How tables write a metric's name."""
    known = {
        "smape": "sMAPE",
        "average_precision": "AP",
        "range_pr_auc": "R-AUC",
        "precision": "P",
        "recall": "R",
        "f1": "F1",
    }
    known |= {f"adjusted_{name}": f"adj {known[name]}" for name in ("precision", "recall", "f1")}
    return known.get(metric, metric.upper() if len(metric) <= 4 else metric.replace("_", " "))


def main() -> None:
    """Run the command line; a deliberate error is one paragraph on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a sign that the terminal's encoding lacks is no reason to fail
    try:
        app()
    except OfaError as error:
        _fail(str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}. Look at permissions and free space.")
    except Interrupted as stop:
        rest = (
            f"saved at step {stop.step}; the same command goes on from there"
            if stop.saved
            else "nothing was kept"
        )
        print(f"stopped; {rest}", file=sys.stderr)
        raise SystemExit(128 + stop.signal_number) from None


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
