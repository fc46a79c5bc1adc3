"""A gradient-stability study on the disk: tables, figures and what they were made from, in one new folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ofa_jax.config.load import dump_experiment
from ofa_jax.config.schema import Experiment
from ofa_jax.errors import CheckpointError, ConfigError
from ofa_jax.files import atomic_folder, write_atomic, write_json
from ofa_jax.runs.train import versions
from ofa_jax.studies.gradients.study import Grid, Study, study
from ofa_jax.studies.gradients.theory import MEANS, slopes

if TYPE_CHECKING:
    import pandas as pd

FIGURES = (
    "first_order_change",
    "output_rms",
    "input_gradient_rms",
    "gradient_norm_a",
    "gradient_norm_b",
    "weight_ratio",
)
"""Quantities that are drawn against rank where there is something to draw."""


class Written(NamedTuple):
    """A study in its folder, with its table of slopes."""

    folder: Path
    study: Study
    slopes: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; a number that is not there is null."""
        rows = self.slopes.to_dict("records")
        told = [
            {
                name: None if isinstance(value, float) and math.isnan(value) else value
                for name, value in row.items()
            }
            for row in rows
        ]
        return {"folder": str(self.folder), "windows": self.study.windows, "slopes": told}


def parse_grid(
    ranks: str,
    scalings: str,
    inits: str,
    optimizers: str,
    steps: str,
    *,
    seeds: int,
    windows: int,
    sgd_rate: float,
    adam_rate: float | None,
) -> Grid:
    """A grid from the texts of a command line, values with commas between; an empty text leaves :class:`Grid`'s own.

    Raises:
        ConfigError: A value that cannot be.
    """

    def whole(option: str, text: str) -> tuple[int, ...]:
        try:
            return tuple(int(part) for part in text.split(","))
        except ValueError:
            raise ConfigError(
                f"{text!r} is no list of whole numbers",
                where=option,
                fix="Write them with commas between: 2,4,8",
            ) from None

    given: dict[str, Any] = {
        name: whole(name, text) for name, text in (("ranks", ranks), ("steps", steps)) if text.strip()
    }
    for name, text in (("scalings", scalings), ("inits", inits), ("optimizers", optimizers)):
        if text.strip():
            given[name] = tuple(part.strip() for part in text.split(","))
    return Grid(**given, seeds=seeds, windows=windows, sgd_rate=sgd_rate, adam_rate=adam_rate)


def run_study(experiment: Experiment, grid: Grid, out: str | Path, say: Callable[[str], object]) -> Written:
    """Measure and write; what cannot be written is refused before anything is measured.

    Raises:
        ConfigError: The grid has a single rank.
        OfaError: As :func:`check_free` and :func:`~ofa_jax.studies.gradients.study.study`.
    """
    check_free(out)
    if len(grid.ranks) < 2:
        raise ConfigError(
            "a slope against rank needs two ranks at least",
            where="ranks",
            fix="Give more ranks, such as 4,16,64,256",
        )
    found = study(experiment, grid, say=say)
    return Written(Path(out), found, write_study(found, out))


def check_free(out: str | Path) -> None:
    """Make sure that the folder of a study can be made, before anything is computed.

    Raises:
        CheckpointError: There is something already.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError("there is something here already", where=str(out), fix="Choose a new folder")


def write_study(found: Study, out: str | Path, figures: Sequence[str] = FIGURES) -> pd.DataFrame:
    """Write study.csv, curves.csv, slopes.csv, study.json and a PNG per quantity into a new folder, which is whole or not there.

    Returns:
        The table of slopes.

    Raises:
        CheckpointError: There is something in the folder already.
        ConfigError: The study has a single rank.
    """
    from ofa_jax.plots.studies import slopes as drawn
    from ofa_jax.plots.style import save_figure

    check_free(out)
    fitted = slopes(found.table, found.curves)
    with atomic_folder(out) as scratch:
        for name, table in {"study": found.table, "curves": found.curves, "slopes": fitted}.items():
            write_atomic(scratch / f"{name}.csv", table.to_csv(index=False))
        for quantity in figures:
            own = found.table[(found.table["quantity"] == quantity) & (found.table["steps"] > 0)]
            if (own["value"] > 0).any():
                figure = drawn(own, fitted, quantity, power=1 if quantity in MEANS else 2)
                save_figure(figure, scratch / f"{quantity}.png")
        write_json(
            scratch / "study.json",
            {
                "kind": "ofa-jax gradient study",
                "grid": asdict(found.grid),
                "windows": found.windows,
                "trunk_sha256": found.trunk_sha256,
                "data_sha256": found.data_sha256,
                "versions": versions(),
                "settings": dump_experiment(found.experiment),
            },
        )
    return fitted
