"""What each choice in the training step brings: the step as it is, in turns with one choice undone at a time.

    python tools/ablation.py               # the paper's shape, 16 windows per step
    python tools/ablation.py --quick       # the network of configs/quick/etth1.yaml, 256 windows per step
    python tools/ablation.py --left        # where the time goes: the step without one part of the network
    python tools/ablation.py --memory      # instead: this process's memory, stage by stage

Prints a Markdown table: milliseconds per step (median over the turns, with quartiles), the ratio to the
step as it is, and the bytes that XLA allocates for intermediate values.
"""

from __future__ import annotations

import argparse
import inspect
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import flax.linen as nn
import jax
import jax.numpy as jnp
from benchmarks import ours
from benchmarks.machine import held_bytes, machine, peak_bytes
from benchmarks.sizes import Shape

from ofa_jax.build import Model, build_model
from ofa_jax.config.schema import Experiment, TrainConfig
from ofa_jax.model import dropout, gpt2
from ofa_jax.tasks.base import Task
from ofa_jax.train.lanes import Lane
from ofa_jax.train.loop import Trainer
from ofa_jax.train.program import Program, resolve_auto_batch_sizes
from ofa_jax.train.progress import SILENT


@dataclass(frozen=True)
class Variant:
    """A way to run the step: replacements, share of the default slice (None: one slice), dispatch size."""

    name: str
    replaced: tuple[tuple[Any, str, Any], ...] = ()
    slice_share: float | None = 1.0
    dispatch: int = 4
    results: list[float] = field(default_factory=list)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        with ExitStack() as stack:
            for holder, name, value in self.replaced:
                in_dict = isinstance(holder, dict)
                stack.enter_context(
                    patch.dict(holder, {name: value}) if in_dict else patch.object(holder, name, value)
                )
            yield


def threefry_bits(words_m2: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Jax's own generator instead of ``random_bits``."""
    keys = jax.random.wrap_key_data(words_m2, impl="threefry2x32")
    return jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(keys)


class ValuesAlone(gpt2.Attention):
    """Attention's dense layers without attention: every token gets its own value."""

    @nn.compact
    def __call__(self, hidden_mnd: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        d = hidden_mnd.shape[-1]
        value = nn.Dense(3 * d, dtype=self.dtype, name="c_attn")(hidden_mnd)[..., 2 * d :]
        out = nn.Dense(d, dtype=self.dtype, name="c_proj")(value)
        return dropout.dropout(out, self.config.resid_pdrop, dropout_keys, f"{'/'.join(self.path)}/out")


class NoNorm(gpt2.LayerNorm):
    """No layer norm; the parameters stay."""

    def __call__(self, hidden_mnd: jax.Array) -> jax.Array:
        return hidden_mnd.astype(jnp.float32)


_GELU = (gpt2.ACTIVATIONS, "gelu_new", partial(jax.nn.gelu, approximate=True))
_MASKS = (dropout, "_dropped", inspect.unwrap(dropout._dropped))
_THREEFRY = (dropout, "random_bits", threefry_bits)


def variants() -> list[Variant]:
    """The step as it is, and with one choice undone."""
    all_of_these = (_THREEFRY, _MASKS, _GELU)
    return [
        Variant("as it is"),
        Variant("dropout bits by threefry", (_THREEFRY,)),
        Variant("dropout masks kept", (_MASKS,)),
        Variant("GELU's derivative kept", (_GELU,)),
        Variant("all of these", all_of_these),
        Variant("half the slice", slice_share=0.5),
        Variant("twice the slice", slice_share=2),
        Variant("the full batch as one slice", slice_share=None),
        Variant("one step per dispatch", dispatch=1),
        Variant("all of these, one slice, one step per dispatch", all_of_these, None, 1),
    ]


def left_out() -> list[Variant]:
    """The step as it is, and without one part: the time it saves is that part's."""

    def unchanged(x: jax.Array, *others: Any) -> jax.Array:
        return x

    masks, gelu = (dropout, "_dropped", unchanged), (gpt2.ACTIVATIONS, "gelu_new", unchanged)
    norm, attention = (gpt2, "LayerNorm", NoNorm), (gpt2, "Attention", ValuesAlone)
    return [
        Variant("as it is"),
        Variant("without dropout", (masks,)),
        Variant("without GELU", (gelu,)),
        Variant("without layer norm", (norm,)),
        Variant("without attention and its dropout", (attention,)),
        Variant("dense layers, patches, head, adapters, Adam alone", (masks, gelu, norm, attention)),
    ]


def compile_variant(
    variant: Variant, settings: TrainConfig, task: Task, model: Model
) -> tuple[Callable[[], None], int]:
    """A call that makes the variant's steps, compiled, and the bytes of its intermediate values."""
    assert settings.micro_batch is not None
    size = settings.batch_size
    if variant.slice_share is not None:
        size = min(int(settings.micro_batch * variant.slice_share), size)
    settings = TrainConfig.model_validate({**settings.model_dump(), "micro_batch": max(size, 1)})
    predict = replace(model).predict  # a new function, which jax traces again
    jax.clear_caches()  # jax keeps what it traced of a function, and would take that for a variant's
    with variant.in_place():
        program = Program(predict, task, model.frozen, settings)
        trainer = Trainer(program, [Lane(model.trainable, settings.seed)])
        program.chunk = compiled = program.chunk.lower(*trainer.arguments(0)).compile()
    trainer.run_chunk(variant.dispatch)
    return lambda: trainer.run_chunk(variant.dispatch), compiled.memory_analysis().temp_size_in_bytes


def measure(experiment: Experiment, chosen: list[Variant], rounds: int) -> str:
    """The table."""
    task, model = ours.generated_task(experiment), build_model(experiment)
    settings = resolve_auto_batch_sizes(experiment.train, model.network)
    calls = [compile_variant(variant, settings, task, model) for variant in chosen]
    order = random.Random(0)
    for _ in range(rounds):
        for number in order.sample(
            range(len(chosen)), len(chosen)
        ):  # the one before leaves traces in the caches
            variant, (call, _) = chosen[number], calls[number]
            start = time.perf_counter()
            call()
            variant.results.append(1e3 * (time.perf_counter() - start) / variant.dispatch)
    as_it_is = statistics.median(chosen[0].results)
    lines = ["| step | ms | ratio | intermediate values |", "|---|---:|---:|---:|"]
    for variant, (_, size) in zip(chosen, calls, strict=True):
        low, median, high = statistics.quantiles(variant.results, n=4, method="inclusive")
        time_ms = f"{median:.0f} ({low:.0f}–{high:.0f}) | {median / as_it_is:.2f}"
        lines.append(f"| {variant.name} | {time_ms} | {size / 1e6:.0f} MB |")
    return "\n".join(lines)


def memory_by_stage(experiment: Experiment) -> str:
    """The resident memory after each stage of a training run's beginning, and the peak up to there."""
    lines = ["| after | resident | peak |", "|---|---:|---:|"]

    def note(stage: str) -> None:
        lines.append(f"| {stage} | {held_bytes() / 1e6:.0f} MB | {peak_bytes() / 1e6:.0f} MB |")

    note("imports")
    task, model = ours.generated_task(experiment), build_model(experiment)
    note("weights drawn")
    trainer = ours.trainer_of(experiment, task, model, SILENT)
    note("weights, state and windows handed to jax")
    size = trainer.program.chunk.lower(*trainer.arguments(0)).compile().memory_analysis().temp_size_in_bytes
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
    add = parser.add_argument
    add(
        "--quick",
        action="store_true",
        help="use the network of configs/quick/etth1.yaml instead of the paper's",
    )
    add("--left", action="store_true", help="leave out one part of the network at a time instead")
    add("--memory", action="store_true", help="show resident memory stage by stage instead")
    add("--rounds", type=int, default=12, help="turns of each (default: 12, at least 2)")
    arguments = parser.parse_args()
    shape = Shape(n_embd=64, n_layer=2, n_head=4) if arguments.quick else Shape()
    experiment = ours.experiment_of(shape, 256 if arguments.quick else 16)
    if arguments.memory:
        table = memory_by_stage(experiment)
    else:
        chosen = left_out() if arguments.left else variants()
        table = measure(experiment, chosen, max(arguments.rounds, 2))
    here = machine()
    print(f"{here.cpu}, {here.cores} cores, jax {here.versions['jax']}\n\n{table}")


if __name__ == "__main__":
    main()
