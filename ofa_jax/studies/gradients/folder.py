"""A gradient-stability study on disk: tables, figures and provenance in one new folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ofa_jax.config.schema import Experiment
from ofa_jax.errors import CheckpointError, ConfigError
from ofa_jax.files import atomic_folder, is_there, write_atomic, write_json
from ofa_jax.runs.bundle import public_settings
from ofa_jax.runs.folder import versions
from ofa_jax.studies.gradients.study import Grid, Study, study
from ofa_jax.studies.gradients.theory import seed_mean_power, slopes

if TYPE_CHECKING:
    import pandas as pd

FIGURES = (
    *("first_order_change", "output_rms", "input_gradient_rms"),
    *("gradient_norm_a", "gradient_norm_b", "weight_ratio"),
)
"""Quantities drawn against rank."""


class Written(NamedTuple):
    """A study in its folder, with its table of slopes."""

    folder: Path
    study: Study
    slopes: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """As JSON; NaN is null."""
        rows = self.slopes.astype(object).where(self.slopes.notna(), None).to_dict("records")
        return {"folder": str(self.folder), "windows": self.study.windows, "slopes": rows}


def run_study(experiment: Experiment, grid: Grid, out: str | Path, say: Callable[[str], object]) -> Written:
    """Measure, and write study.csv, curves.csv, slopes.csv, study.json and figures into a new folder.

    Raises:
        CheckpointError: The folder is not empty.
        ConfigError: The grid has a single rank.
        OfaError: As :func:`~ofa_jax.studies.gradients.study.study`.
    """
    from ofa_jax.plots.studies import slopes as slope_figure
    from ofa_jax.plots.style import save_figure

    out = Path(out)
    if is_there(out) and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError("not an empty folder", where=str(out), fix="Choose a new folder")
    if len(grid.ranks) < 2:
        fix = "Give more ranks, such as 4,16,64,256"
        raise ConfigError("a slope against rank needs at least two ranks", where="ranks", fix=fix)
    found = study(experiment, grid, say=say)
    fitted = slopes(found.table, found.curves)
    record = {
        "kind": "ofa-jax gradient study",
        "grid": asdict(grid),
        "windows": found.windows,
        "trunk_sha256": found.trunk_sha256,
        "data_sha256": found.data_sha256,
        "versions": versions(),
        "settings": public_settings(found.experiment, found.trunk_source),
    }
    with atomic_folder(out) as scratch:
        for name, table in {"study": found.table, "curves": found.curves, "slopes": fitted}.items():
            write_atomic(scratch / f"{name}.csv", table.to_csv(index=False))
        for quantity in FIGURES:
            own = found.table[(found.table["quantity"] == quantity) & (found.table["steps"] > 0)]
            if (own["value"] > 0).any():
                figure = slope_figure(own, fitted, quantity, power=seed_mean_power(quantity))
                save_figure(figure, scratch / f"{quantity}.png")
        write_json(scratch / "study.json", record)
    return Written(out, found, fitted)
