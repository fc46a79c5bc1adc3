"""Fetching from a server on loopback: whole, resumed, refused, unpacked; and nothing left behind where it fails."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import stat
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from ofa_jax.data.catalog import fetch as fetch_module
from ofa_jax.data.catalog.download import ResumingDownloader
from ofa_jax.data.catalog.entries import DataFile, DatasetEntry
from ofa_jax.data.catalog.fetch import fetch
from ofa_jax.data.catalog.unpack import unpack
from ofa_jax.errors import DataError

CONTENT = np.random.default_rng(0).bytes(400_000)
TEXT = b"date,a\n2024-01-01,1\n"


@dataclass
class Site:
    """What the server holds and how it behaves; ``log`` keeps the Range header of each request."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    mark: str | None = '"v1"'
    cut_after: list[int] = field(default_factory=list)
    lies: bool = False
    encoding: str | None = None
    log: list[str | None] = field(default_factory=list)

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            site.log.append(wanted)
            content = site.files.get(self.path.lstrip("/"))
            if content is None:
                self.send_error(404)
                return
            start = 0
            if site.ranges and wanted and (self.headers.get("If-Range") == site.mark):
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
                if start >= len(content):
                    self.send_error(416)
                    return
            self.send_response(206 if start else 200)
            if start:
                start = 0 if site.lies else start
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if site.mark:
                self.send_header("ETag", site.mark)
            if site.encoding:
                self.send_header("Content-Encoding", site.encoding)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = start + site.cut_after.pop(0) if site.cut_after else len(content)
            self.wfile.write(content[start:end])

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


def entry(*files: DataFile) -> DatasetEntry:
    return DatasetEntry("toy", "frame", "A toy", files, ("https://example.org/toy",), "none", "nobody")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(members: dict[str, bytes], *, link: str | None = None) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if name == link:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, member)
    return content.getvalue()


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def refused(toy: DatasetEntry, root: Path, match: str) -> None:
    with pytest.raises(DataError, match=match):
        fetch(toy, root)
    assert everything(root) == []


def test_a_file_is_fetched_checked_and_put_in_its_place(site, tmp_path):
    site.files["a.bin"] = CONTENT
    seen: list[tuple[str, int, int | None]] = []
    toy = entry(DataFile("folder/a.bin", sha256=sha256(CONTENT), url=site.url("a.bin")))
    (done,) = fetch(toy, tmp_path / "new", lambda *step: seen.append(step))
    assert (done.status, done.verified, done.sha256) == ("downloaded", True, sha256(CONTENT))
    assert done.path == tmp_path / "new" / "folder" / "a.bin"
    assert done.path.read_bytes() == CONTENT
    assert everything(tmp_path / "new") == ["folder/a.bin"]
    assert not (tmp_path / "new" / fetch_module._STAGING).exists()
    assert [name for name, _, _ in seen] == ["a.bin"] * len(seen)
    assert [size for _, size, _ in seen] == sorted({size for _, size, _ in seen})
    assert seen[-1][1:] == (len(CONTENT), len(CONTENT))


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
    refused(
        entry(DataFile("a.csv", sha256="0" * 64, url=site.url("a.csv"))),
        tmp_path,
        "does not have the sha256 0000",
    )
    site.files["a.zip"] = zipped({"a.csv": TEXT})
    toy = entry(DataFile("a.csv", sha256="0" * 64, url=site.url("a.zip"), member="a.csv"))
    refused(toy, tmp_path, f"has the sha256 {sha256(TEXT)}, expected 0000")


def test_a_cut_connection_is_resumed_within_one_call(site, tmp_path):
    site.files["a.bin"] = CONTENT
    site.cut_after = [150_000, 100_000]
    (done,) = fetch(entry(DataFile("a.bin", sha256=sha256(CONTENT), url=site.url("a.bin"))), tmp_path)
    assert done.path.read_bytes() == CONTENT
    first, second, third = site.log
    assert first is None
    assert second == "bytes=131072-"
    assert 131072 < int(re.fullmatch(r"bytes=(\d+)-", third)[1]) <= 131072 + 100_000


def test_a_broken_download_is_resumed_at_the_next_call(site, tmp_path):
    site.files["a.bin"] = CONTENT
    site.cut_after = [150_000, 0, 0]
    toy = entry(DataFile("a.bin", sha256=sha256(CONTENT), url=site.url("a.bin")))
    with pytest.raises(DataError, match=r"broke off after 131072 bytes.*goes on from there"):
        fetch(toy, tmp_path)
    assert not (tmp_path / "a.bin").exists()
    (done,) = fetch(toy, tmp_path)
    assert done.path.read_bytes() == CONTENT
    assert site.log[-1] == "bytes=131072-"
    assert everything(tmp_path) == ["a.bin"]


def test_another_version_is_not_joined_to_the_first(site, tmp_path):
    site.files["a.bin"] = CONTENT
    site.cut_after = [150_000, 0, 0]
    toy = entry(DataFile("a.bin", url=site.url("a.bin")))
    with pytest.raises(DataError, match="broke off"):
        fetch(toy, tmp_path)
    site.files["a.bin"], site.mark = CONTENT[::-1], '"v2"'
    (done,) = fetch(toy, tmp_path)
    assert done.path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("server", ["no ranges", "no mark", "weak mark", "wrong range"])
def test_servers_that_cannot_resume_send_everything_again(site, tmp_path, server):
    site.files["a.bin"] = CONTENT
    site.ranges, site.lies = server != "no ranges", server == "wrong range"
    site.mark = {"no mark": None, "weak mark": 'W/"v1"'}.get(server, '"v1"')
    site.cut_after = [150_000]
    (done,) = fetch(entry(DataFile("a.bin", url=site.url("a.bin"))), tmp_path)
    assert done.path.read_bytes() == CONTENT
    assert (site.log[1] is None) == server.endswith("mark")


def test_a_part_that_is_longer_than_the_file_starts_over(site, tmp_path):
    site.files["a.bin"] = CONTENT
    part = tmp_path / "a.part"
    part.write_bytes(b"x" * (len(CONTENT) + 1))
    (tmp_path / "a.part.json").write_text('{"mark": "\\"v1\\""}')
    ResumingDownloader(part)(site.url("a.bin"), tmp_path / "a.bin", None)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert everything(tmp_path) == ["a.bin"]


def test_more_bytes_than_allowed_are_refused(site, tmp_path):
    site.files["a.bin"] = CONTENT
    with pytest.raises(DataError, match="400000 bytes, more than the 1000 allowed"):
        ResumingDownloader(tmp_path / "a.part", limit=1000)(site.url("a.bin"), tmp_path / "a.bin", None)
    assert everything(tmp_path) == []


def test_refusals_of_the_server_and_no_server(site, tmp_path):
    refused(entry(DataFile("a.csv", url=site.url("absent"))), tmp_path, "answers 404")
    site.files["a.csv"], site.encoding = gzip.compress(TEXT), "gzip"
    refused(
        entry(DataFile("a.csv", url=site.url("a.csv"))),
        tmp_path,
        "sends the file encoded although asked not to",
    )
    refused(entry(DataFile("a.csv", url="http://127.0.0.1:9/a.csv")), tmp_path, "broke off after 0 bytes")
    refused(entry(DataFile("a.csv", url="nonsense://127.0.0.1/a.csv")), tmp_path, "the download failed")


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


def test_a_gzip_download_is_unpacked(site, tmp_path):
    site.files["a.csv.gz"] = gzip.compress(TEXT)
    toy = entry(DataFile("a.csv", sha256=sha256(TEXT), url=site.url("a.csv.gz")))
    assert fetch(toy, tmp_path)[0].path.read_bytes() == TEXT
    site.files["a.csv.gz"] = gzip.compress(CONTENT)[:-100]
    (tmp_path / "a.csv").unlink()
    refused(toy, tmp_path, "cannot be unpacked")


@pytest.mark.parametrize(
    ("names", "link", "match"),
    [
        (["../a.csv", "a.csv"], None, "leads out of its folder"),
        (["a.csv", "x/../../b"], None, "leads out of its folder"),
        (["/etc/a.csv", "a.csv"], None, "leads out of its folder"),
        (["..\\a.csv", "a.csv"], None, "leads out of its folder"),
        (["C:\\a.csv", "a.csv"], None, "leads out of its folder"),
        (["a.csv"], "a.csv", "a link or device"),
        (["a.csv", "b"], "b", "a link or device"),
        (["x/a.csv", "y/a.csv"], None, "holds 2 files `a.csv`"),
        (["b.csv"], None, "holds 0 files `a.csv`"),
    ],
)
def test_a_malicious_archive_is_refused_whole(site, tmp_path, names, link, match):
    site.files["a.zip"] = zipped(dict.fromkeys(names, b"/etc/passwd"), link=link)
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


def test_an_archive_may_not_unpack_without_end(tmp_path):
    archive = tmp_path / "bomb.zip"
    archive.write_bytes(zipped({"a.csv": b"0" * 5_000_000}))
    file = DataFile("a.csv", member="a.csv")
    with pytest.raises(DataError, match="unpacks to more than 1000000 bytes"):
        unpack(archive, [file], tmp_path, url="here", limit=1_000_000)
    assert everything(tmp_path) == ["bomb.zip"]


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


def test_two_processes_do_not_fetch_into_one_root(site, tmp_path):
    from filelock import FileLock

    site.files["a.csv"] = TEXT
    staging = tmp_path / fetch_module._STAGING
    staging.mkdir()
    toy = entry(DataFile("a.csv", url=site.url("a.csv")))
    with FileLock(staging / ".lock"), pytest.raises(DataError, match="another process is fetching"):
        fetch(toy, tmp_path)
    (staging / "tmp123").write_bytes(b"left by a kill")
    fetch(toy, tmp_path)
    assert everything(tmp_path) == ["a.csv"]


def test_a_root_that_cannot_be_written_to(site, tmp_path):
    site.files["a.csv"] = TEXT
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written to"):
        fetch(entry(DataFile("a.csv", url=site.url("a.csv"))), tmp_path / "file" / "root")
