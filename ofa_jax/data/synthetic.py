"""Generated hourly load with a known noise floor: the demo's data.

The load of series i at hour t, in MW, is

    y_i(t) = s_i(t) + b_i w(t) + e_i(t)

with fixed daily, weekly and yearly cycles s_i, one weather anomaly w that all series share, and each series'
own noise e_i. Both are stationary autoregressions, w(t) = f w(t-1) + u(t) and e_i(t) = f_i e_i(t-1) + v_i(t),
with independent Gaussian shocks of standard deviations q and q_i.

Given s_i, b_i, f, f_i and the states w(o), e_i(o) at the origin o, the best forecast h steps ahead is
s_i(o+h) + b_i f^h w(o) + f_i^h e_i(o), since the later shocks are independent of all that is known. Its error
is their sum, Gaussian with mean zero and variance

    V_i(h) = b_i^2 q^2 (1 - f^(2h)) / (1 - f^2) + q_i^2 (1 - f_i^(2h)) / (1 - f_i^2),

so the least expected squared error is V_i(h) and, a Gaussian's median being its mean, the least expected
absolute error is sqrt(2 V_i(h) / pi). The noise floor is the average of each over h = 1 … H. It is an
expectation: on one short stretch, the error of the best forecast scatters around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ofa_jax.data.frames import Frame
from ofa_jax.errors import ConfigError

SOURCE = "generated hourly load"
"""The ``source`` of generated frames, shown wherever a frame's source is."""

_NAMES = tuple(
    f"load_{region}" for region in ("north", "south", "east", "west", "centre", "coast", "hills", "islands")
)
# a memory of days, not weeks: the longer it is, the more one stretch strays from the floor
_WEATHER_MEMORY, _WEATHER_SHOCK = 0.94, 1.3


@dataclass(frozen=True, eq=False)
class SyntheticLoad:
    """Generated hourly load and its components.

    Attributes:
        frame: The load, ``[T, C]`` in MW.
        cycles: The deterministic part s, ``[T, C]`` in MW.
        weather: The shared anomaly w, ``[T]`` in degrees.
        noise: Each series' own noise e, ``[T, C]`` in MW.
        response: b, ``[C]`` in MW per degree.
        weather_memory, weather_shock: f and q (degrees).
        noise_memory, noise_shock: f_i and q_i (MW), ``[C]``.
    """

    frame: Frame
    cycles: np.ndarray
    weather: np.ndarray
    noise: np.ndarray
    response: np.ndarray
    weather_memory: float
    weather_shock: float
    noise_memory: np.ndarray
    noise_shock: np.ndarray

    def noise_floor(self, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """The least expected mse in MW² and mae in MW over ``horizon`` hours, ``[C]`` each."""
        steps = np.arange(1, horizon + 1)[:, None]
        weather = self.weather_shock**2 * _growth(np.array([self.weather_memory]), steps)
        variance_hc = self.response**2 * weather + self.noise_shock**2 * _growth(self.noise_memory, steps)
        absolute_hc = np.sqrt(2 * variance_hc / np.pi)
        return variance_hc.mean(axis=0), absolute_hc.mean(axis=0)

    def best_forecast(self, origins: np.ndarray, horizon: int) -> np.ndarray:
        """The best forecasts ``[M, H, C]`` in MW of the ``horizon`` rows after each of the ``origins``."""
        steps = np.arange(1, horizon + 1)
        cycles = self.cycles[origins[:, None] + steps]
        weather = self.weather_memory ** steps[:, None] * self.response * self.weather[origins][:, None, None]
        return cycles + weather + self.noise_memory ** steps[:, None] * self.noise[origins][:, None, :]


def _growth(memory: np.ndarray, steps: np.ndarray) -> np.ndarray:
    return (1 - memory ** (2 * steps)) / (1 - memory**2)


def hourly_load(n_rows: int = 24 * 7 * 60, n_series: int = 4, seed: int = 0) -> SyntheticLoad:
    """Generate ``n_series`` (1 to 8) hourly loads in MW, from Monday 2023-01-02; the seed determines them.

    Raises:
        ConfigError: A count outside its range.
    """
    if n_rows < 1 or not 1 <= n_series <= len(_NAMES) or not 0 <= seed < 2**63:
        fix = f"Give at least 1 row, 1 to {len(_NAMES)} series, a seed of 0 to 2**63 - 1"
        raise ConfigError(f"n_rows is {n_rows}, n_series {n_series}, seed {seed}", fix=fix)
    uniform = _uniform(seed, n_series * 8).reshape(n_series, 8).T
    base = 800 + 1600 * uniform[0]
    response = -base * (0.008 + 0.006 * uniform[1])
    noise_memory = 0.6 + 0.25 * uniform[2]
    noise_shock = base * (0.008 + 0.006 * uniform[3])
    shocks = _normal(seed, n_rows * (n_series + 1)).reshape(n_rows, n_series + 1)
    memory, scale = np.append(noise_memory, _WEATHER_MEMORY), np.append(noise_shock, _WEATHER_SHOCK)
    states = _autoregression(shocks, memory, scale)
    cycles = base * (1 + _cycles(n_rows, uniform[4:]))
    noise, weather = states[:, :-1], states[:, -1]
    timestamps = np.datetime64("2023-01-02T00", "ns") + np.arange(n_rows) * np.timedelta64(3600 * 10**9, "ns")
    frame = Frame(cycles + weather[:, None] * response + noise, _NAMES[:n_series], timestamps, SOURCE)
    law = (_WEATHER_MEMORY, _WEATHER_SHOCK, noise_memory, noise_shock)
    return SyntheticLoad(frame, cycles, weather, noise, response, *law)


def _cycles(n_rows: int, uniform: np.ndarray) -> np.ndarray:
    """Daily, weekly and yearly cycles ``[T, C]`` as a share of the base load."""
    hour = np.arange(n_rows)[:, None]
    lag, evening, weekend, winter = uniform
    day = 2 * np.pi * (hour - 2 * lag) / 24
    first, second = np.cos(day - np.pi / 6), np.cos(2 * day - 4 * np.pi / 3)
    workday = -(0.16 + 0.06 * evening) * first + (0.05 + 0.04 * evening) * second
    rest = (hour // 24) % 7 >= 5
    year = (0.08 + 0.08 * winter) * np.cos(2 * np.pi * (hour - 15 * 24) / (365.25 * 24))
    return np.where(rest, 0.7 * workday - (0.06 + 0.08 * weekend), workday) + year


def _autoregression(shocks: np.ndarray, memory: np.ndarray, scale: np.ndarray) -> np.ndarray:
    states = np.empty_like(shocks)
    states[0] = shocks[0] * scale / np.sqrt(1 - memory**2)  # the stationary law, so no row is special
    for row in range(1, len(shocks)):
        states[row] = memory * states[row - 1] + scale * shocks[row]
    return states


def _uniform(seed: int, count: int, stream: int = 0) -> np.ndarray:
    """Numbers in (0, 1) from the raw stream, which NumPy keeps stable, unlike its distributions."""
    raw = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(count)
    return ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _normal(seed: int, count: int) -> np.ndarray:
    """Standard normal numbers (Box-Muller)."""
    first, second = _uniform(seed, 2 * count, stream=1).reshape(2, count)
    return np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second)
