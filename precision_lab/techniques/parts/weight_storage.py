"""The storage of a model's linear weights in bits, scales included, which shows the saving of quantisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper, walk
from precision_lab.techniques.float8_weights import Float8Linear


class WeightStorage(NamedTuple):
    """The number of weights of linears, without biases, and the bits that store them."""

    weights: int
    bits: int

    @property
    def bits_per_weight(self) -> float:
        """The mean over all weights, or 0 without weights."""
        return self.bits / self.weights if self.weights else 0.0


def storage(module: nn.Module) -> WeightStorage:
    """The storage of one module without its children; only linears have any."""
    while isinstance(module, Wrapper):
        module = module.inner
    if isinstance(module, nn.QuantizedLinear):
        names = ("weight", "scales", "biases", "tensor_scale")
        arrays = [module[name] for name in names if module.get(name) is not None]
        return WeightStorage(module.weight.size * 32 // module.bits, sum(8 * a.nbytes for a in arrays))
    if isinstance(module, Float8Linear):
        return WeightStorage(module.weight.size, 8 * (module.weight.nbytes + module.scale.nbytes))
    if isinstance(module, nn.Linear):
        return WeightStorage(module.weight.size, 8 * module.weight.nbytes)
    return WeightStorage(0, 0)


def weight_storage(components: Mapping[str, nn.Module]) -> dict[str, WeightStorage]:
    """The storage of every component, with the techniques that are applied at the moment."""
    totals = {component: WeightStorage(0, 0) for component in components}
    for site in walk(components):
        totals[site.component] = _sum(totals[site.component], site)
    return totals


def _sum(total: WeightStorage, site: Site) -> WeightStorage:
    own = storage(site.module)
    return WeightStorage(total.weights + own.weights, total.bits + own.bits)
