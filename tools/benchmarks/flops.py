"""Floating-point operations of the model by formula: what the mathematics needs, whatever a program does.

A matrix product [i, j] x [j, k] counts 2 i j k. Element-wise work (norms, GELU, softmax, dropout) is not
counted, because the roof is that of matrix products.

Forward, per token: 2 N for the N numbers in the trunk's dense kernels, 4 n d per block for attention's two
products over n tokens (the causal half is not subtracted), 2 p d for ``in_layer``. Per window: 2 n d H for
``out_layer`` and 2 r (n d + H) for its adapter. Once per step, for any batch: 2 n r d for the adapter of
``wpe``.

Backward, with the reference recipe: gradients of activations cost the forward once for everything between the
loss and ``wpe``, attention's two products twice, since both of their factors are activations, and
``in_layer`` never. Gradients of weights only for the four adapter factors, each as much as its product.
"""

from __future__ import annotations

from benchmarks.sizes import Shape


def trunk_parameters(shape: Shape) -> int:
    """N: the numbers in the dense kernels of all blocks, 12 d² a block."""
    return shape.n_layer * 12 * shape.n_embd**2


def forward(shape: Shape, windows: int, *, merged: bool = False) -> int:
    """Operations of one forward pass; ``merged``: the adapters are folded into the weights."""
    dense = 2 * trunk_parameters(shape) * windows * shape.tokens
    embed = 2 * shape.patch * shape.n_embd * windows * shape.tokens
    head = 2 * shape.tokens * shape.n_embd * shape.horizon * windows
    adapters = 0 if merged else _head_adapter(shape, windows) + _position_adapter(shape)
    return dense + _attention(shape, windows) + embed + head + adapters


def backward(shape: Shape, windows: int) -> int:
    """Operations of the backward pass that training with the reference recipe needs."""
    dense = 2 * trunk_parameters(shape) * windows * shape.tokens
    head = 2 * shape.tokens * shape.n_embd * shape.horizon * windows
    adapters = _head_adapter(shape, windows) + _position_adapter(shape)
    return dense + 2 * _attention(shape, windows) + head + 2 * adapters


def training(shape: Shape, windows: int) -> int:
    """Operations of one training step."""
    return forward(shape, windows) + backward(shape, windows)


def matmuls(shape: Shape, windows: int) -> dict[str, tuple[int, int, int]]:
    """The products of a block's dense layers, ``[m n, in] x [in, out]``."""
    rows, d = windows * shape.tokens, shape.n_embd
    return {f"{rows} x {i} x {o}": (rows, i, o) for i, o in ((d, d), (d, 3 * d), (d, 4 * d), (4 * d, d))}


def _attention(shape: Shape, windows: int) -> int:
    return 4 * shape.tokens * shape.n_embd * shape.n_layer * windows * shape.tokens


def _head_adapter(shape: Shape, windows: int) -> int:
    return 2 * shape.rank * (shape.tokens * shape.n_embd + shape.horizon) * windows


def _position_adapter(shape: Shape) -> int:
    return 2 * shape.tokens * shape.rank * shape.n_embd
