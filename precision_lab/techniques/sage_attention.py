"""SageAttention: scores from int8 queries and keys with one scale for each block of tokens; P V in fp16.

Zhang et al., arXiv:2410.02367, and the authors' kernels (thu-ml/SageAttention: quant_per_block, 128 queries and 64 keys
a block, symmetric, scale amax / 127, ties away from zero). On Qwen-Image the fp16 accumulator gives NaN, and the fp32
accumulator cures it. The published kernels smooth the keys first: list `smoothed_keys` after this technique. The
quantisation makes it a different function from the plain one. It is emulated, so it is no faster here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site
from precision_lab.model.attention import Attend
from precision_lab.techniques.narrow_attention_sums import check_accumulator, sum_values
from precision_lab.techniques.parts.kinds import expect_kind
from precision_lab.techniques.parts.narrow_sums import check_block
from precision_lab.techniques.parts.online_softmax import MASKED
from precision_lab.techniques.parts.qwen_image import ATTEND


class Int8Blocks(NamedTuple):
    """Whole numbers in -127..127 stored as fp32 (B, H, N, C), and the scale of each token's block (B, H, N, 1)."""

    values: mx.array
    scale: mx.array


def quantize_blocks(x: mx.array, block: int) -> Int8Blocks:
    """Quantises x (B, H, N, C) symmetrically, with one scale for every `block` tokens of a head; 0 for all zeros."""
    x = x.astype(mx.float32)
    tokens = x.shape[2]
    padded = mx.pad(x, [(0, 0), (0, 0), (0, -tokens % block), (0, 0)])
    blocks = padded.reshape(*x.shape[:2], -1, block, x.shape[3])
    scale = mx.abs(blocks).max(axis=(-2, -1), keepdims=True) / 127
    ratio = blocks / mx.where(scale == 0, 1, scale)
    # adds half a unit, then truncates: ties go away from zero, as in the published kernel
    values = mx.sign(ratio) * mx.floor(mx.abs(ratio) + 0.5)
    scale = mx.broadcast_to(scale, (*blocks.shape[:-1], 1))
    return Int8Blocks(*(a.reshape(*x.shape[:2], -1, a.shape[-1])[:, :, :tokens] for a in (values, scale)))


class _SageAttend(Attend):
    def __init__(self, accumulator: str, query_block: int, key_block: int):
        super().__init__()
        self.accumulator, self.query_block, self.key_block = accumulator, query_block, key_block

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
        dtype = q.dtype
        q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
        queries = quantize_blocks(q.astype(mx.float32) * q.shape[-1] ** -0.5, self.query_block)
        keys = quantize_blocks(k, self.key_block)
        # sums of at most 127^2 C: for C up to 1040 these are whole numbers that fp32 holds exactly, in any order
        products = queries.values @ keys.values.swapaxes(-1, -2)
        scores = products * queries.scale * keys.scale.swapaxes(-1, -2)
        if mask is not None:
            scores = mx.where(mask, scores, MASKED)
        return sum_values(scores, v, self.accumulator, self.key_block).astype(dtype).transpose(0, 2, 1, 3)


@dataclass(frozen=True)
class SageAttention:
    """int8 scores in blocks of `query_block` and `key_block` tokens; `accumulator` as in `narrow_attention_sums`."""

    sites: Sequence[str] = ATTEND
    accumulator: str = "float16"
    query_block: int = 128
    key_block: int = 64
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_accumulator("sage_attention.accumulator", self.accumulator)
        check_block("sage_attention.query_block", self.query_block)
        check_block("sage_attention.key_block", self.key_block)

    def rewrite(self, site: Site) -> nn.Module:
        expect_kind("sage_attention", site, Attend)
        return _SageAttend(self.accumulator, self.query_block, self.key_block)
