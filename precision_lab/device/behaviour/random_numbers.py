"""Random numbers: whether a key determines them, their range, and their distribution."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np

from precision_lab.device.behaviour.finding import Outcome
from precision_lab.device.behaviour.storage import FLOAT32, Array

# draw(seed, shape): numbers of the key that a seed gives
Draw = Callable[[int, tuple[int, ...]], Array]

DIGESTS = {
    "a662607828c52caf": "M3 Ultra's and M5's",
    "8a8c5a6737feea9e": "M1 Max's",
}
"""The start of the SHA-256 of normal(shape=(8,), key=key(0)), and the chips that MLX issue 3568 reports it for."""

_GILES = 8.0
"""Units in the last place. The erfinv of Giles (GPU Computing Gems 2, 2011) is off by up to 3.5e-7, 6 units."""


def keyed(draw: Draw, size: int = 4096) -> Outcome:
    """Whether a key gives the same numbers again, in another shape of the same size, and another key gives others."""
    first = draw(3, (size,))
    if not np.array_equal(first, draw(3, (size,))):
        return Outcome("differs from call to call", f"{size} numbers of one key, drawn twice")
    if not np.array_equal(first, draw(3, (size // 64, 64)).ravel()):
        return Outcome("depends on the shape", f"{size} numbers of one key, as a row and as a matrix")
    if np.mean(first == draw(4, (size,))) > 0.01:
        return Outcome("ignores the key", f"{size} numbers of two keys are the same")
    return Outcome("determined by key and size", f"{size} numbers, twice, as a row and as a matrix")


def prefix(draw: Draw, size: int = 4096) -> Outcome:
    """Whether the first numbers of a longer row are those of a shorter one, which MLX does not promise."""
    share = float(np.mean(draw(3, (size,)) == draw(3, (size + 1,))[:size]))
    return Outcome("same" if share == 1 else "differs", f"{share:.0%} of {size} numbers are those of {size + 1}")


def unit_interval(draw: Draw, size: int = 2**20) -> Outcome:
    """Whether uniform numbers lie in [0, 1), evenly: their mean within six standard errors of one half."""
    x = draw(5, (size,))
    evidence = f"{size} numbers from {x.min():.3g} to {x.max():.9g}, mean {x.mean():.5f}"
    if not (np.isfinite(x).all() and x.min() >= 0 and x.max() < 1):
        return Outcome("leaves [0, 1)", evidence)
    even = abs(x.mean() - 0.5) <= 6 * math.sqrt(1 / 12 / size) + 2.0**-9
    return Outcome("in [0, 1)" if even else "uneven", evidence)


def standard_normal(draw: Draw, size: int = 2**18) -> Outcome:
    """Whether normal numbers are finite, and their distribution function off by no more than chance allows.

    The largest distance of the empirical distribution function exceeds 2.5 / sqrt(n) with a probability of 7e-6
    (Kolmogorov). Values of 16 bits add the half spacing of the format around 1 times the density.
    """
    from scipy.special import ndtr

    x = np.sort(draw(5, (size,)))
    if not np.isfinite(x).all():
        return Outcome("non-finite", f"{int((~np.isfinite(x)).sum())} of {size} numbers are not finite")
    steps = np.arange(size + 1) / size
    values, first, counts = np.unique(x, return_index=True, return_counts=True)
    middle = steps[first] + counts / (2 * size)
    off, allowed = float(np.abs(middle - ndtr(values)).max()), 2.5 / math.sqrt(size) + 2.0**-9
    evidence = f"{size} numbers, the distribution function is off by up to {off:.1e} (chance: {allowed:.1e})"
    return Outcome("normal" if off <= allowed else "not normal", evidence, off, "probability", allowed, "Kolmogorov")


def normal_bits(draw: Draw) -> Outcome:
    """Whose bits eight normal numbers of key 0 have, by their SHA-256."""
    digest = hashlib.sha256(draw(0, (8,)).astype(np.float32).tobytes()).hexdigest()
    return Outcome(DIGESTS.get(digest[:16], "others"), f"SHA-256 {digest[:16]}...")


def normal_from_uniform(draws: Callable[[int, int], tuple[Array, Array]], size: int = 2**14) -> Outcome:
    """Normal numbers against sqrt(2) erfinv(u) in float64, for the uniform u in (-1, 1) of the same key.

    draws(seed, size): the normal and the uniform numbers. The bound is that of a float32 erfinv.
    """
    from scipy.special import erfinv

    normal, uniform = draws(0, size)
    exact = math.sqrt(2) * erfinv(uniform)
    units = float(np.max(np.abs(normal - exact) / FLOAT32.ulp(exact)))
    evidence = f"off by up to {units:.3g} units in the last place from sqrt(2) erfinv(u), {size} numbers"
    answer = "right" if np.isfinite(normal).all() and units <= _GILES else "wrong"
    return Outcome(answer, evidence, units if math.isfinite(units) else None, "ulp", _GILES, "Giles 2011")
