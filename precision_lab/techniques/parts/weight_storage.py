"""The storage of a model's weights in bits, scales included, which shows the saving of quantisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Wrapper, walk
from precision_lab.model.coded import CodedLinear
from precision_lab.techniques.base import Beside

_QUANTIZED = (nn.QuantizedLinear, nn.QuantizedEmbedding)
_OF_PACKED = ("weight", "scales", "biases", "tensor_scale")
"""The arrays of a packed weight, itself the first."""


class WeightStorage(NamedTuple):
    """A number of weights, and the bits that store them with their scales."""

    weights: int
    bits: int

    @property
    def bits_per_weight(self) -> float:
        """The mean over all weights, or 0 without weights."""
        return self.bits / self.weights if self.weights else 0.0

    def plus(self, other: WeightStorage) -> WeightStorage:
        """Both together."""
        return WeightStorage(self.weights + other.weights, self.bits + other.bits)


_NONE = WeightStorage(0, 0)


def storage(module: nn.Module) -> WeightStorage:
    """The storage of the weight of one linear, without its bias and its children; other modules have none.

    The arrays of adapters beside it add bits, but are no weights.
    """
    if isinstance(module, Beside):
        beside = WeightStorage(0, sum(8 * array.nbytes for _, array in _parameters(module)))
        return storage(module.inner).plus(beside)
    while isinstance(module, Wrapper):
        module = module.inner
    if isinstance(module, nn.QuantizedLinear):
        arrays = [module[name] for name in _OF_PACKED if module.get(name) is not None]
        return WeightStorage(_packed(module), sum(8 * a.nbytes for a in arrays))
    if isinstance(module, CodedLinear):
        outputs, channels = module.shape
        return WeightStorage(outputs * channels, sum(8 * array.nbytes for array in module.arrays.values()))
    if isinstance(module, nn.Linear):
        return WeightStorage(module.weight.size, 8 * module.weight.nbytes)
    return _NONE


def parameter_storage(module: nn.Module) -> WeightStorage:
    """The storage of all parameters of one module without its children: weights, biases, scales and offsets.

    A packed weight counts as the weights that it decodes to. Scales, offsets and the arrays of a wrapper add bits, but
    are no weights.
    """
    total = _NONE
    while isinstance(module, Wrapper):
        total = total.plus(WeightStorage(0, sum(8 * array.nbytes for _, array in _parameters(module))))
        module = module.inner
    for name, array in _parameters(module):
        number = array.size
        if isinstance(module, _QUANTIZED) and name in _OF_PACKED:
            number = _packed(module) if name == "weight" else 0
        if isinstance(module, CodedLinear) and name != "bias":
            number = math.prod(module.shape) if name == "weight" else 0
        total = total.plus(WeightStorage(number, 8 * array.nbytes))
    return total


def weight_storage(components: Mapping[str, nn.Module]) -> dict[str, WeightStorage]:
    """The storage of the linears of every component, with the techniques that are applied at the moment."""
    return _totals(components, storage)


def model_storage(components: Mapping[str, nn.Module]) -> dict[str, WeightStorage]:
    """The storage of all parameters of every component, with the techniques that are applied at the moment."""
    return _totals(components, parameter_storage)


def _totals(components: Mapping[str, nn.Module], own: Callable[[nn.Module], WeightStorage]) -> dict[str, WeightStorage]:
    totals = {component: own(root) for component, root in components.items()}
    for site in walk(components):
        totals[site.component] = totals[site.component].plus(own(site.module))
    return totals


def _parameters(module: nn.Module) -> Iterator[tuple[str, mx.array]]:
    """The parameters of one module by name; those on disk are opened, not read."""
    for name in module:
        value = None if name.startswith("_") else module[name]
        if isinstance(value, mx.array):
            yield name, value


def _packed(module: nn.QuantizedLinear | nn.QuantizedEmbedding) -> int:
    """The number of weights that a packed weight, of 32-bit words, decodes to."""
    return int(module.weight.size * 32 // module.bits)
