"""The sum of P V in attention with SageAttention's three accumulators, for quantised and plain scores.

`float16`: the running sum is fp16 throughout; it is rounded after every 16 keys (one matrix instruction) and after
every rescaling of the online softmax. `float16+float32`: fp16 within a block of keys, whose sum is added in fp32.
`float32`: fp32 throughout. In all three, P (not yet normalised, so at most 1) and V are fp16. Values of V beyond 65504
become infinite, and so may an fp16 sum over many keys. Source: pv_accum_dtype in SageAttention's core.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError, expected
from precision_lab.instrument.sites import Site
from precision_lab.model.attention import Attend
from precision_lab.techniques.chunked_attention import ChunkedAttention
from precision_lab.techniques.parts.kinds import expect_kind
from precision_lab.techniques.parts.narrow_sums import check_block, narrow_matmul, rounded
from precision_lab.techniques.parts.online_softmax import MASKED, OnlineSoftmax
from precision_lab.techniques.parts.qwen_image import ATTEND

ACCUMULATORS = ("float16", "float16+float32", "float32")
INSTRUCTION = 16
"""Number of keys in one matrix instruction (m16n8k16)."""


def check_accumulator(setting: str, name: str) -> None:
    """Raises InputError unless `name` is one of ACCUMULATORS; the message names `setting`."""
    if name not in ACCUMULATORS:
        raise InputError(f"{setting} is {name!r}, {expected(ACCUMULATORS, str(name))}")


def sum_values(scores: mx.array, v: mx.array, accumulator: str, block: int, step: int = INSTRUCTION) -> mx.array:
    """softmax(scores) v, `block` keys at a time; scores: (B, H, M, N) fp32, v: (B, H, N, C); returns fp32.

    The sum is divided by the fp32 denominator in fp32. The caller rounds.
    """

    def accumulate(total: mx.array, p: mx.array, v: mx.array) -> mx.array:
        p = rounded(p, mx.float16)
        if accumulator == "float32":
            return total + p @ v
        if accumulator == "float16":
            return narrow_matmul(p, v, step, mx.float16, start=rounded(total, mx.float16))
        return total + narrow_matmul(p, v, step, mx.float16)

    softmax = OnlineSoftmax(accumulate)
    v = rounded(v.astype(mx.float32), mx.float16)
    for first in range(0, scores.shape[-1], block):
        softmax.update(scores[..., first : first + block], v[:, :, first : first + block])
    return softmax.result()


class _NarrowSums(Attend):
    def __init__(self, accumulator: str, block: int, step: int):
        super().__init__()
        self.accumulator, self.block, self.step = accumulator, block, step

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
        dtype = q.dtype
        q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
        scores = (q.astype(mx.float32) * q.shape[-1] ** -0.5) @ k.astype(mx.float32).swapaxes(-1, -2)
        if mask is not None:
            scores = mx.where(mask, scores, MASKED)
        return sum_values(scores, v, self.accumulator, self.block, self.step).astype(dtype).transpose(0, 2, 1, 3)


@dataclass(frozen=True)
class NarrowAttentionSums:
    """Attention with fp32 scores and softmax, and P V summed in `accumulator` over blocks of `block` keys.

    `step` keys are summed in fp32 before the fp16 sum is rounded: 16 as in the kernels, 1 to round after every key.
    """

    sites: Sequence[str] = ATTEND
    accumulator: str = "float16"
    block: int = 64
    step: int = INSTRUCTION
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_accumulator("narrow_attention_sums.accumulator", self.accumulator)
        check_block("narrow_attention_sums.block", self.block)
        check_block("narrow_attention_sums.step", self.step)

    @property
    def unrounded(self) -> ChunkedAttention:
        """The same order of operations, all in fp32; a proof of the function uses this."""
        return ChunkedAttention(self.sites, keys=self.block)

    def rewrite(self, site: Site) -> nn.Module:
        expect_kind("narrow_attention_sums", site, Attend)
        return _NarrowSums(self.accumulator, self.block, self.step)
