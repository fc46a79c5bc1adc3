"""The report: one self-contained page whose numbers are those of the run."""

from __future__ import annotations

import base64
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlparse

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from ofa_jax.adapters.bundle import BundleRecord
from ofa_jax.baselines.compare import compare
from ofa_jax.build import build_model
from ofa_jax.cli import main as cli
from ofa_jax.config.schema import Experiment
from ofa_jax.errors import CheckpointError, OfaError
from ofa_jax.inference import predict
from ofa_jax.plots import style
from ofa_jax.plots.style import new_figure
from ofa_jax.report.forecasts import Evaluation, _forecast_table, forecast_results, future_section
from ofa_jax.report.page import _compared, _warnings, write_report
from ofa_jax.report.parts import best_median_worst
from ofa_jax.report.run import HOW_TO_LOG, baselines_section, gradient_section, shown_place, training_section
from ofa_jax.report.tasks import (
    RESULTS,
    anomaly_results,
    anomaly_scores,
    classification_results,
    imputation_results,
)
from ofa_jax.runs.bundle import LoadedModel
from ofa_jax.runs.folder import METRICS_FILE
from ofa_jax.runs.train import open_run, read_data, train_run
from ofa_jax.tasks.detection import detection_metrics
from ofa_jax.train.evaluate import evaluate
from ofa_jax.train.events import read_events
from ofa_jax.train.progress import SilentReporter

NAMES = ("<script>alert(1)</script>", '"&quot;&" $x$ <img src=http://evil.test/a.png>')
SECTION_NAMES = [
    "settings",
    "training",
    "baselines",
    "windows",
    "future",
    "errors",
    "attention",
    "footprint",
    "gradients",
]
GRADIENTS = [
    {
        "event": "gradient",
        "step": step,
        "epoch": 1,
        "clip_rate": rate,
        "modules": {
            "gpt2/wpe/a": {"gradient_norm": 1 / step, "update_ratio": 0.01},
            "<b>/a": {"gradient_norm": 0.0, "update_ratio": 0.02},
        },
    }
    for step, rate in ((4, 0.25), (8, 0.75))
]


@dataclass
class Page(HTMLParser):
    """What is in an HTML file: every tag with its attributes, the text, and which tags were left open."""

    source: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    open_tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def every(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.text).split())

    def svgs(self) -> list[str]:
        found = [str(image["src"]).removeprefix("data:image/svg+xml;base64,") for image in self.every("img")]
        return [base64.b64decode(content, validate=True).decode() for content in found]


def parsed(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    """A small trained run whose series have names that would break a careless page."""
    folder = tmp_path_factory.mktemp("report <b>&amp; folder")
    lines = tiny.csv(folder / "table.csv", rows=120).read_text().splitlines()
    header = ",".join(["date", *('"' + name.replace('"', '""') + '"' for name in NAMES)])
    (folder / "table.csv").write_text("\n".join([header, *lines[1:]]) + "\n")
    small = (
        "train.epochs=2",
        "task.input_length=8",
        "task.horizon=3",
        "network.patch=4",
        "network.stride=4",
        "data.ratios=[0.6,0.2,0.2]",
    )
    train_run(tiny.experiment(folder / "table.csv", *small), folder / "run", SilentReporter())
    with open(folder / "run" / METRICS_FILE, "a") as file:
        file.writelines(json.dumps(event) + "\n" for event in GRADIENTS)
    return folder / "run"


@pytest.fixture(scope="module")
def report(run) -> Page:
    return parsed(write_report(run, SilentReporter()))


def test_the_page_loads_nothing_from_anywhere(report):
    for tag, attributes in report.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form"), tag
        for name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            address = attributes.get(name)
            assert address is None or address.startswith(("#", "data:")), (tag, address)
        assert not [name for name in attributes if name.startswith("on")], "no inline script"
    assert "@import" not in report.source
    assert "url(" not in report.source
    policy = next(
        tag["content"] for tag in report.every("meta") if tag.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_picture_is_inside_the_page_and_described(report):
    images = report.every("img")
    # curves, forecasts on test windows and of the future, errors by step and channel, attention, gradients
    assert len(images) == 8
    for image, svg in zip(images, report.svgs(), strict=True):
        assert len(str(image["alt"])) > 30
        for element in ElementTree.fromstring(svg).iter():
            assert not element.tag.endswith(("script", "foreignObject"))
            for name, value in element.attrib.items():
                assert not name.endswith("href") or value.startswith(("#", "data:image/png;base64,")), value
    assert len({image["alt"] for image in images}) == len(images)


def test_the_page_has_every_section_and_a_structure(report):
    assert [section["id"] for section in report.every("section")] == SECTION_NAMES
    assert [link["href"] for link in report.every("a")] == ["#main", *(f"#{name}" for name in SECTION_NAMES)]
    headings = [tag for tag, _ in report.tags if tag in ("h1", "h2", "h3")]
    assert headings == ["h1"] + ["h2"] * len(SECTION_NAMES)
    assert report.open_tags == []
    assert report.every("html")[0]["lang"] == "en"
    assert len(report.every("caption")) == len(report.every("table")) > 5
    assert all(cell.get("scope") in ("col", "row") for cell in report.every("th"))
    identifiers = [attributes["id"] for _, attributes in report.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)


def test_numbers_are_at_the_right_and_the_best_are_bold(report):
    cells = report.every("td")
    assert {cell.get("class") for cell in cells} == {None, "number"}
    assert {cell.get("class") for cell in report.every("th")} == {None, "number"}
    assert len(report.every("strong")) == 2, "the best MSE and MAE"


def test_names_from_outside_are_text_and_never_markup(report):
    for name in NAMES:
        assert name in report.said
    assert "<script" not in report.source
    assert "evil.test" in report.said
    assert "<b>/a" in report.said


def test_the_page_says_what_was_run(report, run):
    said = report.said
    for part in (
        "RANDOM weights, 1 blocks of width 16",
        "The trunk's weights are random",
        "rank 4, alpha 16, rslora scaling",
        "protocol strict",
        "seed 2021",
        "forecast, 8 input steps, horizon 3",
        "gpt2/wpe, out_layer",
        "jaxlib",
        "table.csv",
        "cosine_epochs: 3",
    ):
        assert part in said, part
    assert str(run.parent) not in said, "a page names no folders of the machine"


def test_the_numbers_are_those_of_the_run(report, run):
    loaded, data = open_run(run)
    rows = compare(loaded, data, split="test", baselines=None, reporter=SilentReporter()).rows
    for row in rows:
        assert f"{row.method} {row.metrics['mse']:.4f} {row.metrics['mae']:.4f}" in report.said
    assert f"MSE {rows[0].metrics['mse']:.4g}, MAE {rows[0].metrics['mae']:.4g}" in report.said
    epochs = [
        event
        for event in map(json.loads, (run / METRICS_FILE).read_text().splitlines())
        if event["event"] == "epoch"
    ]
    best = min(epochs, key=lambda event: event["validation_mse"])
    assert (
        f"The smallest validation MSE is {best['validation_mse']:.4g}, of epoch {best['epoch']}"
        in report.said
    )


def test_the_shown_windows_follow_the_rule(report, run):
    loaded, data = open_run(run)
    sums = evaluate(
        loaded.model.predict,
        data.task,
        data.task.tables["test"],
        loaded.model.frozen,
        loaded.model.trainable,
        batch_size=16,
    )
    error = sums["squared_error"] / sums["count"]
    middle = int(np.argsort(error, kind="stable")[(len(error) - 1) // 2])
    alt = next(
        str(image["alt"]) for image in report.every("img") if "with the actual values" in str(image["alt"])
    )
    channel, starts = data.task.tables["test"].channel, data.task.tables["test"].first
    for word, place in (("best", int(error.argmin())), ("median", middle), ("worst", int(error.argmax()))):
        when = (
            str(np.datetime64("2024-01-01T00") + np.timedelta64(int(starts[place]) + 8, "h")).replace(
                "T", " "
            )
            + ":00"
        )
        assert f"{word}: {NAMES[channel[place]]}, window {place} from {when}, MSE {error[place]:.4g}" in alt


@pytest.mark.slow
def test_errors_by_channel_and_step_are_means_of_the_same_errors(run, monkeypatch):
    loaded, data = open_run(run)
    evaluation, table = Evaluation(loaded, data), data.task.tables["test"]
    monkeypatch.setattr("ofa_jax.report.forecasts.SLICE", 10)  # the test part has more windows
    metrics, _, errors, _ = forecast_results(evaluation)
    windows = evaluation.windows(range(table.size))
    squared = np.stack([np.square(window["prediction"] - window["y"])[:, 0] for window in windows])
    by_channel, by_step = errors.folded
    ours, naive = "One-for-All (reference, random trunk)", "seasonal naive (24 steps)"
    assert by_step.head == ("step", ours, naive, "last value")
    own = [float(row[1]) for row in by_step.rows]
    np.testing.assert_allclose(own, squared.mean(axis=0), rtol=1e-3)  # four digits are shown
    by_name = {row[0]: float(row[1]) for row in by_channel.rows}
    for index, name in enumerate(NAMES):
        assert by_name[name] == pytest.approx(squared[table.channel == index].mean(), rel=1e-3)
    assert metrics["mse"] == pytest.approx(squared.mean(), rel=1e-5)  # float32 squares in another order


@pytest.mark.slow
def test_a_shown_forecast_is_in_original_units(run):
    loaded, data = open_run(run)
    place = data.task.tables["test"].size - 1
    evaluation = Evaluation(loaded, data)
    shown = _forecast_table(evaluation, place, evaluation.windows([place])[0])
    first = int(data.task.tables["test"].first[place])
    np.testing.assert_allclose(
        shown["actual"], data.frame.values[first : first + 11, 1], rtol=1e-5
    )  # through float32
    np.testing.assert_array_equal(shown["time"], data.frame.timestamps[first : first + 11])
    scaled = loaded.scaler.transform(data.frame.values)[first : first + 8, 1]
    pred = np.asarray(
        loaded.model.predict(loaded.model.frozen, loaded.model.trainable, jnp.asarray(scaled[None, :, None]))
    )[0, :, 0]
    np.testing.assert_allclose(
        shown["forecast"][8:], pred * loaded.scaler.std[1] + loaded.scaler.mean[1], rtol=1e-4
    )


@pytest.mark.slow
def test_the_future_of_times_in_two_columns(tiny, tmp_path):
    path = tiny.csv(tmp_path / "tiny.csv")
    path.write_text(path.read_text().replace("date", "date,clock").replace("T", ","))
    settings = ("train.epochs=1", "data.timestamp_column=date + clock")
    train_run(tiny.experiment(path, *settings), tmp_path / "run", SilentReporter())
    section = future_section(Evaluation(*open_run(tmp_path / "run")))
    assert section.sentences == ["The next 8 steps, in original units, of 2 of 2 series."]


def test_the_future_is_what_predict_forecasts(run, monkeypatch):
    loaded, data = open_run(run)
    drawn = []
    figure = new_figure(1, 1)
    monkeypatch.setattr("ofa_jax.plots.run.forecast", lambda table, **_: drawn.append(table) or figure)
    section = future_section(Evaluation(loaded, data))
    (table,) = drawn
    wanted = predict(loaded, run.parent / "table.csv")
    for name in NAMES:
        own = table[table["panel"] == name]
        np.testing.assert_allclose(own["forecast"].dropna(), wanted[name], rtol=1e-6)
        assert own["time"].tolist()[-3:] == wanted["date"].tolist()
        assert own["actual"].dropna().iloc[-1] == data.frame.values[-1, NAMES.index(name)]
    assert section.sentences == ["The next 3 steps, in original units, of 2 of 2 series."]


def test_baselines_that_the_run_has_are_in_the_table(run, report):
    assert "No trained baselines yet" in report.said
    loaded, data = open_run(run)
    compare(
        loaded,
        data,
        split="validation",
        baselines=run / "controls",
        reporter=SilentReporter(),
        only=("nlinear",),
    )
    compared = _compared(run, Evaluation(loaded, data), {"mse": 0.5}, False, SilentReporter())
    section = baselines_section(compared)
    methods = [row[0] for row in section.tables[0].rows]
    untrained = ["seasonal naive (24 steps)", "last value"]
    ours = "One-for-All (reference, random trunk)"
    assert sorted(methods) == sorted([ours, *untrained, "NLinear"]), "only those that are kept"
    errors = [float(row[1]) for row in section.tables[0].rows]
    assert errors == sorted(errors), "the best is first"
    assert 0.5 in errors
    assert (0, 1) in section.tables[0].best
    assert methods[0] != ours
    assert section.sentences[1] == compared.verdict
    assert f"{methods[0]}, MSE {errors[0]:.4f} against 0.5000" in section.sentences[1]


def test_gradients_as_they_were_logged(report):
    said = report.said
    assert "2 records up to step 8" in said
    assert "clipped in 50 % of the logged steps" in said
    assert "gpt2/wpe/a 0.2500 0.1250 0.1250 0.2500 0.0100" in said


def test_without_gradients_it_says_how_to_get_them():
    section = gradient_section([], 4)
    assert section.sentences == [HOW_TO_LOG]
    assert "--set train.gradient_log=50" in HOW_TO_LOG
    unclipped = gradient_section([{**GRADIENTS[0], "clip_rate": None}], 4)
    assert "never clipped" in unclipped.sentences[1]


def test_an_unfinished_run_says_so(run):
    loaded, data = open_run(run)
    events = read_events(run / METRICS_FILE)
    begun = [event for event in events if event["event"] != "finished"]
    assert "Training has not finished" in _warnings(loaded, data, begun)[1]
    assert len(_warnings(loaded, data, events)) == 4  # series, inferred season, longer than the input
    assert "so there are no curves" in training_section([], "mse").sentences[0]


def test_bad_places_are_one_clear_error(run, tmp_path):
    with pytest.raises(OfaError, match=r"out: .* is a folder, not a file\. Name a file"):
        write_report(run, SilentReporter(), out=tmp_path)
    with pytest.raises(CheckpointError, match="not a run folder"):
        write_report(tmp_path, SilentReporter())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["ofa-jax", "report", str(run), "--out", str(tmp_path / "new folder" / "page.html")]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert capsys.readouterr().out == f"report: {tmp_path / 'new folder' / 'page.html'}\n"
    assert parsed(tmp_path / "new folder" / "page.html").every("h1")


def test_places_and_ties():
    assert best_median_worst(np.array([3.0, 1, 2])) == {"best": 1, "median": 2, "worst": 0}
    assert best_median_worst(np.array([2.0, 1, 1, 2])) == {"best": 1, "median": 2, "worst": 3}
    assert best_median_worst(np.array([np.nan, 5.0])) == {"best": 1}
    assert best_median_worst(np.array([np.nan])) == {}


def test_what_a_page_says_of_a_place(tmp_path, monkeypatch):
    (tmp_path / "tests" / "analysis").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert shown_place("etth1") == "etth1"
    assert shown_place("openai-community/gpt2") == "openai-community/gpt2"
    assert shown_place("/home/somebody/secret/load.csv") == "load.csv"
    assert shown_place("tests/analysis") == "analysis"


def untrained(experiment: Experiment) -> Evaluation:
    """A model before its first step on its data."""
    data = read_data(experiment)
    experiment = experiment.replace({"task": data.settings})
    record = BundleRecord.model_construct(best_epoch=0, **data.meta)
    return Evaluation(LoadedModel(experiment, build_model(experiment), data.scaler, record), data)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_anomaly_scores_and_threshold_are_those_of_the_metrics(tiny, tmp_path, monkeypatch, protocol):
    # 22 does not divide the 120 test steps, so that two windows of the strict protocol cover some steps
    evaluation = untrained(
        tiny.of_task(
            "anomaly", tmp_path, f"protocol={protocol}", "task.input_length=22", "network.segment=11"
        )
    )
    seen = {}

    def spy(scores, label, threshold, *others):
        seen.update(scores=scores, threshold=threshold)
        return detection_metrics(scores, label, threshold, *others)

    monkeypatch.setattr("ofa_jax.tasks.anomaly.detection_metrics", spy)
    found, threshold, _, _ = anomaly_scores(evaluation)
    assert threshold == seen["threshold"]
    assert found["step"].tolist() == list(range(120))
    np.testing.assert_array_equal(np.flatnonzero(found["label"]), np.arange(50, 60))
    if protocol == "strict":  # published scores a step as often as windows cover it
        np.testing.assert_array_equal(found["score"], seen["scores"])


@pytest.mark.slow
def test_anomalies_are_shown_by_their_peaks(tiny, tmp_path):
    _, windows, errors, _ = anomaly_results(untrained(tiny.of_task("anomaly", tmp_path)))
    (row,) = windows.folded[0].rows
    assert row[:3] == ("1", "50", "59")
    assert row[4] in ("yes", "no")
    assert f"In {1 if row[4] == 'yes' else 0} of 1 labeled anomalies" in windows.sentences[1]
    assert {row[0] for row in errors.folded[0].rows} == {"channel 0", "channel 1", "channel 2"}
    every, peak = windows.pictures  # the scores of all steps; series and scores around the only anomaly
    assert "highest peak: steps 50 to 59" in peak.alt
    assert re.search(r"channel [012] is reconstructed worst there", peak.caption)
    assert "with flagged steps" not in every.alt


@pytest.mark.slow
def test_confused_classes_add_up_to_the_accuracy(tiny, tmp_path):
    evaluation = untrained(tiny.of_task("classification", tmp_path))
    task, model = evaluation.data.task, evaluation.loaded.model
    sums = evaluate(model.predict, task, task.tables["test"], model.frozen, model.trainable, batch_size=4)
    metrics, windows, errors, _ = classification_results(evaluation)
    assert metrics == pytest.approx(task.metrics(sums), rel=1e-5)
    assert errors.sentences[0] == f"{int(sums['right'].sum())} of 15 test cases are classified correctly."
    by_class = {row[0]: float(row[2]) for row in errors.tables[0].rows}
    assert np.mean(list(by_class.values())) == pytest.approx(
        sums["right"].mean(), abs=1e-3
    )  # five cases of each class
    entropy = sums["cross_entropy"]
    assert windows.tables[0].rows[0][0] == f"best: case {30 + entropy.argmin()}"
    assert float(windows.tables[0].rows[2][4]) == pytest.approx(entropy.max(), rel=1e-3)


@pytest.mark.slow
def test_filled_in_windows_follow_the_rule(tiny, tmp_path):
    evaluation = untrained(tiny.of_task("imputation", tmp_path))
    task, model = evaluation.data.task, evaluation.loaded.model
    sums = evaluate(model.predict, task, task.tables["test"], model.frozen, model.trainable, batch_size=4)
    with np.errstate(invalid="ignore"):  # a window of which no point was hidden has no error
        error = sums["squared_error"] / sums["count"]
    metrics, windows, errors, _ = imputation_results(evaluation)
    assert metrics == pytest.approx(task.metrics(sums), rel=1e-5)
    alt = windows.pictures[0].alt
    assert f"best: window {np.nanargmin(error)}, MSE {np.nanmin(error):.4g}" in alt
    assert f"worst: window {np.nanargmax(error)}, MSE {np.nanmax(error):.4g}" in alt
    assert {row[0] for row in errors.folded[0].rows} == {"a", "b"}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["zero_shot", "short_term"])
def test_series_are_scored_in_percent(tiny, tmp_path, task):
    evaluation = untrained(tiny.of_task(task, tmp_path))
    metrics, windows, errors, future = forecast_results(evaluation)
    assert f"{metrics['smape']:.4g}" != "nan"
    assert re.search("best: series T[0-9]+, sMAPE", windows.pictures[0].alt), "by their names in the file"
    assert re.fullmatch(r"The next 3 steps, in original units, of 3 of \d+ series\.", future.sentences[0])
    assert "sMAPE" in windows.sentences[0]
    assert "no errors by channel" in errors.sentences[0]


@pytest.mark.slow
def test_series_that_begin_at_different_times_are_shown_in_theirs(tiny, tmp_path, monkeypatch):
    """A series of n years from 1900 on ends in 1899 + n; the tested steps are its last three."""
    experiment = tiny.of_task("zero_shot", tmp_path)
    target = Path(experiment.data.target or experiment.data.source)
    text = target.read_text().replace("@frequency", "@attribute start_timestamp date\n@frequency")
    target.write_text(re.sub(r"(?m)^(T\d+):", r"\1:1900-02-28 00-00-00:", text))
    drawn = []
    draw = style.panels

    def panels(table, *others):
        drawn.append(table)
        return draw(table, *others)

    monkeypatch.setattr(style, "panels", panels)
    _, windows, _, future = forecast_results(untrained(experiment))
    titles = re.findall(r"series T(\d+) from (\d{4}-\d\d-\d\d), ", windows.pictures[0].alt)
    assert len(titles) == 3
    assert titles == [(length, f"{1900 + int(length) - 3}-02-28") for length, _ in titles]
    shown, ahead = drawn
    for length, (_, table) in zip(titles, shown.groupby("panel", sort=False), strict=True):
        assert table["time"].iloc[-1] == pd.Timestamp(f"{1899 + int(length[0])}-02-28")
        assert table["actual"].notna().all(), "steps before a series begins are not drawn"
    assert len(ahead["panel"].unique()) == 3, future
    for name, table in ahead.groupby("panel"):
        assert table["time"].iloc[-1] == pd.Timestamp(f"{1899 + int(name[1:]) + 3}-02-28")
        assert (table["time"].diff().dropna() > pd.Timedelta(360, "D")).all()


@pytest.mark.slow
def test_series_of_a_table_are_shown_in_its_times(tiny, tmp_path):
    path = tmp_path / "table.csv"
    days = pd.date_range("2020-01-01", periods=40, freq="D")
    values = np.random.default_rng(0).normal(size=40).cumsum()
    pd.DataFrame({"date": days, "a": 20 + values, "b": 30 - values}).to_csv(path, index=False)
    experiment = tiny.of_task("short_term", tmp_path).replace({"data.source": str(path)})
    _, windows, _, future = forecast_results(untrained(experiment))
    assert set(re.findall(r"series (\w) from ([\d-]+)", windows.pictures[0].alt)) == {
        ("a", "2020-02-07"),
        ("b", "2020-02-07"),
    }
    assert len(future.pictures) == 1


def test_every_task_has_its_sections():
    from ofa_jax.tasks.table import TASKS

    assert RESULTS.keys() == TASKS.keys()


@pytest.mark.slow  # six runs, each trained and reported
@pytest.mark.parametrize("task", RESULTS)
def test_a_report_of_every_task(tiny, tmp_path, task):
    train_run(tiny.of_task(task, tmp_path), tmp_path / "run", SilentReporter())
    page = parsed(write_report(tmp_path / "run", SilentReporter(), baselines=task == "zero_shot"))
    forecasts = task in ("forecast", "zero_shot", "short_term")
    expected = [name for name in SECTION_NAMES if forecasts or name != "future"]
    assert [section["id"] for section in page.every("section")] == expected
    assert ("NLinear" in page.said) == (task == "zero_shot")
    for svg in page.svgs():
        ElementTree.fromstring(svg)
    test_the_page_loads_nothing_from_anywhere(page)


def browser_and_driver() -> tuple[str, str]:
    """Chromium and its driver, or the test is skipped and says what is missing."""
    import shutil

    pytest.importorskip("selenium", reason="needs the extra `browser`: pip install -e '.[browser]'")
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
        None,
    )
    driver = shutil.which("chromedriver")
    if not found or not driver:
        pytest.skip(
            "needs Chromium and its driver: apt-get install --no-install-recommends chromium chromium-driver"
        )
    return found, driver


@pytest.mark.slow  # a browser takes seconds to start
def test_a_browser_shows_it_without_an_error_or_a_request(report, run):
    binary, driver = browser_and_driver()
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    address = (run / "report.html").as_uri()
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver)) as page:
        page.get(address)
        assert page.title == report.said[: len(page.title)]
        images = page.execute_script(
            "return [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight])"
        )
        assert len(images) == len(report.every("img"))
        assert all(complete and width > 100 and height > 100 for complete, width, height in images)
        for width in (1200, 360):
            page.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
            )
            for scheme in ("light", "dark"):
                page.execute_cdp_cmd(
                    "Emulation.setEmulatedMedia",
                    {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
                )
                assert page.execute_script("return document.documentElement.scrollWidth") <= width, (
                    "the page scrolls sideways"
                )
                ink, paper = page.execute_script(
                    "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
                )
                assert contrast(ink, paper) > 7, (scheme, ink, paper)
        console = page.get_log("browser")
        messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    assert console == []
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert address in asked
    assert [url for url in asked if urlparse(url).scheme != "data" and url != address] == []


def contrast(ink: str, paper: str) -> float:
    """The contrast ratio of two CSS colors, as WCAG 2 defines it."""

    def luminance(color: str) -> float:
        parts = np.array([int(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
