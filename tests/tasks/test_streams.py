"""Anomaly detection on tables: rows taken as normal, labels where there are any, missing values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from ofa_jax.build import build_model
from ofa_jax.config.schema import Experiment
from ofa_jax.errors import ConfigError, DataError
from ofa_jax.inference import evaluate, predict
from ofa_jax.report.forecasts import Evaluation
from ofa_jax.report.tasks import anomaly_results
from ofa_jax.runs.train import open_run, read_data, train_run
from ofa_jax.tasks.detection import detection_metrics
from ofa_jax.tasks.streams import read_recording
from ofa_jax.train.evaluate import WindowPredictor

ROWS, LATE = 400, slice(380, 384)


def table(*, late: float = 200.0) -> pd.DataFrame:
    """Two hourly series with a day's cycle; ``late`` is added to the first one in the rows :data:`LATE`."""
    draw, hours = np.random.default_rng(0), np.arange(ROWS)
    cycle = np.sin(hours[:, None] * 2 * np.pi / 24 + [0, 1])
    values = [20, 100] + [5, 30] * (cycle + 0.05 * draw.normal(size=(ROWS, 2)))
    values[LATE, 0] += late
    times = pd.date_range("2024-01-01", periods=ROWS, freq="h")
    return pd.DataFrame({"time": times, "temp": values[:, 0], "load": values[:, 1]})


def experiment(path: Path, epochs: int = 1, **data: Any) -> Experiment:
    return Experiment(
        data={"source": str(path), **data},
        task={"name": "anomaly", "input_length": 20, "anomaly_ratio": 2},
        trunk={"source": "random", "n_layer": 1, "random": {"n_embd": 16, "n_head": 2, "n_positions": 20}},
        network={"segment": 10},
        train={"epochs": epochs, "batch_size": 32, "learning_rate": 1e-2},
    )


def saved(folder: Path, frame: pd.DataFrame) -> Path:
    path = folder / "own.csv"
    frame.to_csv(path, index=False)
    return path


def test_the_first_rows_train_and_the_last_ones_test(tmp_path):
    frame = table()
    recording = read_recording(experiment(saved(tmp_path, frame), ratios=[0.6, 0.1, 0.3]).data)
    stream = recording.stream
    np.testing.assert_allclose(np.concatenate([stream.train, stream.test]), frame[["temp", "load"]])
    assert (recording.cut, len(stream.train), len(stream.test)) == (240, 280, 120)
    assert recording.names == ("temp", "load")
    assert not recording.labelled


@pytest.mark.slow
def test_a_table_without_labels_is_trained_scored_and_reported(tmp_path):
    path = saved(tmp_path, table())
    train_run(experiment(path, epochs=20), tmp_path / "run")
    loaded, data = open_run(tmp_path / "run")
    assert set(evaluate(loaded, data)) == {"mse"}
    assert data.naive["random scores"]("test") is None
    found = predict(loaded, path)
    flagged = found["anomaly"].to_numpy()
    assert list(found) == ["time", "score", "anomaly"]
    assert len(found) == ROWS
    assert flagged[LATE].any()
    assert 0 < flagged[:320].mean() <= 0.03  # nearly `anomaly_ratio`: windows begin elsewhere
    _, windows, _, _ = anomaly_results(Evaluation(loaded, data))
    above = int(flagged[320:].sum())
    assert windows.sentences[-1].startswith("Steps whose score is above")
    assert f": {above}, in runs: " in windows.sentences[-1]


@pytest.mark.slow
def test_columns_are_found_by_name(tmp_path):
    frame = table()
    train_run(experiment(saved(tmp_path, frame)), tmp_path / "run")
    loaded, _ = open_run(tmp_path / "run")
    found = predict(loaded, frame)
    pd.testing.assert_frame_equal(
        found, predict(loaded, frame.assign(other=1.0)[["other", "load", "temp", "time"]])
    )
    with pytest.raises(DataError, match="missing: `temp`"):
        predict(loaded, frame.drop(columns="temp"))


@pytest.mark.slow
def test_labels_give_detection_metrics_and_are_no_series(tmp_path):
    frame = table().assign(broken=0)
    frame.loc[frame.index[LATE], "broken"] = 1
    path = saved(tmp_path, frame)
    for columns in (None, ["temp", "load"], ["broken", "load", "temp"]):
        recording = read_recording(experiment(path, label_column="broken", columns=columns).data)
        assert sorted(recording.names) == ["load", "temp"]
        np.testing.assert_array_equal(recording.stream.test_label, frame["broken"][320:] == 1)
        assert "labels in `broken`: 4 of 400 rows are anomalous" in recording.notices
    train_run(experiment(path, label_column="broken"), tmp_path / "run")
    loaded, data = open_run(tmp_path / "run")
    assert "average_precision" in evaluate(loaded, data)
    assert len(predict(loaded, table())) == ROWS


def test_labels_of_false_and_true_are_those_of_0_and_1(tmp_path):
    frame = table().assign(broken=False)
    frame.loc[frame.index[LATE], "broken"] = True
    recording = read_recording(experiment(saved(tmp_path, frame), label_column="broken").data)
    np.testing.assert_array_equal(recording.stream.test_label, frame["broken"][320:])
    assert "labels in `broken`: 4 of 400 rows are anomalous" in recording.notices
    assert "2 series (`temp`, `load`), time in `time`" in recording.notices[0]
    with pytest.raises(DataError, match=r"named by data\.label_column"):
        read_recording(experiment(saved(tmp_path, frame.rename(columns={"broken": "is_anomaly"}))).data)


def test_labels_among_the_normal_rows_are_told(tmp_path):
    frame = table().assign(broken=0)
    frame.loc[[3, 390], "broken"] = 1
    notices = read_recording(experiment(saved(tmp_path, frame), label_column="broken").data).notices
    assert "2 of 400 rows are anomalous, 1 of them among those that are taken as normal" in notices[-1]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["train", "test"])
def test_missing_values_are_neither_seen_nor_scored(tmp_path, where):
    rows = slice(101, 119) if where == "train" else slice(341, 359)
    frame = table(late=0)
    frame.loc[frame.index[rows], "temp"] = np.nan
    frame.loc[frame.index[rows][3], "load"] = np.nan
    path = saved(tmp_path, frame)
    train_run(experiment(path, missing="linear"), tmp_path / "run")
    loaded, data = open_run(tmp_path / "run")
    assert data.task.observed is not None
    assert (~data.task.observed).sum() == 19
    found = predict(loaded, path)
    assert np.flatnonzero(found["score"].isna()).tolist() == [rows.start + 3]
    assert not found["anomaly"][rows.start + 3]
    assert np.isfinite(evaluate(loaded, data)["mse"])
    with pytest.raises(DataError, match=r"19 value\(s\) are missing or infinite.*missing: linear"):
        read_data(experiment(path))


def test_filled_values_reach_neither_loss_nor_metrics(tmp_path):
    frame = table()
    frame.loc[100:140, "temp"] = np.nan
    settings = experiment(saved(tmp_path, frame), missing="linear")
    task, model = read_data(settings).task, build_model(settings.replace({"task.channels": 2}))
    other = task.buffer.copy()
    other[100:141, 0] = 50

    def outputs(prediction, batch):
        return {**task.sums(prediction, batch), "loss": jnp.stack(task.loss(prediction, batch))[None]}

    found = [
        WindowPredictor(model.predict, replace(task, buffer=buffer), outputs, batch_size=1)(
            task.tables["train"], model.frozen, model.trainable
        )
        for buffer in (task.buffer, other)
    ]
    for name, values in found[0].items():
        np.testing.assert_array_equal(values, found[1][name], err_msg=name)
    assert found[0]["loss"][:, 1].min() == 20  # observed values of a window within the gap: one series


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"label_column": "brokn"}, r"there is no column `brokn`\. Set data\.label_column to one of `temp`"),
        ({"label_column": "load"}, r"column `load`: the label in row 1 is neither 0 nor 1"),
        ({"columns": ["temp", "wind"]}, "wind"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        read_recording(experiment(saved(tmp_path, table()), **data).data)


def test_a_label_that_is_missing_is_refused(tmp_path):
    frame = table().assign(broken=0.0)
    frame.loc[5, "broken"] = np.nan
    path = saved(tmp_path, frame)
    with pytest.raises(DataError, match="the label in row 6 is neither 0 nor 1"):
        read_recording(experiment(path, label_column="broken", missing="linear").data)


def test_labels_alone_are_no_series(tmp_path):
    frame = table()[["time"]].assign(broken=0)
    frame.loc[7, "broken"] = 1
    with pytest.raises(DataError, match="there are labels and no series"):
        read_recording(experiment(saved(tmp_path, frame), label_column="broken").data)


def test_settings_of_tables_are_not_taken_for_streams(tiny, tmp_path):
    for name, value in (("columns", "[a]"), ("missing", "linear"), ("label_column", "a")):
        given = tiny.of_task("anomaly", tmp_path, f"data.{name}={value}")
        with pytest.raises(ConfigError, match=rf"labeled streams, which are not read by data\.{name}"):
            read_recording(given.data)
    given = tiny.of_task("anomaly", tmp_path, "data.ratios=[0.5,0.25,0.25]")
    with pytest.raises(ConfigError, match=r"data\.ratios"):
        read_recording(given.data)


def test_parts_are_not_taken_for_tables(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.parts: .* is not in the catalog"):
        read_recording(experiment(saved(tmp_path, table()), parts=["a"]).data)


def test_a_part_without_values_is_refused_before_training(tmp_path):
    frame = table()
    frame.loc[320:, ["temp", "load"]] = np.nan
    with pytest.raises(DataError, match=r"own\.csv: every value of the test part is missing\. Give rows"):
        read_data(experiment(saved(tmp_path, frame), missing="ffill"))


def test_labels_of_rows_without_values_do_not_count(tmp_path):
    frame = table().assign(broken=0)
    frame.loc[380:383, "broken"] = 1
    frame.loc[380:383, ["temp", "load"]] = np.nan
    with pytest.raises(DataError, match="every test step is labeled normal"):
        read_data(experiment(saved(tmp_path, frame), missing="linear", label_column="broken"))
    frame.loc[384, "broken"] = 1
    data = read_data(experiment(saved(tmp_path, frame), missing="linear", label_column="broken"))
    assert data.naive["random scores"]("test")["average_precision"] > 0


def test_an_anomaly_goes_on_over_rows_without_values():
    label, seen = np.zeros(12, bool), np.ones(12, bool)
    label[[3, 4, 5, 8, 9]], seen[[6, 7]] = True, False
    scores = np.zeros(12)
    scores[4] = 1
    found = detection_metrics(scores, label, 0.5, [0], seen)
    assert found["adjusted_recall"] == pytest.approx(3 / 5)
    label[[6, 7]] = True
    assert detection_metrics(scores, label, 0.5, [0], seen)["adjusted_recall"] == 1


def test_labels_of_long_tables_are_refused(tmp_path):
    frame = pd.concat([table().assign(unique_id=name, broken=0) for name in "ab"])
    with pytest.raises(DataError, match="the labels of a long table are not read"):
        read_recording(experiment(saved(tmp_path, frame), label_column="broken").data)


def test_columns_named_like_channels_of_streams_are_found_by_name(tmp_path):
    frame = table().rename(columns={"temp": "channel 0", "load": "channel 1"})
    train_run(experiment(saved(tmp_path, frame)), tmp_path / "run")
    loaded, _ = open_run(tmp_path / "run")
    swapped = frame[["time", "channel 1", "channel 0"]].assign(other=1.5)
    pd.testing.assert_frame_equal(predict(loaded, frame), predict(loaded, swapped))
