"""Families of generated series: each a function ``(draw, n) -> [n]`` float64 in any units, for pretraining.

Every family covers few and many cycles in ``n`` steps. Periods are those of calendars or any in between.
Nothing here was fitted to a data set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Draw = np.random.Generator
Family = Callable[[Draw, int], np.ndarray]

PERIODS = (4, 5, 7, 12, 24, 24, 48, 52, 96, 96, 144, 168, 288, 336, 365, 672)
"""Cycles of calendars in steps: quarters, weeks, months, hours, quarter-hours, ten and five minutes."""


def period(draw: Draw, shortest: float = 4, longest: float = 400) -> float:
    """A calendar's cycle, exact or off by up to 5 %, or any length between two (log-uniform)."""
    kind = draw.random()
    if kind < 0.6:
        return float(draw.choice(PERIODS))
    if kind < 0.75:
        return float(draw.choice(PERIODS)) * draw.uniform(0.95, 1.05)
    return float(np.exp(draw.uniform(np.log(shortest), np.log(longest))))


def smooth_noise(draw: Draw, n: int, knots: float) -> np.ndarray:
    """A smooth random curve ``[n]`` of unit scale with about ``knots`` independent values."""
    count = int(np.ceil(knots)) + 4
    values = draw.standard_normal(count)
    at = np.linspace(0, max(knots, 1e-3), n) + draw.random() + 1
    cell = at.astype(int)
    u = at - cell
    y0, y1, y2, y3 = (values[np.minimum(cell + shift, count - 1)] for shift in (-1, 0, 1, 2))
    # the uniform cubic B-spline; 1.3 restores about unit variance
    cubic = (
        (1 - u) ** 3 * y0
        + (3 * u**3 - 6 * u**2 + 4) * y1
        + (-3 * u**3 + 3 * u**2 + 3 * u + 1) * y2
        + u**3 * y3
    )
    return cubic / 6 * 1.3


def autoregression(
    draw: Draw, n: int, coefficients: np.ndarray, shocks: np.ndarray | None = None
) -> np.ndarray:
    """``x[t] = Σ a[i] x[t - i] + e[t]`` after a run-in; shocks are standard normal unless given ``[n]``."""
    from scipy.signal import lfilter

    run_in = 0 if shocks is not None else 100
    noise = draw.standard_normal(n + run_in) if shocks is None else shocks
    return lfilter([1.0], np.concatenate([[1.0], -np.asarray(coefficients)]), noise)[run_in:]


def persistent_noise(draw: Draw, n: int) -> np.ndarray:
    """White or first-order noise of unit scale."""
    if draw.random() < 0.5:
        return draw.standard_normal(n)
    a = draw.uniform(0, 0.95)
    return autoregression(draw, n, np.array([a])) * np.sqrt(1 - a * a)


def noise_size(draw: Draw, low: float, high: float) -> float:
    """Log-uniform in ``exp(low) … exp(high)``; in three of ten series about as large as the signal."""
    return float(np.exp(draw.uniform(-1, 0.7) if draw.random() < 0.3 else draw.uniform(low, high)))


def profile(draw: Draw, phase: np.ndarray) -> np.ndarray:
    """One random cycle at phases in [0, 1), of about unit scale: harmonics, knots, pulses, saw or square."""
    kind = draw.random()
    if kind < 0.45:
        harmonics = np.arange(1, draw.integers(1, 9) + 1)
        size = draw.standard_normal(len(harmonics)) / harmonics ** draw.uniform(0.3, 1.5)
        angle = 2 * np.pi * (np.multiply.outer(harmonics, phase) + draw.random(len(harmonics))[:, None])
        shape = size @ np.sin(angle)
    elif kind < 0.75:
        knots = draw.standard_normal(draw.integers(4, 25))
        shape = np.interp(phase * len(knots), np.arange(len(knots) + 1), np.append(knots, knots[0]))
    elif kind < 0.9:
        centers, widths = draw.random(draw.integers(1, 4)), np.exp(draw.uniform(-4.5, -1.5, 3))
        apart = [np.abs((phase - center + 0.5) % 1 - 0.5) / widths[i] for i, center in enumerate(centers)]
        shape = sum(draw.uniform(0.3, 1) * np.exp(-0.5 * gap**2) for gap in apart)
    elif kind < 0.95:
        peak = draw.uniform(0.02, 0.98)
        shape = np.where(phase < peak, phase / peak, (1 - phase) / (1 - peak))
    else:
        shape = (phase < draw.uniform(0.1, 0.9)).astype(float)
    return (shape - shape.mean()) / (shape.std() + 1e-9)


def cycle(draw: Draw, n: int, length: float) -> np.ndarray:
    """A repeated profile ``[n]`` whose size and timing may wander slowly."""
    steps = np.arange(n) + draw.random() * length
    if draw.random() < 0.15:
        steps = steps + 0.05 * length * smooth_noise(draw, n, n / length / 4)
    wave = profile(draw, steps / length % 1)
    if draw.random() < 0.5:
        wave = wave * (
            1 + draw.uniform(0.05, 0.5) * smooth_noise(draw, n, max(2, n / length / draw.uniform(1, 8)))
        )
    return wave


def trend(draw: Draw, n: int) -> np.ndarray:
    """A line with bends, growth, saturation, or a slow wander, ``[n]`` of about unit range."""
    t = np.linspace(0, 1, n)
    kind = draw.random()
    if kind < 0.4:
        bends = np.sort(draw.random(draw.integers(0, 4)))
        slopes = draw.standard_normal(len(bends) + 1)
        return slopes[0] * t + sum(
            (slope - slopes[i]) * np.maximum(t - bends[i], 0) for i, slope in enumerate(slopes[1:])
        )
    if kind < 0.55:
        rate = draw.uniform(0.2, 4) * draw.choice([-1, 1])
        return np.expm1(rate * t) / abs(np.expm1(rate)) * draw.choice([-1, 1])
    if kind < 0.7:
        return np.tanh(draw.uniform(1, 10) * (t - draw.random()))
    return smooth_noise(draw, n, draw.uniform(1, 8)) * 0.5


def level_of(draw: Draw, signal: np.ndarray) -> np.ndarray:
    """The signal around a level: added to it, or multiplied as growth and sales are."""
    return signal if draw.random() < 0.7 else np.exp(draw.uniform(0.1, 0.6) * signal)


def trend_and_seasons(draw: Draw, n: int) -> np.ndarray:
    """A trend, one to three cycles, noise, and now and then a change of regime."""
    signal = trend(draw, n) * draw.choice([0.0, np.exp(draw.uniform(-2, 1.5))], p=[0.45, 0.55])
    length = period(draw)
    for _ in range(draw.integers(1, 4)):
        signal = signal + np.exp(draw.uniform(-1.5, 1)) * cycle(draw, n, length)
        length = length * draw.choice([2, 4, 7, 12, 7 / 24, 52 / 7]) if draw.random() < 0.7 else period(draw)
        length = float(np.clip(length, 3, 2 * n))
    noise = persistent_noise(draw, n) * noise_size(draw, -4, 0.5)
    if draw.random() < 0.2:
        noise = noise * np.exp(0.7 * smooth_noise(draw, n, draw.uniform(2, 20)))
    if draw.random() < 0.15:  # from some step on, another size and level
        since = np.arange(n) >= draw.integers(0, n)
        signal = signal * np.where(since, draw.uniform(0.3, 2), 1) + since * draw.normal() * 1.5
    return level_of(draw, signal + noise)


def few_cycles(draw: Draw, n: int) -> np.ndarray:
    """A detailed cycle that comes only two to ten times in ``n`` steps, with a drifting level."""
    length = n / draw.uniform(2, 10) if draw.random() < 0.5 else float(draw.choice([96, 144, 168, 288]))
    level = smooth_noise(draw, n, n / length * draw.uniform(0.2, 1.5)) * np.exp(draw.uniform(-2.5, 0))
    wave = cycle(draw, n, length) + draw.uniform(0, 0.6) * cycle(draw, n, length)
    rough = autoregression(draw, n, np.array([draw.uniform(0.5, 0.99)]))
    return wave + level + rough / rough.std() * noise_size(draw, -3.5, -0.5)


def gaussian_process(draw: Draw, n: int) -> np.ndarray:
    """Sums and products of one to four draws from simple kernels: smooth, periodic, linear, white."""

    def component() -> np.ndarray:
        kind = draw.random()
        if kind < 0.4:
            length = period(draw, 4, n)
            harmonics = np.arange(1, 6)
            decay = np.exp(-harmonics * draw.uniform(0.2, 2))
            angle = 2 * np.pi * np.multiply.outer(harmonics, np.arange(n) / length)
            size = draw.standard_normal((2, 5)) * decay
            return (size[0] @ np.sin(angle) + size[1] @ np.cos(angle)) / np.sqrt((decay**2).sum())
        if kind < 0.75:
            return smooth_noise(draw, n, np.exp(draw.uniform(0, np.log(n / 6))))
        if kind < 0.9:
            return draw.standard_normal() * np.linspace(-1, 1, n) + draw.standard_normal()
        return draw.standard_normal(n) * np.exp(draw.uniform(-3, 0))

    signal = component()
    for _ in range(draw.integers(0, 4)):
        signal = signal * component() if draw.random() < 0.3 else signal + component()
    return signal


def wandering(draw: Draw, n: int) -> np.ndarray:
    """Autoregressions of order one to three and random walks with drift, with one change of regime in ten."""

    def regime(count: int) -> np.ndarray:
        kind = draw.random()
        if kind < 0.35:
            steps = draw.standard_normal(count) + draw.normal() * draw.choice([0, 0.3])
            walk = np.cumsum(steps)
            return np.exp(0.02 * walk) if draw.random() < 0.3 else walk
        if kind < 0.7:
            return autoregression(draw, count, np.array([draw.uniform(0.3, 0.995)]))
        size, angle = draw.uniform(0.6, 0.995), 2 * np.pi / period(draw)
        pair = np.array([2 * size * np.cos(angle), -size * size])
        if draw.random() < 0.5:
            a = draw.uniform(-0.5, 0.9)  # a third real root
            pair = np.array([pair[0] + a, pair[1] - a * pair[0], -a * pair[1]])
        return autoregression(draw, count, pair)

    if draw.random() < 0.9:
        return regime(n)
    cut = int(draw.integers(n // 4, n))
    first, second = regime(cut), regime(n - cut)
    return np.concatenate([first, second - second[0] + first[-1]])


def calendar_load(draw: Draw, n: int) -> np.ndarray:
    """Demand by day, week and year with a weather-like driver; sometimes sunlight that is zero at night."""
    day = float(draw.choice([24, 24, 48, 96, 96, 144, 288]))
    t = np.arange(n) + draw.integers(0, int(7 * day))
    weather = smooth_noise(draw, n, max(2, n / day / draw.uniform(1, 6)))
    hour = t / day % 1
    if draw.random() < 0.25:
        height = np.cos(2 * np.pi * (hour - 0.5)) + draw.uniform(-0.5, 0.5)
        cloud = autoregression(draw, n, np.array([draw.uniform(0.7, 0.98)]))
        cover = 1 / (
            1 + np.exp(-(draw.normal() + 1 + weather + draw.uniform(0, 1) * cloud / (cloud.std() + 1e-9)))
        )
        return np.maximum(height, 0) * cover
    weekday = (t // day).astype(int) % 7
    free = weekday >= draw.choice([5, 6])
    if draw.random() < 0.3:
        free = free | (
            draw.random(int(n / day) + 9)[(t // day).astype(int) - int(t[0] // day)] < 0.03
        )  # holidays
    work, rest = profile(draw, hour), profile(draw, hour)
    mix = draw.uniform(0, 1)
    load = np.where(free, mix * work + (1 - mix) * rest - draw.uniform(0, 1.5), work)
    load = (
        load
        + draw.uniform(0, 1) * weather
        + draw.uniform(0, 0.8) * np.sin(2 * np.pi * (t / (365 * day) + draw.random()))
    )
    rough = autoregression(draw, n, np.array([draw.uniform(0, 0.99)]))
    return level_of(draw, load + rough / rough.std() * noise_size(draw, -4, -0.7))


def steps_and_pulses(draw: Draw, n: int) -> np.ndarray:
    """Levels that jump, pulse trains, saws, and the on and off of machines."""
    kind = draw.random()
    noise = persistent_noise(draw, n) * np.exp(draw.uniform(-5, -1))
    if kind < 0.35:
        jumps = (
            draw.random(n) < np.exp(draw.uniform(np.log(min(2 / n, 0.04)), np.log(0.05)))
        ) * draw.standard_normal(n)
        return np.cumsum(jumps) + noise
    if kind < 0.7:
        length = period(draw, 4, 200)
        phase = (np.arange(n) + draw.random() * length) / length % 1
        wave = (phase < draw.uniform(0.05, 0.6)) * 1.0 if draw.random() < 0.6 else phase
        return wave * (1 + 0.3 * draw.choice([0, 1]) * smooth_noise(draw, n, n / length / 3)) + noise
    lasting = draw.geometric(1 / np.exp(draw.uniform(1, 4.5)), size=n)
    on = np.repeat(np.arange(n) % 2, lasting)[:n]
    return on * (1 + 0.2 * smooth_noise(draw, n, 6)) + noise


def counts(draw: Draw, n: int) -> np.ndarray:
    """Intermittent counts whose rate has a cycle."""
    rate = np.exp(
        draw.uniform(-2.5, 2) + draw.uniform(0, 1) * cycle(draw, n, period(draw)) + 0.3 * trend(draw, n)
    )
    if draw.random() < 0.4:  # heavier than Poisson
        shape = np.exp(draw.uniform(-1, 2))
        rate = rate * draw.gamma(shape, 1 / shape, n)
    return draw.poisson(np.minimum(rate, 1e6)).astype(float)


def volatile(draw: Draw, n: int) -> np.ndarray:
    """Heavy tails and clusters of volatility, as returns or summed to prices."""
    spread = np.exp(draw.uniform(0.2, 1.2) * smooth_noise(draw, n, draw.uniform(2, 40)))
    returns = draw.standard_t(draw.uniform(2.5, 8), n) * spread
    kind = draw.random()
    if kind < 0.3:
        return returns
    walk = np.cumsum(returns + draw.normal() * 0.05)
    return walk if kind < 0.6 else np.exp(draw.uniform(0.005, 0.03) * walk)


def oscillation(draw: Draw, n: int) -> np.ndarray:
    """Chirps, beats, and oscillations that die out after each of several impulses."""
    t, kind = np.arange(n), draw.random()
    noise = draw.standard_normal(n) * np.exp(draw.uniform(-5, -1))
    length = period(draw, 6, 200)
    if kind < 0.35:
        return np.sin(2 * np.pi * np.cumsum(1 / (length * np.exp(draw.uniform(-1, 1) * t / n)))) + noise
    if kind < 0.65:
        near = length * draw.uniform(1.03, 1.3)
        return np.sin(2 * np.pi * t / length) + np.sin(2 * np.pi * (t / near + draw.random())) + noise
    impulses = (draw.random(n) < draw.uniform(1, 8) / n) * draw.standard_normal(n)
    size, angle = np.exp(-1 / (length * draw.uniform(1, 6))), 2 * np.pi / length
    ringing = autoregression(draw, n, np.array([2 * size * np.cos(angle), -size * size]), impulses)
    return ringing / (ringing.std() + 1e-6) + noise


def short_business(draw: Draw, n: int) -> np.ndarray:
    """As yearly, quarterly and monthly figures: growth that drifts, a mild season, little noise."""
    life = np.exp(draw.uniform(np.log(20), np.log(max(n, 21))))  # steps in which it grows as such figures do
    drift = draw.normal(0.005, 0.02) + 0.01 * smooth_noise(draw, n, n / draw.uniform(8, 60))
    shocks = draw.standard_normal(n) * np.exp(draw.uniform(-4.5, -2))
    growth = np.clip(drift, -0.1, 0.1) * draw.choice([0.2, 1.0]) * min(1, 60 / life)
    log = np.cumsum(growth + shocks * draw.choice([0.3, 1.0])) * min(1, life / n)
    log = log - log.mean()
    if draw.random() < 0.6:
        log = log + np.exp(draw.uniform(-4, -1)) * cycle(draw, n, float(draw.choice([4, 4, 12, 12, 12, 52])))
    log = log + draw.standard_normal(n) * np.exp(draw.uniform(-6, -2))
    return np.exp(np.clip(log, -20, 20))


FAMILIES: dict[str, tuple[float, Family]] = {
    "trend and seasons": (0.24, trend_and_seasons),
    "few cycles": (0.12, few_cycles),
    "gaussian process": (0.1, gaussian_process),
    "wandering": (0.13, wandering),
    "calendar load": (0.14, calendar_load),
    "steps and pulses": (0.05, steps_and_pulses),
    "counts": (0.04, counts),
    "volatile": (0.04, volatile),
    "oscillation": (0.04, oscillation),
    "short business": (0.1, short_business),
}
"""Share and generator of every family."""


def draw_family(draw: Draw, n: int) -> np.ndarray:
    """A series ``[n]`` of a random family, finite, centered and of unit scale."""
    shares = np.array([share for share, _ in FAMILIES.values()])
    _, family = list(FAMILIES.values())[int(draw.choice(len(shares), p=shares / shares.sum()))]
    return standardized(family(draw, n))


def standardized(series: np.ndarray) -> np.ndarray:
    """Minus its mean, over its deviation; constants become zero."""
    centered: Any = series - series.mean()
    spread = centered.std()
    return centered / spread if spread > 1e-9 * (1 + np.abs(series).max()) else np.zeros_like(series)
