"""Train step, inference and roof at the paper's shape."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from itertools import cycle

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import flops, ours
from benchmarks.schema import Row, Section, Stat, Target, find, once, ratio, reached, stat
from benchmarks.sizes import Sizes
from benchmarks.timing import Call, Taken, alternate, alternate_blocks, percentile, rate_row, timed_row
from ofa_jax.build import Model, compute_dtype
from ofa_jax.config.schema import Experiment
from ofa_jax.errors import OfaError
from ofa_jax.tasks.base import Task

SAME = 1e-4
"""Both sides' losses and forecasts may differ by this share: float32 sums in another order, through six blocks, give about 3e-6."""

STEP, MERGED, UNMERGED = "train step", "throughput, merged", "throughput, unmerged"
STEP_TARGET = Target(of="ratio", bound="at least", value=1.6)
WATCHED = "train step, gradient_log"
WATCHED_TARGET = Target(of="ratio", bound="at most", value=1.03)
THROUGHPUT_TARGET = Target(of="ratio", bound="at least", value=1.15)
ROOF_TARGET = Target(of="ours", bound="at least", value=0.85)


class Paper:
    """The network of these sections on both sides, built once."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The type that matrix products are computed in here."""
        return jnp.dtype(compute_dtype(self.experiment.trunk))

    @cached_property
    def experiment(self) -> Experiment:
        return ours.experiment_of(self.sizes.shape, self.sizes.batch)

    @cached_property
    def task(self) -> Task:
        return ours.generated_task(self.experiment)

    @cached_property
    def model(self) -> Model:
        return ours.model_of(self.experiment)


def check_same_training(sizes: Sizes) -> None:
    """Three steps on both sides with the same weights and windows, dropout off, in float32: the losses must agree.

    The second and third loss see the update of every trainable factor, so gradients and optimiser are compared with the network.

    Raises:
        OfaError: They do not; a comparison of times would mean nothing.
    """
    from benchmarks import theirs

    experiment = ours.experiment_of(
        sizes.shape, 2, *ours.NO_DROPOUT, "trunk.compute_dtype=float32", "train.learning_rate=1e-3"
    )
    task, model = ours.generated_task(experiment), ours.model_of(experiment)
    training = theirs.Training(theirs.build(sizes.shape, *ours.flat_parameters(model)), 1e-3, fast=False)
    mine, other = (
        sum(leaf.size for leaf in jax.tree.leaves(model.trainable)),
        theirs.trainable(training.model),
    )
    if mine != other:
        raise OfaError(
            f"ofa-jax trains {mine:,} parameters, PyTorch {other:,}: the comparison would mean nothing"
        )
    training.model.eval()
    with jax.default_matmul_precision("highest"):
        step = ours.training_step(experiment, task, model)
        found = [step() for _ in range(3)]
    wanted = [training.step(x, y) for x, y in theirs.tensors(ours.batches(experiment, task, 3))]
    check_same("losses of three training steps", np.array(found), np.array(wanted))


def check_same(what: str, found: np.ndarray, wanted: np.ndarray) -> None:
    """Stop where the two sides do not compute the same.

    Raises:
        OfaError: The largest difference exceeds :data:`SAME` of the largest value.
    """
    worst = np.abs(found - wanted).max() / np.abs(wanted).max()
    if not worst <= SAME:
        raise OfaError(
            f"the {what} of ofa-jax and PyTorch differ by {worst:.2g} of their size, so the comparison would mean nothing"
        )


def step_section(paper: Paper) -> Section:
    """Section 1."""
    from benchmarks import theirs

    sizes = paper.sizes
    theirs.use_all_cores()
    check_same_training(sizes)
    training = theirs.Training(theirs.build(sizes.shape), ours.LEARNING_RATE)
    training.model.train()
    turns = cycle(theirs.tensors(ours.batches(paper.experiment, paper.task, 8)))
    head_only = ours.experiment_of(sizes.shape, sizes.batch, "recipe=head_only")
    watched = ours.experiment_of(sizes.shape, sizes.batch, "train.gradient_log=50")
    taken = alternate(
        {
            "ours": ours.training_step(paper.experiment, paper.task, paper.model, sizes.dispatch),
            "theirs": lambda: [training.step(*next(turns)) for _ in range(sizes.dispatch)],
            "head_only": ours.training_step(head_only, paper.task, ours.model_of(head_only), sizes.dispatch),
            "watched": ours.training_step(watched, paper.task, paper.model, sizes.dispatch),
        },
        sizes.rounds,
    )
    return Section(
        name="step",
        title="Train step",
        text=f"One step of Adam on {sizes.batch} univariate windows of {sizes.shape.input_length} steps, {_network(sizes)}, dropout of 0.1 "
        f"wherever GPT-2 has it, recipe `reference`; a {sizes.dispatch}th of the time from the host's call to the losses on the host, for "
        f"{sizes.dispatch} steps at a time. Ours is the package's own loop and makes its index and gathers its "
        "windows within the step; PyTorch is handed batches gathered beforehand. Before it was timed, three steps without dropout from the "
        "same weights gave the same losses on both sides.",
        rows=[
            timed_row(
                STEP, taken["ours"].per(sizes.dispatch), taken["theirs"].per(sizes.dispatch), STEP_TARGET
            ),
            timed_row("train step, recipe head_only", taken["head_only"].per(sizes.dispatch)),
            _watched_row(taken["watched"].per(sizes.dispatch), taken["ours"].per(sizes.dispatch)),
        ],
    )


def _watched_row(watched: Taken, plain: Taken) -> Row:
    compared = ratio(watched.seconds, plain.seconds, "ours/theirs")
    note = "ratio: its time over that of the step without it, in the same turns"
    return reached(
        Row(what=WATCHED, unit="s", ours=watched.stat(), ratio=compared, target=WATCHED_TARGET, note=note)
    )


def inference_section(paper: Paper) -> Section:
    """Section 2."""
    from benchmarks import theirs

    sizes = paper.sizes
    theirs.use_all_cores()
    model = ours.with_moved_adapters(paper.model)
    module, mine = theirs.build(sizes.shape, *ours.flat_parameters(model)), ours.Forecasts(model)
    calls: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "unmerged": mine.unmerged,
        "theirs unmerged": theirs.forecasts(module),
        "merged": mine.merged,
        "theirs merged": theirs.forecasts(module, merged=True),
    }
    many, two, one = (_windows(paper, count) for count in (sizes.inference_batch, 2, 1))
    if paper.compute_dtype == jnp.float32:  # in bfloat16 the two sides round apart
        for name in ("unmerged", "merged"):
            check_same(f"{name} forecasts", calls[name](two), calls[f"theirs {name}"](two))
    thrown = alternate(_with(calls, many), sizes.inference_rounds)
    blocks = alternate_blocks(_with(calls, one), sizes.latency_rounds, sizes.latency_calls)
    rows = [
        rate_row(
            f"throughput, {name}",
            sizes.inference_batch,
            thrown[name],
            thrown[f"theirs {name}"],
            THROUGHPUT_TARGET,
        )
        for name in ("unmerged", "merged")
    ]
    for name in ("unmerged", "merged"):
        rows += _latency_rows(name, blocks[name], blocks[f"theirs {name}"])
    return Section(
        name="inference",
        title="Inference",
        text=f"Forecasts from NumPy to NumPy, {_network(sizes)}: windows per second in batches of {sizes.inference_batch}, and the latency "
        f"of one window over {sizes.latency_rounds * sizes.latency_calls} calls, in turns of {sizes.latency_calls}. Merged: the adapters "
        "are folded into the weights on both sides. Both sides gave the same forecasts beforehand.",
        rows=rows,
    )


def _windows(paper: Paper, count: int) -> np.ndarray:
    x_btc, _ = next(ours.batches(ours.experiment_of(paper.sizes.shape, count), paper.task, 1))
    return np.array(x_btc)  # one that may be written to: PyTorch warns of any other


def _with(calls: Mapping[str, Callable[[np.ndarray], np.ndarray]], x_btc: np.ndarray) -> dict[str, Call]:
    return {name: lambda call=call: call(x_btc) for name, call in calls.items()}  # type: ignore[misc]


def _latency_rows(name: str, mine: list[list[float]], other: list[list[float]]) -> Iterable[Row]:
    first, second = ([percentile(block, 0.5) for block in blocks] for blocks in (mine, other))
    yield Row(
        what=f"latency p50, {name}",
        unit="s",
        ours=stat(first),
        theirs=stat(second),
        ratio=ratio(first, second, "theirs/ours"),
    )
    a, b = (percentile([seconds for block in blocks for seconds in block], 0.99) for blocks in (mine, other))
    yield Row(
        what=f"latency p99, {name}",
        unit="s",
        ours=Stat(median=a),
        theirs=Stat(median=b),
        ratio=once(a, b, "theirs/ours"),
    )


def roof_section(paper: Paper, before: list[Section]) -> Section:
    """Section 3; ``before`` holds what was measured earlier in the run."""
    from benchmarks import theirs

    sizes, shape = paper.sizes, paper.sizes.shape
    theirs.use_all_cores()
    products = {f"{side} x {side} x {side}": (side, side, side) for side in sizes.squares}
    for windows in (sizes.batch, sizes.inference_batch):
        products |= flops.matmuls(shape, windows)
    rows: list[Row] = []
    best, fastest = {"ours": 0.0, "theirs": 0.0}, products[next(iter(products))]
    for name, (i, j, k) in products.items():
        taken = alternate(
            {"ours": _matmul(i, j, k, paper), "theirs": theirs.matmul(i, j, k)}, sizes.roof_rounds
        )
        rates = {side: [2 * i * j * k / seconds for seconds in taken[side].seconds] for side in taken}
        stats = {side: stat(values) for side, values in rates.items()}
        rows.append(
            Row(
                what=f"matmul {name}",
                unit="FLOP/s",
                ratio=ratio(rates["ours"], rates["theirs"], "ours/theirs"),
                **stats,
            )
        )
        if stats["ours"].median > best["ours"]:
            fastest = (i, j, k)
        best = {side: max(best[side], stats[side].median) for side in best}
    roof = Row(
        what="best matmul; the higher one is the roof",
        unit="FLOP/s",
        ours=Stat(median=best["ours"]),
        theirs=Stat(median=best["theirs"]),
        ratio=once(best["ours"], best["theirs"], "ours/theirs"),
    )
    return Section(
        name="roof",
        title="Roof",
        text="The best rate of dense matrix products, of jax's and PyTorch's over the trunk's own shapes and squares, in the network's "
        "computing type; and the share of it that train step and forecasts reach. A processor under steady load runs slower than in a "
        "short burst, and a product by itself takes new memory for its result, so our train step takes turns with series of products that "
        "last about as long: the fastest of the table again and again, and in one program chains of squares and of an MLP's two products; "
        "its share is of the fastest of these. The model's operations are counted by formula, element-wise work left "
        "out (tools/benchmarks/flops.py), so dropout and norms lower the share. Where the best products of the two libraries differ, so "
        "much of the ratios above is the libraries' own and not ofa-jax's.",
        rows=[*_shares(paper, before, max(best.values()), fastest), roof, *rows],
    )


def _shares(paper: Paper, before: list[Section], roof: float, fastest: tuple[int, int, int]) -> Iterable[Row]:
    sizes = paper.sizes
    work = flops.training(sizes.shape, sizes.batch)
    share = stat(_steady_shares(paper, work, fastest))
    other = find(before, "step", STEP)
    theirs = None if other is None or other.theirs is None else Stat(median=work / other.theirs.median / roof)
    yield reached(
        Row(
            what="train step's share of the roof", unit="share", ours=share, theirs=theirs, target=ROOF_TARGET
        )
    )
    for what in (UNMERGED, MERGED):
        if found := find(before, "inference", what):
            per_window = (
                flops.forward(sizes.shape, sizes.inference_batch, merged=what == MERGED)
                / sizes.inference_batch
            )
            yield _share(f"share of the roof: {what}", found, roof, lambda rate, work=per_window: work * rate)  # type: ignore[misc]


def _steady_shares(paper: Paper, work: float, fastest: tuple[int, int, int]) -> list[float]:
    """The train step's rate over that of the fastest of some series of products, turn by turn."""
    sizes, shape = paper.sizes, paper.sizes.shape
    done = sizes.dispatch * work
    calls: dict[str, tuple[Call, float]] = {
        "step": (ours.training_step(paper.experiment, paper.task, paper.model, sizes.dispatch), done),
        "fastest": _again(fastest, done / 2, paper),
        "MLP": _chain(sizes.batch * shape.tokens, shape.n_embd, 4 * shape.n_embd, done / 2, paper),
    }
    for side in sizes.squares:
        calls[f"square {side}"] = _chain(side, side, side, done / 2, paper)
    taken = alternate({name: call for name, (call, _) in calls.items()}, sizes.rounds)
    rates = {
        name: [operations / seconds for seconds in taken[name].seconds]
        for name, (_, operations) in calls.items()
    }
    step = rates.pop("step")
    best = max(rates.values(), key=statistics.median)
    return [mine / highest for mine, highest in zip(step, best, strict=True)]


def _again(product: tuple[int, int, int], work: float, paper: Paper) -> tuple[Call, float]:
    """One product again and again, and the operations of it all, about ``work``."""
    count = max(1, round(work / (2 * math.prod(product))))
    multiply = _matmul(*product, paper)

    def products() -> None:
        for _ in range(count):
            multiply()

    return products, float(count * 2 * math.prod(product))


def _chain(rows: int, inner: int, outer: int, work: float, paper: Paper) -> tuple[Call, float]:
    """``[rows, inner] x [inner, outer] x [outer, inner]`` as often as ``work`` operations need, in one program that takes no new memory."""
    kind = paper.compute_dtype
    draw = np.random.default_rng(0)
    there, back = (
        jnp.asarray(draw.standard_normal((many, few), np.float32) / math.sqrt(many), kind)
        for many, few in ((inner, outer), (outer, inner))
    )
    count = max(1, round(work / (4 * rows * inner * outer)))
    program = jax.jit(lambda x, there, back: jax.lax.fori_loop(0, count, lambda _, x: x @ there @ back, x))
    x = jnp.ones((rows, inner), kind)
    return lambda: jax.block_until_ready(program(x, there, back)), float(count * 4 * rows * inner * outer)


def _share(what: str, row: Row, roof: float, rate: Callable[[float], float]) -> Row:
    assert row.ours is not None
    assert row.theirs is not None
    shares = [Stat(median=rate(side.median) / roof) for side in (row.ours, row.theirs)]
    compared = once(shares[0].median, shares[1].median, "ours/theirs")
    return Row(what=what, unit="share", ours=shares[0], theirs=shares[1], ratio=compared)


def _matmul(rows: int, inner: int, columns: int, paper: Paper) -> Call:
    kind = paper.compute_dtype
    draw = np.random.default_rng(0)
    left, right = (
        jnp.asarray(draw.standard_normal(size, np.float32), kind)
        for size in ((rows, inner), (inner, columns))
    )
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(left, right))


def _network(sizes: Sizes) -> str:
    shape = sizes.shape
    return f"{shape.tokens} tokens x {shape.n_embd} x {shape.n_layer} blocks, rank {shape.rank}, horizon {shape.horizon}"
