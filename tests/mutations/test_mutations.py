"""Thousands of changes to every kind of file: what is read is right, or one OfaError says why not.

Every case is seeded by its subject and number. Besides the two outcomes nothing is allowed: no other
exception and no warning, no wait, no number that the file does not have, nothing written.
"""

from __future__ import annotations

import random
import shutil
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from changes import restore
from plain import finite, plain, snapshot
from subjects import Subject, subjects

from ofa_jax.errors import OfaError

SECONDS = 60
"""Time for one case; the slowest takes a fraction of a second."""


class Hung(BaseException):
    """A reader that did not end."""


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(subject: Subject, folder: Path, before: object) -> str | None:
    """What is wrong with what a reader makes of changed files; None where nothing is."""
    try:
        with time_limit():
            found = plain(subject.read(folder))
    except OfaError as error:
        return None if error.what and "\n" not in str(error) and len(str(error)) < 8000 else f"text: {error}"
    except Hung:
        return f"no answer within {SECONDS} s"
    except BaseException:
        return traceback.format_exc()
    if not finite(found):
        return f"not finite: {found!r:.500}"
    if found == before:
        return None
    if subject.corresponds is None:
        return f"read as {found!r:.500}"
    try:
        if subject.corresponds(folder, found, before):
            return None
    except Exception:
        return f"read as {found!r:.500}; read again: {traceback.format_exc()}"
    return f"read as {found!r:.500}, which is not what is there"


def seen(folder: Path, subject: Subject) -> dict[str, object]:
    """What is below a folder, apart from where the subject may write; a damaged checkpoint may be renamed."""
    entries = {path.replace("damaged-", ""): entry for path, entry in snapshot(folder).items()}
    inside = subject.inside and f"files/{subject.inside}"
    return {path: entry for path, entry in entries.items() if not inside or not path.startswith(inside)}


@pytest.mark.slow  # minutes for all
@pytest.mark.parametrize("subject", subjects(), ids=lambda subject: subject.name)
def test_a_changed_file_is_read_as_it_is_or_refused(subject: Subject, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    subject.make(folder)
    shutil.copytree(folder, tmp_path / "valid")
    valid = seen(tmp_path, subject)
    before = plain(subject.read(folder))
    assert seen(tmp_path, subject) == valid, "reading changed the files"
    if subject.inside:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "valid", folder)
    contents = {name: (folder / name).read_bytes() for name in subject.files}
    faults = []
    for case in range(subject.cases):
        draw = random.Random(f"{subject.name} {case}")
        name = sorted(subject.files)[case % len(subject.files)]
        said = draw.choice(subject.files[name])(folder / name, draw)
        changed = seen(tmp_path, subject)
        fault = outcome(subject, folder, before)
        after = seen(tmp_path, subject)
        if fault is None and after != changed:
            paths = sorted(
                path for path in after.keys() | changed.keys() if after.get(path) != changed.get(path)
            )
            fault = f"these files changed: {paths[:5]}"
        if fault:
            faults.append(f"case {case}, {name}: {said}\n{fault}")
        if subject.inside:
            shutil.rmtree(folder)
            shutil.copytree(tmp_path / "valid", folder)
            continue
        for damaged in folder.glob("damaged-*"):
            damaged.rename(folder / damaged.name.removeprefix("damaged-"))
        restore(folder / name, contents[name])
    assert not faults, f"{len(faults)} of {subject.cases}\n" + "\n\n".join(faults[:20])
