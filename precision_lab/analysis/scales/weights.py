"""The coarsest scale of a float8 weight that suffices: none, one a tensor, or one an output channel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from precision_lab.numerics.formats import Format

KINDS = ("none", "tensor", "channel")
"""From the coarsest; the names of `Float8Weights.scale`."""


def chosen(weights: pd.DataFrame, fmt: Format, margin_bits: float) -> pd.DataFrame:
    """`weights` with the coarsest of KINDS with which a weight fits, as `scale`.

    weights: one row for each linear, with `amax`, the largest magnitude, and `channel_rms`, the smallest rms of an
    output channel that is not all zero. A weight fits if its largest magnitude is in the range of the format, which a
    scale ensures, and if the rms of every channel is at least 2^margin_bits times the smallest normal number. A channel
    with a scale of its own always counts as fitting: nothing finer is available.

    Adds for each kind `normal_bits_KIND`: log2 of the smallest rms of a channel, scaled, over the smallest normal
    number; and `overflow_bits`, log2 of amax over the largest number, positive where the weight saturates unscaled.
    """
    with np.errstate(divide="ignore"):
        amax = np.log2(weights["amax"].to_numpy(float) / fmt.max)
        rms = np.log2(weights["channel_rms"].to_numpy(float) / fmt.smallest_normal)
        own = np.log2(weights["channel_peak_rms"].to_numpy(float) * fmt.max / fmt.smallest_normal)
    normal = {"none": rms, "tensor": rms - amax, "channel": own}
    fits: Mapping[str, np.ndarray] = {
        "none": (amax <= 0) & (normal["none"] >= margin_bits),
        "tensor": normal["tensor"] >= margin_bits,
    }
    scale = np.select([fits["none"], fits["tensor"]], ["none", "tensor"], "channel")
    columns = {f"normal_bits_{kind}": values for kind, values in normal.items()}
    return weights.assign(scale=scale, overflow_bits=amax, **columns)
