"""The catalog: consistent entries that agree with the real files; absent and foreign files are refused."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import re
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import pytest

from ofa_jax.data.archives import read_stream, write_stream
from ofa_jax.data.catalog.check import check_file
from ofa_jax.data.catalog.entries import DataFile, DatasetEntry
from ofa_jax.data.catalog.load import (
    CATALOG,
    data_root,
    find,
    list_entries,
    load,
    load_cases,
    load_collection,
    load_streams,
    locate,
    verify,
)
from ofa_jax.data.splits import borders
from ofa_jax.errors import DataError
from ofa_jax.files import sha256_file

DATA_ROOT = os.environ.get("OFA_JAX_DATA")
needs_data = pytest.mark.skipif(not DATA_ROOT, reason="OFA_JAX_DATA is not set")

FRAMES = ("etth1", "etth2", "ettm1", "ettm2", "weather", "illness", "electricity", "traffic")
COLLECTIONS = (
    "m3_yearly",
    "m3_quarterly",
    "m3_monthly",
    "m3_other",
    "m4_yearly",
    "m4_quarterly",
    "m4_monthly",
    "m4_weekly",
    "m4_daily",
    "m4_hourly",
)
STREAMS = ("smd", "msl", "smap", "swat", "psm")
CASES = (
    "ethanolconcentration",
    "facedetection",
    "handwriting",
    "heartbeat",
    "japanesevowels",
    "pems_sf",
    "selfregulationscp1",
    "selfregulationscp2",
    "spokenarabicdigits",
    "uwavegesturelibrary",
    "basicmotions",
)


def present(name: str) -> bool:
    """Whether the data root at hand holds all that a data set needs."""
    return DATA_ROOT is not None and all(
        find(file, Path(DATA_ROOT)) for file in CATALOG[name].files if file.needed
    )


def replace_sum(name: str, path: Path) -> DatasetEntry:
    """A one-file entry that takes another file for the published one."""
    entry = CATALOG[name]
    return dataclasses.replace(entry, files=(dataclasses.replace(entry.files[0], sha256=sha256_file(path)),))


def test_every_set_of_the_paper_and_of_gpt4ts_is_known():
    assert {name for name, entry in CATALOG.items() if entry.kind == "frame"} == set(FRAMES)
    assert {name for name, entry in CATALOG.items() if entry.kind == "collection"} == set(COLLECTIONS)
    assert {name for name, entry in CATALOG.items() if entry.kind == "stream"} == set(STREAMS)
    assert {name for name, entry in CATALOG.items() if entry.kind == "cases"} == set(CASES)


@pytest.mark.parametrize("name", CATALOG)
def test_entries_are_consistent(name):
    entry = CATALOG[name]
    assert entry.name == name
    assert (
        len({file.path for file in entry.files})
        == len({file.role for file in entry.files})
        == len(entry.files)
        > 0
    )
    assert any(file.needed for file in entry.files)
    for file in entry.files:
        assert not PurePosixPath(file.path).is_absolute()
        assert ".." not in PurePosixPath(file.path).parts
        assert all(
            re.fullmatch("[0-9a-f]{64}", known)
            for known in (file.sha256, file.copy_sha256)
            if known is not None
        )
        assert file.sha256 is None or file.copy_sha256 is None
        assert file.url is None or file.url.startswith("https://")
        assert (file.member is not None) == (file.url is not None and file.url.endswith(".zip"))
    assert all(page.startswith("https://") for page in entry.pages)
    assert entry.pages
    assert entry.licence
    assert re.search(r"(19|20)\d\d", entry.citation)
    sizes = {
        "frame": (entry.n_rows, entry.n_channels, entry.frequency),
        "collection": (entry.n_series, *entry.horizons),
        "stream": (entry.n_train, entry.n_test, entry.n_channels),
        "cases": (entry.n_train, entry.n_test, entry.n_channels, entry.length, entry.n_classes),
    }
    assert all(sizes[entry.kind])


def test_no_two_published_files_are_the_same():
    files = {file.path: file for entry in CATALOG.values() for file in entry.files}
    known = [file.sha256 or file.copy_sha256 for file in files.values() if file.sha256 or file.copy_sha256]
    assert len(set(known)) == len(known)


@pytest.mark.parametrize("name", FRAMES)
def test_frames_can_be_split_and_have_the_season_of_their_frequency(name):
    entry = CATALOG[name]
    borders(
        entry.n_rows, entry.split, input_length=104 if name == "illness" else 512, horizon=max(entry.horizons)
    )
    if name == "illness":
        assert (entry.season, entry.frequency) == (52, "W-TUE")
    else:
        step = pd.Timedelta(pd.tseries.frequencies.to_offset(entry.frequency)).to_timedelta64()
        assert entry.season == np.timedelta64(1, "D") // step


def test_the_seasons_and_horizons_of_the_competitions():
    found = {name: (CATALOG[name].horizons, CATALOG[name].season) for name in COLLECTIONS}
    assert found == {
        "m3_yearly": ((6,), 1),
        "m3_quarterly": ((8,), 4),
        "m3_monthly": ((18,), 12),
        "m3_other": ((8,), 1),
        "m4_yearly": ((6,), 1),
        "m4_quarterly": ((8,), 4),
        "m4_monthly": ((18,), 12),
        "m4_weekly": ((13,), 1),
        "m4_daily": ((14,), 1),
        "m4_hourly": ((48,), 24),
    }
    assert sum(CATALOG[name].n_series for name in COLLECTIONS if name.startswith("m3")) == 3003
    assert sum(CATALOG[name].n_series for name in COLLECTIONS if name.startswith("m4")) == 100_000


def test_ett_entries_are_four_files_with_their_own_sums():
    files = [CATALOG[name].file() for name in ("etth1", "etth2", "ettm1", "ettm2")]
    assert len({file.sha256 for file in files}) == 4
    assert [file.path for file in files] == [f"ETT-small/ETT{kind}.csv" for kind in ("h1", "h2", "m1", "m2")]
    assert all(file.url and file.url.endswith(file.path) for file in files)


@needs_data
@pytest.mark.parametrize("name", FRAMES)
def test_frames_agree_with_the_files(name):
    if not present(name):
        pytest.skip(f"{name} is not in OFA_JAX_DATA")
    frame, entry = load(name)
    assert entry is CATALOG[name]
    assert frame.values.shape == (entry.n_rows, entry.n_channels)
    assert frame.frequency == entry.frequency


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", COLLECTIONS)
def test_collections_agree_with_the_files(name):
    if not present(name):
        pytest.skip(f"{name} is not in OFA_JAX_DATA")
    collection, entry = load_collection(name)
    assert entry is CATALOG[name]
    assert collection.n_series == entry.n_series
    assert (collection.horizon,) == entry.horizons
    assert collection.observed is None


@needs_data
@pytest.mark.parametrize("name", CASES)
def test_cases_agree_with_the_files(name):
    if not present(name):
        pytest.skip(f"{name} is not in OFA_JAX_DATA")
    train, test, entry = load_cases(name)
    assert entry is CATALOG[name]
    assert (train.n_cases, test.n_cases, train.n_channels) == (entry.n_train, entry.n_test, entry.n_channels)
    assert max(train.lengths.max(), test.lengths.max()) == entry.length
    assert len(train.classes) == entry.n_classes


@needs_data
def test_streams_agree_with_the_files():
    if not present("smap"):
        pytest.skip("smap is not in OFA_JAX_DATA")
    (smap,), entry = load_streams("smap")
    assert (len(smap.train), len(smap.test), smap.n_channels) == (
        entry.n_train,
        entry.n_test,
        entry.n_channels,
    )
    streams, _ = load_streams("smd", only=("machine-1-2", "machine-2-1"))
    assert [stream.segments for stream in streams] == [("machine-1-2",), ("machine-2-1",)]
    with pytest.raises(DataError, match=r"has no file `machine-9`.*machine-1-1"):
        load_streams("smd", only=("machine-9",))


@needs_data
def test_the_copies_at_hand_have_the_known_sums():
    root = Path(DATA_ROOT)
    for entry in CATALOG.values():
        for file in entry.files:
            path = find(file, root)
            assert path is None or verify(entry, path, role=file.role), path


def test_data_root_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.delenv("OFA_JAX_DATA", raising=False)
    with pytest.raises(
        DataError, match=r"OFA_JAX_DATA is not set, so `etth1` cannot.*Export OFA_JAX_DATA=.*data fetch etth1"
    ):
        load("etth1")
    monkeypatch.setenv("OFA_JAX_DATA", str(tmp_path / "absent"))
    with pytest.raises(DataError, match="no folder"):
        data_root()
    monkeypatch.setenv("OFA_JAX_DATA", str(tmp_path))
    assert data_root() == tmp_path


@pytest.mark.parametrize("name", CATALOG)
def test_an_absent_file_says_where_from_and_where_to(name, tmp_path, monkeypatch):
    monkeypatch.setenv("OFA_JAX_DATA", str(tmp_path))
    entry = CATALOG[name]
    for file in entry.files:
        with pytest.raises(DataError) as caught:
            locate(entry, role=file.role)
        message = str(caught.value)
        assert str(tmp_path / file.path) in message
        assert "https://" in message
        assert f"put it at {file.path} below {tmp_path}" in message


def test_another_file_under_a_known_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("OFA_JAX_DATA", str(tmp_path))
    entry = CATALOG["etth1"]
    path = tmp_path / entry.files[0].path
    path.parent.mkdir()
    path.write_text("date,a\n2024-01-01,1\n")
    with pytest.raises(DataError, match="not the published file of `etth1`"):
        load("etth1")
    monkeypatch.setitem(CATALOG, "etth1", replace_sum("etth1", path))
    assert verify(CATALOG["etth1"], path)
    frame, found = load("etth1")
    assert frame.names == ("a",)
    assert found is CATALOG["etth1"]
    path.with_name("ETTh1.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert load("etth1")[0].names == ("a",)
    path.with_name("ETTh1.csv.gz").write_bytes(b"damaged")
    with pytest.raises(DataError, match="the file cannot be read"):
        load("etth1")


def test_a_file_whose_published_sum_is_not_known_is_neither_refused_nor_verified(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("date,a\n2024-01-01,1\n")
    entry = dataclasses.replace(CATALOG["etth1"], files=(DataFile("a.csv"),))
    assert verify(entry, path) is False
    assert (
        verify(dataclasses.replace(entry, files=(DataFile("a.csv", copy_sha256=sha256_file(path)),)), path)
        is True
    )


def test_a_known_set_is_read_by_its_own_policy(tmp_path, monkeypatch):
    monkeypatch.setenv("OFA_JAX_DATA", str(tmp_path))
    path = tmp_path / "weather" / "weather.csv"
    path.parent.mkdir()
    path.write_text("date,a\n2024-01-01,1\n2024-01-01,2\n2024-01-02,3\n2024-01-03,4\n")
    monkeypatch.setitem(CATALOG, "weather", replace_sum("weather", path))
    assert load("weather")[0].n_rows == 4
    with pytest.raises(DataError, match="repeats the previous row"):
        load("weather", timestamps="error")
    with pytest.raises(DataError, match="repeats the previous row"):
        load(path)


def test_own_files_by_path_and_misspelt_names(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("date,a,b\n2024-01-01,1,2\n")
    frame, entry = load(path, columns=["b"])
    assert entry is None
    assert frame.names == ("b",)
    with pytest.raises(DataError, match=r"neither a known data set nor a file.*etth1"):
        load("ETTh1")
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "absent.csv")
    with pytest.raises(DataError, match=r"neither a known data set nor a file.*m4_yearly"):
        load_collection("M4_Yearly")


def test_a_known_set_of_another_kind_is_refused():
    with pytest.raises(
        DataError,
        match=r"`m4_yearly` is a collection of single series.*a table of series.*etth1.*`load_collection`",
    ):
        load("m4_yearly")
    with pytest.raises(DataError, match=r"`etth1` is a table of series .*here a set of labeled cases"):
        load_cases("etth1")
    with pytest.raises(DataError, match=r"`smap` is a labeled stream .*here a collection"):
        load_collection("smap")
    with pytest.raises(
        DataError, match=r"`heartbeat` is a set of labeled cases \(classification\), here a labeled stream"
    ):
        load_streams("heartbeat")


def write_m4(root: Path) -> None:
    folder = root / "m4"
    folder.mkdir(parents=True)
    (folder / "Yearly-train.csv").write_text("V1,V2,V3\nY1,1,2\nY2,3,\n")
    (folder / "Yearly-test.csv").write_text("V1,V2\nY1,8\nY2,9\n")


def test_m4_is_read_with_or_without_its_table(tmp_path, monkeypatch):
    monkeypatch.setenv("OFA_JAX_DATA", str(tmp_path))
    write_m4(tmp_path)
    entry = CATALOG["m4_yearly"]
    files = tuple(dataclasses.replace(file, sha256=None) for file in entry.files)
    monkeypatch.setitem(CATALOG, "m4_yearly", dataclasses.replace(entry, files=files, n_series=2))
    collection, _ = load_collection("m4_yearly")
    assert [series.tolist() for series in collection.values] == [[1, 2, 8], [3, 9]]
    assert collection.frequency is None
    (tmp_path / "m4" / "M4-info.csv").write_text(
        "M4id,category,Frequency,Horizon,SP\nY1,Macro,1,1,Yearly\nY2,Micro,1,1,Yearly\n"
    )
    assert load_collection("m4_yearly")[0].frequency == "Yearly"
    monkeypatch.setitem(CATALOG, "m4_yearly", dataclasses.replace(entry, files=files))
    with pytest.raises(DataError, match="has 2 series, `m4_yearly` has 23000"):
        load_collection("m4_yearly")


def test_own_collections_cases_and_streams(tmp_path):
    tsf = tmp_path / "mine.tsf"
    tsf.write_text("@attribute series_name string\n@data\na:1,?,3\n")
    collection, entry = load_collection(tsf, missing="linear")
    assert (entry, collection.values[0].tolist()) == (None, [1, 2, 3])
    header = "@univariate true\n@classLabel true x y\n@data\n"
    (tmp_path / "Mine_TRAIN.ts").write_text(f"{header}1,2:x\n")
    with pytest.raises(DataError, match=r"there are 0 files `\*_TEST\.ts`"):
        load_cases(tmp_path)
    (tmp_path / "Mine_TEST.ts").write_text(f"{header}3:y\n")
    train, test, entry = load_cases(tmp_path)
    assert (entry, train.labels, test.labels) == (None, ("x",), ("y",))
    (tmp_path / "Mine_TEST.ts").write_text(f"{header}3:y\n".replace("x y", "y x"))
    with pytest.raises(DataError, match="training and test cases differ"):
        load_cases(tmp_path)
    np.savez(tmp_path / "mine.npz", train=np.ones((2, 1)), test=np.ones((3, 1)), test_label=[0, 1, 0])
    (stream,), entry = load_streams(tmp_path / "mine.npz")
    assert (entry, stream.test_label.tolist()) == (None, [False, True, False])


def test_streams_of_other_sizes_than_the_catalog_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("OFA_JAX_DATA", str(tmp_path))
    np.savez(tmp_path / "small.npz", train=np.ones((2, 25)), test=np.ones((3, 25)), test_label=[0, 1, 0])
    write_stream(tmp_path / "PSM" / "PSM.npz", read_stream(tmp_path / "small.npz"))
    with pytest.raises(DataError, match="has 2 training steps, `psm` has 132481"):
        load_streams("psm")
    assert len(load_streams("psm", only=("data",))[0][0].test) == 3


def test_the_listing_is_plain_and_says_what_is_there(tmp_path):
    listing = list_entries(tmp_path)
    assert [entry["name"] for entry in listing] == list(CATALOG)
    json.dumps(listing)
    assert not any(entry["present"] for entry in listing)
    assert {entry["name"] for entry in listing if not entry["fetchable"]} == set(STREAMS)
    write_m4(tmp_path)
    by_name = {entry["name"]: entry for entry in list_entries(tmp_path)}
    assert by_name["m4_yearly"]["present"] is True
    assert [file["present"] for file in by_name["m4_yearly"]["files"]] == [True, True, False, False]
    assert by_name["m4_weekly"]["present"] is False
    assert by_name["etth1"]["split"] == "ett_hour"
    assert by_name["m4_yearly"]["split"] is None
    assert list_entries()[0]["present"] is None


def test_checking_lists_every_fault_and_the_settings_that_get_past_them(tmp_path):
    rows = ["date,a,site", "2024-01-01,1,x", "2024-01-02,nil,x", "2024-01-03,,x", "2024-01-05,4,x"]
    path = tmp_path / "a.csv"
    path.write_text("\n".join([*rows, *(f"2024-01-{day:02d},2,x" for day in range(6, 12))]))
    with pytest.raises(DataError) as caught:
        check_file(path)
    message = str(caught.value)
    for part in ("4 faults", "row 2 (line 3)", "'nil'", "`site`", "row 4 (line 5)", "irregular", "missing"):
        assert part in message
    for setting in ("missing_words: [nil]", "exclude: [site]", "timestamps: as_is", "missing: linear"):
        assert f"`{setting}`" in caught.value.fix
    assert check_file(path, **caught.value.past)["rows"] == 10
    path.write_text(path.read_text().replace("03,,x", "03,x").replace("05,4,x", "05,4,x,y"))
    with pytest.raises(DataError) as caught:
        check_file(path)
    message = str(caught.value)
    for part in ("row 3 (line 4): has 2 field(s)", "1 more row(s) differ: row 4 (line 5) has 4", "`site`"):
        assert part in message
    assert message.endswith("Correct them.")


def test_checking_a_file_sums_it_up(tmp_path):
    frame = tmp_path / "a.csv"
    frame.write_text("date,a,b\n2024-01-01,1,2\n2024-01-02,1,2\n2024-01-03,1,2\n")
    found = check_file(frame)
    assert found == {
        "path": str(frame),
        "sha256": sha256_file(frame),
        "known_as": [],
        "kind": "frame",
        "rows": 3,
        "channels": 2,
        "names": ["a", "b"],
        "frequency": "D",
        "season": 7,
        "filled": 0,
        "gaps": 0,
        "first": "2024-01-01T00:00:00",
        "last": "2024-01-03T00:00:00",
        "notices": ["a.csv: 2 series (`a`, `b`), time in `date`"],
    }
    frame.write_text("date,a,b\n2024-01-01,1,2\n2024-01-02,1,2\n2024-01-03,1,2\n2024-01-07,1,2\n")
    assert check_file(frame, timestamps="as_is")["gaps"] == 1
    write_m4(tmp_path)
    assert check_file(tmp_path / "m4" / "Yearly-train.csv")["series"] == 2
    (tmp_path / "a.tsf").write_text("@attribute series_name string\n@horizon 1\n@data\na:1,?,3\n")
    with pytest.raises(DataError, match="line 4, value 2"):
        check_file(tmp_path / "a.tsf")
    found = check_file(tmp_path / "a.tsf", missing="linear")
    assert {key: found[key] for key in ("kind", "series", "horizon", "filled", "shortest", "longest")} == {
        "kind": "collection",
        "series": 1,
        "horizon": 1,
        "filled": 1,
        "shortest": 3,
        "longest": 3,
    }
    (tmp_path / "a.ts.gz").write_bytes(
        gzip.compress(b"@univariate true\n@classLabel true x y\n@data\n1,2:x\n1:x\n")
    )
    assert check_file(tmp_path / "a.ts.gz")["classes"] == {"x": 2, "y": 0}
    np.savez(tmp_path / "a.npz", train=np.ones((2, 1)), test=np.ones((4, 1)), test_label=[0, 1, 0, 0])
    found = check_file(tmp_path / "a.npz")
    assert (found["kind"], found["anomaly_ratio"], found["test_steps"]) == ("stream", 0.25, 4)
    cases = tmp_path / "cases.csv"
    cases.write_text("case,time,x,label\np,1,5,up\np,2,6,up\nq,1,6,down\n")
    found = check_file(cases)
    assert (found["kind"], found["cases"], found["longest"]) == ("cases", 2, 2)
    assert found["classes"] == {"down": 1, "up": 1}
    cases.write_text("case,time,x\np,1,5\np,2,6\nq,1,6\n")
    assert check_file(cases)["cases"] == 2
    (tmp_path / "M4-info.csv").write_text("M4id,category,Frequency,Horizon,SP\nY1,Macro,1,1,Yearly\n")
    assert check_file(tmp_path / "M4-info.csv")["frequencies"] == {"Yearly": 1}
    with pytest.raises(DataError, match="is a folder"):
        check_file(tmp_path)
    (tmp_path / "a.xls").write_text("-")
    with pytest.raises(DataError, match=r"the ending '\.xls'"):
        check_file(tmp_path / "a.xls")


@needs_data
def test_checking_a_known_file_takes_the_catalog_policy():
    if not present("weather"):
        pytest.skip("weather is not in OFA_JAX_DATA")
    path = Path(DATA_ROOT) / "weather" / "weather.csv"
    assert check_file(path)["known_as"] == ["weather"]
    with pytest.raises(DataError, match="repeats the previous row"):
        check_file(path, timestamps="error")
