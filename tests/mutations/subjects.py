"""Every kind of file that the package reads: how to make a valid one, what reads it, what must come out."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import data_files as data
import model_files as models
import numpy as np
from changes import (
    Change,
    change_bytes,
    change_cell,
    change_entry,
    change_json,
    change_lines,
    change_tensors,
    change_type,
    change_yaml,
    change_zip,
    cut_short,
)
from model_files import TABLE, V1, copied
from plain import leaves

from ofa_jax.errors import OfaError

Changes = dict[str, tuple[Change, ...]]
BYTES: tuple[Change, ...] = (change_bytes, change_bytes, cut_short, change_type)
TENSORS = (*BYTES, change_tensors, change_tensors)
JSON, YAML = (*BYTES, change_json, change_json), (*BYTES, change_yaml, change_yaml)
TEXT = (*BYTES, change_cell, change_cell, change_lines)


@dataclass(frozen=True)
class Subject:
    """Files and their reader.

    Attributes:
        name: Of the test.
        make: Writes valid files into an empty folder.
        read: What the package makes of them.
        files: The files that are changed, and how.
        corresponds: Whether a result that differs from that of the valid files, which comes second, is what
            the changed files say; None where digests protect them, so that there can be no such result.
        inside: A folder in which the reader may write; it is made again for every case.
        cases: How many changes there are.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: Changes
    corresponds: Callable[[Path, Any, Any], bool] | None = None
    inside: str | None = None
    cases: int = 200


def resume(folder: Path) -> Any:
    """The end of a run that was stopped at step 10, and its log without clocks."""
    from ofa_jax.config.load import load_experiment
    from ofa_jax.runs.train import train_run
    from ofa_jax.tensors import read_tensors
    from ofa_jax.train.events import CLOCK_FIELDS, read_events
    from ofa_jax.train.progress import SilentReporter

    run = folder / "run"
    given = load_experiment(V1 / "interrupted" / "run" / "config.yaml", [f"data.source={TABLE}"])
    train_run(given, run, SilentReporter())
    events = read_events(run / "metrics.jsonl")
    log = [{name: event[name] for name in event if name not in CLOCK_FIELDS} for event in events]
    return read_tensors(run / "bundle" / "adapter_model.safetensors"), log


def same_end(folder: Path, found: Any, before: Any) -> bool:
    """Whether a run ended with the same bits; a log has no digest and says what was left in it."""
    return found[0] == before[0]


def csv_of_run(folder: Path) -> None:
    shutil.copy(TABLE, folder / "table.csv")


def open_moved(folder: Path) -> Any:
    """A run opened with the data in the folder, which must be those of training."""
    from ofa_jax.runs.train import open_run

    loaded, data = open_run(V1 / "forecast" / "run", source=str(folder / "table.csv"))
    return leaves(loaded.model.trainable), data.fingerprint


def command(*arguments: object) -> str:
    """What a command of the console prints; an OfaError where it ends with one paragraph and exit code 2."""
    from ofa_jax.cli.main import main

    out, error, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["ofa-jax", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            main()
        code: Any = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    if code == 2 and error.getvalue().startswith("error: "):
        raise OfaError(error.getvalue().strip())
    assert not code, f"exit code {code}: {error.getvalue()}"
    return out.getvalue()


def predict(folder: Path) -> Any:
    """Columns, number of rows and finiteness of the forecast that the command writes."""
    with tempfile.TemporaryDirectory() as place:
        output = Path(place, "forecast.csv")
        try:
            command("predict", V1 / "forecast" / "run", "--input", folder / "table.csv", "--output", output)
        except OfaError:
            assert not os.listdir(place), "something was written before the error"
            raise
        header, *rows = output.read_text().splitlines()
    numbers = [[float(cell) for cell in row.split(",")[1:]] for row in rows]
    return header.split(","), len(rows), bool(np.isfinite(numbers).all())


def count(folder: Path) -> Any:
    return command("params", folder / "settings.yaml", "--json")


def one_paragraph(folder: Path, found: Any, before: Any) -> bool:
    """What is printed of changed files is not compared: their readers have their own subjects."""
    return found.count("\n") in (before.count("\n"), before.count("\n") + 2)


def forecast_fits(folder: Path, found: Any, before: Any) -> bool:
    """Whether a forecast of another table has the form of the first; its numbers are the network's."""
    return found[1:] == before[1:]


def subjects() -> list[Subject]:
    """All of them."""
    adapter: Changes = {"adapter_model.safetensors": TENSORS, "adapter_config.json": JSON}
    signed: Changes = {"ofa.json": (partial(change_json, sign=models.sign_bundle),)}
    trunk: Changes = {"config.json": JSON, "model.safetensors": TENSORS}
    shards: Changes = {"model-00001-of-00002.safetensors": TENSORS, "model.safetensors.index.json": JSON}
    saved = {f"model/bundle/{name}": changes for name, changes in adapter.items()}
    forecaster: Changes = {
        **saved,
        "model/bundle/ofa.json": JSON,
        "model/estimator.json": JSON,
        "model/calibration.safetensors": TENSORS,
        "model/covariates.safetensors": TENSORS,
    }
    baseline: Changes = {"nlinear/control.json": JSON, "nlinear/weights.safetensors": TENSORS}
    arrays = "20/arrays"
    checkpoint: Changes = {
        "20/checkpoint.json": (*JSON, partial(change_json, sign=models.sign_checkpoint)),
        f"{arrays}/_METADATA": BYTES,
        f"{arrays}/manifest.ocdbt": BYTES,
    }
    run: Changes = {"config.yaml": YAML, "metrics.jsonl": JSON, "bundle/ofa.json": BYTES}
    stopped: Changes = {f"run/{name}": changes for name, changes in run.items()}
    stopped["run/checkpoints/10/checkpoint.json"] = JSON
    old = copied(V1 / "short_term" / "run" / "bundle")
    hub, several = partial(models.write_trunk, kind="hub"), partial(models.write_trunk, kind="shards")
    csv, table = partial(data.write_table, kind="csv"), partial(data.read_table, name="table.csv")
    table_is = partial(data.table_says, name="table.csv")
    packed, packed_is = (
        partial(data.read_table, name="table.csv.gz"),
        partial(data.table_says, name="table.csv.gz"),
    )
    columns, stream = (
        partial(data.read_table, name="table.parquet"),
        (*BYTES, change_zip, change_zip, data.change_arrays),
    )
    archives = copied(V1 / "data")
    check = lambda name: lambda folder: command("data", "check", folder / name)  # noqa: E731
    return [
        Subject(
            "old_bundle",
            old,
            models.read_bundle,
            {**adapter, "trained.safetensors": TENSORS, "ofa.json": JSON},
            cases=500,
        ),
        Subject("bundle", models.write_signed, models.load_bundle, {**adapter, "ofa.json": JSON}, cases=400),
        Subject(
            "signed_bundle", models.write_signed, models.load_bundle, signed, models.bundle_says, cases=500
        ),
        Subject("run", copied(V1 / "forecast" / "run"), models.read_run, run, models.run_says, cases=500),
        Subject("stopped_run", copied(V1 / "interrupted"), resume, stopped, same_end, inside="run", cases=40),
        Subject("data_of_a_run", csv_of_run, open_moved, {"table.csv": TEXT}, cases=150),
        Subject(
            "settings",
            models.settings_file,
            models.read_settings,
            {"settings.yaml": YAML},
            models.settings_file_says,
            cases=500,
        ),
        Subject(
            "checkpoint",
            models.write_checkpoints,
            models.read_checkpoint,
            checkpoint,
            models.meta_says,
            cases=300,
        ),
        Subject(
            "trunk",
            partial(models.write_trunk, kind="converted"),
            models.read_trunk,
            {**trunk, "trunk.json": JSON},
            cases=300,
        ),
        Subject("hub_trunk", hub, models.read_trunk, trunk, models.trunk_says, cases=400),
        Subject(
            "shards",
            several,
            models.read_trunk,
            {"config.json": JSON, **shards},
            models.trunk_says,
            cases=300,
        ),
        Subject(
            "peft",
            copied(V1 / "forecast" / "run" / "bundle"),
            models.read_peft,
            adapter,
            models.peft_says,
            cases=400,
        ),
        Subject(
            "sweep",
            copied(V1 / "sweep" / "run"),
            models.read_sweep,
            {"sweep.json": JSON},
            models.sweep_says,
            cases=250,
        ),
        Subject("forecaster", models.write_forecaster, models.read_forecaster, forecaster, cases=250),
        Subject("baseline", models.write_baseline, models.read_baseline, baseline, cases=200),
        Subject("csv", csv, table, {"table.csv": TEXT}, table_is, cases=500),
        Subject(
            "tsv", partial(data.write_table, kind="tsv"), table, {"table.csv": TEXT}, table_is, cases=200
        ),
        Subject(
            "csv_gz",
            partial(data.write_table, kind="csv.gz"),
            packed,
            {"table.csv.gz": BYTES},
            packed_is,
            cases=150,
        ),
        Subject(
            "parquet",
            partial(data.write_table, kind="parquet"),
            columns,
            {"table.parquet": BYTES},
            data.parquet_says,
            cases=300,
        ),
        Subject(
            "xlsx",
            partial(data.write_table, kind="xlsx"),
            partial(data.read_table, name="table.xlsx"),
            {"table.xlsx": (*BYTES, change_entry, change_entry, change_entry)},
            data.sheet_says,
            cases=250,
        ),
        Subject("tsf", archives, data.read_collection, {"source.tsf": TEXT}, data.collection_says, cases=300),
        Subject(
            "ts",
            copied(V1 / "data" / "cases"),
            data.read_cases,
            {"Tiny_TEST.ts": TEXT},
            data.cases_say,
            cases=300,
        ),
        Subject("npz", archives, data.read_stream, {"stream.npz": stream}, data.stream_says, cases=400),
        Subject("m4", data.write_m4, data.read_m4, {"Weekly-train.csv": TEXT}, data.m4_says, cases=200),
        Subject("predict", csv, predict, {"table.csv": TEXT}, forecast_fits, cases=150),
        Subject("check_csv", csv, check("table.csv"), {"table.csv": TEXT}, one_paragraph, cases=100),
        Subject("check_tsf", archives, check("source.tsf"), {"source.tsf": TEXT}, one_paragraph, cases=100),
        Subject("params", models.settings_file, count, {"settings.yaml": YAML}, one_paragraph, cases=100),
    ]
