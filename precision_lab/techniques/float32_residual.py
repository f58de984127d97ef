"""Both residual streams in fp32 between and inside the blocks; branches stay in the dtype of the computation.

Draw Things' fp16 build of Qwen-Image does this (draw-things-community, QwenImage.swift: `.to(.Float32)` before the
first block, every LayerNorm and every gated add on fp32). The streams reach 5e7, whereas float16 ends at 65504; at that
size one unit in the last place of bfloat16 is 262144, so updates are absorbed. Cost: streams twice as wide, with
LayerNorm, modulation and gated adds on them in fp32. All matrix products stay narrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx

from precision_lab.instrument.scope import current_scope, scope
from precision_lab.instrument.sites import Wrapper
from precision_lab.model.qwen_image.streams import Streams
from precision_lab.techniques.base import ByPlace, Places
from precision_lab.techniques.parts.casting import cast

_COMPUTE_DTYPE = "compute_dtype"


class _Block(Wrapper):
    """Upcasts the streams, and publishes the dtype of the computation, that of temb, to the branches inside."""

    def __call__(self, x: Streams, temb: mx.array, *args: Any) -> Any:
        with scope(**{_COMPUTE_DTYPE: temb.dtype}):
            return self.inner(cast(x, mx.float32), temb, *args)


class _Branch(Wrapper):
    """Attention or feed-forward: rounds its inputs to the dtype of the computation."""

    def __call__(self, *args: Any) -> Any:
        return self.inner(*cast(args, current_scope()[_COMPUTE_DTYPE]))


class _Add(Wrapper):
    """`residual + gate * update` in fp32, the product included: the update itself is too large for float16."""

    def __call__(self, *args: mx.array) -> Any:
        return self.inner(*cast(args, mx.float32))


class _End(Wrapper):
    """The final LayerNorm reads the fp32 stream; its result is in the dtype of the computation again."""

    def result_dtype(self, x: mx.array, temb: mx.array) -> mx.Dtype:
        return temb.dtype

    def __call__(self, x: mx.array, temb: mx.array) -> Any:
        return cast(self.inner(x, temb), self.result_dtype(x, temb))


@dataclass(frozen=True)
class Float32Residual(ByPlace):
    """fp32 from the entry of the first block to the final LayerNorm, in the image and the text stream."""

    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = True

    @property
    def places(self) -> Places:
        return {
            "transformer_blocks.*": lambda site: _Block(site.module),
            "transformer_blocks.*.{attn,img_mlp,txt_mlp}": lambda site: _Branch(site.module),
            "transformer_blocks.*.{img,txt}_{add1,add2}": lambda site: _Add(site.module),
            "norm_out": lambda site: _End(site.module),
        }
