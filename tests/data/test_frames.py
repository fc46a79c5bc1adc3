"""Reading and checking frames: what is right is read exactly, what is wrong is refused with its place."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import lzma
import os
import re
import sys
import zipfile
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables_written import refused, write

from ofa_jax.data.frames import Frame, read_frame
from ofa_jax.errors import DataError
from ofa_jax.tasks.forecast import time_index

DATA_ROOT = os.environ.get("OFA_JAX_DATA")
needs_data = pytest.mark.skipif(not DATA_ROOT, reason="OFA_JAX_DATA is not set")

GOOD = "date,a,b\n2024-01-01 00:00,1,2\n2024-01-01 01:00,3,4\n2024-01-01 02:00,5,6.5\n"


def hourly(rows: str, head: str = "date,a") -> str:
    """A table of hours from the cells of one column."""
    return (
        head
        + "\n"
        + "".join(f"2024-01-01 {hour:02d}:00,{cell}\n" for hour, cell in enumerate(rows.split("|")))
    )


def test_a_good_file_is_read_as_it_stands(tmp_path):
    frame = read_frame(write(tmp_path, GOOD))
    assert frame.names == ("a", "b")
    np.testing.assert_array_equal(frame.values, [[1, 2], [3, 4], [5, 6.5]])
    assert frame.values.dtype == np.float64
    assert frame.timestamps is not None
    assert frame.timestamps.dtype == np.dtype("datetime64[ns]")
    assert frame.timestamps[1] == np.datetime64("2024-01-01T01:00")
    assert (frame.n_rows, frame.n_channels, frame.frequency) == (3, 2, "h")
    assert frame.source.endswith("x.csv")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(GOOD.replace("\n", "\r\n").encode(), id="CRLF"),
        pytest.param(GOOD.replace("\n", "\r").encode(), id="CR"),
        pytest.param(b"\xef\xbb\xbf" + GOOD.encode(), id="BOM"),
        pytest.param(GOOD.encode("utf-16"), id="UTF-16"),
        pytest.param(GOOD.replace(",", ";").encode(), id="semicolon"),
        pytest.param(GOOD.replace(",", "\t").encode(), id="tab"),
        pytest.param(GOOD.replace(",", ", ").encode(), id="spaces after commas"),
        pytest.param(("\n" + GOOD + "\n\n").encode(), id="blank lines around"),
        pytest.param(GOOD.rstrip().encode(), id="no newline at the end"),
        pytest.param(re.sub(r"([^,\n]+)", r'"\1"', GOOD).encode(), id="quoted"),
    ],
)
def test_ways_of_writing_the_same_table(tmp_path, content):
    frame = read_frame(write(tmp_path, content))
    assert frame.names == ("a", "b")
    np.testing.assert_array_equal(frame.values, [[1, 2], [3, 4], [5, 6.5]])
    assert frame.frequency == "h"


def test_other_sources_give_the_same_frame(tmp_path):
    frame = read_frame(write(tmp_path, GOOD))
    table = pd.read_csv(io.StringIO(GOOD))
    indexed = table.assign(date=pd.to_datetime(table["date"])).set_index("date")
    indexed.to_parquet(tmp_path / "x.parquet")
    table.to_parquet(tmp_path / "flat.parquet")
    sources = [
        table,
        indexed,
        table.set_index("date"),
        indexed.to_period("h"),
        tmp_path / "x.parquet",
        tmp_path / "flat.parquet",
        str(write(tmp_path, gzip.compress(GOOD.encode()), "x.csv.gz")),
    ]
    for source in sources:
        other = read_frame(source)
        assert other.names == frame.names
        np.testing.assert_array_equal(other.values, frame.values)
        np.testing.assert_array_equal(other.timestamps, frame.timestamps)


@given(st.lists(st.floats(-(2.0**60), 2.0**60), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_float_is_read_exactly(tmp_path, numbers):
    path = write(tmp_path, "a\n" + "".join(f"{number!r}\n" for number in numbers))
    np.testing.assert_array_equal(read_frame(path).values[:, 0], numbers)


def test_latin_1_header_keeps_readable_unique_names(tmp_path):
    frame = read_frame(write(tmp_path, "SWDR (W/m²),PAR (µmol/m²/s)\n1,2\n".encode("latin-1")))
    assert frame.names == ("SWDR (W/m²)", "PAR (µmol/m²/s)")


def test_names_counted_from_zero_are_names_but_a_row_of_values_is_not(tmp_path):
    assert read_frame(write(tmp_path, "0,1,2\n5,6,7\n")).names == ("0", "1", "2")
    assert "not column names" in refused(write(tmp_path, "1.5,2.5\n3.5,4.5\n"))
    assert "not column names" in refused(write(tmp_path, "2024-01-01,2.5\n2024-01-02,4.5\n"))


@pytest.mark.parametrize("first", ["2024/01/01", "01-02-2024", "1990-01", "2024-01-01 00:00", "13.01.2024"])
@pytest.mark.parametrize("row", ["{},1,2", "site,{},1.5", "{},", "{},NA,4"])
def test_a_file_without_header_keeps_its_first_row(tmp_path, first, row):
    line = row.format(first)
    message = refused(write(tmp_path, f"{line}\n{line}\n"))
    assert "x.csv, line 1: the first line contains values" in message
    assert "Add a header line" in message
    assert "line 3" in refused(write(tmp_path, f"# a\n\n{line}\n{line}\n"))


def test_dates_may_be_names_of_columns(tmp_path):
    assert read_frame(write(tmp_path, "x,2024-01-01\n1.5,2\n2,3\n")).names == ("x", "2024-01-01")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.tsv", GOOD.replace(",", "\t")),
        ("x.txt", GOOD.replace(",", "|")),
        ("x.txt", GOOD.replace(" ", "T").replace(",", "   ")),
        ("x.csv", "# of a station\n#\n" + GOOD),
        ("x.csv", "# " + GOOD),  # as numpy.savetxt writes a header
        ("x.csv.gz", gzip.compress(GOOD.encode(), mtime=0)),
        ("x.csv.BZ2", bz2.compress(GOOD.encode())),
        ("x.txt.xz", lzma.compress(GOOD.encode())),
    ],
)
def test_kinds_of_text_files(tmp_path, name, content):
    frame = read_frame(write(tmp_path, content, name))
    assert frame.names == ("a", "b")
    np.testing.assert_array_equal(frame.values, [[1, 2], [3, 4], [5, 6.5]])
    assert frame.frequency == "h"
    assert any("2 comment line(s) skipped" in text for text in frame.notices) == ("station" in str(content))


def test_a_zip_file_holds_one_table(tmp_path):
    path = tmp_path / "x.csv.zip"
    for count, name in enumerate(("x.csv", "y.csv")):
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, GOOD)
        if not count:
            assert read_frame(path).names == ("a", "b")
    assert "holds 2 files" in refused(path)


def test_comments_below_the_header_are_read_over_as_asked(tmp_path):
    lines = GOOD.splitlines()
    path = write(tmp_path, "\n".join([*lines[:2], "# calibrated", *lines[2:]]))
    assert "row 2 (line 3)" in refused(path)
    frame = read_frame(path, comment="#")
    np.testing.assert_array_equal(frame.values, [[1, 2], [3, 4], [5, 6.5]])
    assert "row 3 (line 5)" in refused(write(tmp_path, path.read_text().replace("6.5", "x")), comment="#")


@pytest.mark.parametrize("word", ["?", "-", "--", "."])
def test_signs_of_a_missing_value(tmp_path, word):
    path = write(tmp_path, hourly(f"1|{word} |3"))
    assert "1 value(s) are missing" in refused(path)
    np.testing.assert_array_equal(read_frame(path, missing="linear").values[:, 0], [1, 2, 3])
    table = pd.DataFrame({"a": ["1", word, "3"]})
    np.testing.assert_array_equal(read_frame(table, missing="linear").values[:, 0], [1, 2, 3])


def test_own_words_for_a_missing_value(tmp_path):
    path = write(tmp_path, hourly("1|nil|3|-999|5"))
    assert "set `missing_words: [nil]`" in refused(path)
    read = read_frame(path, missing_words=["nil", "-999"], missing="linear").values[:, 0]
    np.testing.assert_array_equal(read, [1, 2, 3, 4, 5])
    table = pd.DataFrame({"a": ["1", "nil", "3"]})
    assert read_frame(table, missing_words=["nil"], missing="linear").values[1, 0] == 2


def test_labels_in_words_say_what_labels_are(tmp_path):
    path = write(tmp_path, "a,fault\n1.5,no\n2.5,yes\n0.5,no\n")
    message = refused(path, labels="fault")
    assert (
        "column `fault`, row 1 (line 2): labels are 0 and 1, or True and False, and this is 'no'" in message
    )


@given(st.lists(st.floats(-1e18, 1e18), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_decimal_comma_is_read_exactly(tmp_path, numbers):
    text = "a;b\n" + "".join(f"{number!r};x\n" for number in numbers).replace(".", ",")
    frame = read_frame(write(tmp_path, text), decimal="comma", exclude=["b"])
    np.testing.assert_array_equal(frame.values[:, 0], numbers)


def test_decimal_commas_and_thousands_signs_get_their_own_advice(tmp_path):
    assert "Set `decimal: comma`" in refused(write(tmp_path, "a;b\n1,5;2\n2,5;3\n"))
    assert "Set `decimal: 1,234.5`, since" in refused(write(tmp_path, 'a,b\n"1,000.5",2\n3,4\n'))
    assert "Set `decimal: 1.234,5`, since" in refused(write(tmp_path, "a;b\n1.000,5;2\n3;4\n"))


def test_commas_in_numbers_where_commas_separate_are_one_error(tmp_path):
    rows = "".join(f"2024-01-{day:02d},{950 + 10 * day:,},{day}\n" for day in range(1, 31))
    message = refused(write(tmp_path, "date,a,b\n" + rows))
    assert "row 5 (line 6): has 4 field(s) where the header has 3, and so have 25 more row(s). " in message
    assert "Thousands signs without quotes, as in 1,000, are the likely cause. Write numbers with" in message
    assert message.count("(line") == 1
    decimals = "".join(f"2024-01-{day:02d},{day},{day % 10}\n" for day in range(1, 31))
    message = refused(write(tmp_path, "date,a\n" + decimals))
    assert "row 1 (line 2): has 3 field(s) where the header has 2, and so have 29 more row(s). " in message
    assert "Decimal commas without quotes, as in 1,1, are" in message
    semicolons = "date;a\n" + re.sub(r"^([^,]+),", r"\1;", decimals, flags=re.MULTILINE)
    assert read_frame(write(tmp_path, semicolons), decimal="comma").values[10, 0] == 11.1
    for other in ("date,site,a\n2024-01-01,Berlin, north,1\n2024-01-02,Bonn,2\n", "a,b\n1,2,\n3,4,\n"):
        assert "a text with the delimiter in it needs quotes" in refused(write(tmp_path, other))


def test_date_and_time_of_day_in_two_columns(tmp_path):
    rows = "".join(f"{hour},2024-01-31,{hour:02d}:30\n" for hour in range(9))
    path = write(tmp_path, "a,Date,Time\n" + rows)
    assert "`timestamp_column: Date + Time`" in refused(path)
    frame = read_frame(path, timestamp_column="Date + Time")
    assert frame.names == ("a",)
    assert frame.time_name == "Date Time"
    assert frame.frequency == "h"
    assert frame.timestamps[8] == np.datetime64("2024-01-31T08:30")
    assert "column `Date Time`, row 2" in refused(
        write(tmp_path, path.read_text().replace("01:30", "01:31")), timestamp_column="Date+Time"
    )


def test_a_second_column_of_timestamps_is_left_out_as_advised(tmp_path):
    path = write(tmp_path, "date,a,timestamp\n2024-01-01,1,2024-01-02 07:00\n2024-01-02,2,2024-01-03 07:00\n")
    message = refused(path)
    assert "set `timestamp_column: date` and `exclude: [timestamp]`" in message
    assert read_frame(path, timestamp_column="date", exclude=["timestamp"]).names == ("a",)


def test_true_and_false_are_the_same_in_text_and_in_memory(tmp_path):
    table = pd.DataFrame({"a": [1.5, 2.0], "b": [True, False]})
    table.to_csv(tmp_path / "x.csv", index=False)
    table.to_parquet(tmp_path / "x.parquet")
    for source in (table, tmp_path / "x.csv", tmp_path / "x.parquet", table.astype({"b": "boolean"})):
        message = refused(source)
        assert "column `b`, row 1" in message
        assert "the text 'True'. Write 1 and 0, or leave it out with `exclude: [b]`" in message
        assert read_frame(source, exclude=["b"]).names == ("a",)


@pytest.mark.parametrize(
    "text",
    [
        "{blank}a\n1\n2\n",
        "a\n1\n2\n{blank}",
        "a\n1\n{blank}2\n",
        "a\n1\n{digits}\n",
        "a\n1\n{digits}x\n",
        "a\n1\n0.{digits}\n",
        "date,a\n{digits},1\n",
    ],
)
def test_reading_is_linear_in_the_size(tmp_path, text):
    """Anything quadratic takes minutes at this size."""
    size = 120_000
    path = write(tmp_path, text.format(blank="\n" * size, digits="1" * size))
    with contextlib.suppress(DataError):
        assert read_frame(path).names == ("a",)


def workbook(path: Path, **tables: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in tables.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


DAYS = [datetime(2024, 1, day) for day in range(1, 5)]
CLOCKS = [time(hour) for hour in range(4)]


@pytest.mark.parametrize(
    ("head", "times", "frequency", "ahead"),
    [
        (["date"], [[day] for day in DAYS], "D", date(2024, 1, 5)),
        (
            ["when"],
            [[day.replace(day=1, hour=day.day)] for day in DAYS],
            "h",
            pd.Timestamp("2024-01-01 05:00"),
        ),
        (["date"], [[f"2024-01-0{day}"] for day in (1, 2, 3, 4)], "D", pd.Timestamp("2024-01-05")),
        (["Date", "Time"], [[DAYS[0], clock] for clock in CLOCKS], "h", pd.Timestamp("2024-01-01 04:00")),
        (["Year"], [[2020 + year] for year in range(4)], "YS-JAN", 2024),
    ],
)
def test_an_excel_sheet_is_read_like_text(tmp_path, head, times, frequency, ahead):
    values = [[1, "2,5"], [2.5, ""], ["-", "3"], [4, "1e2"]]
    rows = [
        [],
        ["", *head, "a", "b"],
        *([None, *both, *more] for both, more in zip(times, values, strict=True)),
    ]
    path = workbook(tmp_path / "x.xlsx", empty=[], data=rows)
    frame = read_frame(path, timestamp_column=" + ".join(head), missing="ffill", decimal="comma")
    assert (frame.names, frame.frequency) == (("a", "b"), frequency)
    np.testing.assert_array_equal(frame.values, [[1, 2.5], [2.5, 2.5], [2.5, 3], [4, 100]])
    assert time_index(frame, 1)[0] == ahead
    assert "column `b`, row 1 (line 3)" in refused(path, timestamp_column=" + ".join(head), exclude=["a"])


def test_hours_that_excel_added_up_are_hours(tmp_path):
    days = np.cumsum([45292.0, *[1 / 24] * 9999])
    cells = [datetime(1899, 12, 30) + timedelta(milliseconds=round(day * 86_400_000)) for day in days]
    assert cells[-1].microsecond
    path = workbook(tmp_path / "x.xlsx", data=[["date", "a"], *([cell, cell.hour % 7] for cell in cells)])
    frame = read_frame(path)
    np.testing.assert_array_equal(frame.timestamps, pd.date_range("2024-01-01", periods=10_000, freq="h"))
    assert frame.notices[1].startswith("x.xlsx, column `date`: times are up to 0.00")
    fine = [[datetime(2024, 1, 1) + timedelta(milliseconds=10 * row), row % 7] for row in range(200)]
    assert read_frame(workbook(path, data=[["date", "a"], *fine])).frequency == "10ms"


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        (
            [["Load in May"], ["date", "a"], [DAYS[0], 1]],
            ["line 1", "name, 'Load in May', which may be a title"],
        ),
        ([[DAYS[0], 1.5], [DAYS[1], 2.5]], ["line 1: the first line contains values"]),
        ([["date", "a", "a"], [DAYS[0], 1, 2]], ["`a`", "more than once"]),
        ([["date", "a"], [DAYS[0], 1], ["Source: us", ""]], ["'Source: us' is not a timestamp", "(line 3)"]),
        ([["date", "a"], [DAYS[0], True]], ["column `a`, row 1 (line 2)", "'True'"]),
        ([["date", "a"], [DAYS[0], 1], [DAYS[1], DAYS[2]]], ["row 2 (line 3)", "'2024-01-03'"]),
        ([["date", "a"]], ["no data rows"]),
        ([], ["all sheets are empty"]),
    ],
)
def test_a_bad_excel_sheet_is_refused_like_text(tmp_path, rows, parts):
    message = refused(workbook(tmp_path / "x.xlsx", data=rows))
    for part in ["x.xlsx", *parts]:
        assert part in message


def test_of_several_excel_sheets_one_is_chosen(tmp_path):
    rows = [["date", "a"], *([day, day.day] for day in DAYS)]
    path = workbook(tmp_path / "x.xlsx", **{"May 1": rows, "notes": [["by hand"]]})
    assert "2 sheets have cells. Choose one: set `sheet: May 1` or `sheet: notes`" in refused(path)
    assert read_frame(path, sheet="May 1").values[:, 0].tolist() == [1, 2, 3, 4]
    assert "there is no sheet 'x' with cells. Choose one" in refused(path, sheet="x")


def test_without_openpyxl_an_excel_file_says_how_to_install_it(tmp_path, monkeypatch):
    path = workbook(tmp_path / "x.xlsx", data=[["a"], [1]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "Run `pip install 'ofa-jax[excel]'`" in refused(path)


def test_a_title_above_the_header_is_named(tmp_path):
    assert "name, 'Load', which may be a title" in refused(
        write(tmp_path, "Load,,\ndate,a,b\n2024-01-01,1,2\n")
    )


def test_columns_choose_and_order_the_series(tmp_path):
    path = write(tmp_path, "date,a,site,b\n2024-01-01,1,north,2\n2024-01-02,3,north,4\n")
    frame = read_frame(path, columns=["b", "a"])
    assert frame.names == ("b", "a")
    np.testing.assert_array_equal(frame.values, [[2, 1], [4, 3]])
    message = refused(path)
    assert "column `site`, row 1 (line 2)" in message
    assert "'north'" in message
    assert "`columns`" in message
    assert "`load_north`" in refused(write(tmp_path, "load_north\n1\n", "y.csv"), columns=["loadnorth"])
    assert "repeat" in refused(path, columns=["a", "a"])
    assert "repeat" in refused(path, columns=["a", "date"])


def test_timestamp_column_by_name_by_custom_or_by_content(tmp_path):
    days = ["2024-01-01", "2024-01-02", "2024-01-03"]
    for head, option in (("DateTime,a", None), ("when,a", None), ("when,a", "when"), (",a", None)):
        frame = read_frame(
            write(tmp_path, head + "\n" + "".join(f"{day},1\n" for day in days)), timestamp_column=option
        )
        assert frame.frequency == "D"
        assert frame.names == ("a",)
    second = write(tmp_path, "a,when\n" + "".join(f"1,{day}\n" for day in days))
    assert read_frame(second, timestamp_column="when").frequency == "D"
    assert "`when`" in refused(second, timestamp_column="wen")
    assert "`timestamp_column`" in refused(write(tmp_path, "date,time,a\n2024-01-01,01:00,1\n"))
    assert read_frame(write(tmp_path, "a,b\n1,2\n")).timestamps is None


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["empty"]),
        ("\n \n", ["empty"]),
        ("date,a\n", ["no data rows"]),
        ("date\n2024-01-01\n", ["no numeric column"]),
        ("a,b\nx,y\nz,w\n", ["no numeric column", "'x'"]),
        ("a,b\n1,2\n3,4 MW\n", ["column `b`", "row 2 (line 3)", "'4 MW'"]),
        ("a,b\n1,2\n3,True\n", ["column `b`", "'True'"]),
        ("a,b\n1,2\n3,1_000\n", ["column `b`", "'1_000'"]),
        ("a;b\n1,5;2\n2,5;3\n", ["'1,5'", "decimal point"]),
        ("a;b\n1,5;2,5\n", ["'1,5'", "decimal point"]),
        (
            'a,b\n"1,000",2\n3,4\n',
            ["'1,000'", "`decimal: 1,234.5` if the comma marks thousands, or `decimal: comma` if"],
        ),
        ("a,a\n1,2\n", ["`a`", "more than once"]),
        ("a,\n1,2\n", ["only the first of 2 columns has a name", "Name every"]),
        ("a,b\n1,2\n3\n", ["row 2 (line 3)", "1 field(s)", "header has 2"]),
        ("a,b\n1,2,3\n3,4,5\n", ["row 1 (line 2)", "3 field(s)"]),
        ("a,b\n1,2\n\n3,4\n", ["row 2 (line 3)", "1 field(s)"]),
        ('a,b\n"1",2\n3,"4\n5,6\n', ["x.csv"]),
        ("a\n1\n\n3\n", ["column `a`, row 2 (line 3)", "missing"]),
        ("a,b\n1,2\n3,inf\n", ["column `b`, row 2 (line 3)", "infinite", "missing: linear"]),
        ("a,b\n1,\n3,NaN\n", ["column `b`", "no finite value"]),
        ("a,b\n1,2\n3,1e400\n", ["column `b`, row 2", "infinite"]),
        ("\n\na\n1\nx\n", ["row 2 (line 5)"]),
        ('a,b\n"1\n",2\n3,x\n', ["column `b`, row 2 (line 4)"]),
        ("a\x00b\n1\n", ["binary"]),
        ('a,b\n1,"2\n', ["not readable"]),
        ('a,"b\n1,2\n3",4\n5,6,7\n', ["several lines", "line 1"]),
    ],
)
def test_bad_text_names_file_column_and_row(tmp_path, content, parts):
    message = refused(write(tmp_path, content))
    for part in ["x.csv", *parts]:
        assert part in message


def test_bad_paths(tmp_path):
    assert "no such file" in refused(tmp_path / "absent.csv")
    assert ".xlsx" in refused(write(tmp_path, "a\n1\n", "x.xls"))
    assert "not readable as .xlsx" in refused(write(tmp_path, "a\n1\n", "x.xlsx"))
    assert "folder" in refused(tmp_path)
    assert "cannot be read" in refused(write(tmp_path, "a\n1\n", "x.csv.gz"))
    assert "cannot be read" in refused(write(tmp_path, gzip.compress(GOOD.encode())[:-12], "y.csv.gz"))
    assert "Parquet" in refused(write(tmp_path, "a\n1\n", "x.parquet"))
    table = pa.Table.from_arrays([pa.array([1.0])] * 3, names=["a", "b", "a"])
    pq.write_table(table, tmp_path / "y.parquet")
    assert "y.parquet: 1 column name(s) occur more than once: `a`" in refused(tmp_path / "y.parquet")


def test_missing_values_are_counted_and_the_first_is_named(tmp_path):
    message = refused(write(tmp_path, hourly("1||inf|nan|5")))
    assert "3 value(s)" in message
    assert "column `a`, row 2 (line 3)" in message
    assert "missing: linear" in message


def test_missing_values_are_filled_as_asked(tmp_path):
    path = write(tmp_path, hourly("1|||7|inf|9"))
    np.testing.assert_allclose(
        read_frame(path, missing="linear").values[:, 0], [1, 3, 5, 7, 8, 9], rtol=1e-15
    )
    np.testing.assert_array_equal(read_frame(path, missing="ffill").values[:, 0], [1, 1, 1, 7, 7, 9])
    ends = write(tmp_path, hourly("1|2|"))
    np.testing.assert_array_equal(read_frame(ends, missing="ffill").values[:, 0], [1, 2, 2])
    assert "row 3 (line 4)" in refused(ends, missing="linear")
    start = write(tmp_path, hourly("|2|3"))
    for policy in ("linear", "ffill"):
        assert "row 1 (line 2)" in refused(start, missing=policy)
    assert "no finite value" in refused(write(tmp_path, hourly("||")), missing="ffill")


def times(*stamps: str) -> pd.DataFrame:
    return pd.DataFrame({"date": stamps, "a": np.arange(len(stamps), dtype=float)})


@pytest.mark.parametrize(
    ("stamps", "parts"),
    [
        (["2024-01-01", "monday", "2024-01-03"], ["row 2", "'monday'"]),
        (["2024-01-01", "now", "2024-01-03"], ["row 2", "'now'"]),
        (["2024-01-01", "2024-02-31", "2024-01-03"], ["row 2", "'2024-02-31'"]),
        (["2024-01-01", None, "2024-01-03"], ["row 2", "missing"]),
        (["2024-01-02", "2024-01-01", "2024-01-03"], ["row 2", "order"]),
        (["2024-01-01", "2024-01-02", "2024-01-02", "2024-01-03"], ["row 3", "2024-01-02", "as_is"]),
        (["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-05"], ["row 4", "2 days", "1 days", "as_is"]),
        (["2024-01-01", "2024-02-01", "2024-03-01", "2024-05-01"], ["row 4", "2024-04-01", "as_is"]),
        (["2024-01-01T00:00Z", "2024-01-01T01:00", "2024-01-01T02:00Z"], ["row 2", "time zone"]),
    ],
)
def test_bad_timestamps_name_the_first_row(stamps, parts):
    message = refused(times(*stamps))
    for part in ["column `date`", *parts]:
        assert part in message


def test_numbers_under_a_timestamp_name_are_refused():
    message = refused(pd.DataFrame({"time": [0.5, 1.5], "a": [1, 2]}))
    assert "'0.5' is not a timestamp" in message
    assert "rename" in message


def test_as_is_counts_duplicates_and_gaps_but_refuses_disorder():
    hours = [0, 1, 2, 2, 3, 10, 11, 12]
    table = times(*[f"2024-01-01 {hour:02d}:00" for hour in hours])
    frame = read_frame(table, timestamps="as_is")
    assert frame.n_rows == len(hours)
    assert frame.frequency == "h"
    assert not frame.dated
    with pytest.raises(DataError, match=r"rows are counted .* `frequency`"):
        frame.future_timestamps(2)
    known = read_frame(table, timestamps="as_is", frequency="h")
    np.testing.assert_array_equal(
        known.future_timestamps(2), np.array(["2024-01-01T13", "2024-01-01T14"], "datetime64[ns]")
    )
    crowded = times(*[f"2024-01-01 {hour:02d}:00" for hour in (0, 0, 0, 1, 1, 1, 2, 2, 2)])
    assert read_frame(crowded, timestamps="as_is").frequency == "h"
    assert "order" in refused(table.iloc[[0, 2, 1, 3]].reset_index(drop=True), timestamps="as_is")


@pytest.mark.parametrize(
    "alias",
    [
        "s",
        "15min",
        "90min",
        "h",
        "6h",
        "D",
        "2D",
        "W-TUE",
        "B",
        "MS",
        "ME",
        "BMS",
        "BME",
        "2MS",
        "QS-FEB",
        "QE-MAR",
        "YS-JAN",
        "YE-JUN",
        "5YS-JAN",
    ],
)
def test_regular_steps_are_recognised_and_continued(alias):
    index = pd.date_range("2023-01-03 00:00", periods=45, freq=alias)
    frame = read_frame(pd.DataFrame({"a": np.arange(40.0)}, index=index[:40]))
    np.testing.assert_array_equal(frame.future_timestamps(5), index[40:].to_numpy())
    assert frame.frequency is not None
    np.testing.assert_array_equal(
        pd.date_range(index[0], periods=45, freq=frame.frequency).to_numpy(), index.to_numpy()
    )


@pytest.mark.parametrize("alias", ["MS", "2MS"])
def test_one_day_of_the_month_is_regular(alias):
    index = pd.date_range("2023-01-01", periods=15, freq=alias) + pd.Timedelta(days=14)
    frame = read_frame(pd.DataFrame({"a": np.arange(12.0)}, index=index[:12]))
    np.testing.assert_array_equal(frame.future_timestamps(3), index[12:].to_numpy())


def test_calendar_steps_with_holes_keep_their_calendar():
    days = pd.date_range("2024-01-01", periods=40, freq="B").delete([7, 20])
    message = refused(pd.DataFrame({"a": np.ones(38)}, index=days))
    assert "row 8" in message
    assert "or set `timestamps: as_is` and `frequency: B` to leave out holidays" in message
    frame = read_frame(pd.DataFrame({"a": np.ones(38)}, index=days), timestamps="as_is")
    assert frame.frequency == "B"
    frame = read_frame(pd.DataFrame({"a": np.ones(38)}, index=days), timestamps="as_is", frequency="B")
    assert (pd.DatetimeIndex(frame.future_timestamps(10)).day_of_week < 5).all()


def test_a_step_needs_three_timestamps():
    frame = read_frame(times("2024-01-01", "2024-01-02"))
    assert frame.frequency is None
    with pytest.raises(DataError, match="three"):
        frame.future_timestamps(1)
    with pytest.raises(DataError, match="no timestamps"):
        read_frame(pd.DataFrame({"a": [1.0]})).future_timestamps(1)


def test_time_zones_become_utc_over_a_change_of_clocks(tmp_path):
    index = pd.date_range("2024-10-26 22:00", periods=8, freq="h", tz="UTC")
    local = pd.DataFrame({"a": np.arange(8.0)}, index=index.tz_convert("Europe/Berlin"))
    local.to_csv(tmp_path / "x.csv", index_label="date")
    for source in (local, tmp_path / "x.csv"):
        frame = read_frame(source)
        assert frame.frequency == "h"
        np.testing.assert_array_equal(frame.timestamps, index.tz_localize(None).to_numpy())


@pytest.mark.parametrize(
    ("form", "step"),
    [
        ("%d.%m.%Y %H:%M", "h"),
        ("%m/%d/%Y %H:%M:%S", "h"),
        ("%d/%m/%Y", "D"),
        ("%m/%d/%Y", "D"),
        ("%Y/%m/%d", "D"),
    ],
)
def test_year_last_dates_are_read_the_way_that_fits(form, step):
    index = pd.date_range("2024-02-01", periods=60, freq=step)
    frame = read_frame(times(*index.strftime(form)))
    np.testing.assert_array_equal(frame.timestamps, index.to_numpy())


def test_dates_that_fit_both_ways_are_refused():
    assert "day first or month first" in refused(times("01/02/2024", "02/01/2024"))
    # read day first these are three days running, month first three months running
    assert "day first or month first" in refused(times("01/01/2024", "02/01/2024", "03/01/2024"))


def test_dataframe_kinds():
    frame = read_frame(pd.DataFrame({1: pd.array([1, 2], "Int64")}))
    assert frame.names == ("1",)
    assert "row 2" in refused(pd.DataFrame({"a": pd.array([1, None], "Int64")}))
    np.testing.assert_array_equal(
        read_frame(pd.DataFrame({"a": np.array([1, "2.5"], dtype=object)})).values[:, 0], [1, 2.5]
    )
    assert "'True'" in refused(pd.DataFrame({"a": [1.0, 2.0], "b": [True, False]}))
    assert "column `b`, row 1" in refused(pd.DataFrame({"a": [1.0, 2.0], "b": [1j, 2j]}))
    assert "levels" in refused(
        pd.DataFrame([[1.0, 2.0]], columns=pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")]))
    )
    assert "reset_index" in refused(pd.DataFrame({"a": [1.0]}, index=["north"]))
    assert "no data rows" in refused(pd.DataFrame({"a": []}))
    assert "NoneType" in refused(None)
    assert "more than once" in refused(pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]))


ROWS = np.arange(60)
NO_SERIES = {
    "index": (ROWS, "a counter"),
    "id": (ROWS * 7 % 31 + 1000, "an identifier"),
    "No": (ROWS + 1, "a counter"),
    "t": (np.round(ROWS / 24, 3), "a counter"),
    "x": (60 - ROWS, "a counter"),
    "unix_time": (1.7e9 + 3600 * ROWS, "a time in seconds since 1970"),
    "ms": ((1.7e9 + 60 * (ROWS + (ROWS > 30))) * 1000, "a time in milliseconds since 1970"),
    "Year": (1950 + ROWS // 12, "a part of a date"),
    "hour": (ROWS % 24, "a part of a date"),
    "YYYYMMDD": (pd.date_range("2024-01-15", periods=60).strftime("%Y%m%d").astype(int), "a date in digits"),
    "m": (pd.date_range("2024-01-15", periods=60, freq="ME").strftime("%Y%m").astype(int), "a date in dig"),
    "s": (pd.date_range("2024-01-15", periods=60, freq="h").strftime("%Y%m%d%H").astype(int), "a date in"),
}


@pytest.mark.parametrize("name", NO_SERIES)
@pytest.mark.parametrize("timed", [True, False])
def test_counters_identifiers_and_dates_are_no_series(tmp_path, name, timed):
    cells, kind = NO_SERIES[name]
    index = pd.date_range("2024-01-01", periods=60, name="date") if timed else None
    table = pd.DataFrame({"load": ROWS % 7 + 0.5, name: cells}, index)
    table.to_csv(tmp_path / "x.csv", index=timed)
    for source in (table, tmp_path / "x.csv"):
        message = refused(source)
        for part in (f"column `{name}`", kind, f"`exclude: [{name}]`", "`columns`"):
            assert part in message
        assert (f"`timestamp_column: {name}`" in message) != timed
        assert read_frame(source, exclude=[name]).names == ("load",)
        assert read_frame(source, columns=["load", name]).names == ("load", name)


def test_series_are_not_taken_for_counters():
    index = pd.date_range("2024-01-01", periods=60, name="date")
    series = {
        "NO": ROWS % 5 + 10,  # nitrogen monoxide
        "index": 1000 + np.cumsum(ROWS % 3 - 1),  # of stocks
        "population": 1_380_000_000 + np.cumsum(14_000_000 - 1000 * ROWS % 17),
        "sold": 202_000 + ROWS % 3,
        "constant": 20240101 + 0 * ROWS,
        "hours": 24 * np.sin(ROWS),
        "covid": np.cumsum(ROWS % 4),
    }
    assert read_frame(pd.DataFrame(series, index)).names == tuple(series)
    assert read_frame(pd.DataFrame({"a": ROWS * 1.0}, index)).names == ("a",)  # nothing that it could count
    assert "a counter" in refused(pd.DataFrame({"t": ROWS * 1.0}, index))


def test_the_series_that_are_used_are_listed(tmp_path):
    path = write(tmp_path, GOOD)
    assert read_frame(path).notices == ("x.csv: 2 series (`a`, `b`), time in `date`",)
    frame = read_frame(path, exclude=["b", "c"])
    assert frame.notices[0] == "x.csv: 1 series (`a`), time in `date`"
    assert frame.notices[1] == "x.csv: `exclude` names no column: `c`"


MARKS = [
    "",
    ",",
    ";",
    "\n",
    '"',
    "\r",
    "x",
    "NaN",
    "-",
    ".",
    "e",
    "\x00",
    "\ufeff",
    " ",
    "\t",
    "inf",
    "1",
    "2024-01-01 01:00",
    "é",
    "#",
    "'",
    "\\",
]


@given(
    st.lists(
        st.tuples(st.integers(0, len(GOOD)), st.integers(0, 6), st.sampled_from(MARKS)),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutilated_text_is_refused_or_read_right(tmp_path, edits):
    text = GOOD
    for at, cut, mark in edits:
        text = text[:at] + mark + text[at + cut :]
    path = write(tmp_path, text)
    try:
        frame = read_frame(path)
    except DataError as error:
        message = str(error)
    else:
        message = str(path)
        if not text.lstrip("\ufeff").startswith("#"):  # comments
            np.testing.assert_array_equal(frame.values, plainly(text, frame))
    assert str(path) in message


def plainly(text: str, frame: Frame) -> list[list[float]]:
    """The named columns by the standard library alone."""
    lines = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n").strip("\n").split("\n")
    delimiter = max(",;\t", key=lambda sign: re.sub('"[^"]*"', "", lines[0]).count(sign))
    header, *rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    while rows and not "".join(rows[-1]).strip():
        rows.pop()
    positions = [[name.strip() for name in header].index(name) for name in frame.names]
    assert all(len(row) == len(header) for row in rows)
    return [[float(row[position]) for position in positions] for row in rows]


@needs_data
def test_benchmark_files_as_they_are():
    root = Path(str(DATA_ROOT))
    hourly_file = read_frame(root / "ETT-small/ETTh1.csv")
    assert hourly_file.values.shape == (17420, 7)
    assert hourly_file.frequency == "h"
    assert hourly_file.values[0, 0] == 5.827000141143799
    for name in ("ETT-small/ETTm2.csv", "illness/national_illness.csv"):
        assert read_frame(root / name).n_channels == 7
    for name in ("electricity_subset/electricity_7ch.csv.gz", "traffic_subset/traffic_6ch.csv.gz"):
        assert read_frame(root / name, timestamps="as_is").n_channels in (6, 7)
    weather = root / "weather/weather.csv"
    message = refused(weather)
    assert "row 19045" in message
    assert "as_is" in message
    frame = read_frame(weather, timestamps="as_is")
    assert frame.values.shape == (52696, 21)
    assert frame.frequency == "10min"
    assert len(set(frame.names)) == 21


def test_a_column_of_points_that_mark_thousands_and_others_is_refused(tmp_path):
    path = write(tmp_path, "a;b\n1,5;1.000\n2,5;1.5\n")
    message = refused(path, decimal="1.234,5")
    assert "column `b`, row 1" in message
    assert "Write it without `.`, since others in the column mark no thousands" in message
    assert "Set `decimal: 1.234,5` if the point marks thousands" in refused(path, decimal="comma")


def test_counters_and_dates_with_missing_cells_are_no_series():
    table = pd.DataFrame({"a": np.sqrt(np.arange(12)), "Year": [2000.0, np.nan, *range(2002, 2012)]})
    assert "`Year`: 2000, nan, 2002, … is a part of a date" in refused(table, missing="linear")
    table = pd.DataFrame({"a": np.sqrt(np.arange(12)), "t": [np.nan, 5, 10, np.nan, *range(20, 60, 5)]})
    assert "is a counter" in refused(table, missing="linear")


@pytest.mark.parametrize("turned", [1, -1])
def test_the_last_rows_are_read_whatever_is_wrong_with_earlier_ones(turned):
    days = pd.date_range("2024-01-01", periods=60).delete(20)
    table = pd.DataFrame({"date": days, "a": np.sqrt(np.arange(59))})
    frame = read_frame(table.iloc[::turned], last=20)
    np.testing.assert_array_equal(frame.timestamps, days[-20:].to_numpy())
    np.testing.assert_array_equal(frame.values[:, 0], table["a"].to_numpy()[-20:])


def test_dates_in_another_column_than_the_first_are_the_time(tmp_path):
    path = tmp_path / "sales.csv"
    path.write_text("sales,day,visits\n1,2024-01-01,5\n2,2024-01-02,7\n4,2024-01-03,6\n")
    frame = read_frame(path)
    assert frame.names == ("sales", "visits")
    assert frame.timestamps is not None
    assert str(frame.timestamps[-1])[:10] == "2024-01-03"
    path.write_text("sales,begin,end\n1,2024-01-01,2024-01-02\n2,2024-01-02,2024-01-03\n")
    with pytest.raises(DataError, match="2 columns could be the timestamps: `begin`, `end`"):
        read_frame(path)
    assert read_frame(path, exclude=["begin"]).names == ("sales",)
