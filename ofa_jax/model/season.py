"""The cycles of a context, and the values one cycle earlier."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_ABOUT, _ALMOST = 0.85, 0.97  # of the highest peak; the first as high is taken, since later ones repeat it
_WEAKEST = 0.1  # autocorrelation below which there is no cycle
_DOUBLINGS = 5  # means over up to 32 cycles


def find_cycles(z_mt: jax.Array, seen_mt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Steps ``[m]`` of the shortest strong cycle and of the strongest (a day, a week); 0 where there is none.

    They are the first peaks of the autocorrelation that are at least 85 % and 97 % of the highest, after a
    linear trend is taken out, among lags for which a third of the observed steps have a partner.
    """
    t = z_mt.shape[1]
    weight = seen_mt.astype(z_mt.dtype)
    count = jnp.maximum(weight.sum(axis=1, keepdims=True), 1)
    at = jnp.linspace(-1, 1, t)[None] * weight
    at = (at - at.sum(axis=1, keepdims=True) / count) * weight
    rest = (z_mt - (z_mt * weight).sum(axis=1, keepdims=True) / count) * weight
    slope = (rest * at).sum(axis=1, keepdims=True) / jnp.maximum(
        jnp.square(at).sum(axis=1, keepdims=True), 1e-6
    )
    rest = rest - slope * at

    def autocorrelation(x_mt: jax.Array) -> jax.Array:
        size = 2 ** (2 * t - 1).bit_length()
        power = jnp.square(jnp.abs(jnp.fft.rfft(x_mt, size, axis=1)))
        return jnp.fft.irfft(power, size, axis=1)[:, :t]

    pairs = jnp.round(autocorrelation(weight))
    similar = autocorrelation(rest) / jnp.maximum(pairs, 1)
    similar = similar / jnp.maximum(similar[:, :1], 1e-9)
    peak = (similar[:, 1:-1] > similar[:, :-2]) & (similar[:, 1:-1] >= similar[:, 2:])
    lag = jnp.arange(1, t - 1)
    height = similar[:, 1:-1]
    allowed = peak & (lag > 1) & (pairs[:, 1:-1] >= count / 3) & (height > _WEAKEST)
    highest = jnp.max(jnp.where(allowed, height, 0), axis=1, keepdims=True)

    def first(share: float) -> jax.Array:
        found = allowed & (height >= share * highest)
        return jnp.where(found.any(axis=1), lag[jnp.argmax(found, axis=1)], 0)

    return first(_ABOUT), first(_ALMOST)


def cycles_before(
    z_mt: jax.Array, seen_mt: jax.Array, cycle_m: jax.Array, ahead: int
) -> tuple[jax.Array, jax.Array]:
    """The last value at the same place of an earlier cycle, and the mean of up to 32 such values.

    Args:
        z_mt: Values ``[m, t]``, 0 where not seen.
        seen_mt: Which are observed.
        cycle_m: Steps of the cycle, 0 where there is none.
        ahead: Steps after the context to do this for as well.

    Returns:
        Two arrays ``[m, t + ahead]``, 0 where there is no earlier value.
    """
    t = z_mt.shape[1]
    step = jnp.maximum(cycle_m, 1)[:, None]
    at = jnp.arange(t + ahead)[None]
    place = at - jnp.maximum(1, (at - t) // step + 1) * step  # in the last earlier cycle within the context
    known = (place >= 0) & (cycle_m > 0)[:, None]
    place = jnp.maximum(place, 0)

    def pick(x_mt: jax.Array) -> jax.Array:
        return jnp.where(known, jnp.take_along_axis(x_mt, place, axis=1), 0)

    def add_earlier(doubling: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """From sums over 2^k cycles up to each step to those over twice as many; and the last seen value."""
        last, total, count = found
        before = jnp.arange(t)[None] - (step << doubling)
        inside, before = before >= 0, jnp.maximum(before, 0)
        moved = [jnp.where(inside, jnp.take_along_axis(x_mt, before, axis=1), 0) for x_mt in found]
        return jnp.where(count > 0, last, moved[0]), total + moved[1], count + moved[2]

    seen_mt = seen_mt.astype(z_mt.dtype)
    start = (z_mt * seen_mt, z_mt * seen_mt, seen_mt)
    last, total, count = jax.lax.fori_loop(0, _DOUBLINGS, add_earlier, start)
    return pick(last), pick(total) / jnp.maximum(pick(count), 1)
