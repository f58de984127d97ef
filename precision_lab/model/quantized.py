"""Linears and embeddings with weights packed by `mx.quantize` (see `numerics.packing`).

A weight is decoded in the dtype to which input and scales promote, like in `mx.quantized_matmul`: for an fp32 input the
weights are decoded in fp32, whatever the dtype of the scales. On a GPU the product is `mx.quantized_matmul`. Its CPU
kernel accumulates in the storage dtype (relative error 8e-2 in bf16), so on the CPU the decoded weight is multiplied in
fp32. In all modes except affine, the decoded values are exact in 16 bits, unless there is a scale a tensor: the decoded
weight is then multiplied by it in fp32, on a GPU too, because MLX 0.32 has no such packed product.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.layers import on_cpu
from precision_lab.numerics.packing import MODES as MODES
from precision_lab.numerics.packing import Quantization as Quantization

LARGEST_NVFP4 = 6 * 448
"""The largest number of e2m1 times that of e4m3, a group's scale."""

_PIECE = 1 << 22
"""Most weights that are packed at once: on a CPU, MLX 0.32 takes 80 bytes a weight for nvfp4, and 44 for mxfp4."""


class QuantizedLinear(nn.QuantizedLinear):
    """`x @ decoded.T + bias`, with products summed in fp32 and, on the CPU, rounded once to the dtype of x.

    `tensor_scale`, an fp32 scalar that multiplies the decoded weight, is there only if the packing has it.
    """

    @classmethod
    def packed(cls, linear: nn.Linear, quantization: Quantization) -> QuantizedLinear:
        """Packs the weight of a linear; its bias is shared.

        The scale a tensor is that of `tensor_scale`.
        """
        layer: QuantizedLinear = cls.from_linear(linear, **quantization.arguments)
        for name, array in packed_arrays(linear.weight, quantization).items():
            layer[name] = array
        return layer

    def __call__(self, x: mx.array) -> mx.array:
        if not on_cpu() and not self._has_one_group and "tensor_scale" not in self:
            return super().__call__(x)
        return product(x, decoded_weight(self, x.dtype), self.get("bias"))

    @property
    def _has_one_group(self) -> bool:
        """Whether a row is a single group, like the 64 channels of img_in.

        Only for such rows (group_size >= K), MLX 0.32 uses a separate kernel on Hopper, qmm_sm90. Its output was not
        finite (H100, MLX 0.32.4, affine, 4 and 8 bits).
        """
        return bool(self.scales.shape[-1] == 1)


def packed_arrays(weight: mx.array, quantization: Quantization) -> dict[str, mx.array]:
    """`weight`, `scales` and, if the packing has them, `biases` and `tensor_scale` of a weight (outputs, channels).

    A large weight is packed a few rows after the other, so that what MLX needs meanwhile is never there for all rows.
    """
    arrays = {}
    if quantization.tensor_scale:
        arrays["tensor_scale"] = tensor_scale(weight.astype(mx.float32))

    def packed(rows: mx.array) -> Sequence[mx.array]:
        scaled = rows.astype(mx.float32) / arrays["tensor_scale"] if arrays else rows
        return mx.quantize(scaled, **quantization.arguments)

    if weight.size <= _PIECE:
        parts = packed(weight)
    else:
        rows = max(1, _PIECE // weight.shape[1])
        pieces = []
        for start in range(0, len(weight), rows):
            pieces.append(packed(weight[start : start + rows]))
            mx.eval(pieces[-1])
        parts = [mx.concatenate(list(part)) for part in zip(*pieces, strict=True)]
    return dict(zip(("weight", "scales", "biases"), parts, strict=False)) | arrays


class QuantizedEmbedding(nn.QuantizedEmbedding):
    """Decodes the selected rows in fp32; the caller rounds them once.

    `mlx.nn.QuantizedEmbedding` decodes them in the dtype of the scales, which would round the rows of an fp32
    reference.
    """

    def __call__(self, ids: mx.array) -> mx.array:
        biases = self.get("biases")
        return _decoded(
            self, self.weight[ids], self.scales[ids], None if biases is None else biases[ids], dtype=mx.float32
        )


def decoded_weight(layer: nn.QuantizedLinear, dtype: mx.Dtype) -> mx.array:
    """The weight (out, in) by which `layer` multiplies an input of `dtype`, in fp32."""
    scales = layer.scales
    values = _decoded(layer, layer.weight, scales, layer.get("biases"), mx.result_type(dtype, scales.dtype))
    return values * layer.tensor_scale if "tensor_scale" in layer else values


def tensor_scale(x: mx.array) -> mx.array:
    """The scale (), fp32, of a tensor in nvfp4, as in NVIDIA ModelOpt: largest magnitude / (6 * 448); 1 for zeros."""
    scale = mx.abs(x).max() / LARGEST_NVFP4
    return mx.where(scale == 0, 1, scale)


def packing_of(layer: nn.QuantizedLinear | nn.QuantizedEmbedding) -> Quantization:
    """How the weight of a layer is packed."""
    return Quantization(layer.group_size, layer.bits, layer.mode, "tensor_scale" in layer)


def product(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """`x @ weight.T + bias` in fp32, rounded once to the dtype of x; weight in fp32."""
    y = x.astype(mx.float32) @ weight.T
    return (y if bias is None else y + bias.astype(mx.float32)).astype(x.dtype)


def _decoded(
    layer: nn.QuantizedLinear | nn.QuantizedEmbedding,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    dtype: mx.Dtype,
) -> mx.array:
    """The decoded weight in fp32.

    Affine values are computed in `dtype`, as `scale * code + offset`, and rounded to it.
    """
    if biases is not None:
        scales, biases = scales.astype(dtype), biases.astype(dtype)
    values = mx.dequantize(weight, scales, biases, group_size=layer.group_size, bits=layer.bits, mode=layer.mode)
    return values.astype(mx.float32)
