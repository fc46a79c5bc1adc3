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


def stores(count: int = 3, days: int = 12) -> pd.DataFrame:
    """Rows by date, then store; sales of stores are apart."""
    dates = pd.date_range("2024-01-01", periods=days)
    table = pd.DataFrame({"date": np.repeat(dates, count), "store": np.tile(np.arange(1, count + 1), days)})
    return table.assign(sales=1000 * table["store"] + np.repeat(np.arange(days), count) ** 2 / 7)


@pytest.mark.parametrize("order", [["date", "store"], ["store", "date"], ["sales"]])
@pytest.mark.parametrize("newest_first", [False, True])
def test_whole_numbers_name_series(tmp_path, order, newest_first):
    table = stores().sort_values(order, ascending=not newest_first)
    table.to_csv(tmp_path / "x.csv", index=False)
    for source in (tmp_path / "x.csv", table):
        frame = read_frame(source)
        assert sorted(frame.names) == ["1", "2", "3"]
        one = frame.values[:, frame.names.index("2")]
        np.testing.assert_allclose(one, 2000 + np.arange(12) ** 2 / 7, rtol=1e-12)
        assert any("a long table of 3 series, named by `store`" in text for text in frame.notices)


def test_whole_numbers_and_text_name_series_together():
    both = pd.concat([stores().assign(item=item, kind=kind) for item, kind in ((7, "a"), (9, "b"))])
    assert read_frame(both[["date", "store", "item", "sales"]]).names == (
        "1 7",
        "2 7",
        "3 7",
        "1 9",
        "2 9",
        "3 9",
    )
    assert read_frame(both[["date", "store", "kind", "sales"]]).names == (
        "a 1",
        "a 2",
        "a 3",
        "b 1",
        "b 2",
        "b 3",
    )


def test_a_flag_or_a_count_names_no_series():
    table = stores().assign(promo=lambda rows: rows.index % 2, weekday=lambda rows: rows["date"].dt.day % 7)
    assert read_frame(table, columns=["sales"]).names == ("1", "2", "3")
    assert "repeats the previous row's" in refused(table.drop(columns="store"))


def test_two_columns_that_may_name_series():
    table = stores().assign(rank=lambda rows: (rows["store"] + rows["date"].dt.day) % 3)
    assert "may be named by `store` or by `rank`" in refused(table)
    assert read_frame(table, exclude=["rank"]).names == ("1", "2", "3")
    assert read_frame(table, exclude=["store"]).names == ("2", "0", "1")
    same = stores().assign(branch=lambda rows: rows["store"] + 100)
    assert read_frame(same, columns=["sales"]).names == ("1", "2", "3"), (
        "the first of two for the same series"
    )


@pytest.mark.parametrize(("name", "first"), [("hour", 0), ("HE", 1), ("slot", 0), ("slot", 1)])
@pytest.mark.parametrize("form", ["%Y-%m-%d", "%d.%m.%Y", "%d-%b-%Y", "%Y%m%d", None])
def test_hours_of_a_date_are_no_series(name, first, form):
    table = stores(24).rename(columns={"store": name})
    table[name] += first - 1
    values = table["sales"].to_numpy()
    if form:
        table["date"] = table["date"].dt.strftime(form)
    said = refused(table)
    assert ("has the hours of" in said) == (name != "slot")
    assert f"`timestamp_column: date + {name}`" in said
    frame = read_frame(table, timestamp_column=f"date + {name}")
    assert frame.names == ("sales",)
    np.testing.assert_array_equal(frame.values[:, 0], values)
    assert frame.timestamps is not None
    assert frame.timestamps[0] == np.datetime64(f"2024-01-01T0{first}")
    assert frame.timestamps[23] == np.datetime64("2024-01-01T23") + first
    assert frame.frequency == "h"


def test_other_parts_of_a_time_are_no_series():
    halves = stores(48).rename(columns={"store": "period"})
    assert "`period` counts from 1 to 48 within each `date`" in refused(halves)
    counted = read_frame(halves, timestamps="as_is", exclude=["period"])
    np.testing.assert_array_equal(counted.values[:, 0], halves["sales"])
    months = stores(12).assign(date=lambda rows: 1990 + (rows.index // 12)).rename(columns={"store": "m"})
    assert "`m` counts from 1 to 12 within each `date`" in refused(months)
    named = halves.assign(period=halves["period"].map("store {}".format))
    assert read_frame(named).names[:2] == ("store 1", "store 2")


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
