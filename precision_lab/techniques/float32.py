"""Modules computed in fp32, with one rounding at the end.

One class covers every published placement of fp32; conf/technique/fp32_*.yaml list the sites of each: norms, gates,
RoPE, guidance, the Euler step, VAE decoding (mold issue 111 needed the last two to remove grain; diffusers keeps norms
and RoPE in fp32 inside). With `sites: [norm_out]` it is S1 of MIXED_PRECISION_OPTIMIZATION: the image stream reaches
tens of millions where the final LayerNorm reads it. Cost: one more pass over the module's inputs and outputs. Weights
are upcast where they are used, not stored wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.techniques.parts.casting import cast, result_dtype


class InFloat32(Wrapper):
    """Calls the inner module on fp32 inputs; with `rounds`, outputs are rounded to the dtype due at the site."""

    def __init__(self, inner: nn.Module, rounds: bool = True):
        super().__init__(inner)
        self.rounds = rounds

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*cast(args, mx.float32), **cast(kwargs, mx.float32))
        return cast(out, result_dtype(self.inner, *args)) if self.rounds else out


@dataclass(frozen=True)
class Float32:
    """Upcasts the floating-point inputs of each site to fp32, and rounds its outputs to the dtype of the first input.

    A technique applied earlier may have stated another dtype for the outputs, see `result_dtype`. With `rounds` off the
    outputs stay fp32, and so does everything computed from them. This puts a whole tail of the program in fp32, such as
    VAE decoding after `pipeline:denormalize`.
    """

    sites: Sequence[str]
    rounds: bool = True
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = True

    def rewrite(self, site: Site) -> nn.Module:
        return InFloat32(site.module, self.rounds)
