"""The modules for linears that stay in the format of their file."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.model.coded import CodedLinear
from precision_lab.model.quantized import QuantizedLinear
from precision_lab.model.stored.base import StoredLinear
from precision_lab.numerics.packing import Quantization


def stored_linears(
    model: nn.Module, linears: Mapping[str, StoredLinear], tensors: Mapping[str, mx.array]
) -> dict[str, nn.Module]:
    """The modules for linears that stay in the format of their file, by path. They hold the stored arrays, no bias yet.

    Raises InputError for a module of another class or shape. A path that the model lacks is left to the loader.
    """
    modules = dict(model.named_modules())
    found: dict[str, nn.Module] = {}
    for path, linear in linears.items():
        if path not in modules:
            continue
        module = modules[path]
        if not isinstance(module, nn.Linear):
            raise InputError(f"tensor {path}.weight is coded, but {path} is {type(module).__name__}, expected a linear")
        if module.weight.shape != linear.shape:
            raise InputError(
                f"tensor {path}.weight has shape {linear.shape}, expected {module.weight.shape} by config.json"
            )
        found[path] = _module(linear, {name: tensors[f"{path}.{name}"] for name in linear.arrays}, module)
    return found


def _module(linear: StoredLinear, arrays: Mapping[str, mx.array], module: nn.Linear) -> nn.Module:
    if not isinstance(linear.storage, Quantization):
        return CodedLinear(linear.storage, arrays, linear.shape, module.get("bias"))
    outputs, channels = linear.shape
    packed = QuantizedLinear(channels, outputs, "bias" in module, **linear.storage.arguments)
    for name, array in arrays.items():
        packed[name] = array
    return packed
