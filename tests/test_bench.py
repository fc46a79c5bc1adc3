"""tools/bench.py: formula, curves and page, refused options, and all sections at a tiny size."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from ofa_jax.build import build_model
from ofa_jax.errors import ConfigError, OfaError

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "tools"))
bench: Any = importlib.import_module("bench")
flops, nano, ours, page, paper, quick, schema, sizes, timing, worker = (
    importlib.import_module(f"benchmarks.{name}")
    for name in ("flops", "nano", "ours", "page", "paper", "quick", "schema", "sizes", "timing", "worker")
)

SHAPE = sizes.Shape(
    input_length=32, horizon=8, patch=8, stride=4, n_embd=16, n_layer=1, n_head=2, n_positions=16, rank=2
)
TINY = sizes.Sizes(
    shape=SHAPE,
    batch=4,
    rounds=2,
    inference_batch=4,
    inference_rounds=2,
    latency_rounds=2,
    latency_calls=2,
    squares=(32,),
    roof_rounds=2,
    quick=(
        "task.input_length=32",
        "task.horizon=8",
        "trunk.n_layer=1",
        "trunk.random.n_embd=16",
        "data.split=ratio",
    ),
    generated_rows=500,
    real_data=False,
    epoch_rounds=1,
    memory_steps=1,
    memory_percent=50,
    start_rounds=1,
    process_rounds=1,
    sweep_ranks=(1, 20),
    sweep_percent=100,
    nano=sizes.NanoShape(horizon=16, rank=2),
    nano_batch=4,
    nano_windows=8,
    nano_panel=3,
    growth={"channels": (2, 3), "rank": (1, 2)},
    growth_shape=SHAPE,
    growth_batch=4,
    growth_windows=50,
    growth_steps=1,
)


def given_stat(median: float, **more: Any) -> dict[str, Any]:
    return {"median": median, "low": None, "high": None, "rounds": 3, "first": None, **more}


def given_report() -> dict[str, Any]:
    """A report as JSON."""
    step = {
        "what": "train step",
        "unit": "s",
        "note": "",
        "reached": False,
        "ours": given_stat(0.5918, low=0.58, high=0.6049, first=5.43),
        "theirs": given_stat(0.816),
        "ratio": {"of": "theirs/ours", "value": 1.379, "low": 1.35, "high": 1.4},
        "target": {"of": "ratio", "bound": "at least", "value": 1.6},
    }
    share = {
        "what": "input",
        "unit": "share",
        "note": "alone",
        "reached": True,
        "ours": given_stat(0.017),
        "theirs": None,
        "ratio": None,
        "target": {"of": "ours", "bound": "at most", "value": 0.02},
    }
    points = [(16, 0.0076, 336_000_000), (1024, 1.6, 1_115_000_000)]
    curve = {
        "axis": "batch",
        "worse_than_linear": True,
        "fitted": 2,
        "points": [{"x": x, "seconds": seconds, "bytes": size} for x, seconds, size in points],
        "time_exponent": 1.134,
        "memory_exponent": 0.6,
    }
    machine = {"cpu": "some cpu", "cores": 2, "memory_bytes": 2**34, "system": "Linux 6", "device": "cpu"}
    versions = {"python": "3.11.9", "torch": "2.13.0"}
    first = {"name": "step", "title": "Train step", "text": "One step.", "seconds": 61.0}
    second = {"name": "growth", "title": "Growth", "text": "Curves.", "seconds": 59.0}
    return {
        "format": 1,
        "command": "python tools/bench.py --only step",
        "commit": "0123456789ab",
        "date": "2026-01-02",
        "compute_dtype": "float32",
        "machine": {**machine, "devices": 1, "versions": versions},
        "sections": [
            {**first, "rows": [step, share], "growth": []},
            {**second, "rows": [], "growth": [curve]},
        ],
    }


@pytest.fixture
def report() -> Any:
    return schema.Report.model_validate_json(json.dumps(given_report()))


def test_operations_are_those_of_a_count_by_hand() -> None:
    """Two windows of three tokens (L 8, patch 4, stride 4), width 4, one block, horizon 5, rank 2."""
    shape = sizes.Shape(
        input_length=8, horizon=5, patch=4, stride=4, n_embd=4, n_layer=1, n_head=1, n_positions=9, rank=2
    )
    assert shape.tokens == 3
    kernels = 4 * 12 + 4 * 4 + 4 * 16 + 16 * 4  # c_attn, c_proj, c_fc, c_proj
    assert flops.trunk_parameters(shape) == kernels == 192
    trunk = 6 * 2 * kernels
    attention = 6 * (2 * 3 * 4 + 2 * 3 * 4)  # every token with three keys, then with three values
    embed = 6 * 2 * 4 * 4
    head = 2 * 2 * 12 * 5
    a, b = 2 * 2 * 12 * 2, 2 * 2 * 2 * 5  # the head's adapter: 12 numbers to rank 2, rank 2 to horizon 5
    positions = 2 * 3 * 2 * 4  # three rows of rank 2 to width 4, whatever the batch
    assert flops.forward(shape, 2) == trunk + attention + embed + head + a + b + positions
    assert flops.forward(shape, 2, merged=True) == trunk + attention + embed + head
    to_activations = trunk + 2 * attention + head + a + b
    of_weights = a + b + 2 * positions
    assert flops.backward(shape, 2) == to_activations + of_weights
    assert flops.training(shape, 2) == flops.forward(shape, 2) + flops.backward(shape, 2)


def test_operations_are_those_that_xla_counts() -> None:
    """XLA also counts element-wise work, 1.0 to 1.4 % of the products at width 256."""
    size = {"input_length": 64, "horizon": 24, "patch": 8, "stride": 8, "n_positions": 16}
    shape = sizes.Shape(**size, n_embd=256, n_layer=2, n_head=4, rank=4)
    model = build_model(ours.experiment_of(shape, 4, *ours.NO_DROPOUT))
    x_btc, y_bhc = (np.ones((4, steps, 1), np.float32) for steps in (64, 24))

    def loss(trainable: Any, frozen: Any) -> jax.Array:
        return jnp.square(model.predict(frozen, trainable, x_btc) - y_bhc).mean()

    def counted(function: Any) -> float:
        return jax.jit(function).lower(model.trainable, model.frozen).cost_analysis()["flops"]

    assert 1 <= counted(loss) / flops.forward(shape, 4) <= 1.03
    assert 1 <= counted(jax.value_and_grad(loss)) / flops.training(shape, 4) <= 1.03


def test_operations_of_nano_are_those_that_xla_counts() -> None:
    shape = sizes.NanoShape()
    model = build_model(nano.experiment_of(shape, 4))
    x_btc, merged = np.ones((1, shape.input_length, 1), np.float32), model.merged()
    program = jax.jit(lambda: model.network.apply({"params": merged}, x_btc))
    assert 1 <= program.lower().cost_analysis()["flops"] / nano.forward(shape) <= 1.03


def test_sides_take_turns_after_a_first_call_and_one_to_warm_up() -> None:
    order: list[str] = []
    taken = timing.alternate({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3)
    assert "".join(order) == "ab" * 5
    assert [len(taken[name].seconds) for name in "ab"] == [3, 3]
    order.clear()
    blocks = timing.alternate_blocks(
        {name: lambda name=name: order.append(name) for name in "ab"}, rounds=2, size=2
    )
    assert "".join(order) == "ab" + "aaabbb" * 2
    assert [[len(block) for block in blocks[name]] for name in "ab"] == [[2, 2], [2, 2]]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_an_exponent_is_that_of_the_upper_half(power: float) -> None:
    xs = (1, 10, 20, 50, 100, 200)
    ys = [99.0, 98.0, 97.0, *(3 * x**power for x in xs[3:])]
    assert timing.exponent(xs, ys) == pytest.approx(power, abs=1e-12)  # float64 sums of three terms


def test_an_exponent_is_that_of_least_squares() -> None:
    xs, ys = (1, 2, 4, 8, 16, 32), (1.0, 1.0, 1.0, 3.0, 5.0, 13.0)
    wanted = np.polyfit(np.log(xs[3:]), np.log(ys[3:]), 1)[0]
    assert timing.exponent(xs, ys) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("count", "fitted"), [(2, 2), (3, 3), (4, 3), (5, 3), (6, 3), (8, 4), (10, 5)])
def test_the_upper_half_has_three_points_where_there_are_as_many(count: int, fitted: int) -> None:
    assert timing.upper_half(count) == fitted


def test_a_percentile_is_a_measured_value() -> None:
    values = [float(value) for value in range(200, 0, -1)]
    assert [timing.percentile(values, share) for share in (0.5, 0.99, 1)] == [100, 198, 200]


def test_ratios_are_of_medians_and_spread_round_by_round() -> None:
    mine, other = timing.Taken(9.0, [1.0, 2.0, 3.0]), timing.Taken(8.0, [4.0, 6.0, 3.0])
    row = timing.timed_row("x", mine, other, schema.Target(of="ratio", bound="at least", value=2))
    assert (row.ours.median, row.ours.low, row.ours.high, row.ours.first, row.ours.rounds) == (2, 1, 3, 9, 3)
    assert (row.ratio.value, row.ratio.low, row.ratio.high, row.reached) == (2, 1, 4, True)
    rates = timing.rate_row("x", 12, mine, other, schema.Target(of="ratio", bound="at least", value=2.1))
    assert (rates.ours.median, rates.theirs.median, rates.ratio.value, rates.reached) == (6, 3, 2, False)
    assert rates.ours.first == 9


@pytest.mark.parametrize(
    ("bound", "value", "met"),
    [("at most", 0.5, True), ("at most", 0.4, False), ("at least", 0.4, True), ("at least", 0.6, False)],
)
@pytest.mark.parametrize("of", ["ours", "ratio"])
def test_a_target_applies_to_our_number_or_to_the_ratio(of: str, bound: str, value: float, met: bool) -> None:
    ours = schema.Stat(median=0.5 if of == "ours" else 2)
    compared = schema.once(2, 4 if of == "ratio" else 1, "ours/theirs")
    target = schema.Target(of=of, bound=bound, value=value)
    assert schema.make_row("x", "s", ours, ratio=compared, target=target).reached is met


def test_spread_is_quartiles_from_five_rounds_on() -> None:
    assert schema.spread([3, 1, 2, 9]) == (1, 9)
    assert schema.spread([1, 2, 3, 4, 100]) == (2, 4)


def test_the_other_side_runs_between_our_epochs_and_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(quick.time, "perf_counter", lambda: float(next(clock)))
    ran: list[int] = []
    turns = quick.TakeTurns(lambda: ran.append(len(turns.training)))
    for epoch in (1, 2, 3):
        turns.begin(epoch, 3, 100, 0)
        turns.end_epoch({"seconds": 0.25})
    assert ran == [2, 3]
    assert turns.training == [0.25] * 3
    assert turns.validation == [0.75] * 3  # one clock tick from begin to end
    assert turns.keeping == [1.0] * 2  # and one to the next begin


def test_the_page_shows_the_report(report: Any) -> None:
    text = page.render(report)
    step = "| 592 ms (580–605) | 5.43 s | 816 ms | 1.38× (1.35–1.40) | ≥ 1.6×, **missed** |"
    assert f"| train step {step}" in text
    assert "| input (alone) | 1.70 % | — | — | — | ≤ 2.00 %, reached |" in text
    points = "16: 7.60 ms, 336 MB; 1,024: 1.60 s, 1,115 MB"
    powers = "x^1.13 | x^0.60 | **worse than linear**: see docs/performance.md"
    assert f"| batch | {points} | {powers} |" in text
    machine = "on some cpu (2 cores used, 16 GiB, Linux 6"
    assert f"at commit 0123456789ab on 2026-01-02, in 2.0 minutes, {machine}" in text
    assert "python 3.11.9, torch 2.13.0" in text
    assert "\n```\npython tools/bench.py --only step\n```\n" in text


def test_empty_columns_are_left_out(report: Any) -> None:
    section = report.sections[0].model_copy(update={"rows": report.sections[0].rows[1:]})
    text = page.render(report.model_copy(update={"sections": [section]}))
    assert "|  | ofa-jax | target |\n|---|---:|---:|\n| input (alone) | 1.70 % | ≤ 2.00 %, reached |" in text


@pytest.mark.parametrize(
    ("number", "unit", "shown"),
    [
        (12.345, "s", "12.3 s"),
        (0.0012345, "s", "1.23 ms"),
        (4.2e-5, "s", "42.0 µs"),
        (123_456_789, "bytes", "123 MB"),
        (3.6e11, "FLOP/s", "360 GFLOP/s"),
        (5123.4, "windows/s", "5,123 windows/s"),
        (0.0, "share", "0 %"),
    ],
)
def test_numbers_have_three_digits(number: float, unit: str, shown: str) -> None:
    assert page.value(number, unit) == shown


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match="surprise"):
        schema.Report.model_validate(given_report() | {"surprise": 1})


def test_the_command_writes_both_files_or_prints_the_page(
    tmp_path: Path, report: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(bench, "measure", lambda *given: asked.append(given) or report)
    json_file, markdown = tmp_path / "new" / "a.json", tmp_path / "new" / "a.md"
    options = ["--only", "roof,step", "--batch", "5", "--json", str(json_file), "--markdown", str(markdown)]
    ran = CliRunner().invoke(bench.app, options, catch_exceptions=False)
    assert (ran.exit_code, ran.stdout) == (0, "")
    assert json.loads(json_file.read_text()) == given_report()
    assert markdown.read_text() == page.render(report)
    assert asked[0][:2] == (replace(sizes.DEFAULT, batch=5), ["step", "roof"])
    assert CliRunner().invoke(bench.app, ["--full"], catch_exceptions=False).stdout == page.render(report)
    assert asked[1][:2] == (sizes.FULL, list(bench.NAMES))
    assert sizes.FULL.batch == 256


def test_invalid_options_are_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "measure", lambda *given: pytest.fail("it started"))
    known = "'step', 'inference', 'roof', 'nano', 'epoch', 'memory', 'start', 'sweep' or 'growth'"
    with pytest.raises(ConfigError, match=rf"only: input should be {known} \(found 'steps'\)"):
        CliRunner().invoke(bench.app, ["--only", "roof,steps"], catch_exceptions=False)
    for option in ("--json", "--markdown"):
        with pytest.raises(ConfigError, match="this is a folder"):
            CliRunner().invoke(bench.app, [option, str(tmp_path)], catch_exceptions=False)
    assert CliRunner().invoke(bench.app, ["--batch", "0"], catch_exceptions=False).exit_code == 2


def test_pytorch_is_required_only_by_sections_that_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": None, "transformers": True, "peft": None}
    monkeypatch.setattr(bench.importlib.util, "find_spec", installed.get)
    section = schema.Section(name="growth", title="", text="")
    monkeypatch.setattr(bench, "growth_section", lambda size: section)
    with pytest.raises(
        ConfigError, match=r"torch and peft cannot be imported, and roof, memory compare.*pip"
    ):
        bench.measure(TINY, ("roof", "memory", "start"), print, "")
    assert bench.measure(TINY, ("growth",), lambda text: None, "").sections[0].name == "growth"


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(OfaError, match=r"measures growth failed: TypeError: .*surprise"):
        worker.run("growth", shape=SHAPE, surprise=1)


@pytest.mark.parity
@pytest.mark.slow  # transformers' and peft's import
@pytest.mark.parametrize("changed", [None, "alpha", "in_layer"])
def test_a_different_network_is_not_compared(changed: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    theirs: Any = importlib.import_module("benchmarks.theirs")
    build = theirs.build

    def other(shape: Any, base: Any, adapters: Any) -> Any:
        if changed == "in_layer":
            base = {**base, "in_layer/kernel": base["in_layer/kernel"] * 1.01}
        return build(replace(shape, alpha=8.0) if changed == "alpha" else shape, base, adapters)

    monkeypatch.setattr(theirs, "build", other)
    if changed is None:
        paper.check_same_training(TINY)
    else:
        with pytest.raises(OfaError, match="losses of three training steps"):
            paper.check_same_training(TINY)


@pytest.mark.parity
@pytest.mark.slow
def test_their_dataset_has_our_windows_and_their_side_no_jax() -> None:
    pytest.importorskip("torch")
    theirs: Any = importlib.import_module("benchmarks.theirs")
    experiment = ours.experiment_of(SHAPE, 50)
    task = ours.random_task(experiment, channels=3, windows=50, univariate=True)
    windows = theirs.Windows(task.buffer, (0, len(task.buffer)), SHAPE)
    (batch,) = (batch for batch in theirs.loader(windows, len(windows), shuffle=False))
    index = jnp.arange(task.tables["train"].size)
    gathered = ours.gather(jnp.asarray(task.buffer), task.tables["train"], index, task.spec)
    np.testing.assert_array_equal(batch[0], gathered.x)
    np.testing.assert_array_equal(batch[1], gathered.y)
    code = "import sys, benchmarks.theirs; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=worker.environment()).returncode == 0


@pytest.mark.parity
@pytest.mark.slow  # some twenty processes
def test_all_sections_at_a_tiny_size() -> None:
    pytest.importorskip("torch")
    said: list[str] = []
    report = bench.measure(TINY, bench.NAMES, said.append, "the command")
    assert schema.Report.model_validate_json(report.model_dump_json()) == report
    names = [section.name for section in report.sections]
    assert [line.split(":")[0] for line in said] == list(bench.NAMES) == names
    sweep = report.sections[names.index("sweep")]
    ours, abreast, separate, share = (row.ours.median for row in sweep.rows)
    assert min(ours, abreast, separate) > 0
    assert share == ours / separate
    assert "Ranks 1, 20 by 1 seed of" in sweep.text
    rows = {(section.name, row.what): row for section in report.sections for row in section.rows}
    for (name, what), row in rows.items():
        assert row.ours.median > 0, (name, what)
        assert row.theirs is None or row.theirs.median > 0, (name, what)
        assert row.ratio is None or row.ratio.value > 0, (name, what)
        # our share of the roof is measured in turns with a product, theirs is computed: no ratio of the two;
        # the step with a gradient log is compared with our own
        not_theirs = row.theirs is None and what != "train step, gradient_log"
        assert (row.ratio is None) == (not_theirs or what == "train step's share of the roof"), (name, what)
        assert (row.reached is None) == (row.target is None), (name, what)
    alone = {what for (name, what), row in rows.items() if row.theirs is None and name in bench.COMPARED}
    assert alone == {
        "train step, recipe head_only",
        "train step, gradient_log",
        "checkpoint and bundle after an epoch",
        "input pipeline's share of a training step",
        "forecasts' share of the roof",
        "ofa-jax forecast on a CSV of two columns",
        "3 series, zero-shot",
        "3 series, fit",
    }
    targets = [(name, row.target.bound, row.target.value) for (name, _), row in rows.items() if row.target]
    assert targets == [
        ("step", "at least", 1.6),
        ("step", "at most", 1.03),
        *[("inference", "at least", 1.15)] * 2,
        ("roof", "at least", 0.85),
        ("nano", "at least", 2.0),
        ("nano", "at least", 0.6),
        ("nano", "at least", 2.0),
        ("nano", "at most", 4.0),
        ("nano", "at most", 5.0),
        ("nano", "at most", 60.0),
        ("epoch", "at least", 2.5),
        ("epoch", "at most", 0.02),
        ("memory", "at most", 0.6),
        ("start", "at most", 0.5),
        ("start", "at most", 5.0),
    ]
    curves = {curve.axis: curve for curve in report.sections[-1].growth}
    assert {axis: tuple(point.x for point in curve.points) for axis, curve in curves.items()} == TINY.growth
    assert all(point.seconds > 0 and point.bytes > 0 for curve in curves.values() for point in curve.points)
    assert page.render(report).count("\n## ") == 9
    assert re.fullmatch("[0-9a-f]{12}(-dirty)?|unknown", report.commit)
    assert report.machine.versions.keys() >= {"python", "jax", "ofa-jax", "torch", "transformers", "peft"}
