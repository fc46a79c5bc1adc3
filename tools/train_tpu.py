"""Train one run on all devices of a TPU VM, of all VMs of a slice, or of GPU nodes. docs/tpu.md is a complete
guide.

Start the same command on every machine; the processes find each other, and process 0 keeps the run folder or
its copy in a bucket. :func:`ofa_jax.runs.train.train_run` trains, as on one machine.

Exit status:

====  ================================================================================================
0     trained to the end
2     refused: a mistake in settings, data or folder, which a restart does not fix
75    stopped by SIGTERM after saving (EX_TEMPFAIL); restart all processes to resume
130   stopped by Ctrl-C after saving
else  another process or machine was lost (1, or 134 if jax noticed it first); restart all processes
====  ================================================================================================
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, NoReturn

import jax
import typer

from ofa_jax.adapters.bundle import META_FILE
from ofa_jax.cli.options import Sets, interrupted, message
from ofa_jax.cli.show import training_summary
from ofa_jax.config.load import load_experiment
from ofa_jax.config.schema import Experiment
from ofa_jax.errors import ConfigError, Interrupted, OfaError
from ofa_jax.runs.folder import BUNDLE, CHECKPOINTS, CONFIG_FILE, METRICS_FILE
from ofa_jax.runs.train import train_run
from ofa_jax.train.checkpoints import RECORD
from ofa_jax.train.fit import FitResult
from ofa_jax.train.processes import PeerLost, connect, is_main_process, raise_together
from ofa_jax.train.progress import ConsoleReporter

RESTART = os.EX_TEMPFAIL
"""Exit status that asks for a restart."""

FAREWELL = 10
"""Seconds to wait at the end for the other processes, which depend on process 0."""


def main(
    config: Annotated[str, typer.Option(help="YAML file of settings, or the name of an installed one.")],
    out: Annotated[
        str, typer.Option(help="Run folder to create or resume, or its URL (gs://BUCKET/RUN, s3://…).")
    ],
    overrides: Sets = None,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0, if jax cannot find it.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(help="Number of processes; without --coordinator: number that must be found."),
    ] = None,
    process_id: Annotated[int | None, typer.Option(help="Number of this process, from 0.")] = None,
    heartbeat: Annotated[
        int, typer.Option(help="Seconds of silence after which a process counts as lost.")
    ] = 100,
) -> None:
    """Train one run on all devices of all machines that start this command."""
    signal.signal(
        signal.SIGTERM, lambda number, frame: os._exit(RESTART)
    )  # before training there is nothing to save
    try:
        experiment = load_experiment(config, overrides or ())
        connect(coordinator, processes, process_id, heartbeat=heartbeat)
        result = train(experiment, out)
    except PeerLost as error:
        leave(1, f"error: {error}", wait=False)
    except OfaError as error:
        leave(2, f"error: {message(error)}")
    except Interrupted as stop:
        code = RESTART if stop.signal_number == signal.SIGTERM else 128 + stop.signal_number
        leave(code, interrupted(stop))
    except Exception:
        leave(1, traceback.format_exc(), wait=False)
    if is_main_process():
        print(training_summary(result, experiment.protocol))
        print(f"bundle: {out.rstrip('/')}/{BUNDLE}")
    leave(0)


def train(experiment: Experiment, out: str) -> FitResult:
    """Train in a folder, or in a temporary one that is mirrored to a URL."""
    with ConsoleReporter() as reporter, ExitStack() as stack:
        if is_main_process():
            kind, number = jax.devices()[0].device_kind, jax.device_count()
            devices = f"{jax.process_count()} processes, {number} devices ({kind})"
            reporter.notice(f"{devices}, parallel {experiment.train.parallel}")
        if "://" not in out:
            return train_run(experiment, out, reporter)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ofa-jax-"))) / "run"
        saved: Callable[[], None] | None = None
        with raise_together("fetching the run"):
            if is_main_process():
                mirror = Mirror(out, folder)
                mirror.fetch()
                saved = mirror.push
        return train_run(experiment, folder, reporter, saved=saved)


class Mirror:
    """A copy of a run folder at a URL; :meth:`fetch` brings only complete parts, whenever :meth:`push` was
    interrupted.

    A checkpoint, and the bundle, is a folder with a record of its files. The record is deleted first and
    written last, and a folder without one does not count.

    Args:
        url: Any that fsspec supports; the extra ``tpu`` installs what ``gs://`` needs.
        folder: The run folder on this machine.

    Raises:
        ConfigError: fsspec does not support the URL, or lacks a package for it.
    """

    def __init__(self, url: str, folder: Path) -> None:
        import fsspec

        options: dict[str, Any] = {"auto_mkdir": True} if url.startswith("file:") else {}
        try:
            self._remote, root = fsspec.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"this URL cannot be used ({error})", where=url, fix="Install the package named"
            ) from None
        self._root, self._folder = str(root).rstrip("/"), folder

    def fetch(self) -> None:
        """Download complete parts into the folder, which is new or empty."""
        there = self._there()
        kept = [name for name in there if name in (CONFIG_FILE, METRICS_FILE)]
        for place in _parts(there):
            if _record(place) in there:
                kept += [name for name in there if name.startswith(f"{place}/")]
        for name in kept:
            target = self._folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self._remote.get_file(f"{self._root}/{name}", str(target))

    def push(self) -> None:
        """Upload what is new; checkpoints last, because a resume needs everything before them."""
        there = self._there()
        here = sorted(
            path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*") if path.is_file()
        )
        for name in (CONFIG_FILE, METRICS_FILE):
            if name in here:
                self._put(name)
        parts = [place for place in _parts(here) if _record(place) in here]
        for place in parts:
            self._push_part(place, [name for name in here if name.startswith(f"{place}/")], there)
        for place in _parts(there):
            if place not in parts:
                self._delete_part(place, there)

    def _push_part(self, place: str, here: list[str], there: list[str]) -> None:
        record = _record(place)
        if (
            record in there
            and self._remote.cat_file(f"{self._root}/{record}") == (self._folder / record).read_bytes()
        ):
            return
        self._delete_part(place, there)
        for name in sorted(here, key=lambda name: name == record):
            self._put(name)

    def _delete_part(self, place: str, there: list[str]) -> None:
        if _record(place) in there:
            self._remote.rm_file(f"{self._root}/{_record(place)}")
        if any(name.startswith(f"{place}/") and name != _record(place) for name in there):
            self._remote.rm(f"{self._root}/{place}", recursive=True)

    def _put(self, name: str) -> None:
        self._remote.put_file(str(self._folder / name), f"{self._root}/{name}")

    def _there(self) -> list[str]:
        self._remote.invalidate_cache()
        return sorted(str(path).removeprefix(f"{self._root}/") for path in self._remote.find(self._root))


def _parts(names: list[str]) -> list[str]:
    """The folders that count only when complete, the bundle before the checkpoints."""
    bundle = {BUNDLE for name in names if name.startswith(f"{BUNDLE}/")}
    steps = {
        step
        for name in names
        if name.startswith(f"{CHECKPOINTS}/") and (step := name.split("/")[1]).isdigit()
    }
    return [*bundle, *(f"{CHECKPOINTS}/{step}" for step in sorted(steps, key=int))]


def _record(place: str) -> str:
    return f"{place}/{META_FILE if place == BUNDLE else RECORD}"


def leave(code: int, message: str = "", *, wait: bool = True) -> NoReturn:
    """End this process now; with ``wait``, give the others a short while to end first."""
    if message:
        print(message, file=sys.stderr)
    if wait and jax.distributed.is_initialized():
        farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        farewell.start()
        farewell.join(FAREWELL)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Python's own exit would wait minutes for processes that may be lost


if __name__ == "__main__":
    typer.run(main)
