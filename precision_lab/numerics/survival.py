"""What should arrive of a small change of a weight in a uniform quantiser, and how what arrived is compared.

A quantiser with step s rounds w to the nearest multiple of s, where w is spread evenly within its step. A change delta
with |delta| < s moves a weight across one boundary with probability |delta| / s, and then the stored value changes by
s in the direction of delta. For the change that arrives, a:

- the share of codes that change is P = E|delta| / s;
- the gain is 1: E[a delta] = E[s delta |delta| / s sign(delta)] = E[delta^2];
- E[a^2] = s^2 P, so that the correlation of a with delta is E[delta^2] / (rms(delta) s sqrt(P)) = (d / s) / sqrt(P)
  with d = rms(delta), and the relative error sqrt(1 / correlation^2 - 1).

For a Gaussian delta, E|delta| = sqrt(2 / pi) d, so that P = sqrt(2 / pi) d / s and the correlation is
(pi / 2)^(1/4) sqrt(d / s). Both depend on s / d alone. Whatever changes codes by one step each, with or without a
cause, correlation = gain (d / s) / sqrt(P): three of correlation, gain, share and s / d give the fourth.
"""

from __future__ import annotations

import math
from typing import NamedTuple

_MEAN_MAGNITUDE = math.sqrt(2 / math.pi)
"""E|x| of a standard normal x."""


class Expected(NamedTuple):
    """changed: the share of codes; correlation and relative_error: of what arrives with what was meant; gain: 1."""

    changed: float
    correlation: float
    relative_error: float
    gain: float = 1.0


def expected(step_over_delta: float) -> Expected:
    """What arrives of a Gaussian change in a uniform quantiser on a fixed grid, by its step over the change's rms.

    For ratios of at least 3, where hardly any weight crosses two boundaries. Raises ValueError below.
    """
    if not step_over_delta >= 3:
        raise ValueError(f"a step of {step_over_delta:g} times the rms, expected at least 3")
    changed = _MEAN_MAGNITUDE / step_over_delta
    correlation = 1 / (step_over_delta * math.sqrt(changed))
    return Expected(changed, correlation, math.sqrt(1 / correlation**2 - 1))


def implied_gain(step_over_delta: float, changed: float, correlation: float) -> float:
    """The gain that a correlation and a share of changed codes imply where every change is one step."""
    return correlation * step_over_delta * math.sqrt(changed)
