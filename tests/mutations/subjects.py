"""Every kind of file that the package reads: how to make a valid one, what reads it, what must come out."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from changes import (
    Change,
    change_bytes,
    change_cell,
    change_json,
    change_lines,
    change_tensors,
    change_type,
    change_yaml,
    change_zip,
    cut_short,
)
from plain import cells, leaves, number, plain, tensors, text_lines, timestamp, yaml_texts, yaml_value

from ofa_jax.errors import OfaError

V1 = Path(__file__).parents[1] / "golden" / "v1"
TABLE = V1 / "data" / "table.csv"
Changes = dict[str, tuple[Change, ...]]
BYTES: tuple[Change, ...] = (change_bytes, change_bytes, cut_short, change_type)
TENSORS = (*BYTES, change_tensors, change_tensors)
JSON, YAML = (*BYTES, change_json, change_json), (*BYTES, change_yaml, change_yaml)
TEXT = (*BYTES, change_cell, change_cell, change_lines)


@dataclass(frozen=True)
class Subject:
    """Files and their reader.

    Attributes:
        name: Of the test.
        make: Writes valid files into an empty folder.
        read: What the package makes of them.
        files: The files that are changed, and how.
        corresponds: Whether a result that differs from that of the valid files, which comes second, is what
            the changed files say; None where digests protect them, so that there can be no such result.
        inside: A folder in which the reader may write; it is made again for every case.
        cases: How many changes there are.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: Changes
    corresponds: Callable[[Path, Any, Any], bool] | None = None
    inside: str | None = None
    cases: int = 200


def copied(source: Path) -> Callable[[Path], None]:
    return lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True) and None


def read_bundle(folder: Path) -> Any:
    from ofa_jax.adapters.bundle import read_bundle

    found = read_bundle(folder)
    return found.adapters, found.trained, found.record


def load_bundle(folder: Path) -> Any:
    """Settings, scaler and every parameter; trunk and network are built."""
    from ofa_jax.config.load import dump_experiment
    from ofa_jax.runs.bundle import load_bundle

    found = load_bundle(folder)
    flat = leaves(found.model.trainable), leaves(found.model.frozen)
    return dump_experiment(found.experiment), found.scaler, flat, found.record


def write_signed(folder: Path) -> None:
    """A bundle in the newest format."""
    from ofa_jax.runs.bundle import BundleWriter
    from ofa_jax.runs.train import open_run
    from ofa_jax.train.lanes import Progress

    loaded, data = open_run(V1 / "forecast" / "run", source=str(TABLE))
    progress = Progress(best_epoch=1, best_metrics={"mse": 0.5, "mae": 0.5})
    BundleWriter(folder, loaded.experiment, loaded.model, data)(loaded.model.trainable, progress)


def sign_bundle(content: dict[str, Any]) -> None:
    content.pop("sha256", None)
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def bundle_says(folder: Path, found: Any, before: Any) -> bool:
    """Whether a bundle with an edited, signed record gives exactly what the record says."""
    settings, scaler, parameters, record = found
    said = json.loads((folder / "ofa.json").read_text())
    given, experiment = leaves(said["settings"]), leaves(settings)
    recorded, written = leaves(record), leaves(said)
    return (
        parameters == before[2]
        and all(agrees(experiment[name], value) for name, value in given.items())
        and all(plain(written.get(name, value)) == value for name, value in recorded.items())
        and scaler["mean"] == plain(np.array(said["scaler"]["mean"], float))
        and scaler["std"] == plain(np.array(said["scaler"]["std"], float))
        and list(scaler["names"]) == said["scaler"]["names"]
    )


def agrees(value: Any, written: Any) -> bool:
    """Whether a setting has the value that is written in a file, perhaps as text."""
    if isinstance(value, tuple | list) or isinstance(written, list):
        return len(value) == len(written) and all(map(agrees, value, written))
    return value == written or value in yaml_value(str(written))


def read_run(folder: Path) -> Any:
    """The settings, events and bundle of a run."""
    from ofa_jax.adapters.bundle import read_bundle
    from ofa_jax.config.load import dump_experiment
    from ofa_jax.runs.folder import is_finished, read_config
    from ofa_jax.train.events import read_events

    experiment, made = read_config(folder)
    is_finished(folder)
    return (
        dump_experiment(experiment),
        made,
        read_events(folder / "metrics.jsonl"),
        read_bundle(folder / "bundle").record,
    )


def run_says(folder: Path, found: Any, before: Any) -> bool:
    """Whether settings and events are those of the changed files."""
    settings, made, events, bundle = found
    said = yaml_texts(folder / "config.yaml")
    recorded = said.pop("provenance")
    return (
        bundle == before[3]
        and settings_say(said, settings)
        and all(str(made[name]) == value for name, value in recorded.items() if name.endswith("sha256"))
        and events_say(folder / "metrics.jsonl", events)
    )


def settings_say(said: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether every setting of a file is what the file says, and the file says it."""
    experiment = leaves(settings)
    old = {"train.lowest_rate": "train.min_learning_rate"}

    for name, text in leaves(said).items():
        name = old.get(name, name)
        if name not in experiment:
            continue  # a field of format 1 that its task does not have
        if not agrees(experiment[name], text):
            return False
    return True


def events_say(path: Path, events: tuple[dict[str, Any], ...]) -> bool:
    """Whether events are those of a log's whole lines, or of the first ones."""
    lines = path.read_bytes().split(b"\n")[: len(events)] if path.exists() else []
    said = [json.loads(line) for line in lines]
    return len(said) == len(events) and all(
        plain(event[name]) == plain(line[name])
        for event, line in zip(events, said, strict=True)
        for name in event.keys() & line.keys()
    )


def read_settings(folder: Path) -> Any:
    from ofa_jax.config.load import dump_experiment, load_experiment

    return dump_experiment(load_experiment(folder / "settings.yaml"))


def settings_file(folder: Path) -> None:
    text = (V1 / "forecast" / "run" / "config.yaml").read_text().split("data:\n", 1)[1]
    content = yaml.safe_load(f"data:\n{text}")
    del content["train"]["lowest_rate"]
    content["task"] = {name: content["task"][name] for name in ("name", "input_length", "horizon")}
    (folder / "settings.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def settings_file_says(folder: Path, found: Any, before: Any) -> bool:
    return settings_say(yaml_texts(folder / "settings.yaml"), found)


def write_checkpoints(folder: Path) -> None:
    """A checkpoint of format 1 at step 10, one of the newest format at step 20."""
    from ofa_jax.train.checkpoints import Checkpoints

    shutil.copytree(V1 / "interrupted" / "run" / "checkpoints", folder, dirs_exist_ok=True)
    found = Checkpoints(folder).restore(_like())
    assert found is not None
    Checkpoints(folder).save(20, found.arrays, found.meta)


def _like() -> dict[str, Any]:
    import jax

    record = V1 / "interrupted" / "run" / "checkpoints" / "10" / "checkpoint.json"
    saved = json.loads(record.read_text())["leaves"]
    return {leaf["path"]: jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"]) for leaf in saved}


def read_checkpoint(folder: Path) -> Any:
    """Arrays and meta; both checkpoints have the same."""
    from ofa_jax.train.checkpoints import Checkpoints

    found = Checkpoints(folder).restore(_like())
    return None if found is None else (found.arrays, found.meta)


def meta_says(folder: Path, found: Any, before: Any) -> bool:
    """Whether the arrays are the same and the meta is that of a changed and signed record."""
    said = json.loads((folder / "20" / "checkpoint.json").read_text())
    signed = dict(said)
    sign_checkpoint(signed)
    return signed == said and found[0] == before[0] and found[1] == plain(said["meta"])


def sign_checkpoint(content: dict[str, Any]) -> None:
    content.pop("digest", None)
    content["digest"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_trunk(folder: Path, *, kind: str) -> None:
    """A trunk of one block: converted, as Hugging Face stores it, or in two shards."""
    from safetensors.numpy import load_file, save_file

    from ofa_jax.model.convert import save_trunk
    from ofa_jax.model.gpt2 import GPT2Config
    from ofa_jax.model.weights import random_trunk

    save_trunk(random_trunk(GPT2Config(n_embd=4, n_head=2, n_layer=1, n_positions=3), 0), folder)
    if kind != "converted":
        (folder / "trunk.json").unlink()
    if kind == "shards":
        stored = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        of = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(stored)}
        for shard in set(of.values()):
            save_file({name: stored[name] for name in stored if of[name] == shard}, folder / shard)
        index = {"metadata": {"total_size": 1}, "weight_map": of}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def read_trunk(folder: Path) -> Any:
    from ofa_jax.model.weights import load_trunk

    found = load_trunk(folder)
    return found.config, leaves(found.params), found.dropped


def trunk_says(folder: Path, found: Any, before: Any) -> bool:
    config, parameters, _ = found
    said = json.loads((folder / "config.json").read_text())
    names = {"n_embd": "hidden_size", "n_positions": "max_position_embeddings"}
    names |= {"n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}
    default = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "n_inner": None}
    default |= {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True}
    default |= {"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1}
    default |= {"scale_attn_by_inverse_layer_idx": False}
    for name, value in config.items():
        if value != said.get(name, said.get(names.get(name, ""), default[name])):
            return False
    stored: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        stored |= tensors(path)
    by_bits = sorted(plain(array) for array in stored.values())
    return all(parameter in by_bits for parameter in parameters.values())


def read_peft(folder: Path) -> Any:
    from ofa_jax.adapters.peft import read_peft

    adapters, targets, lora = read_peft(folder)
    return adapters, targets, lora


def peft_says(folder: Path, found: Any, before: Any) -> bool:
    adapters, _, lora = found
    said = json.loads((folder / "adapter_config.json").read_text())
    stored = [
        plain(np.ascontiguousarray(array.T))
        for array in tensors(folder / "adapter_model.safetensors").values()
    ]
    return (
        lora["rank"] == said.get("r", 8)
        and lora["alpha"] == said.get("lora_alpha", 8)
        and lora["dropout"] == said.get("lora_dropout", 0.0)
        and (lora["scaling"] == "rslora") is said.get("use_rslora", False)
        and all(factor in stored for pair in adapters.values() for factor in pair.values())
    )


def read_sweep(folder: Path) -> Any:
    from ofa_jax.studies.sweep.folder import read_sweep

    return read_sweep(folder).record


def sweep_says(folder: Path, found: Any, before: Any) -> bool:
    said = json.loads((folder / "sweep.json").read_text())
    return all(
        name == "settings" or plain(value) == plain(said.get(name, value)) for name, value in found.items()
    )


def read_baseline(folder: Path) -> Any:
    from ofa_jax.baselines.trained import load_or_train, trained_baselines
    from ofa_jax.train.progress import SilentReporter

    experiment, data = _forecast()
    [baseline] = trained_baselines(experiment, data, only=("nlinear",))
    return load_or_train(baseline, data, folder, SilentReporter())[2]


_cached: list[Any] = []


def _forecast() -> Any:
    """Experiment and data of the forecaster, read once."""
    if not _cached:
        from ofa_jax.runs.train import open_run

        loaded, data = open_run(V1 / "forecast" / "run", source=str(TABLE))
        _cached.extend((loaded.experiment, data))
    return _cached


def write_baseline(folder: Path) -> None:
    shutil.copytree(V1 / "forecast" / "run" / "controls", folder, dirs_exist_ok=True)
    (folder / ".lock").touch()


def write_table(folder: Path, *, kind: str) -> None:
    import pandas as pd

    text = "\n".join(TABLE.read_text().splitlines()[:41]) + "\n"
    if kind == "csv":
        (folder / "table.csv").write_text(text)
    elif kind == "tsv":
        (folder / "table.csv").write_text(text.replace(",", "\t"))
    elif kind == "csv.gz":
        (folder / "table.csv.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        (folder / "table.csv").write_text(text)
        frame = pd.read_csv(folder / "table.csv", parse_dates=["date"])
        (folder / "table.csv").unlink()
        frame.to_parquet(folder / "table.parquet", index=False)


def read_table(folder: Path, *, name: str) -> Any:
    from ofa_jax.data.frames import read_frame

    frame = read_frame(folder / name)
    return frame.names, frame.timestamps, frame.values, frame.frequency, frame.observed


def table_says(folder: Path, found: Any, before: Any, *, name: str) -> bool:
    """Whether names, times and every number are those of the cells."""
    header, *rows = cells(folder / name)
    names, times, values, _, observed = found
    comments = [row for row in (header, *rows) if row[0].startswith("#")]
    rows = [row for row in rows if row not in comments]
    if observed is not None or len(rows) != values[1][0]:
        return False
    read = np.frombuffer(values[2]).reshape(values[1])
    for index, title in enumerate(header):
        column = [row[index] for row in rows]
        if title in names:
            if [number(cell) for cell in column] != read[:, names.index(title)].tolist():
                return False
        elif times is None or [timestamp(cell) for cell in column] != list(np.frombuffer(times[2], times[0])):
            return False
    return True


def parquet_says(folder: Path, found: Any, before: Any) -> bool:
    """Whether pyarrow reads the same numbers: a page of Parquet has no checksum by default."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "table.parquet")
    names, _, values, _, _ = found
    read = np.frombuffer(values[2]).reshape(values[1])
    return all(
        np.array_equal(table.column(name).to_numpy().astype(float), read[:, index])
        for index, name in enumerate(names)
    )


def read_collection(folder: Path) -> Any:
    from ofa_jax.data.archives import read_tsf

    found = read_tsf(folder / "source.tsf")
    return found.names, found.values, found.horizon, found.frequency, found.observed


def collection_says(folder: Path, found: Any, before: Any) -> bool:
    names, values, horizon, frequency, observed = found
    lines = text_lines(folder / "source.tsf")
    start = next(index for index, line in enumerate(lines) if line.lower() == "@data")
    head = {line.split()[0].lower(): line.split()[1:] for line in lines[:start] if line.startswith("@")}
    series = [line for line in lines[start + 1 :] if not line.startswith("#")]
    said = [[float(cell) for cell in line.split(":")[-1].split(",")] for line in series]
    return (
        observed is None
        and [line.split(":")[0].strip() for line in series] == list(names)
        and [plain(np.array(one)) for one in said] == list(values)
        and [horizon] == ([int(word) for word in head.get("@horizon", [])] or [None])
        and [frequency] == head.get("@frequency", [None])
    )


def read_cases(folder: Path) -> Any:
    from ofa_jax.data.archives import read_ts

    found = read_ts(folder / "Tiny_TEST.ts")
    return found.cases, found.labels, found.classes, found.observed


def cases_say(folder: Path, found: Any, before: Any) -> bool:
    cases, labels, classes, observed = found
    lines = text_lines(folder / "Tiny_TEST.ts")
    start = next(index for index, line in enumerate(lines) if line.lower() == "@data")
    [named] = [line.split()[2:] for line in lines[:start] if line.lower().startswith("@classlabel")]
    rows = [line.split(":") for line in lines[start + 1 :] if not line.startswith("#")]
    said = [np.array([[float(cell) for cell in part.split(",")] for part in row[:-1]]).T for row in rows]
    return (
        observed is None
        and [plain(case) for case in said] == list(cases)
        and [row[-1].strip() for row in rows] == list(labels)
        and named == list(classes)
    )


def read_stream(folder: Path) -> Any:
    from ofa_jax.data.archives import read_stream

    found = read_stream(folder / "stream.npz")
    return found.train, found.test, found.test_label, found.segments, found.train_borders, found.test_borders


def change_arrays(path: Path, draw: random.Random) -> str:
    """Another array, type, shape or value in an npz."""
    with np.load(path) as stored:
        arrays = dict(stored)
    name = draw.choice(sorted(arrays))
    array = arrays[name]
    odd: dict[str, Callable[[], Any]] = {
        "empty": lambda: array[:0],
        "shorter": lambda: array[:-1],
        "flat": lambda: array.ravel(),
        "deep": lambda: array[None, None],
        "number": lambda: array.ravel()[0],
        "text": lambda: array.astype(str),
        "bytes": lambda: array.astype("S8"),
        "complex": lambda: np.full(array.shape, 1j),
        "object": lambda: array.astype(object),
        "half": lambda: (array if array.dtype.kind in "fiu" else np.zeros(3)).astype(np.float16),
        "big-endian": lambda: array.astype(array.dtype.newbyteorder(">")),
        "columns first": lambda: np.asfortranarray(array),
        "record": lambda: np.zeros(4, [("a", float), ("b", int)]),
        "time": lambda: np.zeros(array.shape, "datetime64[s]"),
        "NaN": lambda: np.full(array.shape, np.nan),
        "infinite": lambda: np.full(array.shape, np.inf),
        "huge": lambda: np.full(array.shape, 1e300),
        "negative": lambda: -np.ones(array.shape, np.int64),
        "unsigned": lambda: np.full(array.shape, 2**64 - 1, np.uint64),
        "bool": lambda: np.ones(array.shape, bool),
    }
    kind = draw.choice([*odd, "drop", "rename", "extra"])
    value = arrays.pop(name) if kind in ("drop", "rename") else array
    if kind == "rename":
        arrays[draw.choice(("Train", "a/b", "../x", "file", "train.npy"))] = value
    elif kind == "extra":
        arrays["more"] = value
    elif kind in odd:
        arrays[name] = odd[kind]()
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # stubs take the names for options
    return f"{name}: {kind}"


def stream_says(folder: Path, found: Any, before: Any) -> bool:
    with np.load(folder / "stream.npz") as stored:
        arrays = dict(stored)
    return (
        found[0] == plain(arrays["train"].astype(float))
        and found[1] == plain(arrays["test"].astype(float))
        and found[2] == plain(arrays["test_label"].astype(bool))
        and ("channels" not in arrays or list(found[3]) == arrays["channels"].tolist())
    )


def write_m4(folder: Path) -> None:
    rows = [[f"W{n}", *(f"{10 * n + step}.5" for step in range(4 + n))] for n in range(1, 6)]
    width = max(map(len, rows))
    header = ",".join(f'"V{index}"' for index in range(1, width + 1))
    lines = [",".join((f'"{name}"', *values, *[""] * (width - 1 - len(values)))) for name, *values in rows]
    (folder / "Weekly-train.csv").write_text("\n".join([header, *lines]) + "\n")


def read_m4(folder: Path) -> Any:
    from ofa_jax.data.archives import read_m4_part

    found = read_m4_part(folder / "Weekly-train.csv")
    return found.names, found.values


def m4_says(folder: Path, found: Any, before: Any) -> bool:
    rows = [line.replace('"', "").split(",") for line in text_lines(folder / "Weekly-train.csv")[1:]]
    said = [[float(cell) for cell in row[1:] if cell.strip() not in ("", "NA")] for row in rows]
    names = tuple(row[0].strip() for row in rows)
    return (names, tuple(plain(np.array(one)) for one in said)) == found


def resume(folder: Path) -> Any:
    """The end of a run that was stopped at step 10, and its log without clocks."""
    from ofa_jax.config.load import load_experiment
    from ofa_jax.files import read_tensors
    from ofa_jax.runs.train import train_run
    from ofa_jax.train.events import CLOCK_FIELDS, read_events
    from ofa_jax.train.progress import SilentReporter

    run = folder / "run"
    given = load_experiment(V1 / "interrupted" / "run" / "config.yaml", [f"data.source={TABLE}"])
    train_run(given, run, SilentReporter())
    events = read_events(run / "metrics.jsonl")
    log = [{name: event[name] for name in event if name not in CLOCK_FIELDS} for event in events]
    return read_tensors(run / "bundle" / "adapter_model.safetensors"), log


def same_end(folder: Path, found: Any, before: Any) -> bool:
    """Whether a run ended with the same bits; a log has no digest and says what was left in it."""
    return found[0] == before[0]


def csv_of_run(folder: Path) -> None:
    shutil.copy(TABLE, folder / "table.csv")


def open_moved(folder: Path) -> Any:
    """A run opened with the data in the folder, which must be those of training."""
    from ofa_jax.runs.train import open_run

    loaded, data = open_run(V1 / "forecast" / "run", source=str(folder / "table.csv"))
    return leaves(loaded.model.trainable), data.fingerprint


def command(*arguments: object) -> str:
    """What a command of the console prints; an OfaError where it ends with one paragraph and exit code 2."""
    from ofa_jax.cli.main import main

    out, error, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["ofa-jax", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            main()
        code: Any = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    if code == 2 and error.getvalue().startswith("error: "):
        raise OfaError(error.getvalue().strip())
    assert not code, f"exit code {code}: {error.getvalue()}"
    return out.getvalue()


def predict(folder: Path) -> Any:
    """Columns, number of rows and finiteness of the forecast that the command writes."""
    with tempfile.TemporaryDirectory() as place:
        output = Path(place, "forecast.csv")
        try:
            command("predict", V1 / "forecast" / "run", "--input", folder / "table.csv", "--output", output)
        except OfaError:
            assert not os.listdir(place), "something was written before the error"
            raise
        header, *rows = output.read_text().splitlines()
    numbers = [[float(cell) for cell in row.split(",")[1:]] for row in rows]
    return header.split(","), len(rows), bool(np.isfinite(numbers).all())


def count(folder: Path) -> Any:
    return command("params", folder / "settings.yaml", "--json")


def one_paragraph(folder: Path, found: Any, before: Any) -> bool:
    """What is printed of changed files is not compared: their readers have their own subjects."""
    return found.count("\n") in (before.count("\n"), before.count("\n") + 2)


def forecast_fits(folder: Path, found: Any, before: Any) -> bool:
    """Whether a forecast of another table has the form of the first; its numbers are the network's."""
    return found[1:] == before[1:]


def subjects() -> list[Subject]:
    """All of them."""
    adapter: Changes = {"adapter_model.safetensors": TENSORS, "adapter_config.json": JSON}
    signed: Changes = {"ofa.json": (partial(change_json, sign=sign_bundle),)}
    trunk: Changes = {"config.json": JSON, "model.safetensors": TENSORS}
    shards: Changes = {"model-00001-of-00002.safetensors": TENSORS, "model.safetensors.index.json": JSON}
    baseline: Changes = {"nlinear/control.json": JSON, "nlinear/weights.safetensors": TENSORS}
    arrays = "20/arrays"
    checkpoint: Changes = {
        "20/checkpoint.json": (*JSON, partial(change_json, sign=sign_checkpoint)),
        f"{arrays}/_METADATA": BYTES,
        f"{arrays}/manifest.ocdbt": BYTES,
    }
    run: Changes = {"config.yaml": YAML, "metrics.jsonl": JSON, "bundle/ofa.json": BYTES}
    stopped: Changes = {f"run/{name}": changes for name, changes in run.items()}
    stopped["run/checkpoints/10/checkpoint.json"] = JSON
    old = copied(V1 / "short_term" / "run" / "bundle")
    hub, several = partial(write_trunk, kind="hub"), partial(write_trunk, kind="shards")
    csv, table = partial(write_table, kind="csv"), partial(read_table, name="table.csv")
    table_is = partial(table_says, name="table.csv")
    packed, packed_is = partial(read_table, name="table.csv.gz"), partial(table_says, name="table.csv.gz")
    columns, stream = (
        partial(read_table, name="table.parquet"),
        (*BYTES, change_zip, change_zip, change_arrays),
    )
    data = copied(V1 / "data")
    check = lambda name: lambda folder: command("data", "check", folder / name)  # noqa: E731
    return [
        Subject(
            "old_bundle",
            old,
            read_bundle,
            {**adapter, "trained.safetensors": TENSORS, "ofa.json": JSON},
            cases=500,
        ),
        Subject("bundle", write_signed, load_bundle, {**adapter, "ofa.json": JSON}, cases=400),
        Subject("signed_bundle", write_signed, load_bundle, signed, bundle_says, cases=500),
        Subject("run", copied(V1 / "forecast" / "run"), read_run, run, run_says, cases=500),
        Subject("stopped_run", copied(V1 / "interrupted"), resume, stopped, same_end, inside="run", cases=40),
        Subject("data_of_a_run", csv_of_run, open_moved, {"table.csv": TEXT}, cases=150),
        Subject(
            "settings", settings_file, read_settings, {"settings.yaml": YAML}, settings_file_says, cases=500
        ),
        Subject("checkpoint", write_checkpoints, read_checkpoint, checkpoint, meta_says, cases=300),
        Subject(
            "trunk",
            partial(write_trunk, kind="converted"),
            read_trunk,
            {**trunk, "trunk.json": JSON},
            cases=300,
        ),
        Subject("hub_trunk", hub, read_trunk, trunk, trunk_says, cases=400),
        Subject("shards", several, read_trunk, {"config.json": JSON, **shards}, trunk_says, cases=300),
        Subject("peft", copied(V1 / "forecast" / "run" / "bundle"), read_peft, adapter, peft_says, cases=400),
        Subject(
            "sweep", copied(V1 / "sweep" / "run"), read_sweep, {"sweep.json": JSON}, sweep_says, cases=250
        ),
        Subject("baseline", write_baseline, read_baseline, baseline, cases=200),
        Subject("csv", csv, table, {"table.csv": TEXT}, table_is, cases=500),
        Subject("tsv", partial(write_table, kind="tsv"), table, {"table.csv": TEXT}, table_is, cases=200),
        Subject(
            "csv_gz",
            partial(write_table, kind="csv.gz"),
            packed,
            {"table.csv.gz": BYTES},
            packed_is,
            cases=150,
        ),
        Subject(
            "parquet",
            partial(write_table, kind="parquet"),
            columns,
            {"table.parquet": BYTES},
            parquet_says,
            cases=300,
        ),
        Subject("tsf", data, read_collection, {"source.tsf": TEXT}, collection_says, cases=300),
        Subject(
            "ts", copied(V1 / "data" / "cases"), read_cases, {"Tiny_TEST.ts": TEXT}, cases_say, cases=300
        ),
        Subject("npz", data, read_stream, {"stream.npz": stream}, stream_says, cases=400),
        Subject("m4", write_m4, read_m4, {"Weekly-train.csv": TEXT}, m4_says, cases=200),
        Subject("predict", csv, predict, {"table.csv": TEXT}, forecast_fits, cases=150),
        Subject("check_csv", csv, check("table.csv"), {"table.csv": TEXT}, one_paragraph, cases=100),
        Subject("check_tsf", data, check("source.tsf"), {"source.tsf": TEXT}, one_paragraph, cases=100),
        Subject("params", settings_file, count, {"settings.yaml": YAML}, one_paragraph, cases=100),
    ]
