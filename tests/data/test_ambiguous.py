"""Tables that can be read in several ways are refused, and read by the setting that the error names."""

import numpy as np
import pandas as pd
import pytest
from tables_written import refused, write

from ofa_jax import forecast
from ofa_jax.data.catalog.check import check_file
from ofa_jax.data.frames import read_frame
from ofa_jax.errors import DataError


def of_times(times: list[str], name: str = "date") -> str:
    return f"{name},y\n" + "".join(f"{time},{(3 * row) % 7}.5\n" for row, time in enumerate(times))


def test_points_that_may_mark_thousands_need_a_decision(tmp_path):
    rows = ["19.01.2024;980", "20.01.2024;1.020", "21.01.2024;1.105", "22.01.2024;995"]
    path = write(tmp_path, "Datum;Umsatz\n" + "\n".join(rows) + "\n")
    message = refused(path)
    assert (
        "column `Umsatz`, row 2 (line 3): the points of numbers such as 1.020 may mark thousands" in message
    )
    assert read_frame(path, decimal="1.234,5").values[:, 0].tolist() == [980, 1020, 1105, 995]
    assert read_frame(path, decimal="1,234.5").values[:, 0].tolist() == [980, 1.02, 1.105, 995]
    every = write(tmp_path, "Datum;a\n" + "".join(f"{day:02d}.01.2024;1.{day:03d}\n" for day in range(9, 30)))
    assert "may mark thousands" in refused(every)
    rows = [f"{shop};{day}.01.2024;{day}.000" for day in (20, 21, 22, 23) for shop in "AB"]
    assert "may mark thousands" in refused(write(tmp_path, "shop;Datum;a\n" + "\n".join(rows) + "\n"))
    values = read_frame(tmp_path / "x.csv", decimal="1.234,5").values
    assert values.tolist() == [[day * 1000, day * 1000] for day in (20, 21, 22, 23)]


@pytest.mark.parametrize(
    "text",
    [
        "date,a\n2024-01-01,1.020\n2024-01-02,980\n2024-01-03,1.105\n",  # commas separate columns
        "date;a\n2024-01-01;1.020\n2024-01-02;1.221\n2024-01-03;1.105\n",  # three decimals everywhere
        "a;b\n1.020;1\n980.5;2\n0.123;4\n",
        "a;b\n0.020;0\n0.105;2\n0.123;4\n",
    ],
)
def test_other_points_are_decimal(tmp_path, text):
    values = pd.read_csv(write(tmp_path, text), sep=None, engine="python").select_dtypes("number")
    np.testing.assert_array_equal(read_frame(tmp_path / "x.csv").values, values)


def test_the_other_sign_marks_thousands(tmp_path):
    tabs = write(tmp_path, "t\ta\n2024-01-01\t980\n2024-01-02\t1,020.5\n2024-01-03\t1,234,567\n", "x.tsv")
    assert "Set `decimal: 1,234.5`, since commas mark thousands" in refused(tabs)
    assert read_frame(tabs, decimal="1,234.5").values[:, 0].tolist() == [980, 1020.5, 1234567]
    text = tabs.read_text()
    for other in ("1,02", "0,234"):
        tabs.write_text(text.replace("1,020.5", other))
        assert "others in the column mark no thousands" in refused(tabs, decimal="1,234.5")
    comma = write(tmp_path, "a;b\n1.234,5;1\n-2.000;2\n3,25;3\n-;4\n")
    values = read_frame(comma, decimal="1.234,5", missing="ffill").values[:3, 0]
    assert values.tolist() == [1234.5, -2000, 3.25]
    mixed = write(tmp_path, "a;b\n1,5;1\n1.250;2\n0.250;3\n")
    assert "column `a`, row 2" in refused(mixed, decimal="1.234,5")


def test_numbers_of_a_frame_are_what_they_are():
    days = pd.date_range("2024-01-20", periods=9).strftime("%d.%m.%Y")
    table = pd.DataFrame({"date": days, "y": np.arange(9) * 1.125})
    np.testing.assert_array_equal(read_frame(table).values[:, 0], table["y"])


@pytest.mark.parametrize("freq", ["D", "h"])
@pytest.mark.parametrize("form", [None, "%d/%m/%Y %H:%M"])
def test_two_blocks_of_rows_are_refused_whatever_the_step(tmp_path, freq, form):
    new, old = (
        pd.date_range("2023-02-13", periods=60, freq=freq),
        pd.date_range("2021-02-13", periods=50, freq=freq),
    )
    cells = [day.strftime(form or "%Y-%m-%d %H:%M") for day in [*new, *old]]
    cells[3] = cells[3].replace("-02-", "-15-").replace("/02/", "/15/")
    message = refused(write(tmp_path, of_times(cells)), last=20, timestamp_format=form)
    assert "x.csv, column `date`, row 4" in message


def test_counters_may_begin_again_before_the_last_rows(tmp_path):
    cells = [str(row) for row in [*range(100), *range(50)]]
    assert read_frame(write(tmp_path, of_times(cells)), last=20).n_rows == 20


@pytest.mark.parametrize("repeated", [False, True])
def test_rows_that_go_to_and_fro_are_refused_though_the_last_are_in_order(tmp_path, repeated):
    """Else forecasts would begin after the last row, which is not the newest."""
    old, new = pd.date_range("2021-01-01", periods=60), pd.date_range("2023-01-01", periods=40)
    blocks = [of_times([str(day.date()) for day in days]) for days in (new, old)]
    text = "".join(blocks) if repeated else blocks[0] + blocks[1].partition("\n")[2]
    message = refused(write(tmp_path, text), last=30)
    assert ("'date' is not a timestamp" if repeated else "not in order: 2021-01-01") in message


def test_an_hour_back_in_earlier_rows_may_be_a_change_of_clocks(tmp_path):
    hours = [str(hour) for hour in pd.date_range("2024-10-26", periods=100, freq="30min")]
    hours = hours[:50] + hours[48:]
    frame = read_frame(write(tmp_path, of_times(hours)), last=30)
    assert frame.n_rows == 30
    assert "timestamps are not in order" in refused(tmp_path / "x.csv")


DAYS = pd.date_range("2024-01-01", periods=31)
MONTHS = pd.date_range("2024-01-01", periods=12, freq="MS")
YEARS = range(2000, 2012)
DIGITS = {"%d%m%Y": [DAYS, MONTHS], "%m%d%Y": [DAYS], "%y%m%d": [DAYS], "%Y%j": [DAYS], "%m%Y": [MONTHS]}


@pytest.mark.parametrize(
    ("form", "times"), [(form, times) for form, all_ in DIGITS.items() for times in all_]
)
def test_numbers_that_may_be_dates_are_no_counter(tmp_path, form, times):
    cells = [str(int(text)) for text in times.strftime(form)]
    path = write(tmp_path, of_times(cells))
    assert f'`timestamp_format: "{form}"`' in refused(path)
    np.testing.assert_array_equal(
        read_frame(path, timestamp_format=form).timestamps, times.to_numpy("M8[ns]")
    )


@pytest.mark.parametrize(
    "cells",
    [
        *(range(3200, 3260), range(100_001, 100_061), range(5, 3000, 50)),
        *(range(12_001, 12_061), range(11_901, 12_100), range(101_200, 101_220)),
    ],
)
def test_other_numbers_count_rows(tmp_path, cells):
    assert read_frame(write(tmp_path, of_times([str(cell) for cell in cells]))).timestamps is None


@pytest.mark.parametrize(
    ("name", "cells", "said"),
    [
        ("date", [f"{year}/{(year + 1) % 100:02d}" for year in YEARS], "13 months apart"),
        ("date", [f"{year}-{(year + 1) % 100:02d}" for year in YEARS], "13 months apart"),
        ("date", [f"20{month:02d}01" for month in range(1, 13)], '`timestamp_format: "%y%m%d"`'),
        ("date", [f"Jan {day:02d}" for day in range(1, 32)], '`timestamp_format: "%b %y"`'),
        ("date", [f"Jan {day:02d}" for day in range(1, 31, 7)], "may be a day without a year"),
        ("date", [f"2020{week}" for week in range(10, 54)], "Write weeks as 2020-W10"),
        (
            "week",
            [f"2024-{week:02d}" for week in range(1, 13)],
            "Write it as 2024-W01, or set `timestamp_format`",
        ),
    ],
)
def test_months_that_may_be_something_else(tmp_path, name, cells, said):
    assert said in refused(write(tmp_path, of_times(cells, name)), timestamp_column=name)


def test_a_step_or_format_that_is_given_decides(tmp_path):
    path = write(tmp_path, of_times([f"{year}/{(year + 1) % 100:02d}" for year in YEARS]))
    assert read_frame(path, frequency="13MS").frequency == "13MS"
    path = write(tmp_path, of_times([f"20{month:02d}01" for month in range(1, 13)]))
    assert read_frame(path, timestamp_format="%Y%m").frequency == "YS-JAN"
    assert read_frame(path, timestamp_format="%y%m%d").frequency == "MS"


def test_years_of_two_digits_are_those_of_excel(tmp_path):
    months = pd.date_range("1965-01-01", periods=60, freq="MS")
    frame = read_frame(write(tmp_path, of_times(list(months.strftime("%b-%y")))))
    np.testing.assert_array_equal(frame.timestamps, months.to_numpy("M8[ns]"))
    assert any("read as 1965 to 1969" in notice for notice in frame.notices)
    given = read_frame(tmp_path / "x.csv", timestamp_format="%b-%y")
    np.testing.assert_array_equal(given.timestamps, frame.timestamps)
    ahead = pd.date_range("2025-01-01", periods=120, freq="MS")
    frame = read_frame(write(tmp_path, of_times(list(ahead.strftime("%b-%y")))))
    np.testing.assert_array_equal(frame.timestamps, ahead.to_numpy("M8[ns]"))


@pytest.mark.parametrize(
    ("name", "cells", "step"),
    [
        ("quarter", [f"{2020 + at // 4}Q{at % 4 + 1}" for at in range(12)], "QS-JAN"),
        ("week", [f"2020-W{at:02d}" for at in range(1, 20)], "W-MON"),
        ("quarter", [f"2022-{month:02d}" for month in (3, 6, 9, 12)], "QS-MAR"),
        ("month", [f"2022-{month:02d}" for month in range(1, 13)], "MS"),
        ("date", [f"{year}12" for year in range(2000, 2020)], "YS-DEC"),
    ],
)
def test_times_that_can_be_read_in_one_way_are_read(tmp_path, name, cells, step):
    frame = read_frame(write(tmp_path, of_times(cells, name)), timestamp_column=name)
    assert frame.frequency == step


@pytest.mark.parametrize("head", ["store,2024-01,2024-02,2024-03,2024-04", "id,code,2000,2001,2002,2003"])
def test_times_in_the_header_are_no_names_of_series(tmp_path, head):
    row = ",".join(str(7 * at % 5) + ".5" for at in range(len(head.split(","))))
    path = write(tmp_path, f"{head}\n" + f"{row}\n" * 3)
    message = refused(path)
    assert "columns are named by times" in message
    assert "`table.melt(id_vars=['" in message
    names = head.split(",")[-4:]
    assert read_frame(path, columns=names).names == tuple(names)


@pytest.mark.parametrize(
    "head", ["may,june,july,q1", "01.1.1,01.1.2,01.2.1,01.2.2", "x2001,x2002,x2003,x2004"]
)
def test_names_that_look_like_times_by_accident(tmp_path, head):
    path = write(tmp_path, f"{head}\n" + "1.5,2.5,0.5,2\n0.5,1.5,3.5,1\n" * 3)
    assert read_frame(path).names == tuple(head.split(","))
    numbers = pd.DataFrame(np.random.default_rng(0).random((10, 3)), columns=[2001, 2002, 2003])
    assert read_frame(numbers).n_channels == 3


def test_the_first_value_of_a_column_is_no_name(tmp_path):
    message = refused(write(tmp_path, "1\n3\n2\n5\n"))
    assert "the first line contains values (1), not column names" in message
    zero = read_frame(write(tmp_path, "0\n3\n2\n"))  # as pandas writes a series without a name
    assert zero.values[:, 0].tolist() == [3, 2]
    for text in ("1\n", "0\n", "0\n1,2\n3,4\n"):
        with pytest.raises(DataError):
            read_frame(write(tmp_path, text))


def test_times_of_all_series_are_of_one_kind(tmp_path):
    rows = [f"A,{200100 + day},{day % 5}" for day in range(1, 25)]
    rows += [f"B,{200100 + day},{day % 3}" for day in range(1, 13)]
    path = write(tmp_path, "shop,date,y\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match=r'different ways.*Set `timestamp_format: "%y%m%d"`'):
        forecast(path, 2)
    assert forecast(path, 2, timestamp_format="%y%m%d")["date"][0].year == 2020
    rows = [f"A,{at},{at % 5}" for at in range(900, 1300)] + [f"B,{at},{at % 3}" for at in range(1000, 1200)]
    path = write(tmp_path, "shop,t,y\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match="`timestamps: as_is` to count rows"):
        forecast(path, 2, timestamp_column="t")
    assert len(forecast(path, 2, timestamp_column="t", timestamps="as_is")) == 4


def test_an_index_of_whole_numbers_is_read_where_it_is_called_as_times_are(tmp_path):
    years = pd.Index([2003, 2001, 2002, 2000], name="year")
    pd.DataFrame({"y": [3.5, 1.5, 2.0, 0.5]}, index=years).to_parquet(tmp_path / "x.parquet")
    assert "order" in refused(tmp_path / "x.parquet", timestamp_column="year")
    assert "`year`" in refused(tmp_path / "x.parquet")
    for name in (None, "obs", "id", "index"):
        rows = pd.DataFrame({"y": [3.5, 1.5, 2.0]}, index=pd.Index([7, 3, 5], name=name))
        assert read_frame(rows).names == ("y",)


def test_letters_of_windows_are_read_and_said(tmp_path):
    path = write(tmp_path, "Preis €;b\n1.5;2\n2.5;4\n".encode("cp1252"))
    frame = read_frame(path)
    assert frame.names == ("Preis €", "b")
    assert "x.csv: not UTF-8, so letters are read as Windows-1252" in frame.notices
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        frame = read_frame(write(tmp_path, "Preis €;b\n1.5;2\n2.5;4\n".encode(encoding)))
        assert frame.names == ("Preis €", "b")
        assert not any("UTF-8" in notice for notice in frame.notices)


def test_check_reads_what_a_forecast_reads(tmp_path):
    days = "".join(f"{day.date()},{day.day % 7}.5\n" for day in DAYS)
    assert check_file(write(tmp_path, "V1,V2\n" + days))["kind"] == "frame"
    assert check_file(write(tmp_path, ("date,y\n" + days).encode("utf-16")))["rows"] == 31


def test_a_year_and_a_month_are_one_time(tmp_path):
    rows = "".join(f"{2000 + row // 12},{row % 12 + 1},{row * 3 % 7}.5\n" for row in range(36))
    path = write(tmp_path, "year,month,y\n" + rows)
    assert "`timestamp_column: year + month`" in refused(path)
    rows = "".join(f"2024,1,{day},{day % 7}.5\n" for day in range(1, 32))
    assert "year + month" not in refused(write(tmp_path, "year,month,day,y\n" + rows, "daily.csv"))
    assert read_frame(path, timestamp_column="year + month").frequency == "MS"


def test_what_is_missing_at_the_beginning_is_the_first_value(tmp_path):
    text = "a,b\n" + "".join(f"{row % 3}.5,{'' if row < 20 else row % 4}\n" for row in range(60))
    message = refused(write(tmp_path, text), missing="ffill", last=50)
    assert "column `b`, row 11 (line 12): the first values are missing" in message
    assert "`exclude: [b]`" in message
    assert read_frame(tmp_path / "x.csv", missing="ffill", last=40).n_rows == 40
    assert read_frame(tmp_path / "x.csv", missing="ffill", last=50, exclude=["b"]).n_rows == 60


@pytest.mark.parametrize("cell", ["12.5%", "€ 12", "1.2K", "12 kg"])
def test_units_are_no_words_for_a_missing_value(tmp_path, cell):
    message = refused(write(tmp_path, f"a,b\n1.5,{cell}\n2.5,{cell}\n"))
    assert "Write numbers without `" in message
    assert "missing_words" not in message
    for other in ("\u22125", "(5)", "<5"):
        assert "Write numbers without" not in refused(write(tmp_path, f"a,b\n1.5,2\n2.5,{other}\n"))
    assert '`missing_words: ["*"]`' in refused(write(tmp_path, "a,b\n1.5,2\n2.5,*\n"))


def test_lines_above_the_header_are_named(tmp_path):
    text = "Sales report\n% from the shop\n\ndate,a,b\n" + "".join(f"{day.date()},1.5,2\n" for day in DAYS)
    assert "Remove lines above the header" in refused(write(tmp_path, text))
