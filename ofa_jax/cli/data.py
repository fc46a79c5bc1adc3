"""Commands about data sets: list, fetch, check."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Typer

from ofa_jax.cli.options import Json, Reading, print_json, reading_settings, say

app = Typer(help="List and fetch published data sets; check a data file.", no_args_is_help=True)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the known data sets, and whether OFA_JAX_DATA has them."""
    from ofa_jax.data.catalog.load import DATA_VARIABLE, data_root, list_entries

    entries = list_entries(data_root() if os.environ.get(DATA_VARIABLE) else None)
    if as_json:
        print_json({"data": entries})
        return
    from rich.console import Console
    from rich.table import Column, Table

    columns = [Column(heading, no_wrap=True) for heading in ("name", "present", "fetchable", "kind")]
    title = Column("title", no_wrap=True, overflow="ellipsis", ratio=1)
    table = Table(*columns, title, box=None, pad_edge=False, expand=True)
    for entry in entries:
        present = {True: "yes", False: "no", None: "?"}[entry["present"]]
        fetchable = "yes" if entry["fetchable"] else "by hand"
        table.add_row(entry["name"], present, fetchable, entry["kind"], entry["title"])
    Console(markup=False).print(table)
    if entries[0]["present"] is None:
        print(f"{DATA_VARIABLE} is not set, so present files are unknown", file=sys.stderr)


@app.command("fetch")
def fetch(name: Annotated[str, Argument(help="Name from `ofa-jax data list`.", metavar="NAME")]) -> None:
    """Download a data set into OFA_JAX_DATA and verify it."""
    from ofa_jax.data.catalog.fetch import fetch as fetch_entry
    from ofa_jax.data.catalog.load import DATA_VARIABLE, known

    entry = known(name)
    if folder := os.environ.get(DATA_VARIABLE):
        Path(folder).expanduser().mkdir(parents=True, exist_ok=True)
    for file in fetch_entry(entry):
        checked = "sha256 verified" if file.verified else "no published sha256 to compare with"
        say(f"{file.path}: {file.status}" + ("" if file.sha256 is None else f", {checked}"))


@app.command("check")
def check(
    file: Annotated[Path, Argument(help="CSV, Excel, Parquet, .tsf, .ts, M4 CSV or npz.", metavar="FILE")],
    overrides: Reading = None,
    as_json: Json = False,
) -> None:
    """Read a file with every check that training makes, and summarize it."""
    from ofa_jax.data.catalog.check import check_file

    summary = check_file(file, **reading_settings(overrides or ()))
    if as_json:
        print_json(summary)
        return
    for notice in summary.pop("notices", []):
        say(notice, file=sys.stderr)
    for key, value in summary.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        say(f"{key.replace('_', ' ')}: {'—' if shown in ('', None) else shown}")
