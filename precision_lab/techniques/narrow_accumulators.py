"""Linear layers whose inner products are accumulated in fp16 or bf16, as on an engine without an fp32 accumulator.

cuBLAS offers it as CUBLAS_COMPUTE_16F, and consumer GPUs run it twice as fast. In Draw Things' FP16 build of this model
fp16 accumulation in the first feed-forward linear was removed because it hurt realism.
DeepSeek-V3 (arXiv:2412.19437, section 3.3.2) found the few bits of Hopper's FP8 accumulator to cost accuracy, and adds
the sums of short blocks in fp32: `block_sums: float16, accumulator: float32` is such a promotion, at its best.
Emulated: several times slower than a plain linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site
from precision_lab.model.layers import Linear
from precision_lab.techniques.parts.narrow_sums import check_block, dtype_named, narrow_matmul

BLOCK_LINEARS = (
    "transformer_blocks.*.{img_mod.1,txt_mod.1,img_mlp.net.0.proj,img_mlp.net.2,txt_mlp.net.0.proj,txt_mlp.net.2}",
    "transformer_blocks.*.attn.{to_q,to_k,to_v,add_q_proj,add_k_proj,add_v_proj,to_out.0,to_add_out}",
)
"""All linears of the transformer blocks."""


class _NarrowLinear(Linear):
    def __init__(self, linear: nn.Linear, block: int, accumulator: mx.Dtype, block_sums: mx.Dtype):
        nn.Module.__init__(self)  # without the random weights of a new linear
        self.weight = linear.weight
        if "bias" in linear:
            self.bias = linear.bias
        self._block, self._accumulator, self._block_sums = block, accumulator, block_sums

    def __call__(self, x: mx.array) -> mx.array:
        y = narrow_matmul(x, self.weight.T, self._block, self._accumulator, self._block_sums)
        return (y + self.bias.astype(mx.float32) if "bias" in self else y).astype(x.dtype)


@dataclass(frozen=True)
class NarrowAccumulators:
    """The products of `block` channels are summed in fp32, rounded to `block_sums`, and added to an `accumulator`.

    With block 1 the running sum is rounded after every product. The bias is added in fp32 and the result rounded once
    to the dtype of the input. In exact arithmetic the function is the same; overflow of the accumulator is not.
    """

    sites: Sequence[str] = BLOCK_LINEARS
    accumulator: str = "float16"
    block: int = 16
    block_sums: str = "float32"
    preserves_function: bool = True
    composes: bool = False

    def __post_init__(self) -> None:
        dtype_named("narrow_accumulators.accumulator", self.accumulator)
        dtype_named("narrow_accumulators.block_sums", self.block_sums)
        check_block("narrow_accumulators.block", self.block)

    @property
    def unrounded(self) -> NarrowAccumulators:
        """The same order of sums all in fp32: what a proof of its function looks at."""
        return replace(self, accumulator="float32", block_sums="float32")

    def rewrite(self, site: Site) -> nn.Module:
        if not isinstance(site.module, nn.Linear):
            raise InputError(f"narrow_accumulators: {site} is {type(site.module).__name__}, expected Linear")
        accumulator = dtype_named("accumulator", self.accumulator)
        return _NarrowLinear(site.module, self.block, accumulator, dtype_named("block_sums", self.block_sums))
