"""Train step, inference and roof at the paper's shape."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import cycle

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import flops, ours
from benchmarks.schema import Row, Section, Stat, Target, find, make_row, once, ratio, stat
from benchmarks.sizes import Sizes
from benchmarks.timing import Call, alternate, alternate_blocks, percentile, rate_row, timed_row
from ofa_jax.build import Model, build_model, compute_dtype
from ofa_jax.errors import OfaError
from ofa_jax.tasks.base import Task

SAME = 1e-4
"""Largest relative difference of losses and forecasts; another order in float32 gives about 3e-6."""

STEP, MERGED, UNMERGED = "train step", "throughput, merged", "throughput, unmerged"
STEP_TARGET = Target(of="ratio", bound="at least", value=1.6)
LOGGED = "train step, gradient_log"
LOGGED_TARGET = Target(of="ratio", bound="at most", value=1.03)
THROUGHPUT_TARGET = Target(of="ratio", bound="at least", value=1.15)
ROOF_TARGET = Target(of="ours", bound="at least", value=0.85)


class Paper:
    """The network of these sections, built once."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.experiment = ours.experiment_of(sizes.shape, sizes.batch)
        self.compute_dtype = jnp.dtype(compute_dtype(self.experiment.trunk))

    @cached_property
    def task(self) -> Task:
        return ours.generated_task(self.experiment)

    @cached_property
    def model(self) -> Model:
        return build_model(self.experiment)

    def training_step(self, *overrides: str) -> Call:
        """Steps of ofa-jax's loop, ``sizes.dispatch`` per call."""
        experiment = ours.experiment_of(self.sizes.shape, self.sizes.batch, *overrides)
        model = build_model(experiment) if overrides else self.model
        return ours.training_step(experiment, self.task, model, self.sizes.dispatch)


def check_same_training(sizes: Sizes) -> None:
    """Three float32 steps on both sides, same weights and windows, no dropout: losses must agree.

    The second and third loss depend on the update of every trainable factor, so gradients and optimizer are
    compared with the network.

    Raises:
        OfaError: They do not.
    """
    from benchmarks import theirs

    overrides = *ours.NO_DROPOUT, "trunk.compute_dtype=float32", "train.learning_rate=1e-3"
    experiment = ours.experiment_of(sizes.shape, 2, *overrides)
    task, model = ours.generated_task(experiment), build_model(experiment)
    training = theirs.Training(theirs.build(sizes.shape, *ours.flat_parameters(model)), 1e-3, fast=False)
    mine, other = _size(model.trainable), theirs.trainable(training.model)
    if mine != other:
        raise OfaError(f"ofa-jax trains {mine:,} parameters and PyTorch {other:,}: not comparable")
    training.model.eval()
    with jax.default_matmul_precision("highest"):
        step = ours.training_step(experiment, task, model)
        found = [step() for _ in range(3)]
    wanted = [training.step(x, y) for x, y in theirs.tensors(ours.batches(experiment, task, 3))]
    check_same("losses of three training steps", np.array(found), np.array(wanted))


def check_same(what: str, found: np.ndarray, wanted: np.ndarray) -> None:
    """Stop if the two sides do not compute the same.

    Raises:
        OfaError: The largest difference exceeds :data:`SAME` of the largest value.
    """
    worst = np.abs(found - wanted).max() / np.abs(wanted).max()
    if not worst <= SAME:
        raise OfaError(
            f"the {what} of ofa-jax and PyTorch differ by {worst:.2g} of their size: not comparable"
        )


def _size(tree: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def step_section(paper: Paper) -> Section:
    """The section ``step``."""
    from benchmarks import theirs

    sizes = paper.sizes
    theirs.use_all_cores()
    check_same_training(sizes)
    training = theirs.Training(theirs.build(sizes.shape), ours.LEARNING_RATE)
    training.model.train()
    turns = cycle(theirs.tensors(ours.batches(paper.experiment, paper.task, 8)))
    calls: dict[str, Call] = {
        "ours": paper.training_step(),
        "theirs": lambda: [training.step(*next(turns)) for _ in range(sizes.dispatch)],
        "head_only": paper.training_step("recipe=head_only"),
        "logged": paper.training_step("train.gradient_log=50"),
    }
    taken = {name: found.per(sizes.dispatch) for name, found in alternate(calls, sizes.rounds).items()}
    overhead = ratio(taken["logged"].seconds, taken["ours"].seconds, "ours/theirs")
    note = "ratio: its time over that of the step without it, in the same turns"
    return Section(
        name="step",
        title="Train step",
        text=f"One step of Adam on {sizes.batch} univariate windows of {sizes.shape.input_length} steps, "
        f"{_network(sizes)}, dropout of 0.1 wherever GPT-2 has it, recipe `reference`: the time from the "
        f"host's call to the losses on the host for {sizes.dispatch} steps at a time, divided by "
        f"{sizes.dispatch}. ofa-jax runs its own loop, which makes its index and gathers its windows within "
        "the step; PyTorch gets batches gathered in advance. Before timing, three steps without dropout "
        "from the same weights gave the same losses on both sides.",
        rows=[
            timed_row(STEP, taken["ours"], taken["theirs"], STEP_TARGET),
            timed_row("train step, recipe head_only", taken["head_only"]),
            make_row(LOGGED, "s", taken["logged"].stat(), None, overhead, LOGGED_TARGET, note),
        ],
    )


def inference_section(paper: Paper) -> Section:
    """The section ``inference``."""
    from benchmarks import theirs

    sizes = paper.sizes
    theirs.use_all_cores()
    model = ours.with_moved_adapters(paper.model)
    module, mine = theirs.build(sizes.shape, *ours.flat_parameters(model)), ours.Forecasts(model)
    forecasts: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "unmerged": mine.unmerged,
        "theirs unmerged": theirs.forecasts(module),
        "merged": mine.merged,
        "theirs merged": theirs.forecasts(module, merged=True),
    }
    many, two, one = (_windows(paper, count) for count in (sizes.inference_batch, 2, 1))
    if paper.compute_dtype == jnp.float32:  # in bfloat16 the two sides round differently
        for name in ("unmerged", "merged"):
            check_same(f"{name} forecasts", forecasts[name](two), forecasts[f"theirs {name}"](two))
    taken = alternate(_on(forecasts, many), sizes.inference_rounds)
    blocks = alternate_blocks(_on(forecasts, one), sizes.latency_rounds, sizes.latency_calls)
    rows = []
    for name in ("unmerged", "merged"):
        both = taken[name], taken[f"theirs {name}"]
        rows.append(rate_row(f"throughput, {name}", sizes.inference_batch, *both, THROUGHPUT_TARGET))
    for name in ("unmerged", "merged"):
        rows += _latency_rows(name, blocks[name], blocks[f"theirs {name}"])
    calls = sizes.latency_rounds * sizes.latency_calls
    return Section(
        name="inference",
        title="Inference",
        text=f"Forecasts from NumPy to NumPy, {_network(sizes)}: windows per second in batches of "
        f"{sizes.inference_batch}, and the latency of one window over {calls} calls, in turns of "
        f"{sizes.latency_calls}. Merged: the adapters are folded into the weights on both sides. Both sides "
        "gave the same forecasts before timing.",
        rows=rows,
    )


def _windows(paper: Paper, count: int) -> np.ndarray:
    x_btc, _ = next(ours.batches(ours.experiment_of(paper.sizes.shape, count), paper.task, 1))
    return np.array(x_btc)  # a writable copy: PyTorch warns about any other


def _on(calls: Mapping[str, Callable[[np.ndarray], np.ndarray]], x_btc: np.ndarray) -> dict[str, Call]:
    return {name: lambda call=call: call(x_btc) for name, call in calls.items()}  # type: ignore[misc]


def _latency_rows(name: str, mine: list[list[float]], other: list[list[float]]) -> Iterator[Row]:
    first, second = ([percentile(block, 0.5) for block in blocks] for blocks in (mine, other))
    compared = ratio(first, second, "theirs/ours")
    yield make_row(f"latency p50, {name}", "s", stat(first), stat(second), compared)
    a, b = (percentile([seconds for block in blocks for seconds in block], 0.99) for blocks in (mine, other))
    yield make_row(f"latency p99, {name}", "s", Stat(median=a), Stat(median=b), once(a, b, "theirs/ours"))


def roof_section(paper: Paper, before: list[Section]) -> Section:
    """The section ``roof``; ``before`` has the sections measured earlier in the run."""
    from benchmarks import theirs

    sizes = paper.sizes
    theirs.use_all_cores()
    products = {f"{side} x {side} x {side}": (side, side, side) for side in sizes.squares}
    for windows in (sizes.batch, sizes.inference_batch):
        products |= flops.matmuls(sizes.shape, windows)
    rows = []
    for name, (i, j, k) in products.items():
        calls = {"ours": _matmul(i, j, k, paper), "theirs": theirs.matmul(i, j, k)}
        taken = alternate(calls, sizes.roof_rounds)
        mine, other = ([2 * i * j * k / seconds for seconds in taken[side].seconds] for side in calls)
        compared = ratio(mine, other, "ours/theirs")
        rows.append(make_row(f"matmul {name}", "FLOP/s", stat(mine), stat(other), compared))
    fastest = max(rows, key=lambda row: row.ours.median)
    best = Stat(median=fastest.ours.median), Stat(median=max(row.theirs.median for row in rows if row.theirs))
    compared = once(best[0].median, best[1].median, "ours/theirs")
    roof = make_row("best matmul; the higher one is the roof", "FLOP/s", *best, compared)
    highest = max(side.median for side in best)
    shares = _shares(paper, before, highest, products[fastest.what.removeprefix("matmul ")])
    return Section(
        name="roof",
        title="Roof",
        text="The best rate of dense matrix products, of jax's and PyTorch's over the trunk's own shapes "
        "and squares, in the network's computing type; and the share of it that train step and forecasts "
        "reach. A processor under steady load runs slower than in a short burst, and a single product "
        "allocates memory for its result, so the train step takes turns with series of products of about "
        "the same duration: the fastest of the table repeated, and, in one program, chains of squares and "
        "of an MLP's two products; its share is of the fastest of these. The model's operations are "
        "counted by formula without element-wise work (tools/benchmarks/flops.py), so dropout and norms "
        "lower the share. If the best products of the two libraries differ, that part of the ratios above "
        "is due to the libraries.",
        rows=[*shares, roof, *rows],
    )


def _shares(paper: Paper, before: list[Section], roof: float, fastest: tuple[int, int, int]) -> Iterator[Row]:
    sizes = paper.sizes
    work = flops.training(sizes.shape, sizes.batch)
    other = find(before, "step", STEP)
    theirs = None if other is None or other.theirs is None else Stat(median=work / other.theirs.median / roof)
    share = stat(_steady_shares(paper, work, fastest))
    yield make_row("train step's share of the roof", "share", share, theirs, target=ROOF_TARGET)
    for what in (UNMERGED, MERGED):
        found = find(before, "inference", what)
        if found is not None and found.theirs is not None:
            merged, windows = what == MERGED, sizes.inference_batch
            per_window = flops.forward(sizes.shape, windows, merged=merged) / windows
            a, b = (per_window * side.median / roof for side in (found.ours, found.theirs))
            both, compared = (Stat(median=a), Stat(median=b)), once(a, b, "ours/theirs")
            yield make_row(f"share of the roof: {what}", "share", *both, compared)


def _steady_shares(paper: Paper, work: float, fastest: tuple[int, int, int]) -> list[float]:
    """The train step's rate over that of the fastest of some series of products, per round."""
    sizes, shape = paper.sizes, paper.sizes.shape
    done, dtype = sizes.dispatch * work, paper.compute_dtype
    calls: dict[str, tuple[Call, float]] = {
        "step": (paper.training_step(), done),
        "fastest": _repeated(fastest, done / 2, paper),
        "MLP": matmul_chain(sizes.batch * shape.tokens, shape.n_embd, 4 * shape.n_embd, done / 2, dtype),
        **{f"square {side}": matmul_chain(side, side, side, done / 2, dtype) for side in sizes.squares},
    }
    taken = alternate({name: call for name, (call, _) in calls.items()}, sizes.rounds)
    rates = {name: [calls[name][1] / seconds for seconds in found.seconds] for name, found in taken.items()}
    step = rates.pop("step")
    best = max(rates.values(), key=statistics.median)
    return [mine / highest for mine, highest in zip(step, best, strict=True)]


def _repeated(product: tuple[int, int, int], work: float, paper: Paper) -> tuple[Call, float]:
    """One product repeated for about ``work`` operations, and their exact number."""
    count = max(1, round(work / (2 * math.prod(product))))
    multiply = _matmul(*product, paper)
    return lambda: [multiply() for _ in range(count)], float(count * 2 * math.prod(product))


def matmul_chain(rows: int, inner: int, outer: int, work: float, dtype: jnp.dtype) -> tuple[Call, float]:
    """``[rows, inner] x [inner, outer] x [outer, inner]`` repeated in one program without allocation.

    For about ``work`` operations; their exact number comes second.
    """
    there, back = (_random(size, dtype) / math.sqrt(size[0]) for size in ((inner, outer), (outer, inner)))
    count = max(1, round(work / (4 * rows * inner * outer)))
    program = jax.jit(lambda x, there, back: jax.lax.fori_loop(0, count, lambda _, x: x @ there @ back, x))
    x = jnp.ones((rows, inner), dtype)
    return lambda: jax.block_until_ready(program(x, there, back)), float(count * 4 * rows * inner * outer)


def _matmul(rows: int, inner: int, columns: int, paper: Paper) -> Call:
    left, right = (_random(shape, paper.compute_dtype) for shape in ((rows, inner), (inner, columns)))
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(left, right))


def _random(shape: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), dtype)


def _network(sizes: Sizes) -> str:
    shape = sizes.shape
    trunk = f"{shape.tokens} tokens x {shape.n_embd} x {shape.n_layer} blocks"
    return f"{trunk}, rank {shape.rank}, horizon {shape.horizon}"
