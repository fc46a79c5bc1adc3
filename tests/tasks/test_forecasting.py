"""The forecasting task: loss and metrics that add up, parts and scaling, the main cycle."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from ofa_jax.config.tasks import DataConfig, ForecastSettings
from ofa_jax.data.frames import Frame, read_frame
from ofa_jax.errors import DataError
from ofa_jax.tasks import table
from ofa_jax.tasks.base import TrainedOn
from ofa_jax.tasks.forecast import prepare, prepare_frame, read_new, season_of_frame, time_index
from ofa_jax.tasks.losses import squared_error
from ofa_jax.tasks.metrics import forecast_metrics, forecast_sums
from ofa_jax.train.evaluate import evaluate
from ofa_jax.windows.batch import Batch


def batch_of(b: int = 5, h: int = 3, *, seed: int = 0) -> tuple[np.ndarray, Batch]:
    """A prediction and a batch whose last row is padding and whose second has one target only."""
    draw = np.random.default_rng(seed)
    mask = np.ones((b, h, 1), bool)
    mask[1, 1:] = mask[-1] = False
    weight = np.ones(b, np.float32)
    weight[-1] = 0
    y = draw.normal(size=(b, h, 1)).astype(np.float32)
    x = draw.normal(size=(b, 4, 1)).astype(np.float32)
    batch = Batch(x, np.where(mask, y, 0), np.ones(x.shape, bool), mask, weight, np.arange(b, dtype=np.int32))  # type: ignore[arg-type]
    return draw.normal(size=(b, h, 1)).astype(np.float32), batch


def test_the_loss_is_the_mean_over_observed_targets():
    pred, batch = batch_of()
    total, count = squared_error(jnp.asarray(pred), batch)
    mask = np.asarray(batch.y_mask)
    assert float(count) == mask.sum() == 10
    np.testing.assert_allclose(
        float(total), np.square(pred - np.asarray(batch.y))[mask].sum(), rtol=1e-6
    )  # float32 sums


def test_sums_add_over_slices_and_ignore_padding():
    pred, batch = batch_of()
    parts = [
        squared_error(jnp.asarray(pred[rows]), jax.tree.map(lambda leaf, rows=rows: leaf[rows], batch))
        for rows in (slice(2), slice(2, None))
    ]
    whole = squared_error(jnp.asarray(pred), batch)
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-6)
    pred[-1] += 100  # the row of padding
    pred[1, 1:] -= 100  # targets that are missing
    np.testing.assert_array_equal(squared_error(jnp.asarray(pred), batch), whole)


def test_metrics_against_plain_formulas():
    pred, batch = batch_of()
    sums = {name: np.asarray(values) for name, values in forecast_sums(jnp.asarray(pred), batch).items()}
    mask = np.asarray(batch.y_mask)
    error = (pred - np.asarray(batch.y))[mask].astype(np.float64)
    assert forecast_metrics(sums) == pytest.approx(
        {"mse": np.mean(error**2), "mae": np.mean(np.abs(error))}, rel=1e-6
    )
    np.testing.assert_array_equal(sums["count"], [3, 1, 3, 3, 0])
    pred[-1] = np.nan
    again = forecast_sums(jnp.asarray(pred), batch)
    np.testing.assert_array_equal(again["squared_error"], sums["squared_error"])


def persistence(frozen, trainable, x_btc, x_mask=None, *, dropout_keys=None):
    """The last value, repeated: exact, so that nothing but the batching can change a number."""
    return jnp.repeat(x_btc[:, -1:], 8, axis=1)


@pytest.mark.parametrize("batch_size", [1, 7, 26, 512])
def test_metrics_do_not_depend_on_the_batch_size(tiny, batch_size):
    experiment = tiny.experiment("unused.csv")
    task = prepare_frame(tiny.frame(), experiment.data, experiment.task).task
    table = task.tables["validation"]
    assert table.size == 26
    sums = evaluate(persistence, task, table, {}, {}, batch_size=batch_size)
    assert {name: values.shape for name, values in sums.items()} == dict.fromkeys(
        ("squared_error", "absolute_error", "count"), (26,)
    )
    rows = table.first[:, None] + np.arange(40)
    windows = task.buffer[rows, table.channel[:, None]].astype(np.float64)
    error = windows[:, 31:32] - windows[:, 32:]
    np.testing.assert_allclose(
        sums["squared_error"], np.square(error).sum(1), rtol=1e-5
    )  # sums of 8 float32 squares
    # rtol: the same sums in float64 whatever the batch, up to the rounding of each window's own float32 sum
    assert task.metrics(sums) == pytest.approx(
        {"mse": np.square(error).mean(), "mae": np.abs(error).mean()}, rel=1e-6
    )


def test_few_shot_scales_by_the_whole_training_part(tiny):
    frame = tiny.frame()
    experiment = tiny.experiment("unused.csv")
    whole = prepare_frame(frame, experiment.data, experiment.task)
    few = prepare_frame(frame, experiment.data.model_copy(update={"percent": 10}), experiment.task)
    np.testing.assert_array_equal(few.scaler.mean, frame.values[:140].mean(axis=0))
    np.testing.assert_array_equal(few.task.buffer, whole.task.buffer)
    assert whole.task.tables["train"].size == 2 * (140 - 40 + 1)
    assert few.borders["train"] == (0, (140 - 32) * 10 // 100 + 32)
    assert few.task.tables["train"].size == 2 * 3
    for split in ("validation", "test"):
        np.testing.assert_array_equal(few.task.tables[split].first, whole.task.tables[split].first)


def test_a_constant_series_is_scaled_by_one_and_said_once(tiny):
    frame = tiny.frame()
    values = np.concatenate([frame.values, np.full((200, 1), 3.0)], axis=1)
    values[150, 2] = 5  # it moves after the training part
    frame = replace(frame, values=values, names=("a", "b", "still"))
    experiment = tiny.experiment("unused.csv")
    data = prepare_frame(frame, experiment.data, experiment.task)
    assert data.notices[1:] == ("constant in the training part, so scaled by 1: still",)
    assert data.scaler.std[2] == 1
    assert set(data.task.buffer[:, 2]) == {0.0, 2.0}


def test_standardised_windows_of_a_file(tiny, tmp_path):
    source = tiny.csv(tmp_path / "tiny.csv")
    experiment = tiny.experiment(source)
    data = prepare(experiment.data, experiment.task)
    assert data.task.buffer.dtype == np.float32
    np.testing.assert_allclose(data.task.buffer[:140].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(data.task.buffer[:140].std(axis=0), 1, rtol=1e-5)
    assert (data.season, data.task.objective) == (24, "mse")


def test_published_keeps_full_batches_of_validation_and_test(tiny, tmp_path):
    experiment = tiny.experiment(tiny.csv(tmp_path / "tiny.csv"))
    data = table.prepare(experiment.data, experiment.task, protocol="published", batch_size=16)
    assert {split: windows.size for split, windows in data.task.tables.items()} == {
        "train": 202,
        "validation": 16,
        "test": 64,
    }


def test_a_series_that_is_too_short_says_how_many_rows_are_needed(tiny):
    experiment = tiny.experiment("unused.csv")
    with pytest.raises(
        DataError, match=r"tiny series: 50 row.*too few: .*train part has 35 rows and windows need 40"
    ):
        prepare_frame(tiny.frame(50), experiment.data, experiment.task)


def frame_every(step: str, start: str = "2024-01-01") -> Frame:
    times = pd.date_range(start, periods=12, freq=step).to_numpy().astype("datetime64[ns]")
    return Frame(np.zeros((12, 1)), ("a",), times, f"every {step}")


@pytest.mark.parametrize(
    ("step", "season"),
    [
        ("h", 24),
        ("2h", 12),
        ("6h", 4),
        ("min", 1440),
        ("5min", 288),
        ("10min", 144),
        ("15min", 96),
        ("30min", 48),
        ("D", 7),
        ("B", 5),
        ("W-SUN", 52),
        ("W-WED", 52),
        ("MS", 12),
        ("ME", 12),
        ("BMS", 12),
        ("BME", 12),
        ("2MS", 6),
        ("6MS", 2),
        ("QS-JAN", 4),
        ("QE-DEC", 4),
        ("BQE-DEC", 4),
        ("YS-JAN", 1),
        ("YE-DEC", 1),
        ("2YS-JAN", 1),
    ],
)
def test_the_main_cycle_follows_from_the_frequency(step, season):
    assert season_of_frame(frame_every(step)) == season


def test_one_week_is_continued_by_the_step_of_a_model_of_business_days():
    task = ForecastSettings(name="forecast", input_length=5, horizon=3)
    trained = TrainedOn(task, DataConfig(source="x.csv"), None, {"frequency": "B"})
    week = pd.DataFrame({"date": pd.date_range("2024-01-08", periods=5, freq="D"), "a": np.arange(5.0)})
    assert read_frame(week).frequency == "D"
    frame = read_new(trained, week)
    assert frame.frequency == "B"
    assert time_index(frame, 2).tolist() == [pd.Timestamp("2024-01-15"), pd.Timestamp("2024-01-16")]
    with pytest.raises(DataError, match="trained on steps of 'B'"):
        read_new(trained, week.assign(date=week["date"] + pd.Timedelta(days=1)))


@pytest.mark.parametrize("step", ["s", "30s", "ms", "7min", "5h", "36h", "2D", "10D"])
def test_a_frequency_without_a_whole_cycle_is_asked_for(step):
    with pytest.raises(DataError, match=rf"every {step}: the season length is unknown.*Set data\.season"):
        season_of_frame(frame_every(step))


def test_without_timestamps_the_cycle_is_asked_for(tiny):
    frame = replace(tiny.frame(), timestamps=None)
    with pytest.raises(DataError, match="the season length is unknown"):
        season_of_frame(frame)
    experiment = tiny.experiment("unused.csv", "data.season=24")
    assert prepare_frame(frame, experiment.data, experiment.task).season == 24
