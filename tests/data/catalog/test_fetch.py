"""Fetching from a server on loopback: complete, refused, unpacked; nothing is left where it fails."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from ofa_jax.data.catalog import fetch as fetch_module
from ofa_jax.data.catalog.entries import DataFile, DatasetEntry
from ofa_jax.data.catalog.fetch import Fetched
from ofa_jax.errors import DataError

CONTENT = np.random.default_rng(0).bytes(400_000)
TEXT = b"date,a\n2024-01-01,1\n"


@dataclass
class Site:
    """The server's files; ``log`` has the path of each request; ``cut`` is where an answer breaks off."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    cut: int | None = None

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            site.log.append(self.path)
            content = site.files.get(self.path.lstrip("/"))
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: site.cut])

    return Handler


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    site.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(toy: DatasetEntry, root: Path) -> tuple[Fetched, ...]:
    with mock.patch.dict(os.environ, OFA_JAX_DATA=str(root)):
        return fetch_module.fetch(toy)


def entry(*files: DataFile) -> DatasetEntry:
    return DatasetEntry("toy", "frame", "A toy", files, ("https://example.org/toy",), "none", "nobody")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member)
    return content.getvalue()


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def refused(toy: DatasetEntry, root: Path, match: str) -> None:
    with pytest.raises(DataError, match=match):
        fetch(toy, root)
    assert not list(root.rglob("*"))


def test_a_file_is_fetched_checked_and_put_in_its_place(site, tmp_path):
    site.files["a.bin"] = CONTENT
    toy = entry(DataFile("folder/a.bin", sha256=sha256(CONTENT), url=site.url("a.bin")))
    (tmp_path / "new").mkdir()
    (done,) = fetch(toy, tmp_path / "new")
    assert (done.status, done.verified, done.sha256) == ("downloaded", True, sha256(CONTENT))
    assert done.path == tmp_path / "new" / "folder" / "a.bin"
    assert done.path.read_bytes() == CONTENT
    assert everything(tmp_path / "new") == ["folder/a.bin"]


def test_a_connection_that_breaks_off_leaves_nothing(site, tmp_path):
    site.files["a.bin"], site.cut = CONTENT, 150_000
    refused(entry(DataFile("a.bin", url=site.url("a.bin"))), tmp_path, "download failed")


def test_what_is_there_is_checked_and_left_alone(site, tmp_path):
    site.files["a.csv"] = TEXT
    toy = entry(DataFile("a.csv", sha256=sha256(TEXT), url=site.url("a.csv")))
    with gzip.open(tmp_path / "a.csv.gz", "wb") as file:
        file.write(TEXT)
    (done,) = fetch(toy, tmp_path)
    assert (done.status, done.verified, done.path.name) == ("present", True, "a.csv.gz")
    assert site.log == []
    (tmp_path / "a.csv.gz").unlink()
    (tmp_path / "a.csv").write_bytes(b"mine\n")
    with pytest.raises(DataError, match="not the published file of `toy`"):
        fetch(toy, tmp_path)
    assert (tmp_path / "a.csv").read_bytes() == b"mine\n"


def test_a_file_without_a_known_sum_is_said_to_be_unverified(site, tmp_path):
    site.files["a.csv"] = TEXT
    (done,) = fetch(entry(DataFile("a.csv", url=site.url("a.csv"))), tmp_path)
    assert (done.status, done.verified, done.sha256) == ("downloaded", False, sha256(TEXT))


def test_a_wrong_sum_is_refused_and_nothing_stays(site, tmp_path):
    site.files["a.csv"] = TEXT
    refused(entry(DataFile("a.csv", sha256="0" * 64, url=site.url("a.csv"))), tmp_path, "expected 0000")
    site.files["a.zip"] = zipped({"a.csv": TEXT})
    toy = entry(DataFile("a.csv", sha256="0" * 64, url=site.url("a.zip"), member="a.csv"))
    refused(toy, tmp_path, f"has the sha256 {sha256(TEXT)}, expected 0000")


def test_refusals_of_the_server_and_no_server(site, tmp_path):
    refused(entry(DataFile("a.csv", url=site.url("absent"))), tmp_path, "the download failed .404")
    refused(entry(DataFile("a.csv", url="http://127.0.0.1:9/a.csv")), tmp_path, "the download failed")


def test_files_to_be_got_by_hand(site, tmp_path):
    site.files["a.csv"] = TEXT
    needed = entry(DataFile("a.csv", url=site.url("a.csv")), DataFile("b.npz", "b"))
    refused(needed, tmp_path, r"no address for b\.npz.*https://example\.org/toy.*put it at b\.npz below")
    assert site.log == []
    optional = entry(DataFile("a.csv", url=site.url("a.csv")), DataFile("b.npz", "b", needed=False))
    assert [(done.status, done.path.name) for done in fetch(optional, tmp_path)] == [
        ("downloaded", "a.csv"),
        ("by hand", "b.npz"),
    ]


def test_members_of_an_archive_come_out_of_one_download(site, tmp_path):
    site.files["toy.zip"] = zipped(
        {"toy/A_TRAIN.ts": b"train\n", "toy/A_TEST.ts": b"test\n", "toy/readme.txt": b"-"}
    )
    url = site.url("toy.zip")
    toy = entry(
        DataFile("A/A_TRAIN.ts", "train", sha256=sha256(b"train\n"), url=url, member="A_TRAIN.ts"),
        DataFile("A/A_TEST.ts", "test", url=url, member="A_TEST.ts"),
    )
    done = fetch(toy, tmp_path)
    assert [one.verified for one in done] == [True, False]
    assert everything(tmp_path) == ["A/A_TEST.ts", "A/A_TRAIN.ts"]
    assert (tmp_path / "A" / "A_TEST.ts").read_bytes() == b"test\n"
    assert len(site.log) == 1
    assert done[0].path.stat().st_mode & 0o400


@pytest.mark.parametrize(
    ("names", "match"), [(["x/a.csv", "y/a.csv"], "has 2 files `a.csv`"), (["b.csv"], "has 0 files `a.csv`")]
)
def test_an_ambiguous_archive_is_refused(site, tmp_path, names, match):
    site.files["a.zip"] = zipped(dict.fromkeys(names, b"1\n"))
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    refused(entry(DataFile("a.csv", url=site.url("a.zip"), member="a.csv")), root, match)
    assert everything(tmp_path) == []


def test_damaged_archives_are_refused(site, tmp_path):
    whole = bytearray(zipped({"a.csv": CONTENT}))
    whole[2000] ^= 0xFF
    for content in (bytes(whole), zipped({"a.csv": CONTENT})[:-500], CONTENT, b""):
        site.files["a.zip"] = content
        refused(
            entry(DataFile("a.csv", url=site.url("a.zip"), member="a.csv")), tmp_path, "cannot be unpacked"
        )


def test_names_inside_an_archive_never_become_paths(site, tmp_path):
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    site.files["a.zip"] = zipped({"../../a.csv": TEXT})
    fetch(entry(DataFile("a.csv", url=site.url("a.zip"), member="a.csv")), root)
    assert everything(tmp_path) == ["deep/root/a.csv"]


def test_an_archive_may_not_unpack_without_end(site, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "MAX_BYTES", 1_000_000)
    site.files["a.zip"] = zipped({"a.csv": b"0" * 5_000_000})
    toy = entry(DataFile("a.csv", url=site.url("a.zip"), member="a.csv"))
    refused(toy, tmp_path, "unpacks to more than 1000000 bytes")


def test_one_wrong_member_keeps_the_other_out_as_well(site, tmp_path):
    site.files["a.zip"] = zipped({"a": b"right", "b": b"wrong"})
    url = site.url("a.zip")
    toy = entry(
        DataFile("a", sha256=sha256(b"right"), url=url, member="a"),
        DataFile("b", "b", sha256="0" * 64, url=url, member="b"),
    )
    refused(toy, tmp_path, "expected 0000")


def test_a_path_that_leads_out_of_the_data_root_is_refused(site, tmp_path):
    site.files["a.csv"] = TEXT
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "folder").symlink_to(outside)
    for path in ("folder/a.csv", "../a.csv", "/tmp/a.csv"):
        with pytest.raises(DataError, match="outside the data root"):
            fetch(entry(DataFile(path, url=site.url("a.csv"))), root)
    assert everything(outside) == []


def test_a_root_that_cannot_be_written_to(site, tmp_path):
    site.files["a.csv"] = TEXT
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written to"):
        fetch(entry(DataFile("file/a.csv", url=site.url("a.csv"))), tmp_path)
