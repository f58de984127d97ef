"""Casts of the parameters of a model for storage and computation."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.coded import CodedLinear


def cast(model: nn.Module, weights: mx.Dtype | None, compute: mx.Dtype) -> None:
    """Rounds the weights to the storage dtype `weights` (None: as stored), then casts them for the dtype `compute`.

    With fp32 computation they stay narrow, because an fp32 copy of 20 B weights would not fit one GPU; MLX upcasts them
    exactly where they are used. With 16-bit computation they are cast, because MLX would otherwise promote the product.
    Packed weights, integer scales and the arrays of coded weights are unchanged (`is_fixed`).
    """

    def is_cast(module: nn.Module, key: str, value: Any) -> bool:
        return nn.Module.valid_parameter_filter(module, key, value) and not is_fixed(module, key)

    model.apply(lambda parameter: cast_array(parameter, weights, compute), is_cast)


def is_fixed(module: nn.Module, name: str) -> bool:
    """Whether an array of a module keeps its dtype in any cast: those that store a coded weight, and a tensor scale."""
    return name == "tensor_scale" or (isinstance(module, CodedLinear) and name != "bias")


def fixed_names(model: nn.Module) -> frozenset[str]:
    """The names of all parameters of a model that keep their dtype in any cast."""
    return frozenset(
        f"{path}.{name}" for path, module in model.named_modules() for name in module if is_fixed(module, name)
    )


def cast_array(parameter: mx.array, weights: mx.Dtype | None, compute: mx.Dtype) -> mx.array:
    """One parameter, cast as `cast` does."""
    if mx.issubdtype(parameter.dtype, mx.floating):
        for dtype in (weights, None if compute == mx.float32 else compute):
            parameter = parameter if dtype is None else parameter.astype(dtype)
    return parameter
