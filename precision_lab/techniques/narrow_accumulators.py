"""Linear layers whose inner products are accumulated in fp16 or bf16, as on an engine without an fp32 accumulator.

cuBLAS offers it as CUBLAS_COMPUTE_16F, and consumer GPUs run it twice as fast. Draw Things' FP16 build of this model
stopped using fp16 accumulation in the first feed-forward linear because it hurt realism.
DeepSeek-V3 (arXiv:2412.19437, section 3.3.2) found that the few bits of Hopper's FP8 accumulator cost accuracy, and
adds the sums of short blocks in fp32. `block_sums: float16, accumulator: float32` is the best case of that promotion.
It is emulated, several times slower than a plain linear. A quantised weight is decoded at each call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.coded import linear_weight
from precision_lab.techniques.parts.kinds import expect_exact_inputs
from precision_lab.techniques.parts.narrow_sums import check_block, dtype_named, narrow_matmul


class _NarrowSums(Wrapper):
    def __init__(self, linear: nn.Module, block: int, accumulator: mx.Dtype, block_sums: mx.Dtype):
        super().__init__(linear)
        self._block, self._accumulator, self._block_sums = block, accumulator, block_sums

    def __call__(self, x: mx.array) -> mx.array:
        linear = self.inner
        weight = linear_weight(linear, x.dtype)
        y = narrow_matmul(x, weight.T, self._block, self._accumulator, self._block_sums)
        return (y + linear.bias.astype(mx.float32) if "bias" in linear else y).astype(x.dtype)


@dataclass(frozen=True)
class NarrowAccumulators:
    """The products of `block` channels are summed in fp32, rounded to `block_sums`, and added to an `accumulator`.

    With block 1 the running sum is rounded after every product. The bias is added in fp32 and the result is rounded
    once to the dtype of the input. In exact arithmetic, and unless the accumulator overflows, it is the same function.
    """

    sites: Sequence[str]
    accumulator: str = "float16"
    block: int = 16
    block_sums: str = "float32"
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False
    of_linears: ClassVar[bool] = True

    def __post_init__(self) -> None:
        dtype_named("narrow_accumulators.accumulator", self.accumulator)
        dtype_named("narrow_accumulators.block_sums", self.block_sums)
        check_block("narrow_accumulators.block", self.block)

    @property
    def unrounded(self) -> NarrowAccumulators:
        """The same order of sums, all in fp32; a proof of the function uses this."""
        return replace(self, accumulator="float32", block_sums="float32")

    def rewrite(self, site: Site) -> nn.Module:
        expect_exact_inputs("narrow_accumulators", site)
        accumulator = dtype_named("accumulator", self.accumulator)
        return _NarrowSums(site.module, self.block, accumulator, dtype_named("block_sums", self.block_sums))
