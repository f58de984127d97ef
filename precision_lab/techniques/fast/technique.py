"""The same function, faster: fused blocks on a GPU, faster modules on a CPU.

On a GPU each block is a handful of fused kernels around its products, compiled once for all blocks. Modulations depend
on the timestep alone and are computed once a timestep instead of in every forward (`block`). On a CPU the modules that
MLX computes slowly are replaced one by one (`cpu`). Rounding differs from the plain model, mostly with fewer roundings;
the effect is measured like any technique's drift.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.layers import on_cpu
from precision_lab.model.qwen_image.block import TransformerBlock
from precision_lab.model.qwen_image.transformer import TimeTextEmbedding
from precision_lab.techniques.base import ByPlace, Places, Technique
from precision_lab.techniques.fast.block import REMEMBERED, FastBlock, Pace
from precision_lab.techniques.fast.cpu import FastCPU


@dataclass(frozen=True)
class Fast:
    """`FusedBlocks` where the default device is a GPU, `FastCPU` where it is the CPU."""

    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    @cached_property
    def _here(self) -> Technique:
        return FastCPU() if on_cpu() else FusedBlocks()

    @property
    def sites(self) -> Sequence[str]:
        """Patterns of the modules that are slow on this device."""
        return self._here.sites

    def rewrite(self, site: Site) -> nn.Module:
        return self._here.rewrite(site)


@dataclass(frozen=True)
class FusedBlocks(ByPlace):
    """Transformer blocks as fused operations, which call no module inside: none can be observed or rewritten."""

    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    @cached_property
    def _pace(self) -> Pace:
        return Pace()

    @property
    def places(self) -> Places:
        return {"time_text_embed": self._embedding, "transformer_blocks.*": self._block}

    def _embedding(self, site: Site) -> nn.Module:
        _expect_plain(site, TimeTextEmbedding)
        return _RememberedEmbedding(site.module)

    def _block(self, site: Site) -> nn.Module:
        _expect_plain(site, TransformerBlock)
        return FastBlock(site.module, str(site), self._pace)


def _expect_plain(site: Site, kind: type) -> None:
    if type(site.module) is not kind:
        raise InputError(f"fast: {site} is {type(site.module).__name__}, expected the plain model's {kind.__name__}")


class _RememberedEmbedding(Wrapper):
    """Returns the same array for the same timesteps, by which blocks recognise that they have its modulations."""

    def __init__(self, inner: nn.Module):
        super().__init__(inner)
        self._plain = _anatomy(inner)
        self._embeddings: OrderedDict[tuple[object, ...], mx.array] = OrderedDict()

    def __call__(self, timestep: mx.array, dtype: mx.Dtype) -> mx.array:
        if _anatomy(self.inner) != self._plain:  # observed or rewritten inside: every call counts
            return self.inner(timestep, dtype)
        key = (timestep.dtype, dtype, tuple(np.array(timestep.astype(mx.float32)).tolist()))
        if key not in self._embeddings:
            self._embeddings[key] = self.inner(timestep, dtype)
            if len(self._embeddings) > REMEMBERED:
                self._embeddings.popitem(last=False)
        return self._embeddings[key]


def _anatomy(module: nn.Module) -> list[tuple[int, type]]:
    return [(id(inner), type(inner)) for inner in module.modules()]
