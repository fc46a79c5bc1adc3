"""The random layers that stay frozen: the same bits from the same seed on every machine.

The published adapter files cannot be reloaded, because the random frozen layers around the trunk are not in
them (protocol §5, row 3). Here those layers are a pure function of a seed. The rule, version ``philox-1``:

1. a stream of 64-bit integers per parameter, ``Philox(key=[seed, h]).random_raw``, where ``h`` is the first
   eight bytes (little endian) of the sha256 of the parameter's path, for example ``"in_layer/kernel"``;
   elements in C order;
2. ``u = (raw >> 12 + 1/2) / 2**52``, an exact float64 strictly between 0 and 1;
3. uniform on ±bound: ``(2 u - 1) * bound``; normal: the inverse normal distribution function by Wichura's
   algorithm AS 241 (PPND16), with its one logarithm computed below from additions, multiplications and
   divisions alone;
4. rounded to float32 last.

Steps 2 and 3 use only operations whose result IEEE 754 fixes, one NumPy call each, so no library's ``log`` or
``exp`` and no fused multiply-add can change a bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from ofa_jax.errors import ConfigError
from ofa_jax.model import trees

RULE = "philox-1"
"""Name of the rule above, stored with every seed."""

_BLOCK = 1 << 16
"""Values drawn at a time: the float64 intermediates of all would take twenty times their memory."""


def uniform(seed: int, path: str, shape: Sequence[int], bound: float) -> np.ndarray:
    """Float32 array ~ U(-bound, bound), by rule ``philox-1``."""
    return _draw(seed, path, shape, lambda u: (u * 2.0 - 1.0) * bound)


def normal(seed: int, path: str, shape: Sequence[int], std: float) -> np.ndarray:
    """Float32 array ~ N(0, std²), by rule ``philox-1``."""
    return _draw(seed, path, shape, lambda u: _normal_quantile(u) * std)


def _draw(
    seed: int, path: str, shape: Sequence[int], transform: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """A float32 array of transformed uniform numbers between 0 and 1 (steps 1, 2 and 4)."""
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed {seed} is not between 0 and 2**64 - 1", where="network.seed")
    path_key = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "little")
    stream = np.random.Philox(key=np.array([seed, path_key], np.uint64))
    drawn = trees.aligned_empty(shape)
    flat = drawn.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        raw = stream.random_raw(block.size)
        block[:] = transform(((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)
    drawn.flags.writeable = False  # jax may have taken this memory over
    return drawn


def _polynomial(coefficients: Sequence[float], x: np.ndarray) -> np.ndarray:
    total = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x
        total = total + coefficient
    return total


_LN2 = 0.6931471805599453


def _log(x: np.ndarray) -> np.ndarray:
    """Natural logarithm: ``x = m 2**e``, ``log m = 2 artanh((m - 1) / (m + 1))`` as a series."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < 0.7071067811865476
    mantissa = np.where(small, mantissa * 2.0, mantissa)
    exponent = np.where(small, exponent - 1, exponent).astype(np.float64)
    z = (mantissa - 1.0) / (mantissa + 1.0)
    series = _polynomial([1.0 / (2 * k + 1) for k in range(12)], z * z)
    return exponent * _LN2 + 2.0 * z * series


def _coefficients(numerator: str, denominator: str) -> tuple[list[float], list[float]]:
    return [float(part) for part in numerator.split()], [float(part) for part in denominator.split()]


_CENTER = _coefficients(
    "3.387132872796366608 133.14166789178437745 1971.5909503065514427 13731.693765509461125 "
    "45921.953931549871457 67265.770927008700853 33430.575583588128105 2509.0809287301226727",
    "1.0 42.313330701600911252 687.1870074920579083 5394.1960214247511077 "
    "21213.794301586595867 39307.89580009271061 28729.085735721942674 5226.495278852854561",
)
_MIDDLE = _coefficients(
    "1.42343711074968357734 4.6303378461565452959 5.7694972214606914055 3.64784832476320460504 "
    "1.27045825245236838258 0.24178072517745061177 0.0227238449892691845833 7.7454501427834140764e-4",
    "1.0 2.05319162663775882187 1.6763848301838038494 0.68976733498510000455 "
    "0.14810397642748007459 0.0151986665636164571966 5.475938084995344946e-4 1.05075007164441684324e-9",
)
_TAIL = _coefficients(
    "6.6579046435011037772 5.4637849111641143699 1.7848265399172913358 0.29656057182850489123 "
    "0.026532189526576123093 0.0012426609473880784386 2.71155556874348757815e-5 2.01033439929228813265e-7",
    "1.0 0.59983220655588793769 0.13692988092273580531 0.0148753612908506148525 "
    "7.868691311456132591e-4 1.8463183175100546818e-5 1.4215117583164458887e-7 2.04426310338993978564e-15",
)


def _normal_quantile(p: np.ndarray) -> np.ndarray:
    """The inverse normal distribution function, Wichura, AS 241 (1988); relative accuracy about 1e-16."""
    q = p - 0.5
    central = np.abs(q) <= 0.425
    square = np.where(central, 0.180625 - q * q, 0.0)
    center = q * _polynomial(_CENTER[0], square) / _polynomial(_CENTER[1], square)
    tail = np.where(central, 0.25, np.minimum(p, 1.0 - p))
    r = np.sqrt(-_log(tail))
    middle = _polynomial(_MIDDLE[0], r - 1.6) / _polynomial(_MIDDLE[1], r - 1.6)
    far = _polynomial(_TAIL[0], r - 5.0) / _polynomial(_TAIL[1], r - 5.0)
    outer = np.where(r <= 5.0, middle, far)
    return np.where(central, center, np.where(q < 0, -outer, outer))
