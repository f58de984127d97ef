"""Residual adds that carry their rounding error into the next update: compensated summation.

After Kahan, Communications of the ACM 8 (1965). The stream is an unevaluated sum of the 16-bit array that the rest of
the model reads and a correction in bf16 (a pair of bf16 holds some 16 bits) or fp32. Layers read a stream that was
rounded once, instead of the sum of up to 120 roundings. This is a research arm. Cost: the correction doubles (bf16) or
triples (fp32) the memory and the memory traffic of the residual adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.modulation import GatedAdd, over_tokens
from precision_lab.model.qwen_image_21.block import Float16Clip
from precision_lab.techniques.parts.kinds import expect_kind
from precision_lab.techniques.parts.narrow_sums import dtype_named


class _Carry:
    """The correction of each stream, and the array that it belongs to; no other array receives it.

    A new forward begins with another array, and so does the stream after a module that replaced it. Both start without
    a correction.
    """

    def __init__(self) -> None:
        self._left: dict[str, tuple[mx.array, mx.array]] = {}

    def take(self, stream: str, residual: mx.array) -> mx.array | None:
        owner, correction = self._left.pop(stream, (None, None))
        return correction if owner is residual else None

    def leave(self, stream: str, residual: mx.array, correction: mx.array) -> None:
        self._left[stream] = residual, correction


class _CompensatedAdd(GatedAdd):
    def __init__(self, carry: _Carry, stream: str, correction: mx.Dtype):
        super().__init__()
        self._carry, self._stream, self._correction = carry, stream, correction

    def __call__(self, residual: mx.array, gate: mx.array, update: mx.array) -> mx.array:
        change = (over_tokens(gate) * update).astype(mx.float32)
        correction = self._carry.take(self._stream, residual)
        if correction is not None:
            change = change + correction.astype(mx.float32)
        wide = residual.astype(mx.float32)
        total = (wide + change).astype(residual.dtype)
        lost = (wide - total.astype(mx.float32)) + change
        lost = mx.where(mx.isfinite(lost), lost, 0).astype(self._correction)
        self._carry.leave(self._stream, total, lost)
        return total


class _Clip(Wrapper):
    """Keeps the correction of the values that the clip at the end of a block leaves as they are."""

    def __init__(self, inner: nn.Module, carry: _Carry, stream: str):
        super().__init__(inner)
        self._carry, self._stream = carry, stream

    def __call__(self, x: mx.array) -> mx.array:
        clipped: mx.array = self.inner(x)
        correction = self._carry.take(self._stream, x)
        if correction is not None:
            self._carry.leave(self._stream, clipped, mx.where(clipped == x, correction, 0).astype(correction.dtype))
        return clipped


@dataclass(frozen=True)
class CompensatedResidual:
    """`correction` is the dtype of the rounding error carried along: bfloat16, float16 or float32."""

    sites: Sequence[str] = ("transformer_blocks.*.{{img,txt}_{add1,add2},img_clip}",)
    correction: str = "float32"
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False
    _carry: _Carry = field(default_factory=_Carry, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        dtype_named("compensated_residual.correction", self.correction)

    def rewrite(self, site: Site) -> nn.Module:
        expect_kind("compensated_residual", site, GatedAdd, Float16Clip)
        if isinstance(site.module, Float16Clip):
            return _Clip(site.module, self._carry, site.stream)
        return _CompensatedAdd(self._carry, site.stream, dtype_named("correction", self.correction))
