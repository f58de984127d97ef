"""Linears and embeddings whose weights `mx.quantize` has packed: a few bits a weight, a scale for each group of a row.

The modes are those of `mx.quantize`: affine (scale and offset for each group), mxfp4 and mxfp8 (OCP Microscaling, 32
values share a power of two) and nvfp4 (16 share an e4m3 scale).

A weight is decoded in the dtype that input and scales promote to, which is what `mx.quantized_matmul` does: an fp32
input meets weights decoded in fp32, whatever dtype the scales are stored in. On a GPU the product is
`mx.quantized_matmul`; its CPU kernel accumulates in the storage dtype (relative error 8e-2 in bf16), so there the
decoded weight is multiplied in fp32. Values of the other modes than affine are exact in 16 bits.
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
    """Group sizes and bits that `mx.quantize` offers in a mode, the default first."""

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
    """How a weight is packed: bits a value, values a group, and the mode of `mx.quantize`."""

    group_size: int
    bits: int
    mode: str

    @classmethod
    def checked(cls, what: str, mode: object, bits: object = None, group_size: object = None) -> Quantization:
        """Bits and group size default to the mode's.

        Raises InputError, which begins with `what`, for values that MLX does not have.
        """
        if not isinstance(mode, str) or mode not in MODES:
            raise InputError(f"{what}: mode is {mode!r}. {nearest(str(mode), MODES)}")
        choices = MODES[mode]
        return cls(
            _choice(what, mode, "group_size", group_size, choices.groups),
            _choice(what, mode, "bits", bits, choices.bits),
            mode,
        )

    def __str__(self) -> str:
        return f"{self.bits} bits in groups of {self.group_size}, {self.mode}"


def _choice(what: str, mode: str, name: str, value: object, choices: tuple[int, ...]) -> int:
    if value is None:
        return choices[0]
    if type(value) is not int or value not in choices:
        raise InputError(f"{what}: {name} is {value!r}, {mode} has {', '.join(map(str, sorted(choices)))}")
    return value


class QuantizedLinear(nn.QuantizedLinear):
    """`x @ decoded.T + bias`, products summed in fp32 and, on the CPU, rounded once to the dtype of x."""

    def __call__(self, x: mx.array) -> mx.array:
        if not on_cpu() and not self._has_one_group:
            return super().__call__(x)
        weight = _decoded(self, self.weight, self.scales, self.get("biases"), mx.result_type(x, self.scales))
        y = x.astype(mx.float32) @ weight.T
        return (y + self.bias.astype(mx.float32) if "bias" in self else y).astype(x.dtype)

    @property
    def _has_one_group(self) -> bool:
        """Whether a row is a single group, as those of img_in are: 64 channels.

        For these, and only for these, MLX 0.32 has a kernel of its own on Hopper (qmm_sm90, where group_size >= K).
        With it the output was not finite (H100, MLX 0.32.4, affine, 4 and 8 bits).
        """
        return bool(self.scales.shape[-1] == 1)


class QuantizedEmbedding(nn.QuantizedEmbedding):
    """Rows decoded in fp32; the look-up rounds them once.

    MLX's own decodes them in the dtype of the scales, which would round the rows of an fp32 reference.
    """

    def __call__(self, ids: mx.array) -> mx.array:
        biases = self.get("biases")
        return _decoded(
            self, self.weight[ids], self.scales[ids], None if biases is None else biases[ids], dtype=mx.float32
        )


def _decoded(
    layer: QuantizedLinear | QuantizedEmbedding,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    dtype: mx.Dtype,
) -> mx.array:
    """fp32; affine values are computed in `dtype`, as `scale * code + offset`, which rounds them if it is narrower."""
    if biases is not None:
        scales, biases = scales.astype(dtype), biases.astype(dtype)
    values = mx.dequantize(weight, scales, biases, group_size=layer.group_size, bits=layer.bits, mode=layer.mode)
    return values.astype(mx.float32)
