"""What each choice behind the training step brings: the step with one of them undone at a time, in turns with the step as it is.

    python tools/ablation.py               # the paper's shape, 16 windows a step
    python tools/ablation.py --quick       # the network of configs/quick/etth1.yaml, 256 windows a step
    python tools/ablation.py --left        # what the time is spent on: the step with one part of the network left out (it computes less)
    python tools/ablation.py --memory      # instead: the memory that this process holds, stage by stage

Prints a Markdown table: milliseconds a step (median over the turns, with quartiles), the ratio of its median to that of the step as it
is, and the bytes that XLA sets aside for intermediate values. docs/performance.md reads it.
"""

from __future__ import annotations

import argparse
import inspect
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
from benchmarks import ours
from benchmarks.machine import held_bytes, machine, peak_bytes
from benchmarks.sizes import Shape

from ofa_jax.build import Model, build_model
from ofa_jax.config.schema import Experiment
from ofa_jax.model import gpt2, operations
from ofa_jax.tasks.base import Task
from ofa_jax.train.lanes import Lane
from ofa_jax.train.loop import Trainer
from ofa_jax.train.program import Program, resolve_auto_batch_sizes


@dataclass(frozen=True)
class Variant:
    """A way to run the step: what is replaced where, windows of a slice (a share of the choice, or all), steps of a dispatch."""

    name: str
    replaced: tuple[tuple[Any, str, Any], ...] = ()
    slice_share: float | None = 1.0
    dispatch: int = 4
    results: list[float] = field(default_factory=list)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        with ExitStack() as stack:
            for holder, name, value in self.replaced:
                stack.enter_context(
                    patch.dict(holder, {name: value})
                    if isinstance(holder, dict)
                    else patch.object(holder, name, value)
                )
            yield


def threefry_bits(words_m2: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Jax's own generator in the place of ``random_bits``."""
    keys = jax.random.wrap_key_data(words_m2, impl="threefry2x32")
    return jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(keys)


def plain_layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    return operations._layer_norm_forward(x, scale, bias, epsilon)[0]


def plain_attend(query: Any, key: Any, value: Any, words_m2: Any, scale: float, rate: float) -> jax.Array:
    return operations._attend_forward(query, key, value, words_m2, scale, rate)[0]


_MASKED = inspect.unwrap(operations._dropped)
_GELU = (gpt2.ACTIVATIONS, "gelu_new", partial(jax.nn.gelu, approximate=True))
_NORM = (gpt2, "layer_norm", plain_layer_norm)
_ATTENTION = (operations, "_attend", plain_attend)
_MASKS = (operations, "_dropped", _MASKED)
_THREEFRY = (operations, "random_bits", threefry_bits)


def variants() -> list[Variant]:
    """The step as it is, and with one choice undone."""
    return [
        Variant("as it is"),
        Variant("dropout bits by threefry", (_THREEFRY,)),
        Variant("dropout masks kept", (_MASKS,)),
        Variant("GELU by autodiff", (_GELU,)),
        Variant("layer norm by autodiff", (_NORM,)),
        Variant("attention by autodiff", (_ATTENTION,)),
        Variant(
            "attention's products over rows left to XLA",
            ((operations, "_turned", lambda scores: scores.swapaxes(2, 3)),),
        ),
        Variant("all of these", (_THREEFRY, _MASKS, _GELU, _NORM, _ATTENTION)),
        Variant("half as many windows at a time", slice_share=0.5),
        Variant("twice as many windows at a time", slice_share=2),
        Variant("the whole batch at a time", slice_share=None),
        Variant("one step a dispatch", dispatch=1),
        Variant(
            "all of these, whole batch, one step a dispatch",
            (_THREEFRY, _MASKS, _GELU, _NORM, _ATTENTION),
            None,
            1,
        ),
    ]


def left_out() -> list[Variant]:
    """The step as it is, and without one part; what it computes is then of no use, but the time it saves is that part's."""

    def unchanged(x: jax.Array, *others: Any, **numbers: Any) -> jax.Array:
        return x

    def values_alone(query: jax.Array, key: jax.Array, value: jax.Array, **numbers: Any) -> jax.Array:
        return value

    masks, gelu = (operations, "_dropped", unchanged), (gpt2.ACTIVATIONS, "gelu_new", unchanged)
    norm, attention = (gpt2, "layer_norm", unchanged), (gpt2, "causal_attention", values_alone)
    return [
        Variant("as it is"),
        Variant("without dropout", (masks,)),
        Variant("without GELU", (gelu,)),
        Variant("without layer norm", (norm,)),
        Variant("without attention, its dropout included", (attention,)),
        Variant(
            "without all of these: dense layers, patches, head, adapters, Adam",
            (masks, gelu, norm, attention),
        ),
    ]


def trainer_of(
    variant: Variant, experiment: Experiment, task: Task, model: Model
) -> tuple[Callable[[], None], int]:
    """A call that makes the variant's steps, compiled, and the bytes of its intermediate values."""
    settings = resolve_auto_batch_sizes(experiment.train, model.network)
    assert settings.micro_batch is not None
    size = (
        settings.batch_size
        if variant.slice_share is None
        else min(int(settings.micro_batch * variant.slice_share), settings.batch_size)
    )
    settings = settings.model_copy(update={"micro_batch": max(size, 1)})
    jax.clear_caches()  # jax keeps what it traced of a function, and would take that for a variant's
    with variant.in_place():
        program = Program(model.predict, task, model.frozen, settings)
        trainer = Trainer(program, [Lane(model.trainable, settings.seed)])
        program.chunk = compiled = program.chunk.lower(*trainer.arguments(0)).compile()
    trainer.run_chunk(variant.dispatch)
    return lambda: trainer.run_chunk(variant.dispatch), compiled.memory_analysis().temp_size_in_bytes


def measure(experiment: Experiment, chosen: list[Variant], rounds: int) -> str:
    """The table."""
    task, model = ours.generated_task(experiment), build_model(experiment)
    calls = [trainer_of(variant, experiment, task, model) for variant in chosen]
    order = random.Random(0)
    for _ in range(rounds):
        for number in order.sample(
            range(len(chosen)), len(chosen)
        ):  # what went before leaves its traces in caches and memory
            variant, (call, _) = chosen[number], calls[number]
            start = time.perf_counter()
            call()
            variant.results.append(1e3 * (time.perf_counter() - start) / variant.dispatch)
    as_it_is = statistics.median(chosen[0].results)
    lines = ["| step | ms | ratio | intermediate values |", "|---|---:|---:|---:|"]
    for variant, (_, size) in zip(chosen, calls, strict=True):
        low, median, high = statistics.quantiles(variant.results, n=4, method="inclusive")
        lines.append(
            f"| {variant.name} | {median:.0f} ({low:.0f}–{high:.0f}) | {median / as_it_is:.2f} | {size / 1e6:.0f} MB |"
        )
    return "\n".join(lines)


def memory_by_stage(experiment: Experiment) -> str:
    """The resident memory after each stage of a training run's beginning, and the peak up to there."""
    lines = ["| after | resident | peak |", "|---|---:|---:|"]

    def note(stage: str) -> None:
        lines.append(f"| {stage} | {held_bytes() / 1e6:.0f} MB | {peak_bytes() / 1e6:.0f} MB |")

    note("imports")
    task, model = ours.generated_task(experiment), build_model(experiment)
    note("weights drawn")
    settings = resolve_auto_batch_sizes(experiment.train, model.network)
    program = Program(model.predict, task, model.frozen, settings)
    trainer = Trainer(program, [Lane(model.trainable, settings.seed)])
    note("weights, state and windows handed to jax")
    size = program.chunk.lower(*trainer.arguments(0)).compile().memory_analysis().temp_size_in_bytes
    note("program compiled")
    trainer.check_room()
    note("the compiler's memory given back")
    trainer.run_chunk(4)
    note(f"four steps, whose intermediate values take {size / 1e6:.0f} MB")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the training step with one choice undone at a time."
    )
    parser.add_argument(
        "--quick", action="store_true", help="the network of configs/quick/etth1.yaml instead of the paper's"
    )
    parser.add_argument(
        "--left", action="store_true", help="leave out one part of the network at a time instead"
    )
    parser.add_argument("--memory", action="store_true", help="show resident memory stage by stage instead")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each (default 12, at least 2)")
    arguments = parser.parse_args()
    shape = Shape(n_embd=64, n_layer=2, n_head=4) if arguments.quick else Shape()
    experiment = ours.experiment_of(shape, 256 if arguments.quick else 16)
    chosen = left_out() if arguments.left else variants()
    table = (
        memory_by_stage(experiment)
        if arguments.memory
        else measure(experiment, chosen, max(arguments.rounds, 2))
    )
    here = machine()
    print(f"{here.cpu}, {here.cores} cores, jax {here.versions['jax']}\n\n{table}")


if __name__ == "__main__":
    main()
