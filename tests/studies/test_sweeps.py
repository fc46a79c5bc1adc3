"""A sweep's cells are the runs that their settings describe, whatever padding, lanes and interruptions."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ofa_jax.baselines.compare import compare
from ofa_jax.build import build_model
from ofa_jax.cli.show import print_sweep
from ofa_jax.config.load import load_experiment
from ofa_jax.config.schema import Experiment
from ofa_jax.errors import CheckpointError, ConfigError, DataError, Interrupted, OfaError, TrainError
from ofa_jax.files import run_lock
from ofa_jax.model.trees import flatten
from ofa_jax.runs.bundle import load_bundle
from ofa_jax.runs.folder import resolved
from ofa_jax.runs.train import open_run, read_data, train_run
from ofa_jax.studies.sweep import folder as sweeps
from ofa_jax.studies.sweep.cells import Axes, adapters_at_once, cells_of, groups_of
from ofa_jax.studies.sweep.folder import read_sweep, run_sweep, summary
from ofa_jax.studies.sweep.program import SweepPrograms, bucket
from ofa_jax.tasks.base import Task
from ofa_jax.train import loop, memory
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.events import CLOCK_FIELDS, EventLog, read_events
from ofa_jax.train.fit import FitResult
from ofa_jax.train.lanes import Lane
from ofa_jax.train.loop import Trainer
from ofa_jax.train.program import Program
from ofa_jax.train.progress import SilentReporter

PLAIN = "trunk.dropout=0"  # compiles in half the time
DROPPING = ("adapters.dropout=0.2", PLAIN, "train.gradient_log=5")
AXES = Axes(
    ranks=(1, 4, 20), seeds=3
)  # two buckets; 20 is more than the head's 8 outputs and the trunk's width of 16

# Twenty-one steps of Adam turn a last digit into a part of a step where a gradient is near zero; a step is
# 0.01. Another batch order,
# another dropout key or another scale gives differences above 0.05.
CLOSE = {"rtol": 0, "atol": 1e-4}


class Listener(SilentReporter):
    """Keeps the notices, and after some chunks sends this process a signal or ends it as a kill would."""

    def __init__(self, *, stop_after: int | None = None, kill_after: int | None = None) -> None:
        self.notices: list[str] = []
        self.chunks, self.stop_after, self.kill_after = 0, stop_after, kill_after

    def advance(self, windows: int, loss: float) -> None:
        self.chunks += 1
        if self.chunks == self.stop_after:
            signal.raise_signal(signal.SIGTERM)
        if self.chunks == self.kill_after:
            raise Killed

    def notice(self, text: str) -> None:
        self.notices.append(text)


class Killed(BaseException):
    """Nothing of ours catches it: what is on the disk then is what a kill leaves."""


@pytest.fixture(scope="module")
def alone(
    tiny: Any, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, tuple[Path, FitResult]]:
    """Some cells of AXES as separate runs."""
    runs = {}
    for rank, seed in ((1, 1), (20, 2)):  # one padded to 4 columns, one with an idle lane
        settings = (f"adapters.rank={rank}", f"adapters.seed={seed}", f"train.seed={2021 + seed}", *DROPPING)
        folder = tmp_path_factory.mktemp("alone") / "run"
        runs[f"rank{rank}-seed{seed}"] = (
            folder,
            train_run(tiny.experiment(source, *settings), folder, SilentReporter()),
        )
    return runs


@pytest.fixture(scope="module", params=[pytest.param(lanes, marks=pytest.mark.slow) for lanes in (1, 2)])
def swept(
    request: pytest.FixtureRequest, tiny: Any, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """AXES, one adapter at a time, and two: three and two groups, of which the last has an idle lane."""
    out = tmp_path_factory.mktemp("swept") / "sweep"
    run_sweep(tiny.experiment(source, *DROPPING), AXES, out, SilentReporter(), at_once=request.param)
    return out


def events_of(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in event.items() if name not in CLOCK_FIELDS}
        for event in read_events(run / "metrics.jsonl")
    ]


def assert_same_tree(found: Any, wanted: Any, **tolerance: float) -> None:
    one, other = flatten(found), flatten(wanted)
    assert one.keys() == other.keys()
    for path in other:
        np.testing.assert_allclose(one[path], other[path], err_msg=path, **tolerance)


def test_cells_are_the_runs_of_their_settings(
    swept: Path, alone: Mapping[str, tuple[Path, FitResult]]
) -> None:
    table = read_sweep(swept).cells.set_index("cell")
    assert list(table.index) == [f"rank{rank}-seed{seed}" for rank in (1, 4, 20) for seed in (0, 1, 2)]
    for name, (run, result) in alone.items():
        cell = swept / "cells" / name
        assert (cell / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
        assert_same_tree(load_bundle(cell).model.trainable, result.best, **CLOSE)
        for ours, theirs in zip(events_of(cell), events_of(run), strict=True):
            ours, theirs = flatten(ours), flatten(theirs)
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                if isinstance(value, float):
                    # norms of small gradients, after steps of Adam that pass their rounding on
                    value = pytest.approx(value, rel=1e-3 if key.startswith("modules/") else 1e-4)
                assert ours[key] == value, key
        row, wanted = table.loc[name], result.progress
        assert (row["best_epoch"], row["epochs"], row["ended"]) == (wanted.best_epoch, 3, "all epochs done")
        assert row["validation_mse"] == pytest.approx(wanted.best_metrics["mse"], rel=1e-4)
        assert (
            row["bytes"]
            == 4 * row["trainable"]
            == 4 * sum(leaf.size for leaf in jax.tree.leaves(result.best))
        )


def test_the_table_holds_what_evaluate_says_of_the_bundle(swept: Path) -> None:
    sweep = read_sweep(swept)
    written = pd.read_csv(swept / "sweep.csv")
    pd.testing.assert_frame_equal(written, sweep.cells)
    assert list(written.columns) == [
        "rank",
        "alpha",
        "scaling",
        "init",
        "learning_rate",
        "seed",
        "trainable",
        "bytes",
        "best_epoch",
        "epochs",
        "validation_mse",
        "validation_mae",
        "test_mse",
        "test_mae",
        "cell",
        "ended",
    ]
    row = written.iloc[-1]
    loaded, data = open_run(swept / "cells" / row["cell"])
    found = compare(loaded, data, split="test", baselines=None, reporter=SilentReporter()).rows[0]
    assert found.trainable == row["trainable"]
    assert dict(found.metrics) == pytest.approx(
        {"mse": row["test_mse"], "mae": row["test_mae"]}, rel=1e-5
    )  # another batch size
    assert sorted(entry.name for entry in swept.iterdir()) == [
        ".lock",
        "accuracy_by_bytes.png",
        "accuracy_by_rank.png",
        "cells",
        "sweep.csv",
        "sweep.json",
    ]


def test_a_summary_is_over_the_seeds_that_have_numbers() -> None:
    same = {
        "alpha": 1.0,
        "scaling": "lora",
        "init": "theorem",
        "learning_rate": 0.1,
        "trainable": 5,
        "bytes": 20,
    }
    rows = [
        {"rank": rank, **same, "test_mse": value}
        for rank, value in ((4, 1.0), (4, 3.0), (2, 5.0), (2, float("nan")))
    ]
    found = summary(pd.DataFrame(rows))
    assert found["rank"].tolist() == [4, 2]
    assert found["seeds"].tolist() == [2, 1]
    assert found["test_mse"].tolist() == [2.0, 5.0]
    np.testing.assert_allclose(found["test_mse_std"], [2**0.5, np.nan])


def trainer_of(experiment: Experiment, axes: Axes, folder: Path, *, lanes: int, group: int = 0) -> Trainer:
    """A group of a sweep outside its own folder."""
    experiment = resolved(experiment)
    data, model = read_data(experiment), build_model(experiment)
    cells = cells_of(experiment, axes)
    chosen = groups_of(cells, dict.fromkeys(map(bucket, axes.ranks), lanes))[group]
    logs = [EventLog(None)] * len(chosen.cells)
    programs = SweepPrograms(model, data.task, experiment.train)
    return programs.trainer(chosen, logs, Checkpoints(folder), SilentReporter())


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", pytest.param("radam", marks=pytest.mark.slow)])
def test_padding_never_moves(tiny: Any, source: Path, tmp_path: Path, optimizer: str) -> None:
    """Eight steps, of which rectified Adam rectifies from the sixth on, with dropout and clipping."""
    experiment = tiny.experiment(
        source, *DROPPING, f"train.optimizer={optimizer}", "train.clip_norm=0.1", "train.chunk=7"
    )
    trainer = trainer_of(experiment, Axes(ranks=(3, 11)), tmp_path, lanes=2)
    before = jax.tree.map(np.array, trainer.state.trainable["adapters"])
    trainer.run_chunk(7)
    trainer.run_chunk(1)
    _, *moments = (
        leaf
        for leaf in jax.tree.leaves(trainer.state.opt_state, is_leaf=lambda node: isinstance(node, dict))
        if isinstance(leaf, dict)
    )
    for tree in (trainer.state.trainable, *moments):
        for path, factors in tree["adapters"].items():
            a, b = np.asarray(factors["a"]), np.asarray(factors["b"])
            assert a.shape[2] == b.shape[1] == 11
            assert not a[0, :, 3:].any(), path
            assert not b[0, 3:].any(), path
    after = trainer.state.trainable["adapters"]
    for path in before:
        for lane, rank in enumerate((3, 11)):
            for factor in ("a", "b"):
                columns = (lane, slice(None), slice(rank)) if factor == "a" else (lane, slice(rank))
                moved = np.asarray(after[path][factor])[columns] != before[path][factor][columns]
                assert moved.mean() > 0.4, (
                    path,
                    lane,
                    factor,
                )  # of wpe's eight positions, the five that a window has


@pytest.mark.slow
def test_an_adapter_that_has_ended_changes_no_more(tiny: Any, source: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tiny.experiment(source, PLAIN), Axes(ranks=(2,), seeds=3), tmp_path, lanes=3)
    trainer.run_chunk(3)
    trainer.end(trainer.lanes[1], "enough")
    before = jax.tree.map(np.array, trainer.state)
    trainer.run_chunk(3)
    changed = [
        [
            not np.array_equal(new[lane], old[lane])
            for new, old in zip(*map(jax.tree.leaves, (trainer.state, before)), strict=True)
        ]
        for lane in range(3)
    ]
    assert not any(changed[1])
    assert all(changed[0])
    assert all(changed[2])
    assert [lane.progress.step for lane in trainer.lanes] == [6, 3, 6]


@pytest.mark.slow  # three training programs
def test_each_cell_has_its_own_patience_and_best_epoch(tiny: Any, source: Path, tmp_path: Path) -> None:
    """The first overshoots in its last epoch; with a rate of 1e-30 the first epoch stays the best."""
    rates, settings = (0.01, 1e-30), ("train.patience=2", "train.epochs=6", "train.schedule=constant", PLAIN)
    axes, out = Axes(ranks=(4,), learning_rates=rates), tmp_path / "sweep"
    table = run_sweep(tiny.experiment(source, *settings), axes, out, SilentReporter(), at_once=2).cells
    assert table["epochs"].tolist() == [6, 3]
    assert table["best_epoch"].tolist() == [5, 1]
    for rate, (_, row) in zip(rates, table.iterrows(), strict=True):
        alone = train_run(
            tiny.experiment(source, *settings, f"train.learning_rate={rate}"),
            tmp_path / str(rate),
            SilentReporter(),
        ).progress
        assert (row["epochs"], row["best_epoch"], row["ended"]) == (
            alone.step // 7,
            alone.best_epoch,
            alone.finished,
        )
        kept = compare(
            *open_run(out / "cells" / row["cell"]), split="test", baselines=None, reporter=SilentReporter()
        ).rows[0]
        assert row["test_mse"] == pytest.approx(kept.metrics["mse"], rel=1e-5)


@pytest.mark.slow
def test_a_cell_that_diverges_ends_alone(tiny: Any, source: Path, tmp_path: Path) -> None:
    listener = Listener()
    axes = Axes(ranks=(2,), learning_rates=(1e38, 0.01))  # the shapes, and so the program, of PAIRS
    with np.errstate(over="ignore"):
        sweep = run_sweep(tiny.experiment(source), axes, tmp_path / "sweep", listener, at_once=2)
    first, second = (row for _, row in sweep.cells.iterrows())
    assert "is no longer" in first["ended"] or "became" in first["ended"]
    assert np.isnan(first["test_mse"])
    assert not (tmp_path / "sweep" / "cells" / first["cell"] / "bundle").exists()
    assert any(first["cell"] in notice and "learning rate" in notice for notice in listener.notices)
    assert second["ended"] == "all epochs done"
    assert second["test_mse"] < 2
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["cells"][0]["best_epoch"] == 0


@pytest.mark.slow
def test_a_sweep_of_which_nothing_is_left_says_so(
    tiny: Any, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.errstate(over="ignore"):
        lost = run_sweep(
            tiny.experiment(source, "train.learning_rate=1e38"),
            Axes(ranks=(2,), seeds=2),
            tmp_path / "lost",
            SilentReporter(),
        )
    assert not [name for name in lost.cells.columns if name.startswith(("validation_", "test_"))]
    print_sweep(lost)
    printed = capsys.readouterr().out.split()
    assert printed[printed.index("rank") + 1] == "seeds"


@pytest.mark.slow
def test_scores_that_cannot_be_used_end_their_cell_alone(
    tiny: Any, source: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    usual, calls = Task.final_metrics, []

    def refuse_first(task: Task, *given: Any) -> Any:
        calls.append(task)
        if len(calls) == 1:
            raise DataError("a score is not a finite number")
        return usual(task, *given)

    monkeypatch.setattr(Task, "final_metrics", refuse_first)
    sweep = run_sweep(
        tiny.experiment(source, "train.epochs=1"),
        Axes(ranks=(2,), seeds=2),
        tmp_path / "sweep",
        SilentReporter(),
    )
    assert sweep.cells["ended"].tolist() == ["a score is not a finite number.", "all epochs done"]
    assert sweep.cells["test_mse"].isna().tolist() == [True, False]


@pytest.mark.slow
def test_fewer_at_once_are_taken_while_nothing_is_trained(
    tiny: Any, source: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """As the message about memory advises."""
    experiment = tiny.experiment(source, "train.epochs=1")

    def no_room(*given: Any) -> None:
        raise TrainError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(sweeps._Work, "train_group", no_room)
        with pytest.raises(TrainError, match="no room"):
            run_sweep(experiment, Axes(ranks=(2,), seeds=2), tmp_path / "sweep", SilentReporter(), at_once=2)
    made = run_sweep(experiment, Axes(ranks=(2,), seeds=2), tmp_path / "sweep", SilentReporter(), at_once=1)
    assert made.record["at_once"] == {"16": 1}
    with pytest.raises(ConfigError, match="at_once was 1, is now 2"):
        run_sweep(experiment, Axes(ranks=(2,), seeds=2), tmp_path / "sweep", SilentReporter(), at_once=2)


def test_shared_out_parameters_are_refused(tiny: Any, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.fsdp: a sweep is trained on one device"):
        run_sweep(
            tiny.experiment(source, "train.fsdp=2"), Axes(ranks=(2,)), tmp_path / "sweep", SilentReporter()
        )


def test_a_sweep_that_was_edited_is_refused(swept, tmp_path):
    path = tmp_path / "sweep.json"
    content = json.loads((swept / "sweep.json").read_text())
    assert len(content["at_once"]) > 1 or len(content["cells"]) > 1
    path.write_text(json.dumps(content))  # laid out otherwise
    assert read_sweep(tmp_path).record == read_sweep(swept).record
    content["cells"][1]["test_mse"] = 1e-6
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"sweep\.json: was edited after it was saved"):
        read_sweep(tmp_path)


def outcome(out: Path) -> dict[str, Any]:
    """Everything about a sweep that must not depend on how it came about."""
    cells = sorted((out / "cells").iterdir())
    return {
        "table": (out / "sweep.csv").read_bytes(),
        "record": json.loads((out / "sweep.json").read_text()),
        "events": {cell.name: events_of(cell) for cell in cells},
        "bundles": {
            str(file.relative_to(out)): file.read_bytes()
            for cell in cells
            for file in sorted((cell / "bundle").iterdir())
        },
    }


PAIRS = Axes(ranks=(2, 3), seeds=2)  # two groups of two


@pytest.fixture(scope="module")
def undisturbed(tiny: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, listener = tmp_path_factory.mktemp("undisturbed") / "sweep", Listener()
    run_sweep(tiny.experiment(source), PAIRS, out, listener, at_once=2)
    assert listener.chunks == 18
    assert listener.notices[2:] == [  # the first are of the series and the season
        "group-1 of 2: rank2-seed0, rank2-seed1",
        "group-2 of 2: rank3-seed0, rank3-seed1",
    ]
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "chunks", "lost"),
    [("stop", 2, 0), ("stop", 9, 0), ("stop", 13, 0), ("kill", 5, 2), ("kill", 6, 3), ("kill", 10, 1)],
)
def test_stopped_or_killed_and_continued_ends_with_the_same_bits(
    tiny: Any, source: Path, undisturbed: Path, tmp_path: Path, how: str, chunks: int, lost: int
) -> None:
    """Three chunks an epoch, nine a group. A kill loses the chunks since the last checkpoint."""
    out, experiment = tmp_path / "sweep", tiny.experiment(source)
    with pytest.raises((Interrupted, Killed)) as caught:
        run_sweep(experiment, PAIRS, out, Listener(**{f"{how}_after": chunks}), at_once=2)
    if isinstance(caught.value, Interrupted):
        assert (caught.value.signal_number, caught.value.saved) == (signal.SIGTERM, True)
    listener = Listener()
    run_sweep(experiment, PAIRS, out, listener)
    assert listener.chunks == 18 - chunks + lost
    assert outcome(out) == outcome(undisturbed)


@pytest.mark.slow
def test_a_best_epoch_before_the_stop_is_kept(tiny: Any, source: Path, tmp_path: Path) -> None:
    """The fifth of six epochs is the best; stopped in the sixth, nothing but the checkpoint knows it."""
    experiment = tiny.experiment(source, "train.epochs=6", "train.schedule=constant", PLAIN)
    whole = run_sweep(experiment, Axes(ranks=(4,)), tmp_path / "whole", SilentReporter())
    assert whole.cells["best_epoch"].tolist() == [5]
    with pytest.raises(Interrupted):
        run_sweep(experiment, Axes(ranks=(4,)), tmp_path / "sweep", Listener(stop_after=16))
    run_sweep(experiment, Axes(ranks=(4,)), tmp_path / "sweep", SilentReporter())
    assert outcome(tmp_path / "sweep") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_the_speed_of_a_resumed_epoch_is_that_of_its_rest(
    tiny: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 100, time=time.time)
    monkeypatch.setattr(loop, "time", clock)
    experiment, out = tiny.experiment(source, PLAIN), tmp_path / "sweep"
    with pytest.raises(Interrupted):
        run_sweep(experiment, Axes(ranks=(4,)), out, Listener(stop_after=1))
    run_sweep(experiment, Axes(ranks=(4,)), out, SilentReporter())
    events = read_events(out / "cells" / "rank4-seed0" / "metrics.jsonl")
    epochs = [event for event in events if event["event"] == "epoch"]
    trained = [round(event["seconds"] * event["windows_per_second"]) for event in epochs]
    assert trained == [202 - 3 * 32, 202, 202]


@pytest.mark.slow
def test_a_finished_sweep_is_left_as_it_is(
    tiny: Any, source: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "sweep"))
    (out / ".sweep.csv.abc.ofa-tmp").write_text("half")
    listener = Listener()
    run_sweep(tiny.experiment(source), PAIRS, out, listener)
    assert (listener.chunks, listener.notices[2:]) == (0, [])  # the first are of the series and the season
    assert outcome(out) == outcome(undisturbed)
    assert not (out / ".sweep.csv.abc.ofa-tmp").exists()


@pytest.mark.slow  # two training programs
def test_one_program_is_compiled_for_each_bucket(tiny: Any, source: Path, tmp_path: Path) -> None:
    experiment = resolved(tiny.experiment(source, PLAIN))
    programs = SweepPrograms(build_model(experiment), read_data(experiment).task, experiment.train)
    groups = groups_of(cells_of(experiment, Axes(ranks=(1, 16, 17, 40), seeds=2)), {16: 1, 128: 1})
    for group in groups:
        programs.trainer(group, [EventLog(None)], Checkpoints(tmp_path), SilentReporter()).run_chunk(1)
    assert len(groups) == 8
    assert programs.program(1).chunk._cache_size() == 2


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(2, 16), (256, 1024)])
def test_the_published_ranks_equal_separate_runs(
    data_root: Path, tmp_path: Path, ranks: tuple[int, ...]
) -> None:
    """Ends of two buckets by two seeds, three at a time, ten steps, against single trainers."""
    experiment = resolved(load_experiment("quick/etth1"))
    data, model = read_data(experiment), build_model(experiment)
    cells = cells_of(experiment, Axes(ranks=ranks, seeds=2))
    programs = SweepPrograms(model, data.task, experiment.train)
    for group in groups_of(cells, {bucket(ranks[0]): 3}):
        logs = [EventLog(None)] * len(group.cells)
        trainer = programs.trainer(group, logs, Checkpoints(tmp_path / group.name), SilentReporter())
        trainer.run_chunk(10)
        for place, cell in enumerate(group.cells):
            own = build_model(cell.experiment)
            program = Program(own.predict, data.task, own.frozen, programs.settings)
            single = Trainer(program, [Lane(own.trainable, cell.experiment.train.seed)])
            single.run_chunk(10)
            found = trainer.trainable(place)["adapters"]
            wanted = single.trainable(0)["adapters"]
            for path, before in own.trainable["adapters"].items():
                a, b = found[path]["a"][:, : cell.rank], found[path]["b"][: cell.rank]
                assert not found[path]["a"][:, cell.rank :].any()
                for factor, name in ((a, "a"), (b, "b")):
                    # Adam divides by the size of a gradient, which makes rounding of the smallest ones large:
                    # the way of ten steps is compared as a whole, not element by element
                    way = wanted[path][name] - before[name]
                    off = np.linalg.norm(factor - wanted[path][name]) / np.linalg.norm(way)
                    assert off < 1e-4, f"{cell.name} {path}/{name}: {off:.2e} of the way"
    assert programs.program(group.lanes).chunk._cache_size() == 1
    assert len(programs._programs) == 1


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("classification", "anomaly", "zero_shot", "short_term", "imputation")
    ],
)
def test_every_task_is_swept(tiny: Any, tmp_path: Path, task: str) -> None:
    experiment = tiny.of_task(task, tmp_path)
    sweep = run_sweep(experiment, Axes(ranks=(2, 3)), tmp_path / "sweep", SilentReporter(), at_once=2)
    assert len(sweep.cells) == 2
    loaded, data = open_run(tmp_path / "sweep" / "cells" / "rank3-seed0")
    wanted = compare(loaded, data, split="test", baselines=None, reporter=SilentReporter()).rows[0].metrics
    found = sweep.cells.iloc[1]
    assert {f"test_{name}" for name in wanted} == {
        name for name in sweep.cells.columns if name.startswith("test_")
    }
    for name, value in wanted.items():
        assert found[f"test_{name}"] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow  # a third training program
def test_baselines_are_trained_and_kept(
    tiny: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ofa_jax.studies.sweep.folder as module

    all_of_them = module.trained_baselines
    monkeypatch.setattr(
        module, "trained_baselines", lambda experiment, data: all_of_them(experiment, data, only=("nlinear",))
    )
    experiment = tiny.experiment(source, "train.epochs=1", PLAIN)
    assert run_sweep(experiment, Axes(ranks=(2,)), tmp_path / "sweep", SilentReporter()).baselines is None
    sweep = run_sweep(experiment, Axes(ranks=(2,)), tmp_path / "sweep", SilentReporter(), baselines=True)
    assert sweep.baselines["method"].tolist() == ["seasonal naive (24 steps)", "NLinear"]
    assert np.isfinite(sweep.baselines[["test_mse", "test_mae"]]).all(axis=None)
    assert (tmp_path / "sweep" / "controls" / "nlinear" / "control.json").exists()
    assert read_sweep(tmp_path / "sweep").record == sweep.record


@pytest.mark.slow
def test_alpha_0_one_window_and_one_channel_work(tiny: Any, tmp_path: Path) -> None:
    """Scale 0 gives gradient 0: the adapters keep their initial values, the first epoch stays the best."""
    source = tmp_path / "one.csv"
    times = pd.date_range("2024-01-01", periods=64, freq="h").strftime("%Y-%m-%dT%H:%M:%S")
    pd.DataFrame({"date": times, "a": np.sin(np.arange(64))}).to_csv(source, index=False)
    experiment = tiny.experiment(
        source,
        "task.input_length=8",
        "task.horizon=2",
        "data.ratios=[0.16, 0.4, 0.44]",
        PLAIN,
        "network.patch=4",
        "network.stride=4",
    )
    sweep = run_sweep(experiment, Axes(ranks=(1,), alphas=(0.0, 1.0)), tmp_path / "sweep", SilentReporter())
    assert sweep.record["windows"]["train"] == 1
    assert sweep.cells["cell"].tolist() == ["rank1-alpha0-seed0", "rank1-alpha1-seed0"]
    still, moved = (load_bundle(tmp_path / "sweep" / "cells" / name).model for name in sweep.cells["cell"])
    start = build_model(
        still_experiment := experiment.model_copy(
            update={"adapters": experiment.adapters.model_copy(update={"rank": 1})}
        )
    )
    assert still_experiment.adapters.rank == 1
    for path, leaf in flatten(start.trainable).items():
        np.testing.assert_array_equal(flatten(still.trainable)[path], leaf)
    assert any(
        (flatten(moved.trainable)[path] != leaf).any() for path, leaf in flatten(start.trainable).items()
    )
    assert sweep.cells["best_epoch"][0] == 1


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"ranks": (4, 0)}, r"adapters\.rank: .*greater than or equal to 1 \(found 0\)"),
        ({"ranks": ()}, r"ranks: list at least one value, and each once \(found \(\)\)"),
        ({"ranks": (4, 8, 4)}, r"ranks: list at least one value, and each once \(found \(4, 8, 4\)\)"),
        ({"ranks": (4,), "seeds": 0}, r"seeds: input should be greater than 0 \(found 0\)"),
        ({"ranks": (4,), "alphas": (-1.0,)}, r"adapters\.alpha"),
        ({"ranks": (4,), "learning_rates": (0.1, 0.0)}, r"train\.learning_rate"),
    ],
)
def test_a_wrong_axis_is_one_error_and_leaves_nothing(
    tiny: Any, source: Path, tmp_path: Path, axes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run_sweep(tiny.experiment(source), Axes(**axes), tmp_path / "sweep", SilentReporter())
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ranks": "2,x"}, r"ranks: .* valid integer.* \(found 'x'\)"),
        ({"ranks": "2.5"}, r"ranks: .* valid integer.* \(found '2\.5'\)"),
        ({"ranks": "2", "alphas": "a"}, r"alphas: .* valid number.* \(found 'a'\)"),
        ({"ranks": "2", "scalings": "rslora,dora"}, "scalings: .*'rslora', 'lora' or 'none' .found 'dora'"),
        (
            {"ranks": "2", "inits": "normal"},
            "inits: .*'peft_gaussian', 'theorem' or 'kaiming' .found 'normal'",
        ),
        ({"ranks": "2", "rates": "1"}, "rates: unexpected keyword argument"),
    ],
)
def test_a_wrong_text_is_named(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Axes(**given)


def test_texts_become_axes() -> None:
    found = Axes(ranks="2, 4,8", seeds=3, alphas="1,16", scalings="lora", learning_rates="1e-3")
    assert found == Axes((2, 4, 8), 3, (1.0, 16.0), ("lora",), None, (1e-3,))


def test_a_recipe_without_adapters_is_refused(tiny: Any, source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"rules: there is no adapted layer, so no rank to sweep\. Use a recipe"
    ):
        run_sweep(
            tiny.experiment(source, "recipe=head_only"),
            Axes(ranks=(4,)),
            tmp_path / "sweep",
            SilentReporter(),
        )
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "axes", "at_once", "said"),
    [
        (("train.batch_size=16",), PAIRS, None, r"train\.batch_size was 32, is now 16"),
        ((), Axes(ranks=(2, 4), seeds=2), None, r"ranks was \[2, 3\], is now \[2, 4\]"),
        ((), Axes(ranks=(2, 3), seeds=3), None, r"seeds was 2, is now 3"),
        ((), PAIRS, 7, r"at_once was 2, is now 7"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(
    tiny: Any,
    source: Path,
    undisturbed: Path,
    settings: tuple[str, ...],
    axes: Axes,
    at_once: int | None,
    said: str,
) -> None:
    before = outcome(undisturbed)
    with pytest.raises(ConfigError, match=said):
        run_sweep(tiny.experiment(source, *settings), axes, undisturbed, SilentReporter(), at_once=at_once)
    assert outcome(undisturbed) == before


def test_folders_of_something_else_are_refused(tiny: Any, source: Path, tmp_path: Path) -> None:
    experiment = tiny.experiment(source, "train.epochs=1")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="not empty and not a sweep folder"):
        run_sweep(experiment, Axes(ranks=(2,)), tmp_path / "thesis", SilentReporter())
    assert os.listdir(tmp_path / "thesis") == ["chapter.txt"]
    with run_lock(tmp_path / "held"), pytest.raises(CheckpointError, match="another process is using"):
        run_sweep(experiment, Axes(ranks=(2,)), tmp_path / "held", SilentReporter())
    with pytest.raises(ConfigError, match="at_once: 0 is less than 1"):
        run_sweep(experiment, Axes(ranks=(2,)), tmp_path / "new", SilentReporter(), at_once=0)
    with pytest.raises(OfaError, match=r"no sweep\.json here"):
        read_sweep(tmp_path)


def test_no_room_suggests_fewer_adapters(
    tiny: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "room_per_device", lambda: 1000)
    said = r"memory: a step needs .* Train fewer adapters at a time \(at_once, now 2\)\."
    with pytest.raises(TrainError, match=said):
        trainer_of(tiny.experiment(source), Axes(ranks=(2, 3)), tmp_path, lanes=2).check_room()


def test_adapters_side_by_side_fit_into_memory(
    tiny: Any, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ofa_jax.studies.sweep.cells as module

    network = build_model(tiny.experiment(source)).network
    monkeypatch.setattr(module, "room_per_device", lambda: 10_000_000)
    assert adapters_at_once(network, 100_000, 1, "cpu") == 1
    few, many = (adapters_at_once(network, size, 1, "gpu") for size in (400_000, 100_000))
    assert 1 < few < many <= 10
    assert adapters_at_once(network, 10**9, 1, "gpu") == 1


def test_groups_leave_few_places_idle(tiny: Any, source: Path) -> None:
    cells = cells_of(tiny.experiment(source), Axes(ranks=(2, 64, 16, 17), seeds=5))
    groups = groups_of(cells, {16: 4, 128: 20})
    assert [(group.name, len(group.cells), group.width, group.lanes) for group in groups] == [
        ("group-1", 4, 16, 4),
        ("group-2", 4, 16, 4),
        ("group-3", 2, 16, 4),
        ("group-4", 10, 64, 10),
    ]
    assert sorted(cell.name for group in groups for cell in group.cells) == sorted(
        cell.name for cell in cells
    )
    assert [bucket(rank) for rank in (1, 16, 17, 128, 129, 1024, 1025)] == [
        16,
        16,
        128,
        128,
        1024,
        1024,
        8192,
    ]


@pytest.mark.parametrize("ended", [False, True])
def test_the_printed_table_has_the_best_row_first(ended: bool, capsys: Any) -> None:
    sweep = read_sweep(Path(__file__).parents[1] / "golden" / "v1" / "sweep" / "run")
    rank2, rank3 = sweep.cell_rows
    if ended:  # diverged, so without metrics
        rank3 = {name: cell for name, cell in rank3.items() if "mse" not in name and "mae" not in name}
    sweep.baseline_rows = [{"method": "seasonal naive", "trainable": 0, "bytes": 0, "test_mse": 0.1}]
    sweep.cell_rows = [rank3, rank2] if ended else [rank2, rank3]
    print_sweep(sweep)
    ranks = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:5]]
    assert ranks == (["2", "3", "seasonal"] if ended else ["3", "2", "seasonal"])


@pytest.mark.slow
def test_the_command_prints_a_table_or_the_record(tiny: Any, tmp_path: Path) -> None:
    from ofa_jax.cli.main import app

    config = tiny.config(tmp_path)
    given = [
        "sweep",
        str(config),
        "--ranks",
        "2",
        "--inits",
        "theorem,kaiming",
        "--set",
        "train.epochs=1",
        "--out",
        str(tmp_path / "out"),
    ]
    printed = CliRunner().invoke(app, given, catch_exceptions=False).stdout
    assert "validation MSE" in printed
    assert "kaiming" in printed
    again = CliRunner().invoke(app, [*given, "--json"], catch_exceptions=False).stdout
    assert json.loads(again) == {
        name: value
        for name, value in json.loads((tmp_path / "out" / "sweep.json").read_text()).items()
        if name not in ("format", "sha256")
    }
