"""Linears and embeddings with weights packed by `mx.quantize`: a few bits a weight and a scale for each group of a row.

The modes are those of `mx.quantize`: affine (scale and offset for each group), mxfp4 and mxfp8 (OCP Microscaling, 32
values share a power of two) and nvfp4 (16 share an e4m3 scale).

A weight is decoded in the dtype to which input and scales promote, like in `mx.quantized_matmul`: for an fp32 input the
weights are decoded in fp32, whatever the dtype of the scales. On a GPU the product is `mx.quantized_matmul`. Its CPU
kernel accumulates in the storage dtype (relative error 8e-2 in bf16), so on the CPU the decoded weight is multiplied in
fp32. In all modes except affine, the decoded values are exact in 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError, nearest
from precision_lab.model.layers import on_cpu


class Mode(NamedTuple):
    """The group sizes and bits that `mx.quantize` supports in a mode, the default first."""

    groups: tuple[int, ...]
    bits: tuple[int, ...]


MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "affine": Mode((64, 32, 128), (4, 2, 3, 5, 6, 8)),
        "mxfp4": Mode((32,), (4,)),
        "mxfp8": Mode((32,), (8,)),
        "nvfp4": Mode((16,), (4,)),
    }
)


class Quantization(NamedTuple):
    """The packing of a weight: values a group, bits a value, and the mode of `mx.quantize`."""

    group_size: int
    bits: int
    mode: str

    @classmethod
    def checked(cls, what: str, mode: object, bits: object = None, group_size: object = None) -> Quantization:
        """Returns the quantisation if MLX supports it; bits and group size default to those of the mode.

        Raises InputError, with a message that begins with `what`, for unsupported values.
        """
        if not isinstance(mode, str) or mode not in MODES:
            raise InputError(f"{what}: mode is {mode!r}. {nearest(str(mode), MODES)}")
        choices = MODES[mode]
        return cls(
            _choice(what, mode, "group_size", group_size, choices.groups),
            _choice(what, mode, "bits", bits, choices.bits),
            mode,
        )

    def fitting(self, channels: int) -> Quantization:
        """The same with the largest group size up to this one that divides `channels`; itself if none does."""
        sizes = (size for size in MODES[self.mode].groups if size <= self.group_size and channels % size == 0)
        return self._replace(group_size=max(sizes, default=self.group_size))

    def __str__(self) -> str:
        return f"{self.bits} bits in groups of {self.group_size}, {self.mode}"


def _choice(what: str, mode: str, name: str, value: object, choices: tuple[int, ...]) -> int:
    if value is None:
        return choices[0]
    if type(value) is not int or value not in choices:
        raise InputError(f"{what}: {name} is {value!r}, {mode} has {', '.join(map(str, sorted(choices)))}")
    return value


class QuantizedLinear(nn.QuantizedLinear):
    """`x @ decoded.T + bias`, with products summed in fp32 and, on the CPU, rounded once to the dtype of x."""

    def __call__(self, x: mx.array) -> mx.array:
        if not on_cpu() and not self._has_one_group:
            return super().__call__(x)
        return product(x, decoded_weight(self, x.dtype), self.get("bias"))

    @property
    def _has_one_group(self) -> bool:
        """Whether a row is a single group, like the 64 channels of img_in.

        Only for such rows (group_size >= K), MLX 0.32 uses a separate kernel on Hopper, qmm_sm90. Its output was not
        finite (H100, MLX 0.32.4, affine, 4 and 8 bits).
        """
        return bool(self.scales.shape[-1] == 1)


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
    return _decoded(layer, layer.weight, scales, layer.get("biases"), mx.result_type(dtype, scales.dtype))


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
