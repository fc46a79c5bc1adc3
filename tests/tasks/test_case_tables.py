"""Classification of cases in long tables: which rows are a case, classes, channels, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ofa_jax.config.schema import Experiment
from ofa_jax.data.cases import read_case_table
from ofa_jax.errors import ConfigError, DataError
from ofa_jax.inference import evaluate, predict
from ofa_jax.runs.train import open_run, read_data, train_run

NAMES = tuple(f"p{number}" for number in range(20))
COUNTS = 6 + np.arange(20) % 4


def table() -> pd.DataFrame:
    """20 cases of 6 to 9 steps; of two classes, which differ in the level of the first channel."""
    draw, parts = np.random.default_rng(0), []
    for number, (name, steps) in enumerate(zip(NAMES, COUNTS, strict=True)):
        values = draw.normal([4 * (number % 2), 0], size=(steps, 2))
        part = pd.DataFrame({"case": name, "time": np.arange(steps), "ax": values[:, 0], "ay": values[:, 1]})
        parts.append(part.assign(label=("run", "walk")[number % 2]))
    return pd.concat(parts, ignore_index=True)


def saved(folder: Path, frame: pd.DataFrame, name: str = "cases.csv") -> str:
    frame.to_csv(folder / name, index=False)
    return str(folder / name)


def experiment(source: str, **data: Any) -> Experiment:
    return Experiment(
        data={"source": source, **data},
        task={"name": "classification", "input_length": 9},
        trunk={"source": "random", "n_layer": 1, "random": {"n_embd": 8, "n_head": 2, "n_positions": 16}},
        network={"patch": 3, "stride": 3},
        train={"epochs": 12, "batch_size": 8, "learning_rate": 3e-2},
    )


def test_the_rows_of_a_case_are_its_steps():
    frame = table()
    cases, channels = read_case_table(frame, {})
    assert (cases.names, channels, cases.classes) == (NAMES, ("ax", "ay"), ("run", "walk"))
    np.testing.assert_array_equal(cases.lengths, COUNTS)
    np.testing.assert_array_equal(cases.cases[3], frame[frame.case == "p3"][["ax", "ay"]])
    assert cases.labels == ("run", "walk") * 10
    mixed, _ = read_case_table(frame.sort_values(["time", "case"], kind="stable"), {})
    for name, case in zip(mixed.names or (), mixed.cases, strict=True):
        np.testing.assert_array_equal(case, cases.cases[NAMES.index(name)])


def test_numbers_as_names_and_classes_are_the_same_in_csv_and_frame(tmp_path):
    frame = table().assign(
        case=lambda t: t.case.str[1:].astype(int), label=lambda t: (t.label == "run") * 1.0
    )
    found = [
        read_case_table(source, {})[0] for source in (frame, saved(tmp_path, frame.astype({"label": int})))
    ]
    assert found[0].names == found[1].names == tuple(map(str, range(20)))
    assert found[0].labels == found[1].labels == ("1", "0") * 10


@pytest.mark.slow
def test_it_is_trained_and_predicts_by_name(tmp_path):
    frame = table()
    train_run(experiment(saved(tmp_path, frame)), tmp_path / "run")
    loaded, data = open_run(tmp_path / "run")
    sizes = {split: part.size for split, part in data.task.tables.items()}
    assert sizes == {"train": 14, "validation": 2, "test": 4}
    assert set(data.task.tables["test"].window_id) == {16, 17, 18, 19}  # positions: after the 16 others
    assert evaluate(loaded, data)["accuracy"] == 1
    new = frame.drop(columns="label").assign(other=1.5)[["other", "ay", "ax", "case"]]
    found = predict(loaded, new)
    assert list(found) == ["case", "predicted", "p(run)", "p(walk)"]
    assert found["case"].tolist() == list(NAMES)
    assert (found["predicted"] == ["run", "walk"] * 10).all()
    pd.testing.assert_frame_equal(predict(loaded, saved(tmp_path, new, "new.csv")), found)
    with pytest.raises(DataError, match="there is no column `ay`; the table has"):
        predict(loaded, new.drop(columns="ay"))


def test_the_last_cases_of_each_class_test(tmp_path):
    frame = table()
    data = read_data(experiment(saved(tmp_path, frame), ratios=[0.5, 0.2, 0.3]))
    test = data.task.tables["test"]
    np.testing.assert_array_equal(test.x_valid, COUNTS[-6:])
    assert data.task.tables["validation"].size == 4  # 2 of 7 in each class


def test_a_table_of_classes(tmp_path):
    frame = table()
    classes = frame.drop_duplicates("case")[["case", "label"]].rename(columns={"label": "kind"})
    source = saved(tmp_path, frame.drop(columns="label"))
    labels = saved(tmp_path, classes.sample(frac=1, random_state=0), "classes.csv")
    given = experiment(source, labels=labels, label_column="kind")
    wanted = read_data(experiment(saved(tmp_path, frame, "all.csv")))
    assert read_data(given).fingerprint == wanted.fingerprint
    some = saved(tmp_path, classes[1:], "some.csv")
    with pytest.raises(DataError, match=r"some\.csv: 1 case\(s\) have no class, the first is 'p0'"):
        read_data(experiment(source, labels=some, label_column="kind"))


def test_missing_values_are_filled_within_their_case(tmp_path):
    frame = table()
    frame.loc[frame.index[frame.case == "p4"][2], "ax"] = np.nan
    with pytest.raises(DataError, match=r"column `ax`, row \d+.*, case 'p4': 1 value\(s\) are missing"):
        read_case_table(saved(tmp_path, frame), {})
    cases, _ = read_case_table(frame, {"missing": "linear"})
    assert cases.cases[4][2, 0] == pytest.approx(cases.cases[4][[1, 3], 0].mean())
    assert cases.observed is not None
    assert not cases.observed[4][2, 0]
    frame.loc[frame.index[frame.case == "p4"][0], "ax"] = np.nan
    with pytest.raises(DataError, match="has nothing to fill it from"):
        read_case_table(frame, {"missing": "ffill"})


def _reversed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[::-1]


@pytest.mark.parametrize(
    ("change", "reading", "message"),
    [
        (lambda t: t.drop(columns="case"), {}, "there is no column `case` among `time`"),
        (
            lambda t: t.drop(columns="label"),
            {},
            r"no column `label`.* Name the column of classes in data\.label",
        ),
        (
            lambda t: t.assign(case=t.case.where(t.index != 5)),
            {},
            r"column `case`, row 6.*: the cell is empty",
        ),
        (
            lambda t: t.assign(label=t.label.where(t.index != 1, "walk")),
            {},
            "case 'p0' has the classes 'run'",
        ),
        (_reversed, {}, "the times of case 'p19' do not ascend"),
        (lambda t: t.assign(time=0), {}, "the times of case 'p0' do not ascend"),
        (lambda t: t.assign(time="soon"), {}, "times of cases cannot be read"),
        (lambda t: t.assign(ax="left"), {}, "the column contains the text 'left'"),
        (lambda t: t[["case", "time", "label"]], {}, "no column is a channel"),
        (lambda t: t, {"columns": ("az",)}, "there is no column `az`"),
        (lambda t: t[:0], {}, "there are no data rows"),
        (lambda t: t.assign(ax=1e30), {}, "too large for float32"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(change, reading, message):
    with pytest.raises(DataError, match=message):
        read_case_table(change(table()), reading)


def test_times_that_cannot_be_read_are_left_out_as_advised():
    frame = table().assign(time="soon")
    with pytest.raises(DataError, match=r"set data\.exclude to \[time\]"):
        read_case_table(frame, {})
    assert read_case_table(frame, {"exclude": ("time",)}).channels == ("ax", "ay")


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("of_table", [False, True])
def test_a_column_that_counts_rows_is_no_channel(shuffled, of_table):
    """The number of a row would tell classes by the order of the file."""
    frame = table()
    frame["row"] = np.arange(len(frame)) if of_table else frame["time"]
    frame = frame.drop(columns="time").sample(frac=1, random_state=0) if shuffled else frame
    with pytest.raises(DataError, match=r"column `row`.*it counts rows.*`exclude: \[row\]`.*call it `time`"):
        read_case_table(frame, {})
    assert read_case_table(frame, {"exclude": ("row",)}).channels[-2:] == ("ax", "ay")
    assert "row" in read_case_table(frame, {"columns": ("ax", "row")}).channels
    few = frame[frame["case"].isin(["p0", "p1"])]
    assert "row" in read_case_table(few, {}).channels  # two cases do not show it


def test_columns_can_be_chosen():
    frame = table().assign(note="text")
    assert read_case_table(frame, {"exclude": ("note",)}).channels == ("ax", "ay")
    assert read_case_table(frame, {"columns": ("ay", "label")}).channels == ("ay",)


@pytest.mark.slow
def test_a_model_of_named_channels_reads_no_ts_file_and_archives_no_settings_of_tables(tiny, tmp_path):
    train_run(experiment(saved(tmp_path, table())), tmp_path / "run")
    loaded, _ = open_run(tmp_path / "run")
    given = tiny.of_task("classification", tmp_path, "data.label_column=kind")
    with pytest.raises(
        ConfigError, match=r"the files of an archive, which are not read by data\.label_column"
    ):
        read_data(given)
    with pytest.raises(DataError, match=r"reads the channels `ax`, `ay`, which a \.ts file does not name"):
        predict(loaded, tmp_path / "Tiny_TEST.ts")


def test_too_few_cases_for_a_test_part(tmp_path):
    frame = table()
    few = frame[frame.case.isin(["p0", "p1", "p2", "p3"])]
    with pytest.raises(DataError, match=r"no class has enough cases for a test part of 0\.2"):
        read_data(experiment(saved(tmp_path, few)))
