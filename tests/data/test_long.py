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
def test_whole_numbers_name_series_where_it_is_said(tmp_path, order, newest_first):
    table = stores().sort_values(order, ascending=not newest_first)
    table.to_csv(tmp_path / "x.csv", index=False)
    for source in (tmp_path / "x.csv", table):
        said = refused(source)
        assert "a long table whose series `store` may name. If so, set `id_columns: [store]`." in said
        frame = read_frame(source, id_columns=["store"])
        assert sorted(frame.names) == ["1", "2", "3"]
        one = frame.values[:, frame.names.index("2")]
        np.testing.assert_allclose(one, 2000 + np.arange(12) ** 2 / 7, rtol=1e-12)
        assert any("a long table of 3 series, named by `store`" in text for text in frame.notices)


def test_whole_numbers_and_text_name_series_together():
    both = pd.concat([stores().assign(item=item, kind=kind) for item, kind in ((7, "a"), (9, "b"))])
    numbered, mixed = both.drop(columns="kind"), both.drop(columns="item")
    assert "set `id_columns: [store, item]`" in refused(numbered)
    names = ("1 7", "2 7", "3 7", "1 9", "2 9", "3 9")
    assert read_frame(numbered, id_columns=["store", "item"]).names == names
    assert "set `id_columns: [kind, store]`" in refused(mixed)
    assert read_frame(mixed, id_columns=["store", "kind"]).names[:2] == ("1 a", "2 a")


def test_every_way_to_name_the_series_is_listed():
    two = pd.concat([stores().assign(item=item) for item in (7, 9)]).sort_values(["date", "store", "item"])
    two["line"] = two.groupby("date").cumcount() + 1
    said = refused(two)
    assert "whose series `line` or `store` and `item` may name" in said
    assert "set `id_columns: [line]` or `id_columns: [store, item]`" in said


def test_rows_of_an_attribute_name_no_series():
    """A few repeated rows do not make what differs in them a part of the series' names."""
    table = long().assign(version=1)
    again = table[table["ds"].isin(DAYS[[3, 9]])].assign(version=2)
    assert "`unique_id` names series, but 'p' repeats a time" in refused(pd.concat([table, again]))


def test_what_is_said_to_name_the_series_is_checked():
    table = stores()
    assert "`id_columns` names `shop`, and there is no such column" in refused(table, id_columns=["shop"])
    for name, excluded in (("date", []), ("store", ["store"])):
        said = refused(table, id_columns=[name], exclude=excluded)
        assert f"`id_columns` names `{name}`, which is the time or excluded" in said
    assert "leaves no column of values" in refused(table.drop(columns="sales"), id_columns=["store"])
    assert read_frame(table, id_columns=["store", "store"]).names == ("1", "2", "3")
    assert "there is no column `7`" in refused(table, id_columns=["store"], columns=["7"])
    both = table.assign(promo=1.5)
    assert "there is no column `store`" in refused(both, id_columns=["store"], columns=["store", "sales"])
    notices = read_frame(table, id_columns=["store"], exclude=["2", "4"]).notices
    assert [text for text in notices if "exclude" in text] == [
        "DataFrame: `exclude` names no column or series: `4`"
    ]
    alike = pd.DataFrame(
        {"date": [*DAYS[:4]] * 2, "a": ["x y"] * 4 + ["x"] * 4, "b": ["z"] * 4 + ["y z"] * 4}
    )
    assert "two series have one name" in refused(alike.assign(v=range(8)), id_columns=["a", "b"])
    twice = pd.concat([stores(days=30), stores(days=30).iloc[[4]]])
    assert "set `id_columns: [store]`" in refused(twice), "a repeated row is for the next error"
    assert "`store` names series, but '2' repeats a time" in refused(twice, id_columns=["store"])
    assert "without timestamps" in refused(table.drop(columns="date"), id_columns=["store"])
    one = table[table["store"] == 1]
    assert read_frame(one, id_columns=["store"]).names == ("1",)


def test_a_column_that_is_no_series_is_left_out_once():
    table = stores().assign(holiday=[True, False] * 18)
    said = refused(table, id_columns=["store"])
    assert "column `holiday` of `1 holiday`" in said
    assert "leave it out with `exclude: [holiday]`" in said
    frame = read_frame(table, id_columns=["store"], exclude=["holiday"])
    assert frame.names == ("1", "2", "3")
    assert not any("names no column" in text for text in frame.notices)
    counting = stores().assign(index=lambda rows: rows.index // 3)
    assert "exclude: [index]" in refused(counting, id_columns=["store"])


@pytest.mark.parametrize("column", ["shift", "hour"])
def test_counted_rows_stay_as_they_are(column):
    table = stores().rename(columns={"store": column})
    frame = read_frame(table, timestamps="as_is", columns=["sales"])
    np.testing.assert_array_equal(frame.values[:, 0], table["sales"])
    again = read_frame(table, timestamps="as_is", trained_on=["sales"])
    np.testing.assert_array_equal(again.values, frame.values)


def test_columns_of_training_are_read_again():
    table = stores().assign(promo=1.5)
    choice = {"id_columns": ["store"], "columns": ["sales"]}
    names = read_frame(table, **choice).names
    assert names == ("1", "2", "3")
    again = read_frame(table, **choice, trained_on=names)
    np.testing.assert_array_equal(again.values, read_frame(table, **choice).values)
    wide = table.pivot(index="date", columns="store", values="sales").rename(columns=str)
    np.testing.assert_array_equal(read_frame(wide, **choice, trained_on=names).values, again.values)


@pytest.mark.parametrize(
    ("name", "first"), [("hour", 0), ("Hour.Ending", 1), ("HE", 1), ("slot", 0), ("slot", 1)]
)
@pytest.mark.parametrize(
    "form",
    ["%Y-%m-%d", "%d.%m.%Y", "%d-%b-%Y", "%Y%m%d", "%Y-%m-%d 00:00:00.000", "%m/%d/%Y 12:00:00 AM", None],
)
@pytest.mark.parametrize("region", [(), ("N", "S")])
def test_hours_of_a_date_are_no_series(name, first, form, region):
    table = stores(24).rename(columns={"store": name})
    table[name] += first - 1
    values = table["sales"].to_numpy()
    if form:
        table["date"] = table["date"].dt.strftime(form)
    if region:
        table = pd.concat([table.assign(region=one) for one in region])
    said = refused(table)
    assert ("has the hours of" in said) == (name != "slot")
    assert f"`timestamp_column: date + {name}`" in said
    frame = read_frame(table, timestamp_column=f"date + {name}")
    assert frame.names == (region or ("sales",))
    np.testing.assert_array_equal(frame.values[:, -1], values)
    assert frame.timestamps is not None
    assert frame.timestamps[0] == np.datetime64(f"2024-01-01T0{first}")
    assert frame.timestamps[23] == np.datetime64("2024-01-01T23") + first
    assert frame.frequency == "h"


def test_hours_of_a_date_with_its_format():
    table = stores(24).assign(date=lambda rows: rows["date"].dt.strftime("%d/%m/%Y"))
    frame = read_frame(table, timestamp_column="date + store", timestamp_format="%d/%m/%Y")
    assert frame.frequency == "h"
    np.testing.assert_array_equal(frame.values[:, 0], table["sales"])


@pytest.mark.parametrize("form", ["%d/%m/%Y %H", "%d/%m/%Y"])
def test_hours_of_a_date_by_a_format_with_and_without_them(form):
    table = stores(24).assign(date=lambda rows: rows["date"].dt.strftime("%d/%m/%Y"))
    table["store"] -= 1
    frame = read_frame(table, timestamp_column="date + store", timestamp_format=form)
    assert frame.timestamps is not None
    assert frame.timestamps[5] == np.datetime64("2024-01-01T05")


def test_times_of_day_without_signs_are_no_hours():
    clocks = ["0000", "0600", "1200", "1800"]
    table = stores(4).assign(clock=clocks * 12, date=lambda rows: rows["date"].dt.strftime("%Y-%m-%d"))
    frame = read_frame(table[["date", "clock", "sales"]], timestamp_column="date + clock")
    assert frame.frequency == "6h"
    assert "repeats the previous row's" in refused(
        table[["date", "clock", "sales"]].assign(clock=[0, 600, 1200, 1800] * 12)
    )


def test_hours_of_a_zoned_midnight_are_not_proposed():
    table = stores(24).assign(date=lambda rows: rows["date"].dt.tz_localize("Europe/Berlin"))
    assert "timestamp_column" not in refused(table)


def test_other_parts_of_a_time_are_no_series():
    halves = stores(48).rename(columns={"store": "period"})
    said = refused(halves)
    assert "If `period` counts parts of `date`, set `timestamps: as_is` and `exclude: [period]`" in said
    regions = pd.concat([halves.assign(region=name) for name in "NS"])
    said = refused(regions)
    assert "set `id_columns: [region, period]`" in said
    assert "If `period` counts parts of `date`, write the time of each row into one column" in said
    counted = read_frame(halves, timestamps="as_is", exclude=["period"])
    np.testing.assert_array_equal(counted.values[:, 0], halves["sales"])
    months = stores(12).assign(date=lambda rows: 1990 + rows.index // 12).rename(columns={"store": "month"})
    assert "`month` has the months of each `date`" in refused(months)
    assert read_frame(months, timestamp_column="date + month").frequency == "MS"
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
