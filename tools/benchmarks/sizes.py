"""How large everything measured is: one frozen record and two values of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]

Axis = Literal["channels", "windows", "horizon", "rank", "batch"]


@dataclass(frozen=True)
class Shape:
    """A forecasting network with the reference recipe's two adapters; dropout is GPT-2's.

    The defaults are the paper's (protocol §1, §2): 42 tokens of width 768 through six blocks.
    """

    input_length: int = 336
    horizon: int = 96
    patch: int = 16
    stride: int = 8
    n_embd: int = 768
    n_layer: int = 6
    n_head: int = 12
    n_positions: int = 1024
    rank: int = 16
    alpha: float = 16.0

    @property
    def tokens(self) -> int:
        return (self.input_length - self.patch) // self.stride + 2  # protocol §1.3


@dataclass(frozen=True)
class NanoShape:
    """The network of the trunk ``nano`` (docs/pretraining.md)."""

    input_length: int = 512
    horizon: int = 96
    patch: int = 16
    n_embd: int = 128
    n_layer: int = 4
    n_head: int = 4
    n_positions: int = 56
    read_before: int = 8
    rank: int = 16
    alpha: float = 16.0

    @property
    def tokens(self) -> int:
        return (self.input_length + self.horizon) // self.patch

    @property
    def tokens_read(self) -> int:
        return self.read_before + self.horizon // self.patch


@dataclass(frozen=True)
class Sizes:
    """What one run of the suite measures, and how often.

    Attributes:
        shape: The network of the sections ``step``, ``inference`` and ``roof``.
        batch: Windows of a training step.
        dispatch: Training steps per call; a run dispatches up to 32 at a time.
        rounds: Rounds of the section ``step``.
        inference_batch: Windows of a forecast, for throughput, in ``inference_rounds`` rounds.
        latency_rounds: Rounds of ``latency_calls`` forecasts of one window each.
        squares: Sides of the square matrix products.
        roof_rounds: Rounds of each product.
        quick: Overrides of configs/quick/etth1.yaml.
        generated_rows: Rows of the generated replacement of ETTh1.
        real_data: Use ETTh1 itself if ``OFA_JAX_DATA`` is set.
        epoch_rounds: Rounds of the epoch, after one to warm up.
        memory_steps: Training steps before the peak is read.
        memory_percent: Share of the training windows in the epoch of peak memory.
        start_rounds: Rounds of the time to the first trained step.
        process_rounds: Rounds of commands that compute nothing.
        sweep_ranks: Ranks of the sweep, each with ``sweep_seeds`` seeds.
        sweep_at_once: Adapters trained at a time in a second sweep; None for no second sweep.
        sweep_percent: Share of the training windows in the sweep's epoch.
        nano: The network of the section ``nano``, with ``nano_batch`` windows in a training step.
        nano_windows: Windows of a call of its forecasts.
        nano_panel: Series that its estimator forecasts and fits.
        growth: The values of each axis, in order.
        growth_shape: The network of the growth curves.
        growth_batch: Windows of their steps; with several channels ``growth_samples``.
        growth_windows: Windows in their table.
        growth_steps: Steps per point, of which the median is taken.
    """

    shape: Shape = Shape()
    batch: int = 16
    dispatch: int = 4
    rounds: int = 6
    inference_batch: int = 64
    inference_rounds: int = 5
    latency_rounds: int = 20
    latency_calls: int = 12
    squares: tuple[int, ...] = (1024, 2048, 4096)
    roof_rounds: int = 5
    quick: tuple[str, ...] = ()
    generated_rows: int = 17_420
    real_data: bool = True
    epoch_rounds: int = 2
    memory_steps: int = 3
    memory_percent: int = 10
    start_rounds: int = 3
    process_rounds: int = 7
    sweep_ranks: tuple[int, ...] = (4, 8, 16)
    sweep_seeds: int = 1
    sweep_at_once: int | None = 3
    sweep_percent: int = 10
    nano: NanoShape = NanoShape()
    nano_batch: int = 32
    nano_windows: int = 512
    nano_panel: int = 1000
    growth: dict[Axis, tuple[int, ...]] = field(
        default_factory=lambda: {
            "channels": (7, 21, 64, 321, 862),
            "windows": (10_000, 100_000, 1_000_000, 4_000_000),
            "horizon": (96, 192, 336, 720),
            "rank": (2, 8, 32, 128, 512, 1024),
            "batch": (16, 64, 256, 512, 1024),
        }
    )
    growth_shape: Shape = Shape(n_embd=64, n_layer=2, n_head=4)
    growth_batch: int = 64
    growth_samples: int = 2
    growth_windows: int = 10_000
    growth_steps: int = 9


DEFAULT = Sizes()

FULL = replace(
    DEFAULT,
    batch=256,
    dispatch=2,
    rounds=5,
    epoch_rounds=5,
    memory_percent=100,
    sweep_ranks=(2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    sweep_seeds=3,
    sweep_at_once=None,
)
"""The published batch size, ranks and number of seeds (protocol §2)."""
