"""The ranges of the weights of linears: of the whole weight, and of its output channels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site


def weight_ranges(sites: Iterable[Site]) -> list[dict[str, Any]]:
    """A row for each linear: component, site, block, `amax`, `channel_rms` and `channel_peak_rms`.

    Over its output channels that are not all zero, channel_rms is the smallest rms, and channel_peak_rms the smallest
    ratio of rms to largest magnitude; infinite where there is no such channel. Raises InputError for a site that is no
    linear, or is quantised, and for a weight that is not finite.
    """
    rows = []
    for site in sites:
        if not isinstance(site.module, nn.Linear):
            raise InputError(f"{site} is {type(site.module).__name__}, expected a linear that is not quantised")
        weight = mx.abs(site.module.weight.astype(mx.float32))
        peak = weight.max(axis=1)
        # relative to the peak, so that no square leaves the range of fp32
        relative = mx.sqrt(mx.mean(mx.square(weight / mx.where(peak == 0, 1, peak)[:, None]), axis=1))
        used = peak > 0
        channel_rms = mx.where(used, peak * relative, mx.inf).min().item()
        channel_peak_rms = mx.where(used, relative, mx.inf).min().item()
        if not mx.isfinite(peak).all().item():
            raise InputError(f"{site} has a weight that is not finite, which no scale keeps in range")
        rows.append(
            {
                "component": site.component,
                "site": site.path,
                "block": site.block,
                "amax": peak.max().item(),
                "channel_rms": channel_rms,
                "channel_peak_rms": channel_peak_rms,
            }
        )
    return rows
