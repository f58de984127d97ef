"""Residual adds: the size of the update relative to the stream, and the share of it that the stream would absorb."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from precision_lab.errors import InputError
from precision_lab.instrument.arrays import to_numpy
from precision_lab.numerics.absorption import absorption_pcts
from precision_lab.numerics.float64 import over_tokens
from precision_lab.numerics.formats import format_named
from precision_lab.probes.base import Scalar
from precision_lab.record.columns import Column


@dataclass(frozen=True)
class Absorption:
    """`absorption_pct_<f>` for each format; `update_amax`, `update_rms`, and `update_ratio` = update_rms / stream rms.

    Applies to sites that compute `residual + gate * update`. The update is gate * update in float64, before any
    rounding; the residual is that of the variant. For a format narrower than the residual's own, the residual is first
    rounded down to it.
    """

    sites: Sequence[str]
    ports: Sequence[str] = ("call",)
    formats: Sequence[str] = ("bfloat16", "float16")

    def __post_init__(self) -> None:
        for name in self.formats:
            format_named(name)

    @property
    def adds(self) -> Sequence[Column]:
        lost = "updates that the residual would absorb because they are under half an ulp"
        return (
            *(Column(f"absorption_pct_{name}", unit="%", meaning=f"{lost} of {name}") for name in self.formats),
            Column("update_amax", meaning="amax of gate * update at a residual add"),
            Column("update_rms", meaning="rms of gate * update at a residual add"),
            Column("update_ratio", meaning="update_rms over the rms of the residual"),
        )

    def measure(self, inputs: Sequence[mx.array], output: mx.array) -> Mapping[str, Scalar]:
        """inputs: residual (B, L, D), gate (B, D) or (B or 1, L or 1, D), update (B, L, D).

        Raises InputError for other calls.
        """
        if [x.ndim for x in inputs] not in ([3, 2, 3], [3, 3, 3]) or inputs[0].shape != inputs[2].shape:
            shapes = ", ".join(str(x.shape) for x in inputs)
            raise InputError(
                f"probe absorption: a call with inputs of shapes {shapes}; expected residual, gate, update"
            )
        residual, gate, update = (to_numpy(x).astype(np.float64) for x in inputs)
        with np.errstate(invalid="ignore", over="ignore"):
            added = over_tokens(gate) * update
        update_rms, stream_rms = _rms(added), _rms(residual)
        absorbed = absorption_pcts(residual, added, self.formats)
        return {
            **{f"absorption_pct_{name}": pct for name, pct in zip(self.formats, absorbed, strict=True)},
            "update_amax": float(np.abs(added).max(where=np.isfinite(added), initial=0.0)),
            "update_rms": update_rms,
            "update_ratio": update_rms / stream_rms if stream_rms else float("nan"),
        }


def _rms(x: npt.NDArray[np.float64]) -> float:
    """Root mean square of the finite elements, NaN without any. For products of two float32, no square overflows."""
    square = float(np.vdot(x, x))
    if math.isfinite(square):
        return math.sqrt(square / x.size) if x.size else math.nan
    finite = x[np.isfinite(x)]
    return _rms(finite) if finite.size < x.size else math.inf
