"""The same function, faster: fused blocks on a GPU, faster modules on a CPU.

On a GPU each block is a handful of fused kernels around its products, compiled once for all blocks. Modulations depend
on the timestep alone and are computed once a timestep instead of in every forward (`block`). On a CPU the modules that
MLX computes slowly are replaced one by one (`cpu`). Rounding differs from the plain model, mostly with fewer roundings;
the effect is measured like any technique's drift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.layers import Sequential, on_cpu
from precision_lab.model.qwen_image.block import TransformerBlock
from precision_lab.model.qwen_image.transformer import TimeTextEmbedding
from precision_lab.model.qwen_image_21.block import TransformerBlock as TransformerBlock21
from precision_lab.model.qwen_image_21.transformer import SplitModulation
from precision_lab.model.qwen_image_21.transformer import TimeTextEmbedding as TimeTextEmbedding21
from precision_lab.techniques.base import ByPlace, Places
from precision_lab.techniques.fast.block import Pace
from precision_lab.techniques.fast.cpu import FastCPU
from precision_lab.techniques.fast.one_stream import OneStream, SharedModulations
from precision_lab.techniques.fast.remembered import RememberedEmbedding, RememberedFunction
from precision_lab.techniques.fast.routes import Routes
from precision_lab.techniques.fast.two_streams import TwoStreams


@dataclass(frozen=True)
class Fast:
    """`FusedBlocks` where the default device is a GPU, `FastCPU` where it is the CPU.

    decode_from: see `FusedBlocks`.
    """

    decode_from: int | None = None
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = True
    of_linears: ClassVar[bool] = True

    @cached_property
    def _here(self) -> FusedBlocks | FastCPU:
        return FastCPU() if on_cpu() else FusedBlocks(self.decode_from)

    @property
    def sites(self) -> Sequence[str]:
        """Patterns of the modules that are slow on this device."""
        return self._here.sites

    def rewrite(self, site: Site) -> nn.Module:
        return self._here.rewrite(site)

    @property
    def choices(self) -> Mapping[str, int]:
        """From how many rows on weights are decoded, where that was measured."""
        return {} if isinstance(self._here, FastCPU) else self._here.choices


@dataclass(frozen=True)
class FusedBlocks(ByPlace):
    """Transformer blocks as fused operations, which call no module inside: none can be observed or rewritten.

    The weights of linears inside may be stored in fewer bits by a technique that is listed before, or by the
    checkpoint. decode_from: the number of rows from which packed weights are decoded before a product; None measures
    it for every shape and packing. State it where the bits of two processes have to agree.
    """

    decode_from: int | None = None
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        rows = self.decode_from
        if rows is not None and (isinstance(rows, bool) or rows < 0):
            raise InputError(f"fast.decode_from is {rows!r}, expected a number of rows, or null to measure it")

    @property
    def choices(self) -> Mapping[str, int]:
        """From how many rows on weights are decoded, by shape and packing, where that was measured."""
        return self._routes.chosen

    @cached_property
    def _routes(self) -> Routes:
        return Routes(self.decode_from)

    @cached_property
    def _pace(self) -> Pace:
        return Pace()

    @cached_property
    def _modulations(self) -> SharedModulations:
        return SharedModulations()

    @property
    def places(self) -> Places:
        """`modulation` and `split_modulation` are those of 2.1; in 1.x every block has its own inside."""
        return {
            "{time_text_embed,modulation,split_modulation}": self._of_timestep,
            "transformer_blocks.*": self._block,
        }

    def _of_timestep(self, site: Site) -> nn.Module:
        kind = _expect_plain(site, *_OF_TIMESTEP)
        return _OF_TIMESTEP[kind](site.module)

    def _block(self, site: Site) -> nn.Module:
        kind = _expect_plain(site, TransformerBlock, TransformerBlock21)
        if kind is TransformerBlock:
            return TwoStreams(site.module, str(site), self._pace, self._routes)
        return OneStream(site.module, str(site), self._pace, self._routes, self._modulations)


_OF_TIMESTEP: Mapping[type[nn.Module], type[Wrapper]] = {
    TimeTextEmbedding: RememberedEmbedding,
    TimeTextEmbedding21: RememberedEmbedding,
    Sequential: RememberedFunction,
    SplitModulation: RememberedFunction,
}


def _expect_plain(site: Site, *kinds: type) -> type:
    """The class of the module; raises InputError unless it is one of `kinds`, and not a subclass of one."""
    kind = type(site.module)
    if kind not in kinds:
        expected = " or ".join(sorted({plain.__name__ for plain in kinds}))
        raise InputError(f"fast: {site} is {kind.__name__}, expected the plain model's {expected}")
    return kind
