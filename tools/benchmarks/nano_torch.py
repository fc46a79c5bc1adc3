"""The pretrained forecaster in PyTorch, of complete contexts, over transformers' GPT-2.

What contexts with missing values or fewer steps need is left out, which favors PyTorch. Nothing here imports
jax.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.functional import softplus
from transformers import GPT2Config, GPT2Model

from benchmarks import theirs
from benchmarks.sizes import NanoShape

DOUBLINGS = 5


class Nano(torch.nn.Module):
    """The network of docs/pretraining.md; ``[b, t, 1]`` to the mean forecast ``[b, h, 1]``.

    Attributes:
        with_levels: Whether the quantiles are computed as well, as forecasts of ofa-jax have them.
    """

    with_levels = False

    def __init__(self, shape: NanoShape) -> None:
        super().__init__()
        self.shape = shape
        names = "n_embd", "n_layer", "n_head", "n_positions"
        sizes: dict[str, Any] = {name: getattr(shape, name) for name in names}
        sizes |= {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "attn_implementation": "sdpa"}
        self.gpt2 = GPT2Model(GPT2Config(**sizes))
        d, patch = shape.n_embd, shape.patch
        self.in_layer = torch.nn.Linear(6 * patch, d)
        self.median_layer = torch.nn.Linear(d, patch)
        self.spread_layer = torch.nn.Linear(d, 9 * patch)
        self.out_layer = torch.nn.Linear(shape.tokens_read * d, shape.horizon)

    def forward(self, x_btc: torch.Tensor) -> torch.Tensor:
        shape, x_bt = self.shape, x_btc[..., 0]
        mean = x_bt.mean(1, keepdim=True)
        scale = torch.sqrt((x_bt - mean).square().mean(1, keepdim=True))
        z = torch.asinh((x_bt - mean) / scale).clamp(-10, 10)
        b, t, h = int(z.shape[0]), int(z.shape[1]), shape.horizon
        columns = [torch.cat([z, z[:, -1:].expand(b, h)], 1)]
        for cycle in find_cycles(z):
            columns += cycles_before(z, cycle, h)
        flags = torch.cat([torch.ones_like(z), z.new_zeros(b, h)], 1)
        both = [torch.cat([part, -part]) for part in columns]
        both.insert(1, torch.cat([flags, flags]))
        tokens = torch.cat([part.reshape(2 * b, -1, shape.patch) for part in both], -1)
        hidden = self.gpt2(inputs_embeds=self.in_layer(tokens), use_cache=False).last_hidden_state
        first = t // shape.patch
        median = self.median_layer(hidden[:, first:]).reshape(2 * b, h)
        spread = self.spread_layer(hidden[:, first:]).reshape(2 * b, h, 9)
        made = torch.sinh(median.clamp(-4, 4)) + spread[..., -1]
        if self.with_levels:
            self.levels = levels_of(median, spread[..., :-1])
        own, opposite = hidden[:, first - shape.read_before :].flatten(1).chunk(2)
        change = self.out_layer((own - opposite) / 2)
        return (((made[:b] - made[b:]) / 2 + change) * scale + mean)[..., None]


def levels_of(median: torch.Tensor, gaps: torch.Tensor) -> torch.Tensor:
    """Nine quantiles ``[b, h, 9]`` of both signs' outputs, half the difference to the mirror image's."""
    gaps, center = softplus(gaps - 2), median[..., None]
    above = center + gaps[..., 4:].cumsum(-1)
    below = center - gaps[..., :4].cumsum(-1).flip(-1)
    own, mirrored = torch.cat([below, center, above], -1).chunk(2)
    return torch.sinh((own - mirrored.flip(-1)) / 2)


def find_cycles(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first peaks of the autocorrelation of 85 % and 97 % of the highest, after a linear trend."""
    t = z.shape[1]
    at = torch.linspace(-1, 1, t)
    rest = z - z.mean(1, keepdim=True)
    rest = rest - (rest @ at / at.square().sum())[:, None] * at
    size = 2 ** (2 * t - 1).bit_length()
    power = torch.fft.rfft(rest, size).abs().square()
    pairs = torch.arange(t, 0, -1)
    similar = torch.fft.irfft(power, size)[:, :t] / pairs
    similar = similar / similar[:, :1].clamp(min=1e-9)
    height = similar[:, 1:-1]
    lag = torch.arange(1, t - 1)
    allowed = (height > similar[:, :-2]) & (height >= similar[:, 2:]) & (height > 0.1)
    allowed &= (lag > 1) & (pairs[1:-1] >= t / 3)
    highest = torch.where(allowed, height, 0).amax(1, keepdim=True)

    def first(share: float) -> torch.Tensor:
        found = allowed & (height >= share * highest)
        return torch.where(found.any(1), lag[found.int().argmax(1)], 0)

    return first(0.85), first(0.97)


def cycles_before(z: torch.Tensor, cycle: torch.Tensor, ahead: int) -> list[torch.Tensor]:
    """The last value at the same place of an earlier cycle, and the mean of up to 32 such values."""
    t = z.shape[1]
    step = cycle.clamp(min=1)[:, None]
    at = torch.arange(t + ahead)[None]
    place = at - torch.clamp(torch.div(at - t, step, rounding_mode="floor") + 1, min=1) * step
    known, place = (place >= 0) & (cycle > 0)[:, None], place.clamp(min=0)
    total, count = z, torch.ones_like(z)
    for doubling in range(DOUBLINGS):
        before = torch.arange(t)[None] - step * 2**doubling
        inside, before = before >= 0, before.clamp(min=0)
        total = total + torch.where(inside, total.gather(1, before), 0)
        count = count + torch.where(inside, count.gather(1, before), 0)
    last, total, count = (torch.where(known, part.gather(1, place), 0) for part in (z, total, count))
    return [last, total / count.clamp(min=1)]


def forecasts(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Forecasts with quantiles ``[b, h, 1]`` of windows ``[b, t, 1]``, adapters folded in, host to host."""
    network = copy.deepcopy(model).merge_and_unload()
    network.with_levels = True
    network.eval()

    def call(x_btc: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(x_btc).to(theirs.device())).cpu().numpy()

    return call
