"""Packed weights as operands of a product: as they are, or decoded."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from precision_lab.numerics.packing import Quantization
from precision_lab.techniques.fast import cuda

_CODES = 8
"""Codes for each thread of the decoding kernel: a whole number of bytes whatever the bits."""


def packed_product(x: mx.array, quantization: Quantization, arrays: Sequence[mx.array]) -> mx.array:
    """MLX's product of packed weights, which has no scale a tensor."""
    assert not quantization.tensor_scale
    weight, scales, *biases = arrays
    return mx.quantized_matmul(x, weight, scales, biases[0] if biases else None, True, **quantization.arguments)


def decoded(quantization: Quantization, arrays: Sequence[mx.array], dtype: mx.Dtype) -> mx.array:
    """The packed weight (outputs, channels) in `dtype`.

    Affine values are computed in fp32 and rounded once by the kernel of this package, which CUDA has. Elsewhere, as in
    `model.quantized`, they are computed in the dtype to which `dtype` and the scales promote.
    """
    weight, scales, *rest = arrays
    if quantization.mode == "affine":
        if cuda.runs():
            return _affine(quantization, weight, scales, rest[0], dtype)
        wide = mx.result_type(dtype, scales.dtype)
        scales, biases = scales.astype(wide), rest[0].astype(wide)
        return mx.dequantize(weight, scales, biases, **quantization.arguments).astype(dtype)
    values = mx.dequantize(weight, scales, **quantization.arguments)
    return (values.astype(mx.float32) * rest[0] if quantization.tensor_scale else values).astype(dtype)


def _affine(
    quantization: Quantization, weight: mx.array, scales: mx.array, biases: mx.array, dtype: mx.Dtype
) -> mx.array:
    rows, channels = weight.shape[0], scales.shape[1] * quantization.group_size
    (out,) = cuda.kernel("affine_decode", ("weight", "scales", "biases"), ("y",))(
        inputs=[weight, scales, biases],
        template=[
            *(("T", dtype), ("C", channels), ("ROWS", cuda.ROWS)),
            *(("BITS", quantization.bits), ("GROUP", quantization.group_size)),
        ],
        **cuda.element_wise(channels // _CODES, rows, 128),
        output_shapes=[(rows, channels)],
        output_dtypes=[dtype],
    )
    return out
