"""The same method in PyTorch as a user would write it today: transformers' GPT-2, peft, Adam, a DataLoader.

Every choice favors PyTorch: no key-value cache, targets and windows as float32 tensors from the start, no
time features in a batch, only the first blocks of GPT-2 are built. On a GPU, where this was never run, the
forward pass uses bfloat16 autocast and ``torch.compile``. Nothing here imports jax, so that memory can be
attributed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import mse_loss, pad
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2Model

from benchmarks.machine import cores
from benchmarks.sizes import Shape

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


class Forecaster(torch.nn.Module):
    """Protocol §1: norm, patches, ``in_layer``, GPT-2, ``out_layer``; ``[b, t, 1]`` to ``[b, h, 1]``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        names = "n_embd", "n_layer", "n_head", "n_positions"
        sizes: dict[str, Any] = {name: getattr(shape, name) for name in names}
        sizes["attn_implementation"] = "sdpa"
        self.gpt2 = GPT2Model(GPT2Config(**sizes))
        self.in_layer = torch.nn.Linear(shape.patch, shape.n_embd)
        self.out_layer = torch.nn.Linear(shape.tokens * shape.n_embd, shape.horizon)
        self.patch, self.stride = shape.patch, shape.stride

    def forward(self, x_btc: torch.Tensor) -> torch.Tensor:
        mean = x_btc.mean(1, keepdim=True)
        std = torch.sqrt(x_btc.var(1, keepdim=True, unbiased=False) + 1e-5)
        x_bct = ((x_btc - mean) / std).transpose(1, 2)
        patches = pad(x_bct, (0, self.stride), mode="replicate")[:, 0].unfold(-1, self.patch, self.stride)
        hidden = self.gpt2(inputs_embeds=self.in_layer(patches), use_cache=False).last_hidden_state
        return self.out_layer(hidden.flatten(1))[..., None] * std + mean


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_all_cores() -> None:
    torch.set_num_threads(cores())


def build(
    shape: Any,
    base: Mapping[str, np.ndarray] | None = None,
    adapters: Mapping[str, Any] | None = None,
    network: Callable[[Any], Any] = Forecaster,
) -> Any:
    """The network under peft, on the device, with ofa-jax's parameters by path if given.

    peft freezes everything but its own factors, ``in_layer`` and the head's base layer with it (protocol
    §1.7).
    """
    module = network(shape)
    if base is not None:
        state = dict(_renamed(path, leaf) for path, leaf in base.items())
        state["gpt2.wte.weight"] = module.gpt2.wte.weight  # the token embedding that is never used
        module.load_state_dict(state)
    model = get_peft_model(module, lora(shape))
    if adapters is not None:
        load_adapters(model, adapters)
    return model.to(device())


def trainable(model: Any) -> int:
    """How many parameters are trained."""
    return sum(leaf.numel() for leaf in model.parameters() if leaf.requires_grad)


def lora(shape: Any) -> LoraConfig:
    """The authors' adapters (protocol §1.7)."""
    given: dict[str, Any] = {"r": shape.rank, "lora_alpha": shape.alpha, "use_rslora": True}
    given |= {"init_lora_weights": "gaussian", "target_modules": ["wpe", "out_layer"]}
    return LoraConfig(**given, lora_dropout=0.01, bias="none")


def load_adapters(model: Any, adapters: Mapping[str, Any]) -> None:
    """Load the factors ``a`` and ``b`` into peft's, which are their transposes."""
    inner = model.base_model.model
    pairs = [
        (inner.gpt2.wpe.lora_embedding_A["default"], adapters["gpt2/wpe"]["a"]),
        (inner.gpt2.wpe.lora_embedding_B["default"], adapters["gpt2/wpe"]["b"]),
        (inner.out_layer.lora_A["default"].weight, adapters["out_layer"]["a"]),
        (inner.out_layer.lora_B["default"].weight, adapters["out_layer"]["b"]),
    ]
    with torch.no_grad():
        for parameter, ours in pairs:
            parameter.copy_(torch.from_numpy(np.array(ours).T))


def _renamed(path: str, leaf: np.ndarray) -> tuple[str, torch.Tensor]:
    """A parameter by its PyTorch name; linear layers outside GPT-2 are transposed."""
    module, _, name = path.rpartition("/")
    values = np.array(leaf).T if name == "kernel" and not module.startswith("gpt2") else np.array(leaf)
    own = f"{module.replace('/', '.')}.{'bias' if name == 'bias' else 'weight'}"
    return own, torch.from_numpy(np.ascontiguousarray(values))


class Training:
    """A model in training with Adam over what peft left trainable."""

    def __init__(self, model: Any, learning_rate: float, *, fast: bool = True) -> None:
        self.model = model
        self.forward = _fast(model) if fast else model
        trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=learning_rate)

    def step(self, x_btc: torch.Tensor, y_bhc: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        loss = mse_loss(self.forward(x_btc), y_bhc)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def epoch(self, batches: Batches) -> float:
        """The mean loss over an epoch's steps."""
        self.model.train()
        losses = [self.step(x.to(device()), y.to(device())) for x, y in batches]
        return sum(losses) / len(losses)

    def validate(self, batches: Batches) -> float:
        """The mean squared error over every point."""
        self.model.eval()
        total, points = 0.0, 0
        with torch.no_grad():
            for x, y in batches:
                target = y.to(device())
                total += mse_loss(self.forward(x.to(device())), target, reduction="sum").item()
                points += target.numel()
        return total / points


def _fast(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    if device().type == "cpu":
        return model
    compiled = torch.compile(model)

    def forward(x_btc: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return compiled(x_btc).float()

    return forward


def tensors(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches on the device."""
    return [(torch.tensor(x, device=device()), torch.tensor(y, device=device())) for x, y in batches]


def forecasts(model: Any, *, merged: bool = False, fast: bool = True) -> Callable[[np.ndarray], np.ndarray]:
    """Forecasts ``[b, h, 1]`` of windows ``[b, t, 1]``, host to host; ``merged``: adapters folded in."""
    model = copy.deepcopy(model).merge_and_unload() if merged else model
    model.eval()
    forward = _fast(model) if fast else model

    def call(x_btc: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return forward(torch.from_numpy(x_btc).to(device())).cpu().numpy()

    return call


class Windows(Dataset):
    """Univariate windows of a range of rows, channel by channel (protocol §1.1)."""

    def __init__(self, values_tc: np.ndarray, rows: tuple[int, int], shape: Shape) -> None:
        self.values, self.first = torch.from_numpy(np.array(values_tc[slice(*rows)])), rows[0]
        self.length, self.horizon = shape.input_length, shape.horizon
        self.starts = len(self.values) - self.length - self.horizon + 1

    def __len__(self) -> int:
        return self.starts * self.values.shape[1]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        channel, start = divmod(index, self.starts)
        window = self.values[start : start + self.length + self.horizon, channel : channel + 1]
        return window[: self.length], window[self.length :]


def loader(windows: Windows, batch: int, *, shuffle: bool) -> DataLoader:
    return DataLoader(windows, batch_size=batch, shuffle=shuffle, num_workers=0)


def matmul(rows: int, inner: int, columns: int) -> Callable[[], object]:
    """A call that multiplies two matrices in the trunk's computing type."""
    kind = torch.float32 if device().type == "cpu" else torch.bfloat16
    left = torch.randn(rows, inner, device=device()).to(kind)
    right = torch.randn(inner, columns, device=device()).to(kind) / math.sqrt(inner)

    def call() -> None:
        left @ right
        if device().type != "cpu":
            torch.cuda.synchronize()

    return call
