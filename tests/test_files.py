"""Files of users and of others: what is written through, what is refused, what is cleaned up."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ofa_jax.errors import CheckpointError, OfaError
from ofa_jax.files import (
    atomic_folder,
    check_output,
    check_regular,
    clear_leftovers,
    find_damage,
    is_leftover,
    is_there,
    read_json,
    write_atomic,
    write_output,
)
from ofa_jax.tensors import open_tensors
from ofa_jax.train.events import EventLog, read_events


def test_an_output_that_is_a_pipe_is_written_through(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    write_output(pipe, "a,b\n1,2\n")
    reader.join(timeout=30)
    assert found == [b"a,b\n1,2\n"]
    assert pipe.is_fifo()


def test_an_output_that_is_a_device_stays_one():
    write_output("/dev/null", "nothing")
    assert Path("/dev/null").is_char_device()


def test_standard_output_is_a_stream(capfdbinary):
    write_output("-", "a\n")
    write_output("/dev/stdout", b"b\n")
    assert capfdbinary.readouterr().out == b"a\nb\n"


def test_an_output_that_is_a_link_stays_one(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write_output(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_an_output_is_checked_before_any_work(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    (tmp_path / "link").symlink_to("file")
    os.link(file, tmp_path / "hard")
    for name in ("file", "link", "hard", "x/../file"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(OfaError, match="would be overwritten"):
            check_output(tmp_path / name, inputs=[file])
    with pytest.raises(OfaError, match="is a folder"):
        check_output(tmp_path)
    with pytest.raises(OfaError, match="is a file, not a folder"):
        check_output(file / "x" / "y.csv")
    check_output("-", inputs=[file])
    check_output(tmp_path / "other", inputs=[file])


def test_a_path_that_the_system_refuses_is_an_error_of_ours(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for path, reason in (
        (tmp_path / ("n" * 300), "File name too long"),
        (tmp_path / "loop", "symbolic links"),
    ):
        for look in (is_there, check_regular, check_output):
            with pytest.raises(OfaError, match=reason):
                look(path)
    assert not is_there(tmp_path / "absent")
    assert not is_there(tmp_path / "a\0b")
    with pytest.raises(CheckpointError, match="is a folder, not a file"):
        read_events(tmp_path)


def test_only_leftovers_with_our_mark_are_removed(tmp_path):
    foreign = {".config.yaml.swp", ".config.yaml.old", ".config.yaml.abc123", ".config.yaml~"}
    for name in foreign:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".trunk.old").mkdir()
    (tmp_path / ".config.yaml.x.ofa-tmp").write_text("half")
    (tmp_path / ".trunk.x.ofa-tmp").mkdir()
    for name in ("config.yaml", "trunk"):
        clear_leftovers(tmp_path / name)
    with atomic_folder(tmp_path / "trunk") as scratch:
        (scratch / "a").write_text("a")
    assert {entry.name for entry in tmp_path.iterdir()} == foreign | {".trunk.old", "trunk"}


def test_what_a_killed_writer_leaves_has_our_mark(tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "b") as scratch:
        names = [scratch.name]
    monkeypatch.setattr(os, "replace", lambda source, target: names.append(Path(source).name))
    write_atomic(tmp_path / "a", "a")
    assert all(is_leftover(name, of) for name, of in zip(names, "ba", strict=True))


def test_a_link_in_place_of_a_log_is_refused(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("one\ntwo")
    log = tmp_path / "metrics.jsonl"
    log.symlink_to(mine)
    with pytest.raises(CheckpointError, match="is a symbolic link"):
        EventLog(log)
    assert mine.read_text() == "one\ntwo"


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path, kind):
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=f"is a {kind}, not a file"):
        read_json(path, kind="bundle")
    with pytest.raises(CheckpointError, match=f"is a {kind}, not a file"), open_tensors(path):
        pass
    with pytest.raises(CheckpointError, match=f"is a {kind}, not a file"):
        read_events(path)
    assert find_damage(tmp_path, {"file": "0" * 64}) == "file is not a file"
