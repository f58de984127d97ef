"""Computing chosen modules in fp32 and rounding once at the end.

One class for every placement of fp32 that is published, with the sites of each in conf/technique/fp32_*.yaml: norms,
gates, RoPE, guidance, the Euler step, VAE decoding (mold issue 111 needed the last two against grain; diffusers keeps
norms and RoPE in fp32 inside). With `sites: [norm_out]` it is S1 of MIXED_PRECISION_OPTIMIZATION: the image stream
reaches tens of millions where the final LayerNorm reads it. Cost: one more pass over the module's inputs and outputs;
weights are upcast where they are used, not stored wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.qwen_image.transformer import AdaLayerNormContinuous
from precision_lab.techniques.parts.casting import cast, float_dtypes


class InFloat32(Wrapper):
    """The inner module on fp32 inputs; its outputs are rounded to the dtype of the site, or kept with `rounds` off."""

    def __init__(self, inner: nn.Module, rounds: bool = True):
        super().__init__(inner)
        self.rounds = rounds

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*cast(args, mx.float32), **cast(kwargs, mx.float32))
        return cast(out, self._dtype(args)) if self.rounds else out

    def _dtype(self, args: tuple[Any, ...]) -> mx.Dtype:
        """That of the first input; norm_out ends an fp32 residual stream, and goes on in that of its conditioning."""
        module = self.inner
        while isinstance(module, Wrapper):
            module = module.inner
        dtypes = float_dtypes(args) or [mx.float32]
        return dtypes[-1] if isinstance(module, AdaLayerNormContinuous) else dtypes[0]


@dataclass(frozen=True)
class Float32:
    """Upcasts the floating-point inputs of each site to fp32 and its outputs back to the dtype of the first input.

    With `rounds` off the outputs stay fp32, and so does what is computed from them: the way to put a whole tail of the
    program in fp32, like VAE decoding behind `pipeline:denormalize`.
    """

    sites: Sequence[str]
    rounds: bool = True
    preserves_function: bool = True
    composes: bool = True

    def rewrite(self, site: Site) -> nn.Module:
        return InFloat32(site.module, self.rounds)
