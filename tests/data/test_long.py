"""Long tables are read as the wide tables that they hold, or refused as what they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ofa_jax.data.frames import read_frame
from ofa_jax.errors import DataError

REAL = Path(os.environ.get("OFA_JAX_DATA", "")) / "real_files"
DAYS = pd.date_range("2024-01-01", periods=12, name="ds")
WIDE = pd.DataFrame({name: np.sqrt(np.arange(12) + 100 * i) for i, name in enumerate("pqr")}, DAYS)


def long(wide: pd.DataFrame = WIDE, name: str = "unique_id") -> pd.DataFrame:
    return wide.reset_index().melt("ds", var_name=name, value_name="y")


def refused(source: object, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read_frame(source, **options)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("order", ["by series", "by time", "shuffled within a time"])
@pytest.mark.parametrize("kind", ["DataFrame", "csv", "parquet", "index"])
def test_a_long_table_becomes_wide(tmp_path, order, kind):
    table = long()
    if order != "by series":
        table = table.sort_values(["ds", "y"], ascending=[True, order == "by time"])
    source: object = table.reset_index(drop=True)
    if kind == "csv":
        source = tmp_path / "x.csv"
        table[["unique_id", "ds", "y"]].to_csv(source, index=False)
    elif kind == "parquet":
        source = tmp_path / "x.parquet"
        table.to_parquet(source)
    elif kind == "index":
        source = table.set_index("ds")
    frame = read_frame(source)
    wanted = read_frame(WIDE)
    assert sorted(frame.names) == ["p", "q", "r"]
    np.testing.assert_array_equal(frame.values, WIDE[list(frame.names)])
    np.testing.assert_array_equal(frame.timestamps, wanted.timestamps)
    assert frame.frequency == "D"
    assert any("a long table of 3 series, named by `unique_id`" in text for text in frame.notices)
    chosen = read_frame(source, columns=["r", "p"])
    np.testing.assert_array_equal(chosen.values, WIDE[["r", "p"]])
    assert read_frame(source, columns=["y"], timestamps="as_is").names == frame.names
    model = read_frame(source, trained_on=["q", "r"])
    np.testing.assert_array_equal(model.values, WIDE[["q", "r"]])
    assert "missing: `w`" in refused(source, trained_on=["w", "r"])


def test_columns_of_values_of_a_long_table(tmp_path):
    table = long(name="site").assign(twice=lambda rows: 2 * rows["y"], unit="MW")
    names = ("p y", "p twice", "q y", "q twice", "r y", "r twice")
    assert read_frame(table).names == names
    assert read_frame(table, columns=["twice"]).names == ("p", "q", "r")
    np.testing.assert_array_equal(read_frame(table, columns=["twice"]).values, 2 * WIDE)
    np.testing.assert_array_equal(read_frame(table, columns=["r twice"]).values[:, 0], 2 * WIDE["r"])
    assert read_frame(table, exclude=["twice"]).names == ("p", "q", "r")


def test_series_that_several_columns_name(tmp_path):
    table = pd.concat([long(name="item").assign(shop="a"), long(name="item").assign(shop="b")])
    table.to_csv(tmp_path / "x.csv", index=False)
    frame = read_frame(tmp_path / "x.csv")
    assert frame.names == ("p a", "q a", "r a", "p b", "q b", "r b")
    numbered = long(name="store_id").assign(store_id=lambda rows: rows["store_id"].map(ord))
    assert read_frame(numbered).names == ("112", "113", "114")


def test_other_times_are_refused_with_what_can_be_read(tmp_path):
    table = long().drop(index=[12, 13])
    table.to_csv(tmp_path / "x.csv", index=False)
    message = refused(tmp_path / "x.csv")
    for part in ("a long table: `unique_id` names 3 series", "'q' has 10", "'2024-01-01'", "[p, r]"):
        assert part in message
    assert read_frame(tmp_path / "x.csv", columns=["p", "r"]).names == ("p", "r")


def test_a_cell_of_a_long_table_is_named_where_it_is(tmp_path):
    path = tmp_path / "x.csv"
    long().to_csv(path, index=False)
    lines = path.read_text().splitlines()
    lines[14] = "2024-01-02,q,one"
    path.write_text("\n".join(lines))
    assert "column `y` of `q`, row 14 (line 15)" in refused(path)
    path.write_text("\n".join(lines).replace("one", ""))
    assert "column `y` of `q`, row 14 (line 15)" in refused(path)
    assert read_frame(path, missing="ffill").observed.sum() == 35


def test_repeated_hours_with_a_column_of_text_are_no_long_table():
    hours = pd.date_range("2024-01-01", periods=48, freq="h").tolist()
    table = pd.DataFrame({"date": [*hours[:20], hours[19], *hours[20:]], "a": np.sqrt(np.arange(49))})
    table["weather"] = ["rain", "sun", "fog"] * 16 + ["snow"]
    assert "repeats the previous row" in refused(table)
    assert "exclude: [weather]" in refused(table.drop(index=20))


@pytest.mark.skipif(not REAL.is_dir(), reason="OFA_JAX_DATA is not set")
def test_real_long_tables():
    iowa = read_frame(REAL / "iowa-electricity.csv")
    assert iowa.names == ("Fossil Fuels", "Nuclear Energy", "Renewables")
    assert (iowa.n_rows, iowa.values[0, 0], iowa.frequency) == (17, 35361, "YS-JAN")
    message = refused(REAL / "nixtla_long.csv")
    assert "`unique_id` names 5 series" in message
    assert "`columns: [MSFT, AMZN, IBM, AAPL]`" in message
    four = read_frame(REAL / "nixtla_long.csv", columns=["MSFT", "AMZN", "IBM", "AAPL"])
    assert (four.n_rows, four.values[0, 0]) == (123, 39.81)
