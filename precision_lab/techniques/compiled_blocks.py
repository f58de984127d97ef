"""Transformer blocks compiled by `mx.compile`, which fuses element-wise chains.

The function is the same and temporaries keep their dtype, so any difference from eager execution belongs to the noise
floor. The inside of a compiled block cannot be observed, because its values are not outputs. On a CPU it needs a C++
compiler and is slower than eager execution. The first call after a change compiles and takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.qwen_image.block import TransformerBlock
from precision_lab.model.qwen_image.streams import Streams
from precision_lab.techniques.parts.kinds import expect_kind


class _Compiled(Wrapper):
    """Compiles the block again whenever a module in it has been replaced: MLX would go on calling the old one."""

    opaque: ClassVar[bool] = True

    def __init__(self, inner: nn.Module, address: str):
        super().__init__(inner)
        self._address = address
        self._original = _anatomy(inner)
        self._compiled_anatomy: dict[int, type] | None = None
        self._compiled: Callable[..., Any] = inner

    def __call__(self, x: Streams, temb: mx.array, rotations: Streams, mask: mx.array | None = None) -> Streams:
        anatomy = _anatomy(self.inner)
        if anatomy != self._compiled_anatomy:
            if any(self._original.get(key, kind) is not kind for key, kind in anatomy.items()):
                raise InputError(
                    f"compiled_blocks: a module inside {self._address} is observed, which a compiled block does not "
                    "allow; observe transformer_blocks.* and modules outside of them (probe.range.sites, drift.sites)"
                )
            self._compiled, self._compiled_anatomy = mx.compile(_flat(self.inner)), anatomy
        masks = () if mask is None else (mask,)
        img, txt = self._compiled(*x, temb, *rotations, *masks)
        return Streams(img=img, txt=txt)


def _anatomy(module: nn.Module) -> dict[int, type]:
    """The identities and classes of the modules inside: a tap changes a class, a swap replaces a module."""
    return {id(inner): type(inner) for inner in module.modules()}


def _flat(block: nn.Module) -> Callable[..., tuple[mx.array, mx.array]]:
    """The block as a function of arrays alone, the only kind that MLX compiles."""

    def call(
        img: mx.array, txt: mx.array, temb: mx.array, img_rotation: mx.array, txt_rotation: mx.array, *mask: mx.array
    ) -> tuple[mx.array, mx.array]:
        out = block(Streams(img, txt), temb, Streams(img_rotation, txt_rotation), *mask)
        return out.img, out.txt

    return call


@dataclass(frozen=True)
class CompiledBlocks:
    """Each block as one compiled function."""

    sites: Sequence[str] = ("transformer_blocks.*",)
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    def rewrite(self, site: Site) -> nn.Module:
        expect_kind("compiled_blocks", site, TransformerBlock)
        return _Compiled(site.module, str(site))
