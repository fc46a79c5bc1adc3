"""Reproduce one of the published tables (docs/protocol.md, §4) and write a page that compares the two.

Every seed of every setting is a *cell*, kept as one JSON file that is named by what decides its numbers.
Existing cells are not run again, so re-running the same command resumes. The page is made from the cells
alone, and never replaces one that shows more.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import typer
from filelock import FileLock
from reproduced import Cell, Entry, figures, quick_sections, render, replace_section

from ofa_jax.baselines.compare import compare
from ofa_jax.cli.options import interrupted, message
from ofa_jax.config.load import build_experiment, dump_experiment, load_experiment
from ofa_jax.config.schema import Experiment
from ofa_jax.data.catalog.load import CATALOG, data_root, find
from ofa_jax.errors import DataError, Interrupted, OfaError, WeightsError
from ofa_jax.files import json_digest, read_json, write_atomic, write_json
from ofa_jax.runs.folder import BASELINES, CONFIG_FILE, SPEED, differences, leaves, read_config, versions
from ofa_jax.runs.train import open_run, train_run
from ofa_jax.train.progress import ConsoleReporter, Reporter

ROOT = Path(__file__).resolve().parents[1]

Table = Literal[
    "long", "few_shot", "zero_shot", "short_term", "anomaly", "classification", "imputation", "ranks"
]
RULES = 2
"""Raised when the same settings give other numbers: 2 since dropout's bits and the order of windows
changed."""

CELL_FORMAT = 2
"""Format of a cell: 2 has ``rules``; cells of format 1 were made with rules 1, which no longer exist."""

WITH_BASELINES = "controls"
"""The key of a cell that says whether it has baselines; named so in the first cells."""

Vary = dict[str, tuple[Any, ...]]
"""Settings that take several values, from the outermost to the innermost."""

HORIZONS: Vary = {"task.horizon": (96, 192, 336, 720)}
RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
PLAN: dict[str, tuple[str, Vary]] = {
    "long": ("long", HORIZONS),
    "few_shot": ("few_shot", {"data.percent": (10, 5), **HORIZONS}),
    "zero_shot": ("zero_shot", {}),
    "short_term": ("short_term", {}),
    "anomaly": ("anomaly", {}),
    "classification": ("classification", {}),
    "imputation": ("imputation", {"task.mask_rate": (0.125, 0.25, 0.375, 0.5)}),
    "ranks": ("long", {"adapters.rank": RANKS, **HORIZONS}),
}
"""The folder of settings files of each published table, and what varies (protocol §2)."""

QUICK: dict[str, tuple[tuple[str, ...], Vary]] = {
    "long": (("etth1",), {"task.horizon": (96,)}),
    "few_shot": (("etth1_few",), {"data.percent": (10,), "task.horizon": (96,)}),
    "zero_shot": (("m4_yearly_m3_yearly", "m3_yearly_m4_yearly"), {"data.percent": (100, 10)}),
    "short_term": (("m4_weekly",), {}),
    "anomaly": (("smap",), {}),
    "classification": (("japanesevowels",), {}),
    "imputation": (("etth1_imputation",), {"task.mask_rate": (0.25,)}),
    "ranks": (("etth1",), {"adapters.rank": (2, 16, 128), "task.horizon": (96,)}),
}
"""The files in configs/quick of each table, and what varies."""


AS_MANY_STEPS = {"train.epochs": 10, "train.batch_size": 32}
"""Quick transfer from M4 Yearly with a tenth of each series: 860 steps; with all of each series, 920."""

_load = cache(load_experiment)


def _known_as(source: str) -> str:
    return Path(source).resolve().name if Path(source).exists() else source


@dataclass(frozen=True)
class Request:
    """What the command line asks for besides the table; None: as the settings files say."""

    quick: bool = False
    seeds: int = 3
    ranks: tuple[int, ...] = ()
    trunk: str | None = None
    protocol: Literal["strict", "published"] | None = None
    baselines: bool = True

    def command(self, table: str) -> str:
        """The command that makes the same page."""
        trunk = self.trunk and _known_as(self.trunk)
        given = {"ranks": ",".join(map(str, self.ranks)), "trunk": trunk, "protocol": self.protocol}
        words = [*(f"--{name} {value}" for name, value in given.items() if value), *["--quick"] * self.quick]
        return " ".join(
            [
                "python tools/reproduce.py",
                table,
                f"--seeds {self.seeds}",
                *words,
                *["--no-baselines"] * (not self.baselines),
            ]
        )


@dataclass(frozen=True)
class Case:
    """One setting of one data set; its seeds are cells."""

    table: str
    config: Path
    vary: tuple[tuple[str, Any], ...]
    request: Request
    baselines: bool

    @property
    def name(self) -> str:
        parts = [
            *["quick"] * self.request.quick,
            self.table,
            *["published"] * (self.request.protocol == "published"),
            self.config.stem,
        ]
        return "-".join([*parts, *(f"{path.rpartition('.')[2]}{value}" for path, value in self.vary)])

    def experiment(self, seed: int) -> Experiment:
        """The settings of a seed."""
        seeds = {
            "train.seed": 2021 + seed,
            "adapters.seed": seed,
            "network.seed": seed,
            "trunk.random.seed": seed,
        }
        request = {"trunk.source": self.request.trunk, "protocol": self.request.protocol}
        few = (
            AS_MANY_STEPS
            if self.request.quick and self.table == "zero_shot" and dict(self.vary).get("data.percent") == 10
            else {}
        )
        changed = {
            **dict(self.vary),
            **few,
            **seeds,
            **{path: value for path, value in request.items() if value},
        }
        return _load(self.config, tuple(f"{path}={value}" for path, value in changed.items()))

    def settings(self, seed: int) -> dict[str, Any]:
        """The same as plain values, with names in place of paths."""
        plain = dump_experiment(self.experiment(seed))
        for section, name in (("trunk", "source"), ("data", "source"), ("data", "target")):
            if plain[section][name] is not None:
                plain[section][name] = _known_as(plain[section][name])
        return json.loads(json.dumps(plain))  # as in a cell: lists, not tuples

    def key(self, seed: int) -> str:
        """A short digest of what decides the numbers of a seed.

        Settings with their default are left out, so that one that is added later changes no key.
        """
        plain = build_experiment(self.settings(seed)).model_dump(mode="json", exclude_defaults=True)
        decisive = {path: value for path, value in leaves(plain).items() if path not in SPEED}
        return json_digest({"rules": RULES, **decisive})[:8]


def cases(table: str, request: Request) -> list[Case]:
    """All settings of a table."""
    if request.quick:
        names, vary = QUICK[table]
        files = [ROOT / "configs" / "quick" / f"{name}.yaml" for name in names]
    else:
        folder, vary = PLAN[table]
        files = sorted((ROOT / "configs" / folder).glob("*.yaml"))
    if table == "ranks" and request.ranks:
        vary = {**vary, "adapters.rank": request.ranks}
    known = vary.get("adapters.rank", ())
    with_baselines = 16 if 16 in known else known[0] if known else None  # at one rank only
    found = []
    for file, values in itertools.product(files, itertools.product(*vary.values())):
        chosen = dict(zip(vary, values, strict=True))
        if (
            table == "few_shot"
            and file.stem.startswith("etth")
            and (chosen.get("data.percent"), chosen.get("task.horizon")) == (5, 720)
        ):
            continue  # no training window is left (protocol §2)
        found.append(
            Case(
                table,
                file,
                tuple(chosen.items()),
                request,
                request.baselines and chosen.get("adapters.rank") == with_baselines,
            )
        )
    return found


@dataclass
class Workspace:
    """Folders of cells and runs, why cells failed, by file, and why trunks could not be loaded, by source."""

    cells: Path
    out: Path
    reporter: Reporter
    failed: dict[Path, str] = field(default_factory=dict)
    missing_trunks: dict[str, str] = field(default_factory=dict)

    @cached_property
    def machine(self) -> dict[str, Any]:
        return {
            "device": jax.devices()[0].device_kind,
            "platform": jax.default_backend(),
            "cpu": _cpu(),
            "cores": os.cpu_count(),
        }

    def path(self, case: Case, seed: int) -> Path:
        return self.cells / f"{case.name}-seed{seed}-{case.key(seed)}.json"

    def read(self, case: Case, seed: int, say: Callable[[str], None] = lambda text: None) -> Cell | None:
        """The stored cell of these settings, where it was measured."""
        path = self.path(case, seed)
        if not path.exists():
            for other in sorted(self.cells.glob(f"{case.name}-seed{seed}[-.]*")):
                say(f"{other.name} was made with other settings or rules and is kept")
            return None
        try:
            cell = read_json(path, kind="cell")
            settings = cell.get("config")
            made = build_experiment(settings if isinstance(settings, dict) else {}, where=str(path))
        except OfaError as error:
            say(f"{error} This cell is run again.")
            return None
        wanted = build_experiment(case.settings(seed))  # a setting that was added later has its default
        changed = [name for name, *_ in differences(dump_experiment(made), dump_experiment(wanted))]
        if changed or cell.get("rules") != RULES or not cell.get("methods"):
            say(f"{path.name} was not made with these settings ({', '.join(changed)}) and is run again")
            return None
        return cell

    def is_done(self, case: Case, seed: int) -> bool:
        cell = self.read(case, seed, self.reporter.notice)
        return cell is not None and (cell.get(WITH_BASELINES, False) or not case.baselines)

    def run(self, case: Case, seed: int) -> bool:
        """Run a cell and store it; False if it failed, which stores nothing."""
        experiment = case.experiment(seed)
        kept: Cell = {
            "table": case.table,
            "quick": case.request.quick,
            "data": case.config.stem,
            "vary": dict(case.vary),
            "seed": seed,
            "protocol": experiment.protocol,
            "config": case.settings(seed),
            "rules": RULES,
        }
        path = self.path(case, seed)
        source = experiment.trunk.source
        try:
            if source in self.missing_trunks:
                raise WeightsError(self.missing_trunks[source])
            kept |= self.measure(case, seed)
        except OfaError as error:
            self.reporter.notice(f"not run: {error}")
            reason = error.what
            if isinstance(error, WeightsError):
                self.missing_trunks[source] = error.what
                reason = f"the trunk {kept['config']['trunk']['source']} is not available"
            self.failed[path] = reason
            return False
        finally:
            jax.clear_caches()  # the next cell needs other programs
        write_json(path, kept, version=CELL_FORMAT)
        return True

    def shown(self, case: Case, seed: int) -> Cell | None:
        """The stored cell, or why it could not be measured now."""
        reason = self.failed.get(self.path(case, seed))
        return self.read(case, seed) or (reason and {"seed": seed, "failed": reason}) or None

    def measure(self, case: Case, seed: int) -> Cell:
        """Train or resume, and compare with baselines."""
        folder = self.out / f"{case.config.stem}-{case.key(seed)}"
        began, resumed = time.monotonic(), (folder / CONFIG_FILE).exists()
        train_run(case.experiment(seed), folder, self.reporter)
        trained = time.monotonic()
        loaded, data = open_run(folder)
        baselines = folder / BASELINES if case.baselines else None
        comparison = compare(loaded, data, baselines=baselines, reporter=self.reporter)
        provenance = read_config(folder)[1]
        return {
            "task": comparison.task,
            "windows": comparison.windows,
            "methods": comparison.to_dict()["methods"],
            WITH_BASELINES: case.baselines,
            "best_epoch": loaded.record.best_epoch,
            "compute_dtype": str(loaded.model.network.trunk.compute_dtype),
            **{name: getattr(provenance, name) for name in ("data_sha256", "trunk_sha256")},
            "versions": {"python": platform.python_version(), **versions()},
            "machine": self.machine,
            "seconds": {
                "train": round(trained - began, 1),
                "score": round(time.monotonic() - trained, 1),
                "resumed": resumed,
            },
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def missing_data(experiment: Experiment) -> str | None:
    """Which files of the data set are missing, in words; None if none is."""
    for name in (experiment.data.source, experiment.data.target):
        if name not in CATALOG:
            continue
        entry = CATALOG[name]
        try:
            root = data_root()
        except DataError as error:
            return error.what
        needed = [
            file.path
            for file in entry.files
            if file.needed and (not experiment.data.parts or file.role in experiment.data.parts)
        ]
        absent = [file.path for file in entry.files if file.path in needed and find(file, root) is None]
        if absent:
            parts = [
                path.name for path in sorted((root / absent[0]).parent.glob(f"{Path(absent[0]).stem}[-.]*"))
            ]
            shown = ", ".join(f"`{path}`" for path in absent[:2]) + (", …" if len(absent) > 2 else "")
            count = f"{len(absent)} of {len(needed)} files are" if len(needed) > 1 else "the file is"
            return f"{count} missing ({shown})" + (f"; `{parts[0]}` is only a part" if parts else "")
    return None


def run_missing(workspace: Workspace, wanted: list[tuple[Case, int]], named: bool) -> Iterator[bool]:
    """Run the missing cells; yields whether each succeeded. Missing data are a failure only if ``named``."""
    missing = [(case, seed) for case, seed in wanted if not workspace.is_done(case, seed)]
    for number, (case, seed) in enumerate(missing, 1):
        absent = missing_data(case.experiment(seed))
        if absent and not named:
            if seed == 0:
                workspace.reporter.notice(f"{case.name}: skipped, {absent}")
            continue
        workspace.reporter.notice(f"[{number}/{len(missing)}] {case.name}, seed {seed}")
        yield workspace.run(case, seed)


def write_page(workspace: Workspace, everything: list[Case], docs: Path) -> tuple[Path, str | None]:
    """The page of a table (of a quick run, its section of the quick page), and why it was not replaced, if
    so."""
    table, request, found = everything[0].table, everything[0].request, []
    for case in everything:
        data = case.settings(0)["data"]
        cells = [workspace.shown(case, seed) for seed in range(request.seeds)]
        source = " → ".join(name for name in (data["source"], data["target"]) if name)
        found.append(Entry(source, dict(case.vary), cells, missing_data(case.experiment(0))))
    text = render(table, found, quick=request.quick, command=request.command(table))
    suffix = "_published" if request.protocol == "published" else ""
    page = docs / f"{'quick' if request.quick else table}{suffix}.md"
    workspace.out.mkdir(parents=True, exist_ok=True)
    with FileLock(workspace.out / f".{page.name}.lock"):  # two tables may run at once
        before = page.read_text() if page.exists() else ""
        old = quick_sections(before).get(table, "") if request.quick else before
        now = figures(text)
        for heading, count in figures(old).items():
            if now[heading] < count:
                less = (
                    f"{heading} has {count} measured figures there, the cells of this command {now[heading]}"
                )
                return page, f"{page} is kept: {less}. Delete it to write the page anyway."
        write_atomic(page, replace_section(before, table, text) if request.quick else text)
    return page, None


def main(
    table: Annotated[Table, typer.Argument(help="The table.")],
    data: Annotated[str, typer.Option(help="Only these settings files: comma-separated names.")] = "",
    ranks: Annotated[str, typer.Option(help="Ranks of the table `ranks`, comma-separated.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Runs per setting.")] = 3,
    trunk: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of GPT-2, or random; default: as the settings file says."),
    ] = None,
    protocol: Annotated[
        Literal["strict", "published"] | None,
        typer.Option(help="Default: as the settings file says; published has a separate page."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small random trunk on real data: minutes on two cores.")
    ] = False,
    baselines: Annotated[bool, typer.Option(help="Also train the baselines.")] = True,
    out: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs/reproduce"),
    cells: Annotated[Path, typer.Option(help="Folder of cells.")] = ROOT / "docs" / "results" / "cells",
    docs: Annotated[Path, typer.Option(help="Folder of pages.")] = ROOT / "docs" / "results",
) -> None:
    """Run the missing cells of a published table and write its page. Re-run the same command to resume."""
    try:
        chosen = tuple(int(rank) for rank in ranks.split(",") if rank)
    except ValueError:
        raise typer.BadParameter(f"{ranks!r} is not a list of integers", param_hint="--ranks") from None
    if chosen and table != "ranks":
        raise typer.BadParameter(
            f"the table {table!r} has one rank; only `ranks` takes several", param_hint="--ranks"
        )
    everything = cases(table, Request(quick, seeds, chosen, trunk, protocol, baselines))
    names, known = (
        [name for name in data.split(",") if name],
        sorted({case.config.stem for case in everything}),
    )
    if wrong := [name for name in names if name not in known]:
        raise typer.BadParameter(f"{wrong[0]!r} is not one of {', '.join(known)}", param_hint="--data")
    wanted = [
        (case, seed) for seed in range(seeds) for case in everything if not names or case.config.stem in names
    ]
    failed = 0
    with ConsoleReporter() as reporter:
        workspace = Workspace(cells, out, reporter)
        try:
            for succeeded in run_missing(workspace, wanted, bool(names)):
                failed += not succeeded
                write_page(workspace, everything, docs)
        except Interrupted as stop:
            reporter.notice(interrupted(stop))
            raise typer.Exit(128 + stop.signal_number) from None
        page, kept = write_page(workspace, everything, docs)
    print((kept or f"{page}") + (f"; {failed} cell(s) failed" if failed else ""))
    raise typer.Exit(1 if failed or kept else 0)


FORMER_NAMES = {"controls": "baselines", "no-controls": "no-baselines"}
app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: FORMER_NAMES.get(name, name)},
)
app.command()(main)

if __name__ == "__main__":
    try:
        app()
    except OfaError as error:
        print(f"error: {message(error)}", file=sys.stderr)
        raise SystemExit(2) from None
