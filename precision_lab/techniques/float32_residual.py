"""Both residual streams in fp32 between and inside the blocks, branches in the dtype of the computation.

Draw Things' fp16 build of Qwen-Image does so (draw-things-community, QwenImage.swift: `.to(.Float32)` before the first
block, every LayerNorm and every gated add on fp32): the streams reach 5e7 where float16 ends at 65504, and where one
unit in the last place of bfloat16 is 262144, so that updates are absorbed. Cost: streams twice as wide, and LayerNorm,
modulation and gated adds on them in fp32; all matrix products stay narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.scope import current_scope, scope
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.qwen_image.streams import Streams
from precision_lab.techniques.parts.casting import cast

_COMPUTE_DTYPE = "compute_dtype"


class _Block(Wrapper):
    """Upcasts the streams, and states for the branches inside what the dtype of the computation is: that of temb."""

    def __call__(self, x: Streams, temb: mx.array, *args: Any) -> Any:
        with scope(**{_COMPUTE_DTYPE: temb.dtype}):
            return self.inner(cast(x, mx.float32), temb, *args)


class _Branch(Wrapper):
    """Attention or feed-forward: what it reads is rounded to the dtype of the computation."""

    def __call__(self, *args: Any) -> Any:
        return self.inner(*cast(args, current_scope()[_COMPUTE_DTYPE]))


class _Add(Wrapper):
    """`residual + gate * update` in fp32, product included: it is the update that is too large for float16."""

    def __call__(self, *args: mx.array) -> Any:
        return self.inner(*cast(args, mx.float32))


class _End(Wrapper):
    """norm_out reads the fp32 stream; what follows is in the dtype of the computation again."""

    def __call__(self, x: mx.array, temb: mx.array) -> Any:
        return cast(self.inner(x, temb), temb.dtype)


_PARTS = {"attn": _Branch, "mlp": _Branch, "add1": _Add, "add2": _Add, "out": _End}


@dataclass(frozen=True)
class Float32Residual:
    """fp32 from the entry of the first block to the final LayerNorm, in the image and the text stream."""

    sites: Sequence[str] = (
        "transformer_blocks.*",
        "transformer_blocks.*.{attn,img_mlp,txt_mlp,img_add1,txt_add1,img_add2,txt_add2}",
        "norm_out",
    )
    preserves_function: bool = True
    composes: bool = True

    def rewrite(self, site: Site) -> nn.Module:
        last = site.path.rpartition(".")[2]
        part = _Block if last.isdigit() else _PARTS.get(last.rpartition("_")[2])
        if part is None:
            raise InputError(f"fp32_residual: {site} is none of its places; leave `sites` as they are")
        return part(site.module)
