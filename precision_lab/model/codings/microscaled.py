"""Floating point in 4 or 8 bits with a scale for each group of channels: nvfp4, mxfp4 and mxfp8.

Weights are packed by `mx.quantize`, and have its values (see `model.quantized`). Inputs have the arithmetic of
hardware: elements are rounded to nearest, ties to even. `mx.quantize` on a CPU rounds ties of e2m1 towards zero.

- nvfp4: 16 elements of e2m1 share a scale in e4m3, largest magnitude / 6, at most 448; with `tensor_scale`, it is a
  multiple of an fp32 scale of the whole tensor, as in NVIDIA ModelOpt and comfy-kitchen 0.2 (`quantize_nvfp4`).
- mxfp4, mxfp8 (OCP Microscaling v1.0): 32 elements of e2m1 or e4m3 share a power of two, the smallest with which
  nothing saturates, as in MLX, cuBLAS and comfy-kitchen (`quantize_mxfp8`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import mlx.core as mx

from precision_lab.errors import InputError
from precision_lab.model.codings.base import Arrays, Coding, Inputs, Neighbours, not_a_multiple
from precision_lab.model.codings.floats import microscaled, power_of_two
from precision_lab.model.quantized import packed_arrays, tensor_scale
from precision_lab.numerics.packing import Quantization

NVFP4 = Quantization(16, 4, "nvfp4")
MXFP4 = Quantization(32, 4, "mxfp4")
MXFP8 = Quantization(32, 8, "mxfp8")

_LARGEST = {4: 6.0, 8: 448.0}
"""The largest number of an element, by its bits."""
_LARGEST_SCALE = 448.0


class _Packed(Coding):
    """`weight` and `scales` of `mx.quantize`, and `tensor_scale`, fp32, where the packing has it."""

    @property
    @abstractmethod
    def packing(self) -> Quantization:
        """How the weight is packed."""

    def unfit(self, shape: tuple[int, ...]) -> str | None:
        return not_a_multiple(shape[1], self.packing.group_size)

    def encode(self, weight: mx.array) -> dict[str, mx.array]:
        return self.encode_stored(weight)

    def encode_stored(self, weight: mx.array) -> dict[str, mx.array]:
        """In the dtype of the checkpoint, as the technique `QuantizedWeights` does."""
        return packed_arrays(weight, self.packing)

    def decode(self, arrays: Arrays) -> mx.array:
        arguments = self.packing.arguments | {"dtype": mx.float32}  # the subnormal numbers of bf16 are too coarse
        values: mx.array = mx.dequantize(arrays["weight"], arrays["scales"], **arguments)
        return values * arrays["tensor_scale"] if self.packing.tensor_scale else values

    def neighbours(self, arrays: Arrays) -> Neighbours:
        return microscaled(arrays["weight"], arrays["scales"], self.packing, arrays.get("tensor_scale"))


@dataclass(frozen=True)
class Nvfp4(_Packed):
    """tensor_scale: whether the scales of groups are multiples of one for the whole weight."""

    tensor_scale: bool = True

    name = "nvfp4"

    @property
    def packing(self) -> Quantization:
        return NVFP4._replace(tensor_scale=self.tensor_scale)


@dataclass(frozen=True)
class Mxfp4(_Packed):
    """4.25 bits a weight."""

    name = "mxfp4"

    @property
    def packing(self) -> Quantization:
        return MXFP4


@dataclass(frozen=True)
class Mxfp8(_Packed):
    """8.25 bits a weight."""

    name = "mxfp8"

    @property
    def packing(self) -> Quantization:
        return MXFP8


def coding_of(packing: Quantization) -> Coding:
    """The coding whose arrays are those of a packing. Raises InputError for affine ones."""
    if packing.mode == "nvfp4":
        return Nvfp4(packing.tensor_scale)
    codings: dict[str, Coding] = {"mxfp4": Mxfp4(), "mxfp8": Mxfp8()}
    if packing.mode not in codings:
        raise InputError(f"{packing}: expected nvfp4, {' or '.join(codings)}")
    return codings[packing.mode]


class _Groups(Inputs):
    """Inputs whose channels share scales in groups."""

    @property
    @abstractmethod
    def packing(self) -> Quantization:
        """Bits of an element, and channels that share a scale."""

    def unfit(self, channels: int) -> str | None:
        return not_a_multiple(channels, self.packing.group_size)

    def rounded(self, x: mx.array) -> mx.array:
        groups = x.reshape(*x.shape[:-1], -1, self.packing.group_size)
        largest = _LARGEST[self.packing.bits]
        scale = self.scale(x, mx.abs(groups).max(axis=-1, keepdims=True) / largest)
        elements = mx.clip(groups / mx.where(scale == 0, mx.inf, scale), -largest, largest)
        values = _e2m1(elements) if self.packing.bits == 4 else mx.from_fp8(mx.to_fp8(elements), mx.float32)
        return mx.where(mx.isfinite(x), (values * scale).reshape(x.shape), x)

    @abstractmethod
    def scale(self, x: mx.array, wanted: mx.array) -> mx.array:
        """The scales (..., groups, 1) for inputs x that would have those `wanted`, largest magnitude / largest element.

        Zero for a group that becomes zero.
        """


@dataclass(frozen=True)
class Nvfp4Inputs(_Groups):
    """tensor_scale: whether the scales of groups are multiples of one for the whole input.

    stated: that one, a positive number that was chosen beforehand; None: it follows from the input at each call. Then
    nothing remains finite of an input that is not finite somewhere.
    """

    tensor_scale: bool = True
    stated: float | None = None

    name = "nvfp4"

    def __post_init__(self) -> None:
        if self.stated is not None and not (self.tensor_scale and 0 < self.stated < float("inf")):
            raise InputError(f"nvfp4_inputs.stated is {self.stated!r}, expected a positive number with tensor_scale")

    @property
    def packing(self) -> Quantization:
        return NVFP4

    def scale(self, x: mx.array, wanted: mx.array) -> mx.array:
        if not self.tensor_scale:
            return _e4m3(wanted)
        of_tensor = tensor_scale(x) if self.stated is None else mx.array(self.stated, mx.float32)
        return _e4m3(wanted / of_tensor) * of_tensor


class _PowersOfTwo(_Groups):
    def scale(self, x: mx.array, wanted: mx.array) -> mx.array:
        bits = wanted.view(mx.uint32)
        exponent, rest = bits >> 23, bits & 0x7FFFFF
        up = mx.where(exponent == 0, rest > 0x400000, rest > 0)  # code 0 is 2^-127, whose fp32 number is subnormal
        return power_of_two(mx.minimum(exponent + up, 254))


@dataclass(frozen=True)
class Mxfp4Inputs(_PowersOfTwo):
    """Groups of 32 channels."""

    name = "mxfp4"

    @property
    def packing(self) -> Quantization:
        return MXFP4


@dataclass(frozen=True)
class Mxfp8Inputs(_PowersOfTwo):
    """Groups of 32 channels."""

    name = "mxfp8"

    @property
    def packing(self) -> Quantization:
        return MXFP8


def _e4m3(scale: mx.array) -> mx.array:
    """Non-negative numbers, fp32, to the nearest in e4m3, at most 448; NaN stays so."""
    return mx.from_fp8(mx.to_fp8(mx.minimum(scale, _LARGEST_SCALE)), mx.float32)


def _e2m1(x: mx.array) -> mx.array:
    """Numbers from -6 to 6, fp32, to the nearest in e2m1, ties to even."""
    step = mx.where(mx.abs(x) < 2, 0.5, mx.where(mx.abs(x) < 4, 1.0, 2.0))
    return mx.round(x / step) * step
