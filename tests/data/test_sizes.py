"""Values too large for float32 arithmetic, as sensors write for "missing", are refused with their place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ofa_jax.data.archives import read_m4_part, read_stream, read_ts, read_tsf
from ofa_jax.data.frames import read_frame
from ofa_jax.data.missing import LARGEST, check_sizes
from ofa_jax.data.splits import FARTHEST, fit_scaler
from ofa_jax.errors import DataError


def table(value: float) -> pd.DataFrame:
    values = np.arange(12.0).reshape(6, 2)
    values[3, 1] = value
    return pd.DataFrame(values, pd.date_range("2024", periods=6, name="date"), columns=["a", "b"])


def as_csv(path: Path, value: float) -> Any:
    table(value).to_csv(path)
    return read_frame(path)


def as_parquet(path: Path, value: float) -> Any:
    table(value).to_parquet(path)
    return read_frame(path)


def as_table_to_fill(path: Path, value: float) -> Any:
    return read_frame(table(value), missing="keep")


def as_tsf(path: Path, value: float) -> Any:
    path.write_text(f"@attribute series_name string\n@missing true\n@data\nT1:1,2\nT2:3,{value!r},4\n")
    return read_tsf(path, missing="ffill")


def as_ts(path: Path, value: float) -> Any:
    head = "@problemName a\n@timestamps false\n@univariate true\n@classLabel true x y\n@data\n"
    path.write_text(f"{head}1,2:x\n3,{value!r}:y\n")
    return read_ts(path)


def as_m4(path: Path, value: float) -> Any:
    path.write_text(f'"V1","V2","V3"\n"Y1",1,2\n"Y2",3,{value!r}\n')
    return read_m4_part(path)


def as_stream(path: Path, value: float) -> Any:
    values = table(value).to_numpy()
    with open(path, "wb") as file:
        np.savez(file, train=values, test=values, test_label=np.arange(6) == 2)
    return read_stream(path)


PLACES = {
    as_csv: r"file, column `b`, row 4 \(line 5\)",
    as_parquet: "file, column `b`, row 4",
    as_table_to_fill: "DataFrame, column `b`, row 4",
    as_tsf: "file, line 5.*, value 2",
    as_ts: "file, line 7.*, value 2",
    as_m4: "file, line 3.*, value 2",
    as_stream: "file, array `train`, row 4, channel 2",
}


@pytest.mark.parametrize("read", PLACES, ids=lambda read: read.__name__)
@pytest.mark.parametrize("value", [1e20, 9.96921e36, -1e19, 1e300])
def test_a_fill_value_is_refused_with_its_place(tmp_path, read, value):
    suffix = ".parquet" if read is as_parquet else ".csv"
    path = tmp_path / f"file{suffix}"
    with pytest.raises(DataError) as caught:
        read(path, value)
    assert re.search(PLACES[read].replace("file", f"file{re.escape(suffix)}"), str(caught.value.where))
    assert f"the first one is {value:g}" in caught.value.what
    assert f"below {LARGEST:.1g}" in str(caught.value.fix)
    read(path, 1e18)


def test_what_is_missing_has_no_size():
    check_sizes(np.array([[np.nan, np.inf, -np.inf, LARGEST]]), lambda column, row: "")


def test_a_value_too_far_from_training_is_refused_by_row():
    scaler = fit_scaler(np.array([[0.0], [2.0]]), ("a",))
    values = np.array([[1.0], [1 + FARTHEST], [1.0]])
    assert scaler.transform(values).max() == FARTHEST
    with pytest.raises(
        DataError, match=r"data: series `a` has the value -2\.\S*e\+15 in row 8, 2e\+15 standard"
    ):
        scaler.transform(-2 * values, "data", first=7)
    # sums of squares over a window of many steps and channels stay finite
    assert np.isfinite(np.full(2**20, FARTHEST**2, np.float32).sum(dtype=np.float32))
