"""The catalogue: its entries are consistent, agree with the real files, and absent or foreign files are refused helpfully."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ofa_jax.data.catalog import CATALOG, data_root, load, locate, verify
from ofa_jax.data.splits import borders
from ofa_jax.errors import DataError
from ofa_jax.files import sha256_file

DATA_ROOT = os.environ.get("OFA_JAX_DATA")
needs_data = pytest.mark.skipif(not DATA_ROOT, reason="OFA_JAX_DATA is not set")


@pytest.mark.parametrize("name", CATALOG)
def test_entries_are_consistent(name):
    entry = CATALOG[name]
    assert entry.name == name
    assert len(entry.sha256) == 64
    assert not Path(entry.file).is_absolute()
    borders(entry.n_rows, entry.split, input_length=512, horizon=max(entry.horizons))
    assert entry.season == np.timedelta64(1, "D") // pd.Timedelta(pd.tseries.frequencies.to_offset(entry.frequency)).to_timedelta64()


def test_ett_entries_are_four_files_with_their_own_sums():
    entries = [CATALOG[name] for name in ("etth1", "etth2", "ettm1", "ettm2")]
    assert len({entry.sha256 for entry in entries}) == 4
    assert [entry.file for entry in entries] == [f"ETT-small/ETT{kind}.csv" for kind in ("h1", "h2", "m1", "m2")]
    assert all(entry.url and entry.url.endswith(entry.file) for entry in entries)


@needs_data
@pytest.mark.parametrize("name", CATALOG)
def test_entries_agree_with_the_files(name):
    frame, entry = load(name)
    assert entry is CATALOG[name]
    assert frame.values.shape == (entry.n_rows, entry.n_channels)
    assert frame.frequency == entry.frequency


def test_data_root_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.delenv("OFA_JAX_DATA", raising=False)
    with pytest.raises(DataError, match=r"OFA_JAX_DATA is not set.*export OFA_JAX_DATA="):
        load("etth1")
    monkeypatch.setenv("OFA_JAX_DATA", str(tmp_path / "absent"))
    with pytest.raises(DataError, match="no folder"):
        data_root()
    monkeypatch.setenv("OFA_JAX_DATA", str(tmp_path))
    assert data_root() == tmp_path


@pytest.mark.parametrize("name", CATALOG)
def test_an_absent_file_says_where_from_and_where_to(name, tmp_path):
    entry = CATALOG[name]
    with pytest.raises(DataError) as caught:
        locate(entry, tmp_path)
    message = str(caught.value)
    assert str(tmp_path / entry.file) in message
    assert "https://" in message
    assert f"put it at {entry.file} below {tmp_path}" in message


def test_another_file_under_a_known_name_is_refused(tmp_path, monkeypatch):
    entry = CATALOG["etth1"]
    path = tmp_path / entry.file
    path.parent.mkdir()
    path.write_text("date,a\n2024-01-01,1\n")
    with pytest.raises(DataError, match="not the published file of `etth1`"):
        load("etth1", root=tmp_path)
    monkeypatch.setitem(CATALOG, "etth1", dataclasses.replace(entry, sha256=sha256_file(path)))
    verify(CATALOG["etth1"], path)
    frame, found = load("etth1", root=tmp_path)
    assert frame.names == ("a",)
    assert found is CATALOG["etth1"]


def test_a_known_set_is_read_by_its_own_policy(tmp_path, monkeypatch):
    path = tmp_path / "weather" / "weather.csv"
    path.parent.mkdir()
    path.write_text("date,a\n2024-01-01,1\n2024-01-01,2\n2024-01-02,3\n2024-01-03,4\n")
    monkeypatch.setitem(CATALOG, "weather", dataclasses.replace(CATALOG["weather"], sha256=sha256_file(path)))
    assert load("weather", root=tmp_path)[0].n_rows == 4
    with pytest.raises(DataError, match="two rows running"):
        load("weather", root=tmp_path, timestamps="error")
    with pytest.raises(DataError, match="two rows running"):
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
