"""Linears whose weight is stored in a coding that MLX has no product for, and the weight of any linear.

The weight is decoded at each call; products are summed in fp32 and rounded once to the dtype of the input.
"""

from __future__ import annotations

from copy import copy

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.model.codings.base import Arrays, Coding, Inputs
from precision_lab.model.quantized import QuantizedLinear, decoded_weight, packing_of


def unfit(coding: Coding, shape: tuple[int, ...], inputs: Inputs | None = None) -> str | None:
    """Why a weight of shape (outputs, channels) cannot be stored, or its inputs not be rounded; None if both can."""
    why = coding.unfit(shape)
    if why is not None or inputs is None:
        return why
    why = inputs.unfit(shape[1])
    return None if why is None else f"inputs in {inputs.name}: {why}"


class CodedLinear(nn.Module):
    """`x @ decoded.T + bias`, where `coding` decodes the module's arrays, and `inputs` rounds x first."""

    def __init__(
        self,
        coding: Coding,
        arrays: Arrays,
        shape: tuple[int, int],
        bias: mx.array | None = None,
        inputs: Inputs | None = None,
    ):
        super().__init__()
        for name, array in arrays.items():
            self[name] = array
        if bias is not None:
            self.bias = bias
        self._coding, self._inputs, self._shape, self._coded = coding, inputs, shape, tuple(arrays)

    @classmethod
    def encoded(
        cls,
        coding: Coding,
        weight: mx.array,
        bias: mx.array | None = None,
        inputs: Inputs | None = None,
        key: mx.array | None = None,
    ) -> CodedLinear:
        """Encodes `weight` (outputs, channels), to nearest, or stochastically with `key`.

        Raises InputError if its shape does not fit the format, or for a key where the format has no such rounding.
        """
        outputs, channels = weight.shape
        why = unfit(coding, (outputs, channels), inputs)
        if why is not None:
            raise InputError(f"{coding.name}: a weight of {outputs} x {channels}: {why}")
        if key is None:
            arrays = coding.encode_stored(weight)
        else:
            arrays = coding.encode_stochastically(weight.astype(mx.float32), key)
        return cls(coding, arrays, (outputs, channels), bias, inputs)

    @property
    def coding(self) -> Coding:
        """The format of the weight."""
        return self._coding

    @property
    def inputs(self) -> Inputs | None:
        """The rounding of the inputs."""
        return self._inputs

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, channels) of the decoded weight."""
        return self._shape

    @property
    def arrays(self) -> dict[str, mx.array]:
        """The arrays that store the weight, without the bias."""
        return {name: self[name] for name in self._coded}

    def __call__(self, x: mx.array) -> mx.array:
        y = self._coding.product(self.arrays, x.astype(mx.float32), self._inputs)
        return (y + self.bias.astype(mx.float32) if "bias" in self else y).astype(x.dtype)


LINEARS = (nn.Linear, nn.QuantizedLinear, CodedLinear)
"""The classes of linears, however their weights are stored."""


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(outputs, channels) of a linear of LINEARS; nothing is decoded."""
    if isinstance(module, CodedLinear):
        return module.shape
    outputs, width = module.weight.shape
    return outputs, width * 32 // module.bits if isinstance(module, nn.QuantizedLinear) else width


def linear_weight(module: nn.Module, dtype: mx.Dtype = mx.float32) -> mx.array:
    """The weight (outputs, channels) in fp32 by which a linear of LINEARS multiplies an input of `dtype`."""
    if isinstance(module, CodedLinear):
        return module.coding.decode(module.arrays)
    if isinstance(module, nn.QuantizedLinear):
        return decoded_weight(module, dtype)
    weight: mx.array = module.weight.astype(mx.float32)
    return weight


def with_weight(module: nn.Module, weight: mx.array, key: mx.array | None = None) -> nn.Module:
    """A copy of a linear of LINEARS with another weight of the same shape, in the same storage; the bias is shared.

    Values are rounded to nearest; with `key`, codes are rounded stochastically. Raises InputError for a packing or a
    coding without stochastic rounding.
    """
    if isinstance(module, CodedLinear):
        if mx.issubdtype(module.weight.dtype, mx.floating):
            weight = weight.astype(module.weight.dtype)
        return CodedLinear.encoded(module.coding, weight, module.get("bias"), module.inputs, key)
    if isinstance(module, nn.QuantizedLinear):
        if key is not None:
            raise InputError(f"{module.mode} weights have no stochastic rounding, expected rounding: nearest")
        outputs, channels = weight.shape
        plain = nn.Linear(channels, outputs, bias=False)
        plain.weight = weight.astype(module.scales.dtype) if module.mode == "affine" else weight
        if "bias" in module:
            plain.bias = module.bias
        return QuantizedLinear.packed(plain, packing_of(module))
    changed = copy(module)
    changed.weight = weight.astype(module.weight.dtype)
    return changed
