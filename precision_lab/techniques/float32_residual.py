"""The residual streams in fp32 between and inside the blocks; branches stay in the dtype of the computation.

Draw Things' fp16 build of Qwen-Image does this (draw-things-community, QwenImage.swift: `.to(.Float32)` before the
first block, every LayerNorm and every gated add on fp32). The streams reach 5e7, whereas float16 ends at 65504; at that
size one unit in the last place of bfloat16 is 262144, so updates are absorbed. Cost: streams twice as wide, with
LayerNorm, modulation and gated adds on them in fp32. All matrix products stay narrow.

Its build of 2.1 (QwenImage2_1.swift) has no scales, and a branch is narrow from the result of the LayerNorm to the
product with the gate, which is upcast for the add: `narrow_branches`. Only LayerNorms and adds are then wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import mlx.core as mx

from precision_lab.instrument.scope import current_scope, scope
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.modulation import over_tokens
from precision_lab.techniques.base import ByPlace, Places
from precision_lab.techniques.parts.casting import cast, float_dtypes

_COMPUTE_DTYPE = "compute_dtype"


class _Entered:
    """The dtype of the streams when they entered the first block, before they were upcast."""

    dtype: mx.Dtype = mx.float32


class _Block(Wrapper):
    """Upcasts the streams, and publishes the dtype of the computation to the branches inside.

    That is the dtype of temb in 1.x. A block of 2.1 reads a modulation, which another technique may have left in fp32,
    so there it is the dtype in which the stream entered the first block.
    """

    def __init__(self, site: Site, entered: _Entered):
        super().__init__(site.module)
        self._is_first, self._entered = site.block == 0, entered

    def __call__(self, x: Any, conditioning: Any, *args: Any) -> Any:
        if self._is_first:
            self._entered.dtype = float_dtypes(x)[0]
        dtype = conditioning.dtype if isinstance(conditioning, mx.array) else self._entered.dtype
        with scope(**{_COMPUTE_DTYPE: dtype}):
            return self.inner(cast(x, mx.float32), conditioning, *args)


class _Branch(Wrapper):
    """Attention or feed-forward: rounds its inputs to the dtype of the computation."""

    def __call__(self, *args: Any) -> Any:
        return self.inner(*cast(args, current_scope()[_COMPUTE_DTYPE]))


class _Add(Wrapper):
    """`residual + gate * update` in fp32, the product included: the update itself is too large for float16."""

    def __call__(self, *args: mx.array) -> Any:
        return self.inner(*cast(args, mx.float32))


class _NarrowNorm(Wrapper):
    """A LayerNorm of the fp32 stream whose result is in the dtype of the computation."""

    def __call__(self, x: mx.array) -> Any:
        return cast(self.inner(x), current_scope()[_COMPUTE_DTYPE])


class _NarrowUpdate(Wrapper):
    """`residual + gate * update` with the product in the dtype of the computation and the sum in fp32."""

    def __call__(self, residual: mx.array, gate: mx.array, update: mx.array) -> Any:
        gate, update = cast((over_tokens(gate), update), current_scope()[_COMPUTE_DTYPE])
        gated = (gate * update).astype(mx.float32)
        return self.inner(residual.astype(mx.float32), mx.ones(gate.shape, mx.float32), gated)


class _End(Wrapper):
    """The final LayerNorm reads the fp32 stream; its result is in the dtype of the computation again."""

    def result_dtype(self, x: mx.array, temb: mx.array) -> mx.Dtype:
        return temb.dtype

    def __call__(self, x: mx.array, temb: mx.array) -> Any:
        dtype = self.result_dtype(x, temb)
        with scope(**{_COMPUTE_DTYPE: dtype}):
            return cast(self.inner(x, temb), dtype)


@dataclass(frozen=True)
class Float32Residual(ByPlace):
    """fp32 from the entry of the first block to the final LayerNorm, in every residual stream.

    narrow_branches: whether modulation and the product with the gate are in the dtype of the computation too.
    """

    narrow_branches: bool = False
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = True
    _entered: _Entered = field(default_factory=_Entered, init=False, repr=False, compare=False)

    @property
    def widens(self) -> Sequence[str]:
        stream = "transformer_blocks.*.{img,txt}_{add1,add2}"
        norms = () if self.narrow_branches else ("transformer_blocks.*.{img,txt}_{norm1,norm2}", "norm_out.norm")
        return ("transformer_blocks.*", stream, "transformer_blocks.*.img_clip", "norm_out.linear", *norms)

    @property
    def places(self) -> Places:
        add = _NarrowUpdate if self.narrow_branches else _Add
        norms: Places = {
            "transformer_blocks.*.{img,txt}_{norm1,norm2}": lambda site: _NarrowNorm(site.module),
            "norm_out.norm": lambda site: _NarrowNorm(site.module),
        }
        return {
            "transformer_blocks.*": lambda site: _Block(site, self._entered),
            "transformer_blocks.*.{attn,img_mlp,txt_mlp}": lambda site: _Branch(site.module),
            "transformer_blocks.*.{img,txt}_{add1,add2}": lambda site: add(site.module),
            "norm_out": lambda site: _End(site.module),
            **(norms if self.narrow_branches else {}),
        }
