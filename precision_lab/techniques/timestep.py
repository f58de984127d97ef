"""The timestep, and its embedding, without the rounding of the reference.

diffusers casts the timestep to the dtype of the model before it divides by 1000 (issue 9405); in bfloat16 it is up to
2.9 of 1000 off, 1.1 in the mean over 50 steps. The plain model here does the same, so these are the inverse: what is
lost by it is what they win. Cost: none to speak of, one vector a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.scope import current_scope
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.techniques.parts.casting import cast


class _Exact(Wrapper):
    def __call__(self, timestep: mx.array, dtype: mx.Dtype) -> mx.array:
        sigma = current_scope().get("sigma")
        exact = timestep if sigma is None else mx.full(timestep.shape, sigma, dtype=mx.float32)
        return self.inner(exact, dtype)


@dataclass(frozen=True)
class ExactTimestep:
    """The sigma of the step itself, fp32, for the timestep; outside of a denoising loop the timestep that was given.

    At the embedding and not at `pipeline:timestep`: the transformer rounds the timestep it is given once more.
    """

    sites: Sequence[str] = ("time_text_embed",)
    preserves_function: bool = True
    composes: bool = True

    def rewrite(self, site: Site) -> nn.Module:
        return _Exact(site.module)


class _Float32Embedding(Wrapper):
    def __call__(self, timestep: mx.array, dtype: mx.Dtype) -> mx.array:
        return cast(self.inner(timestep, mx.float32), dtype)


@dataclass(frozen=True)
class Float32TimeEmbedding:
    """Sinusoids and both linears of the timestep embedding in fp32, rounded once to the dtype of the computation.

    musubi-tuner and vLLM-Omni 2795 keep this part out of fp8 for its effect on every block.
    """

    sites: Sequence[str] = ("time_text_embed",)
    preserves_function: bool = True
    composes: bool = True

    def rewrite(self, site: Site) -> nn.Module:
        return _Float32Embedding(site.module)
