"""The archive readers: right on complete files, an error with its place on any other."""

from __future__ import annotations

import gzip
import io
import itertools
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.data import archives
from ofa_jax.data.archives import (
    SeriesCollection,
    read_m4,
    read_m4_info,
    read_m4_part,
    read_stream,
    read_ts,
    read_tsf,
    write_stream,
)
from ofa_jax.errors import DataError, OfaError

TSF = """# a comment
@relation toy
@attribute series_name string
@attribute start_timestamp date
@attribute city string
@frequency monthly
@horizon 2
@missing true
@equallength false
@data
T1:1979-01-01 00-00-00:Graz:1,2.5,-3e2
T 2:1980-06-01 12-30-15:Linz:7,8,9,10,11.25
Ç3:1981-01-01 00-00-00::0.5,0.25
"""
TS = """#a comment
@problemName Toy
@timeStamps false
@missing false
@univariate false
@dimensions 2
@equalLength false
@classLabel true up down 1.0
@data
1,2,3:4,5,6:up
7,8:9,10:down
1.5,2.5,3.5,4.5:0,0,0,-1e-3:up
"""
TS_EQUAL = """@problemName Toy
@univariate true
@equalLength true
@seriesLength 3
@classLabel true 1 2
@data
1,2,3:1
4,5,6:2
"""
M4_TRAIN = '"V1","V2","V3","V4","V5"\n"Y1","1.5","2","3","4"\n"Y2","5","6",,\n"Y3","7","NA","NA","NA"\n'
M4_TEST = "V1,V2,V3\nY1,10,11\nY3,12,13\nY2,14,15\n"
M4_INFO = (
    "M4id,category,Frequency,Horizon,SP,StartingDate\n"
    "Y1,Macro,1,2,Yearly,01-01-79 12:00\nY2,Micro,1,2,Yearly,01-01-79 12:00\n"
    "Y3,Other,1,2,Yearly,01-01-79 12:00\n"
    "Q1,Micro,4,8,Quarterly,-\n"
)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def stream_arrays() -> dict[str, np.ndarray]:
    random_numbers = np.random.default_rng(0)
    return {
        "train": random_numbers.normal(size=(6, 2)),
        "test": random_numbers.normal(size=(5, 2)).astype(np.float32),
        "test_label": np.array([0, 1, 1, 0, 0], np.int8),
        "channels": np.array(["A-1", "B-2"]),
        "train_len": np.array([4, 2]),
        "test_len": np.array([0, 5]),
    }


def npz(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def without(arrays: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if name not in names}


@pytest.mark.parametrize(
    ("frequency", "start", "expected"),
    [
        ("monthly", "2023-12-31 00-00-00", ["2023-12-31", "2024-01-31", "2024-02-29", "2024-03-31"]),
        ("quarterly", "2023-11-30 00-00-00", ["2023-11-30", "2024-02-29", "2024-05-30", "2024-08-30"]),
        ("Yearly", "2023-02-01 12-00-00", [f"{year}-02-01T12" for year in range(2023, 2027)]),
        ("weekly", "2023-12-24 00-00-00", ["2023-12-24", "2023-12-31", "2024-01-07", "2024-01-14"]),
        ("half_hourly", "2023-12-31 23-00-00", [f"2023-12-31T23:{m}" for m in ("00", "30")]),
        ("4_seconds", "2023-12-31 23-59-56", ["2023-12-31T23:59:56", "2024-01-01T00:00:00"]),
    ],
)
def test_times_of_a_series_from_its_start(tmp_path, frequency, start, expected):
    text = TSF.replace("monthly", frequency).replace("1979-01-01 00-00-00", start)
    times = read_tsf(write(tmp_path, "toy.tsf", text)).times
    assert times is not None
    assert (times(0, len(expected)) == np.array(expected, "M8[s]")).all()
    assert len(times(0, 0)) == 0


def test_times_of_a_series_that_begins_with_missing_values(tmp_path):
    text = TSF.replace(":1,2.5,-3e2", ":?,?,1,2.5")
    times = read_tsf(write(tmp_path, "toy.tsf", text)).times
    assert times is not None
    assert times(0, 2).astype("M8[D]").astype(str).tolist() == ["1979-03-01", "1979-04-01"]
    assert times(1, 1)[0] == np.datetime64("1980-06-01T12:30:15"), "others begin where the file says"


@pytest.mark.parametrize(
    "change", [("@frequency monthly\n", ""), ("@attribute start_timestamp date", "@attribute begin date")]
)
def test_no_times_without_a_frequency_or_starts(tmp_path, change):
    assert read_tsf(write(tmp_path, "toy.tsf", TSF.replace(*change))).times is None


def test_tsf(tmp_path):
    found = read_tsf(write(tmp_path, "toy.tsf", TSF))
    assert found.names == ("T1", "T 2", "Ç3")
    assert [series.tolist() for series in found.values] == [[1, 2.5, -300], [7, 8, 9, 10, 11.25], [0.5, 0.25]]
    assert all(series.dtype == np.float64 for series in found.values)
    assert (found.frequency, found.horizon, found.n_series, found.lengths.tolist()) == (
        "monthly",
        2,
        3,
        [3, 5, 2],
    )
    assert found.observed is None


def test_text_archives_are_read_through_gzip_and_in_latin_1(tmp_path):
    packed = read_tsf(write(tmp_path, "toy.tsf.gz", gzip.compress(TSF.encode("latin-1"))))
    assert packed.names[2] == "Ç3"
    assert read_ts(write(tmp_path, "toy.ts.gz", gzip.compress(TS.encode()))).n_cases == 3
    assert (
        read_m4_part(
            write(tmp_path, "toy.csv.gz", gzip.compress(M4_TRAIN.replace("\n", "\r\n").encode()))
        ).n_series
        == 3
    )


def test_ts(tmp_path):
    found = read_ts(write(tmp_path, "toy.ts", TS))
    assert (found.n_cases, found.n_channels, found.lengths.tolist()) == (3, 2, [3, 2, 4])
    assert found.cases[1].tolist() == [[7, 9], [8, 10]]
    assert found.labels == ("up", "down", "up")
    assert found.classes == ("up", "down", "1.0")
    assert found.observed is None
    assert read_ts(write(tmp_path, "equal.ts", TS_EQUAL)).cases[0].tolist() == [[1], [2], [3]]


def test_m4(tmp_path):
    train, test, info = (
        write(tmp_path, name, text)
        for name, text in (("train.csv", M4_TRAIN), ("test.csv", M4_TEST), ("info.csv", M4_INFO))
    )
    assert [series.tolist() for series in read_m4_part(train).values] == [[1.5, 2, 3, 4], [5, 6], [7]]
    found = read_m4(train, test, info)
    assert found.names == ("Y1", "Y2", "Y3")
    assert [series.tolist() for series in found.values] == [
        [1.5, 2, 3, 4, 10, 11],
        [5, 6, 14, 15],
        [7, 12, 13],
    ]
    assert (found.horizon, found.frequency) == (2, "Yearly")
    assert read_m4(train, test).frequency is None
    yearly = (2, "Yearly")
    assert read_m4_info(info) == {"Y1": yearly, "Y2": yearly, "Y3": yearly, "Q1": (8, "Quarterly")}


def test_stream(tmp_path):
    arrays = stream_arrays()
    found = read_stream(write(tmp_path, "toy.npz", npz(**arrays)))
    np.testing.assert_array_equal(found.train, arrays["train"])
    np.testing.assert_array_equal(found.test, arrays["test"].astype(np.float64))
    assert found.test.dtype == np.float64
    assert found.test_label.tolist() == [False, True, True, False, False]
    assert (found.segments, found.train_borders.tolist(), found.test_borders.tolist()) == (
        ("A-1", "B-2"),
        [0, 4, 6],
        [0, 0, 5],
    )
    assert (found.n_channels, found.anomaly_ratio) == (2, 0.4)
    one = read_stream(
        write(tmp_path, "machine-1-1.npz", npz(**without(arrays, "channels", "train_len", "test_len")))
    )
    assert (one.segments, one.train_borders.tolist(), one.test_borders.tolist()) == (
        ("machine-1-1",),
        [0, 6],
        [0, 5],
    )
    write_stream(tmp_path / "again.npz", found)
    again = read_stream(tmp_path / "again.npz")
    np.testing.assert_array_equal(again.test, found.test)
    assert (again.segments, again.train_borders.tolist()) == (found.segments, found.train_borders.tolist())
    np.testing.assert_array_equal(again.test_label, found.test_label)


TSF_GAPS = TSF.replace("7,8,9,10,11.25", "7,?,9,NaN,NaN")
TS_GAPS = (
    TS.replace("@missing false", "@missing true")
    .replace("4,5,6:up", "?,5,NaN:up")
    .replace("1,2,3:", "1,?,3:")
)


def test_missing_values_are_errors_unless_asked(tmp_path):
    path = write(tmp_path, "toy.tsf", TSF_GAPS)
    with pytest.raises(DataError, match=r"toy\.tsf, line 12, value 2: 3 value\(s\) are missing"):
        read_tsf(path)
    found = read_tsf(path, missing="ffill")
    assert found.values[1].tolist() == [7, 7, 9, 9, 9]
    assert found.observed is not None
    assert [mask.tolist() for mask in found.observed] == [
        [True] * 3,
        [True, False, True, False, False],
        [True] * 2,
    ]
    with pytest.raises(
        DataError,
        match=r"line 12, value 4: the last value is missing or infinite and `missing: linear` has nothing",
    ):
        read_tsf(path, missing="linear")
    found = read_tsf(write(tmp_path, "b.tsf", TSF_GAPS.replace("9,NaN,NaN", "9,NaN,13")), missing="linear")
    assert found.values[1].tolist() == [7, 8, 9, 11, 13]


def test_missing_values_of_cases(tmp_path):
    with pytest.raises(DataError, match=r"line 10, channel 1, value 2: 1 value\(s\) are missing"):
        read_ts(write(tmp_path, "toy.ts", TS_GAPS))
    with pytest.raises(
        DataError,
        match="line 10, channel 2, value 1: the first value is missing or infinite and `missing: ffill`",
    ):
        read_ts(write(tmp_path, "toy.ts", TS_GAPS), missing="ffill")
    found = read_ts(write(tmp_path, "toy.ts", TS_GAPS.replace("?,5,NaN", "4,5,NaN")), missing="ffill")
    assert found.cases[0].tolist() == [[1, 4], [1, 5], [3, 5]]
    assert found.observed is not None
    assert found.observed[0].tolist() == [[True, True], [False, True], [True, False]]


@pytest.mark.parametrize("how", ["error", "linear", "ffill"])
def test_a_missing_value_that_the_header_denies_is_always_an_error(tmp_path, how):
    denied = TSF_GAPS.replace("@missing true", "@missing false")
    with pytest.raises(
        DataError, match=r"line 12, value 2: a value is missing although the header says `@missing false`"
    ):
        read_tsf(write(tmp_path, "toy.tsf", denied), missing=how)
    with pytest.raises(
        DataError, match=r"line 10, channel 1, value 2: a value is missing although the header says"
    ):
        read_ts(write(tmp_path, "toy.ts", TS_GAPS.replace("@missing true", "@missing false")), missing=how)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("@horizon 2", "@horizon two", r"line 7: `@horizon` is 'two'"),
        ("@horizon 2", "@horizon 0", r"line 7: `@horizon` is '0'"),
        ("@horizon 2", "@horizon", r"line 7: `@horizon` is ''"),
        ("@horizon 2", "@horizon 2\n@horizon 3", r"line 8: `@horizon` is repeated"),
        ("@horizon 2", "@season 2", r"line 7: the header tag 'season' is not known"),
        ("@missing true", "@missing perhaps", r"line 8: `@missing` is 'perhaps'"),
        ("@attribute city string", "@attribute city text", r"line 5: `@attribute` says 'city text'"),
        (
            "@attribute city string",
            "@attribute city numeric",
            r"line 11: the attribute `city` is 'Graz', not a number",
        ),
        (
            "@attribute city string",
            "@attribute series_name string",
            r"line 5: the attribute 'series_name' is repeated",
        ),
        ("series_name string", "name string", r"no `@attribute series_name string`"),
        (
            "start_timestamp date",
            "start_timestamp string",
            r"line 4: the attribute `start_timestamp` cannot be of type string",
        ),
        ("@attribute city string\n", "", r"line 10: has 4 part\(s\) separated by `:` where .* makes 3"),
        (
            "1980-06-01 12-30-15",
            "1980-13-01 00-00-00",
            r"line 12: the attribute `start_timestamp` is '1980-13-01 00-00-00', not a date",
        ),
        ("1980-06-01 12-30-15", "1980-06-01", r"line 12: .* not a date"),
        (
            "@equallength false",
            "@equallength true",
            r"line 12: has 5 steps where the header says that all have 3",
        ),
        ("T 2:", "T1:", r"line 12: the series 'T1' is repeated, first in line 11"),
        ("T 2:", ":", r"line 12: the series has no name"),
        ("9,10", "9,ten", r"line 12, value 4: 'ten' is not a finite number"),
        ("9,10", "9,inf", r"line 12, value 4: 'inf' is not"),
        ("9,10", "9,1e999", r"line 12, value 4: '1e999' is not"),
        ("9,10", "9,1_0", r"line 12, value 4: '1_0' is not"),
        ("9,10", "9,", r"line 12, value 4: there is nothing between"),
        ("9,10", "9;10", r"line 12, value 3: '9;10' is not"),
        ("::0.5,0.25", "::", r"line 13, value 1: there is nothing"),
        ("@data\n", "", r"line 10: the header contains 'T1:1979"),
        ("T 2", "\0", r"line 12: the file contains binary data"),
        (TSF[TSF.index("T1:") :], "", r"no series below `@data`"),
        (TSF[TSF.index("@data") :], "", r"line 9: there is no line `@data`"),
        (TSF, "", r"the file is empty"),
    ],
)
def test_tsf_mistakes(tmp_path, old, new, match):
    assert old in TSF
    with pytest.raises(DataError, match=match):
        read_tsf(write(tmp_path, "toy.tsf", TSF.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (
            "@dimensions 2",
            "@dimensions 3",
            r"line 10: has 2 channel\(s\) and a label, separated by `:`, where 3 are expected",
        ),
        ("@dimensions 2", "@dimensions 1", r"line 10: has 2 channel\(s\).* where 1 are expected"),
        ("@dimensions 2\n", "", None),
        (
            "@univariate false",
            "@univariate true",
            r"line 6: `@dimensions` is 2 although the header says `@univariate true`",
        ),
        (
            "@equalLength false",
            "@equalLength true",
            r"line 11: has 2 steps where the header says that all have 3",
        ),
        ("@equalLength false", "@equalLength true\n@seriesLength 2", r"line 11: has 3 steps .* all have 2"),
        ("@equalLength false", "@seriesLength 4", r"line 10: has 3 steps"),
        (
            "true up down 1.0",
            "true up 1.0",
            r"line 11: the label 'down' is none of the header's classes \('up 1\.0'\)",
        ),
        ("true up down 1.0", "true up down up", r"line 8: `@classLabel` names 'up' twice"),
        ("true up down 1.0", "true", r"line 8: `@classLabel` names no class"),
        ("true up down 1.0", "false", r"line 8: there are no class labels"),
        ("@classLabel true up down 1.0\n", "", r"toy\.ts: there are no class labels"),
        ("@classLabel", "@targetLabel true\n@classLabel", r"line 8: the cases carry numbers to predict"),
        (
            "@timeStamps false",
            "@timeStamps true",
            r"line 10: .* `@timestamps true`, but the line is not like",
        ),
        ("7,8:9,10", "7,8:9", r"line 11: channel 2 has 1 values, channel 1 has 2"),
        ("7,8:9,10", "7,8:9,x", r"line 11, channel 2, value 2: 'x' is not a finite number"),
        ("7,8:9,10:down", "7,8:9,10:", r"line 11: the label '' is none"),
        ("7,8:9,10:down", "down", r"line 11: has 0 channel\(s\)"),
        ("7,8:9,10:down", "@data", r"line 11: has 0 channel\(s\)"),
        (TS[TS.index("1,2,3") :], "", r"no cases below `@data`"),
    ],
)
def test_ts_mistakes(tmp_path, old, new, match):
    assert old in TS
    path = write(tmp_path, "toy.ts", TS.replace(old, new))
    if match is None:
        assert read_ts(path).n_channels == 2
        return
    with pytest.raises(DataError, match=match):
        read_ts(path)


@pytest.mark.parametrize(("reader", "content"), [(read_tsf, TSF), (read_ts, TS)], ids=["tsf", "ts"])
def test_a_last_line_without_end_is_read_and_said(tmp_path, reader, content):
    whole = reader(write(tmp_path, "toy", content))
    cut = reader(write(tmp_path, "toy", content.rstrip("\n")))
    values = "cases" if reader is read_ts else "values"
    for one, other in zip(getattr(whole, values), getattr(cut, values), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (whole.notices, len(cut.notices)) == ((), 1)
    assert "the last line has no line end, so the file may be cut short" in cut.notices[0]


@pytest.mark.parametrize("missing", ["error", "linear"])
def test_missing_values_before_a_series_begins_are_left_out_and_said(tmp_path, missing):
    collection = read_tsf(write(tmp_path, "toy.tsf", TSF.replace("7,8,9", "?,NaN,9")), missing=missing)
    np.testing.assert_array_equal(collection.values[1], [9, 10, 11.25])
    assert collection.observed is None
    what = "1 series begin with missing values, 2 in all, which are left out"
    assert collection.notices == (f"toy.tsf: {what}",)
    with pytest.raises(DataError, match="1 value"):
        read_tsf(write(tmp_path, "toy.tsf", TSF.replace("7,8,9", "?,8,?")))


@pytest.mark.parametrize("form", ["({},{})", "(2024-01-0{} 00:00:00,{})"])
def test_values_with_timestamps_are_read_in_their_order(tmp_path, form):
    head, _, lines = TS.partition("@data\n")
    stamped = []
    for line in lines.splitlines():
        *channels, label = line.split(":")
        pairs = [[form.format(i, v) for i, v in enumerate(part.split(","), 1)] for part in channels]
        stamped.append(":".join([*map(",".join, pairs), label]))
    text = head.replace("@timeStamps false", "@timeStamps true") + "@data\n" + "\n".join(stamped) + "\n"
    plain, found = read_ts(write(tmp_path, "a.ts", TS)), read_ts(write(tmp_path, "b.ts", text))
    assert found.labels == plain.labels
    for one, other in zip(plain.cases, found.cases, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found.notices == ("b.ts: the timestamps of the values are not used, only their order",)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"Y2"', '"Y1"', r"line 3: the id 'Y1' is repeated, first in line 2"),
        ('"Y2"', '""', r"line 3: the series has no id"),
        (',"6",,', ',"6",', r"line 3: has 4 field\(s\) where the header has 5"),
        ('"5","6",,', '"5",,"6",', r"line 3, value 2: there is nothing between two separators"),
        ('"5","6",,', '"5","NA","6",', r"line 3, value 2: a value is missing although others follow it"),
        ('"5","6",,', '"NA","NA",,', r"line 3: the series 'Y2' has no values"),
        ('"6"', '6"', r"line 3: a quote is unbalanced"),
        ('"5","6",,', '"5,6",,', r"line 3: a quote is unbalanced or encloses several cells"),
        ('"6"', '"six"', r"line 3, value 2: 'six' is not a finite number"),
        (M4_TRAIN[: M4_TRAIN.index("\n") + 1], "", r"line 1: the first line is .* not a header"),
        (M4_TRAIN[M4_TRAIN.index("\n") + 1 :], "", r"no series below the header"),
        ('"NA"\n', '"NA"', r"line 4: the last line has no line end"),
    ],
)
def test_m4_mistakes(tmp_path, old, new, match):
    assert old in M4_TRAIN
    with pytest.raises(DataError, match=match):
        read_m4_part(write(tmp_path, "toy.csv", M4_TRAIN.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("test", "info", "match"),
    [
        (
            M4_TEST.replace("Y2,14,15\n", ""),
            M4_INFO,
            r"test\.csv: the series 'Y2' of .*train\.csv is not there \(3 and 2 series\)",
        ),
        (M4_TEST + "Y4,1,2\n", M4_INFO, r"train\.csv: the series 'Y4' of .*test\.csv is not there"),
        (
            M4_TEST.replace("12,13", "12,"),
            M4_INFO,
            r"test\.csv: the series 'Y3' has 1 test values where others have 2",
        ),
        (
            M4_TEST,
            M4_INFO.replace("Y2,Micro,1,2", "Y2,Micro,1,6"),
            r"info\.csv: the horizon of 'Y2' is 6, the test part has 2 steps",
        ),
        (M4_TEST, M4_INFO.replace("Y2,", "Y9,"), r"info\.csv: the series 'Y2' of .*train\.csv is not there"),
        (
            M4_TEST,
            M4_INFO.replace("Y2,", "Y1,"),
            r"info\.csv, line 3: the id 'Y1' is repeated, first in line 2",
        ),
        (
            M4_TEST,
            M4_INFO.replace("1,2,Yearly", "1,2,Weekly", 1),
            r"train\.csv: the series are of several frequencies: Weekly, Yearly",
        ),
        (M4_TEST, M4_INFO.replace("Macro,1,", "Macro,one,"), r"info\.csv, line 2: `Frequency` is 'one'"),
        (
            M4_TEST,
            M4_INFO.replace("Quarterly,-", "Quarterly"),
            r"info\.csv, line 5: has 5 field\(s\) where the header has 6",
        ),
        (M4_TEST, M4_INFO.replace("category", "kind"), r"info\.csv, line 1: the columns are M4id, kind"),
        (M4_TEST, M4_INFO[: M4_INFO.index("Y1")], r"info\.csv: there are no series"),
    ],
)
def test_m4_parts_that_do_not_fit(tmp_path, test, info, match):
    paths = [
        write(tmp_path, name, text)
        for name, text in (("train.csv", M4_TRAIN), ("test.csv", test), ("info.csv", info))
    ]
    with pytest.raises(DataError, match=match):
        read_m4(*paths)


def pickled() -> np.ndarray:
    return np.array([{"a": 1}], dtype=object)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda a: without(a, "train"), r"has the arrays channels, test"),
        (lambda a: {**a, "other": a["train"]}, r"the array 'other' is unknown or duplicate"),
        (lambda a: without(a, "train_len"), r"has the arrays channels, test, test_label, test_len, train"),
        (lambda a: {**a, "train": pickled()}, r"Object arrays cannot be loaded when allow_pickle=False"),
        (lambda a: {**a, "train": a["train"][:, 0]}, r"array `train`: is float64 \(6,\)"),
        (lambda a: {**a, "train": a["train"][:0]}, r"array `train`: is float64 \(0, 2\)"),
        (lambda a: {**a, "train": a["train"].astype(str)}, r"array `train`: is <U32 \(6, 2\)"),
        (lambda a: {**a, "train": a["train"][:, :1]}, r"train has 1 channels, test 2"),
        (
            lambda a: {**a, "test": np.where(np.arange(10).reshape(5, 2) == 5, np.nan, 0.0)},
            r"array `test`, row 3, channel 2: 1 value",
        ),
        (
            lambda a: {**a, "test_label": a["test_label"][:4]},
            r"array `test_label`: is int8 \(4,\)\. Give one label for each of the 5 steps",
        ),
        (lambda a: {**a, "test_label": a["test_label"] * 2}, r"array `test_label`, row 2: the label is 2"),
        (
            lambda a: {**a, "channels": np.array(["A", "A"])},
            r"array `channels`: a segment's name is duplicate",
        ),
        (lambda a: {**a, "channels": np.array([1, 2])}, r"array `channels`: is int64 \(2,\)"),
        (
            lambda a: {**a, "train_len": np.array([4, 3])},
            r"array `train_len`: the segments' rows add up to 7 of 6",
        ),
        (lambda a: {**a, "train_len": np.array([7, -1])}, r"array `train_len`: is int64 \(2,\)"),
        (
            lambda a: {**a, "test_len": np.array([5])},
            r"array `test_len`: is int64 \(1,\).*each of the 2 segments",
        ),
    ],
)
def test_stream_mistakes(tmp_path, change, match):
    path = tmp_path / "toy.npz"
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=True, **change(stream_arrays()))
    path.write_bytes(content.getvalue())
    with pytest.raises(DataError, match=match):
        read_stream(path)


def test_an_entry_that_the_directory_of_the_npz_swallows(tmp_path):
    content = bytearray(npz(**stream_arrays()))
    start = (
        content.rindex(b"test_label.npy") - 46
    )  # its record in the directory; a comment of 256 bytes hides the three after it
    content[start + 33] = 1
    with pytest.raises(DataError, match="its directory is damaged"):
        read_stream(write(tmp_path, "toy.npz", bytes(content)))


def test_a_stream_header_that_claims_more_than_the_file_holds(tmp_path):
    path, claim = tmp_path / "toy.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(
        claim, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 2)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.npy", claim.getvalue() + b"\0" * 64)
    with pytest.raises(DataError, match=r"not readable as \.npz"):
        read_stream(path)


@pytest.mark.parametrize("read", [read_tsf, read_ts, read_m4_part, read_m4_info, read_stream])
def test_files_that_are_not_there_or_not_files(tmp_path, read):
    with pytest.raises(DataError, match="there is no such file"):
        read(tmp_path / "absent")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)


def test_an_entry_of_an_npz_that_is_no_array(tmp_path):
    path = write(tmp_path, "stream.npz", npz(**stream_arrays()))
    with zipfile.ZipFile(path) as archive:
        stored = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**stored, "test.npy": b"1,2,3"}.items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match="test is not an array"):
        read_stream(path)


def test_a_damaged_gzip(tmp_path):
    with pytest.raises(DataError, match="the file cannot be read"):
        read_tsf(write(tmp_path, "toy.tsf.gz", gzip.compress(TSF.encode())[:-20]))
    with pytest.raises(DataError, match="the file cannot be read"):
        read_tsf(write(tmp_path, "toy.tsf.gz", TSF))


def plain_lines(content: bytes) -> list[str]:
    def decode(line: bytes) -> str:
        for encoding in ("utf-8", "cp1252"):
            try:
                return line.decode(encoding)
            except UnicodeDecodeError:
                continue
        return line.decode("latin-1")

    return [decode(line).removeprefix("\ufeff").strip(" \t\r") for line in content.split(b"\n")]


def data_lines(content: bytes) -> list[str]:
    lines = plain_lines(content)
    start = next(
        index for index, line in enumerate(lines) if line.split()[:1] and line.split()[0].lower() == "@data"
    )
    return [line for line in lines[start + 1 :] if line]


def floats(text: str) -> list[float]:
    return [float("nan" if field.strip() == "?" else field) for field in text.split(",")]


def plain_tsf(content: bytes) -> Any:
    """A series begins with its first value."""
    parts = [line.split(":") for line in data_lines(content)]
    series = [(first.strip(), floats(last)) for first, *_, last in parts]
    return [(name, list(itertools.dropwhile(np.isnan, values))) for name, values in series]


def plain_ts(content: bytes) -> Any:
    return [
        (line.split(":")[-1].strip(), [floats(part) for part in line.split(":")[:-1]])
        for line in data_lines(content)
    ]


def plain_m4(content: bytes) -> Any:
    rows = [line.replace('"', "").split(",") for line in plain_lines(content)[1:-1]]
    return [
        (row[0].strip(), [float(field) for field in row[1:] if field.strip() not in ("", "NA")])
        for row in rows
    ]


def plain_info(content: bytes) -> Any:
    rows = [
        [cell.strip().strip('"').strip() for cell in line.split(",")] for line in plain_lines(content)[1:-1]
    ]
    return [(row[0], int(row[3]), row[4]) for row in rows]


def read_series(read: Callable[[Path], SeriesCollection]) -> Callable[[Path], Any]:
    def plain(path: Path) -> Any:
        found = read(path)
        return [(name, series.tolist()) for name, series in zip(found.names, found.values, strict=True)]

    return plain


def read_labelled(path: Path) -> Any:
    found = read_ts(path)
    return [(label, case.T.tolist()) for label, case in zip(found.labels, found.cases, strict=True)]


def read_table(path: Path) -> Any:
    return [(name, *row) for name, row in read_m4_info(path).items()]


TEXT_READERS: dict[str, tuple[str, Callable[[Path], Any], Callable[[bytes], Any]]] = {
    "toy.tsf": (TSF, read_series(read_tsf), plain_tsf),
    "toy.ts": (TS, read_labelled, plain_ts),
    "equal.ts": (TS_EQUAL, read_labelled, plain_ts),
    "toy.csv": (M4_TRAIN, read_series(read_m4_part), plain_m4),
    "info.csv": (M4_INFO, read_table, plain_info),
}


def refusal(read: Callable[[Path], Any], path: Path) -> tuple[Any, str | None]:
    """What a reader finds, or its error; any error outside the family goes through."""
    try:
        return read(path), None
    except OfaError as error:
        return None, str(error)


@st.composite
def mutilated(draw: st.DrawFn, content: bytes) -> bytes:
    """The content truncated, with lines shuffled, repeated or lost, wrong numbers, or noise."""
    kind = draw(
        st.sampled_from(
            ["truncated", "shuffled", "repeated", "lost", "numbers", "noise", "all noise", "words"]
        )
    )
    lines = content.splitlines(keepends=True)
    if kind == "truncated":
        return content[: draw(st.integers(0, len(content) - 1))]
    if kind == "shuffled":
        random.Random(draw(st.integers(0, 10**6))).shuffle(lines)
        return b"".join(lines)
    if kind in ("repeated", "lost"):
        chosen = draw(st.integers(0, len(lines) - 1))
        lines[chosen : chosen + 1] = [lines[chosen]] * 2 if kind == "repeated" else []
        return b"".join(lines)
    if kind == "numbers":
        places = [index for index, byte in enumerate(content) if chr(byte).isdigit()]
        place = draw(st.sampled_from(places))
        return (
            content[:place]
            + draw(st.sampled_from([b"", b"0", b"99", b"-1", b"1.5", b"1e400", b"nan", b"?"]))
            + content[place + 1 :]
        )
    if kind == "all noise":
        return draw(st.binary(max_size=200))
    noise = (
        draw(st.sampled_from([b",", b":", b"@", b"\n", b"true", b"@data\n", b"#", b" ", b'"']))
        if kind == "words"
        else None
    )
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(changed)))
        changed[place : place + draw(st.integers(0, 2))] = (
            draw(st.binary(max_size=3)) if noise is None else noise
        )
    return bytes(changed)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    if draw(st.booleans()):
        return whole[: draw(st.integers(0, len(whole) - 1))]
    changed = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        changed[draw(st.integers(0, len(whole) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutilated")


@pytest.mark.parametrize("name", TEXT_READERS)
def test_mutilated_text_archives(folder, name):
    text, read, plain = TEXT_READERS[name]
    assert read(write(folder, name, text)) == plain(text.encode())

    @settings(max_examples=300, deadline=None)
    @given(mutilated(text.encode()))
    def check(content: bytes) -> None:
        found, error = refusal(read, write(folder, name, content))
        if error is None:
            assert found
            assert found == plain(content)
        else:
            assert name in error

    check()


@pytest.mark.parametrize("name", TEXT_READERS)
def test_every_truncation_of_a_text_archive(folder, name):
    text, read, _ = TEXT_READERS[name]
    content, whole = text.encode(), read(write(folder, name, text))
    for length in range(len(content)):
        found, error = refusal(read, write(folder, name, content[:length]))
        if error is None:
            if not content[:length].endswith(b"\n"):
                reader = {"tsf": read_tsf, "ts": read_ts}[name.rpartition(".")[2]]
                assert "cut short" in reader(folder / name).notices[0]
                found = found[:-1]
            assert found == whole[: len(found)]


@pytest.mark.parametrize("name", ["toy.tsf.gz", "toy.npz"])
def test_mutilated_packed_archives(folder, name):
    read: Callable[[Path], Any] = read_tsf if name.endswith("gz") else read_stream
    whole = gzip.compress(TSF.encode(), mtime=0) if name.endswith("gz") else npz(**stream_arrays())

    def fields(found: Any) -> dict[str, Any]:
        read = dict(vars(found))
        if times := read.pop("times", None):
            read["times"] = tuple(times(series, 2) for series in range(found.n_series))
        return read

    expected = fields(read(write(folder, name, whole)))

    def same(found: Any) -> bool:
        pairs = [(expected[key], value) for key, value in fields(found).items()]
        return all(
            all(map(np.array_equal, one, other)) if isinstance(one, tuple) else np.array_equal(one, other)
            for one, other in pairs
        )

    @settings(max_examples=300, deadline=None)
    @given(damaged(whole))
    def check(content: bytes) -> None:
        found, error = refusal(read, write(folder, name, content))
        assert same(found) if error is None else name in error

    check()


@pytest.mark.parametrize(
    ("part", "series", "horizon", "first", "shortest"),
    [
        ("yearly", 645, 6, 940.66, 20),
        ("quarterly", 756, 8, 3142.63, 24),
        ("monthly", 1428, 18, 2640, 66),
        ("other", 174, 8, 3060.42, 71),
    ],
)
def test_m3(data_root, part, series, horizon, first, shortest):
    found = read_tsf(data_root / "m3" / f"m3_{part}_dataset.tsf")
    assert (found.n_series, found.horizon, found.values[0][0], found.lengths.min()) == (
        series,
        horizon,
        first,
        shortest,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "series", "horizon", "smape"), [("Weekly", 359, 13, 9.161), ("Yearly", 23000, 6, 16.342)]
)
def test_m4_with_the_competitions_own_naive2(data_root, part, series, horizon, smape):
    folder = data_root / "m4"
    found = read_m4(
        folder / f"{part}-train.csv.gz", folder / f"{part}-test.csv.gz", folder / "M4-info.csv.gz"
    )
    assert (found.n_series, found.horizon, found.frequency) == (series, horizon, part)
    naive2 = read_m4_part(folder / "submission-Naive2.csv.gz")
    assert naive2.n_series == 100_000
    forecasts = dict(zip(naive2.names, naive2.values, strict=True))
    forecast = np.stack([forecasts[name] for name in found.names])
    actual = np.stack([series[-horizon:] for series in found.values])
    assert np.mean(200 * np.abs(forecast - actual) / (np.abs(forecast) + np.abs(actual))) == pytest.approx(
        smape, abs=5e-4
    )


@pytest.mark.parametrize(
    ("problem", "cases", "channels", "lengths", "classes"),
    [
        ("BasicMotions", (40, 40), 6, (100, 100), 4),
        ("Handwriting", (150, 850), 3, (152, 152), 26),
        ("JapaneseVowels", (270, 370), 12, (7, 29), 9),
        ("SelfRegulationSCP1", (268, 293), 6, (896, 896), 2),
    ],
)
def test_uea(data_root, problem, cases, channels, lengths, classes):
    suffix = ".ts.gz" if problem == "SelfRegulationSCP1" else ".ts"
    parts = [read_ts(data_root / "UEA" / problem / f"{problem}_{part}{suffix}") for part in ("TRAIN", "TEST")]
    assert tuple(part.n_cases for part in parts) == cases
    assert {part.n_channels for part in parts} == {channels}
    assert (min(part.lengths.min() for part in parts), max(part.lengths.max() for part in parts)) == lengths
    assert all(len(part.classes) == classes == len(set(part.labels)) for part in parts)


def test_anomaly_streams(data_root):
    smap = read_stream(data_root / "SMAP" / "SMAP.npz")
    assert (smap.train.shape, smap.test.shape, len(smap.segments)) == ((135183, 25), (427617, 25), 53)
    assert smap.anomaly_ratio == pytest.approx(0.1279, abs=5e-5)
    machine = read_stream(data_root / "SMD" / "machine-1-2.npz")
    assert (machine.train.shape, machine.test.shape, machine.segments) == (
        (23694, 38),
        (23694, 38),
        ("machine-1-2",),
    )
    with pytest.raises(DataError, match="has the arrays test_label"):
        read_stream(data_root / "SMD" / "machine-1-1.labels_only.npz")


def test_the_front_room_names_every_reader():
    assert {name for name in archives.__all__ if name.startswith("read_")} == {
        "read_m4",
        "read_m4_info",
        "read_m4_part",
        "read_stream",
        "read_ts",
        "read_tsf",
    }
