"""The modules for linears that stay in the format of their file."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.model.coded import CodedLinear
from precision_lab.model.codings.microscaled import coding_of
from precision_lab.model.codings.padded import Padded
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
        if not linear.fits(module.weight.shape):
            raise InputError(
                f"tensor {path}.weight has shape {linear.shape}, expected {module.weight.shape} by config.json"
            )
        found[path] = _module(linear, {name: tensors[f"{path}.{name}"] for name in linear.arrays}, module)
    return found


def _module(linear: StoredLinear, arrays: Mapping[str, mx.array], module: nn.Linear) -> nn.Module:
    outputs, channels = shape = module.weight.shape
    storage, padded = linear.storage, linear.shape != shape
    if isinstance(storage, Quantization):
        if linear.inputs is None and not padded:
            packed = QuantizedLinear(channels, outputs, "bias" in module, **storage.arguments)
            for name, array in arrays.items():
                packed[name] = array
            return packed
        storage = coding_of(storage)
    if padded:
        storage = Padded(storage, shape, linear.shape)
    return CodedLinear(storage, arrays, shape, module.get("bias"), linear.inputs)
