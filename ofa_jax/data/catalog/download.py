"""One download that goes on where it broke off: a `.part` file and HTTP ranges."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ofa_jax.errors import DataError

Progress = Callable[[str, int, int | None], None]

LARGEST_DOWNLOAD = 8 << 30
"""Bytes; larger than any archive in the catalogue, smaller than a disk."""

_ATTEMPTS = 3
_BLOCK = 1 << 16  # what came of a block is lost when the connection breaks in it
_TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two blocks


class ResumingDownloader:
    """What pooch calls to download: ``downloader(url, output_file, pooch)``.

    The bytes go to a ``.part`` file; a file beside it keeps the server's mark of the version (ETag or Last-Modified). A later call
    asks for the rest of that version alone. A server that has another version or no ranges sends everything anew; one that gives
    no mark is never asked for a rest, since two versions might be joined.

    Args:
        part: The ``.part`` file; kept when the connection breaks, gone when the download is whole.
        progress: Called as ``progress(name, bytes so far, bytes in all or None)``.
        attempts: Connections tried in one call.
        limit: The most bytes that are taken.
    """

    def __init__(
        self,
        part: Path,
        progress: Progress | None = None,
        *,
        attempts: int = _ATTEMPTS,
        limit: int = LARGEST_DOWNLOAD,
    ) -> None:
        self._part, self._progress, self._attempts, self._limit = part, progress, attempts, limit
        self._mark_file = part.with_name(f"{part.name}.json")

    def __call__(self, url: str, output_file: str | Path, pooch: object) -> None:
        """Download ``url`` to ``output_file``.

        Raises:
            DataError: The server refuses, sends more than is allowed, or the connection broke off on every attempt.
        """
        import requests

        reason = ""
        for _ in range(self._attempts):
            try:
                reason = self._attempt(url)
            except (
                requests.ConnectionError,
                requests.Timeout,
                requests.exceptions.ChunkedEncodingError,
            ) as error:
                reason = str(error)
            if not reason:
                self._mark_file.unlink(missing_ok=True)
                os.replace(self._part, output_file)
                return
        size, resumable = self._size(), self._mark() is not None
        if not resumable:
            self._start_over("")
        what = f"the download broke off after {size} bytes ({reason[:200]})"
        raise DataError(what, where=url, fix="Try again: it goes on from there" if resumable else "Try again")

    def _attempt(self, url: str) -> str:
        """One connection; says why the file is not whole after it, or nothing."""
        import requests

        start, mark = self._size(), self._mark()
        headers = {"Accept-Encoding": "identity"}  # ranges count the bytes as they are sent
        if start and mark is not None:
            headers |= {"Range": f"bytes={start}-", "If-Range": mark}
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == 416:
                return self._start_over("the server does not have the rest of this file")
            if response.status_code not in (200, 206):
                what = f"the server answers {response.status_code} {response.reason}"
                raise DataError(what, where=url, fix="See the data set's pages")
            if response.headers.get("Content-Encoding", "identity") != "identity":
                what = "the server sends the file encoded although asked not to"
                raise DataError(what, where=url, fix="Download it by hand")
            if response.status_code == 206:
                total = _range_total(response.headers.get("Content-Range", ""), start)
                if "Range" not in headers or total is None:
                    return self._start_over("the server sent another part of the file than was asked for")
            else:
                start, total = 0, _whole(response.headers.get("Content-Length"))
            if total is not None and total > self._limit:
                what = f"the file has {total} bytes, more than the {self._limit} allowed"
                raise DataError(what, where=url, fix="Download it by hand")
            self._keep_mark(response.headers)
            done = self._receive(response, url, start, total)
        return f"{done} of {total} bytes came" if total is not None and done != total else ""

    def _receive(self, response: Any, url: str, start: int, total: int | None) -> int:
        name, done = Path(urlsplit(url).path).name, start
        with open(self._part, "r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            for block in response.iter_content(_BLOCK):
                done += len(block)
                if done > (self._limit if total is None else total):
                    self._start_over("")
                    what = f"the server sends more than {done - len(block)} bytes"
                    raise DataError(what, where=url, fix="Download it by hand")
                file.write(block)
                if self._progress is not None:
                    self._progress(name, done, total)
        return done

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _mark(self) -> str | None:
        try:
            mark = json.loads(self._mark_file.read_text())["mark"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return mark if isinstance(mark, str) else None

    def _keep_mark(self, headers: Any) -> None:
        tag = headers.get("ETag", "")
        mark = (
            headers.get("Last-Modified") if not tag or tag.startswith("W/") else tag
        )  # If-Range needs a strong tag
        if mark is None:
            self._mark_file.unlink(missing_ok=True)
        else:
            self._mark_file.write_text(json.dumps({"mark": mark}))

    def _start_over(self, reason: str) -> str:
        self._part.unlink(missing_ok=True)
        self._mark_file.unlink(missing_ok=True)
        return reason


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text) else None


def _range_total(text: str, start: int) -> int | None:
    """The size of the whole file, where the header says that the part sent is the rest from ``start``."""
    found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", text)
    if found is None:
        return None
    first, last, total = (int(number) for number in found.groups())
    return total if first == start and last == total - 1 else None
