"""Checks the loaded weights of a model for values that are not finite, once, before a run.

Cost: one pass over the weights, after they have been read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from precision_lab.instrument.arrays import name_of, to_numpy
from precision_lab.numerics.formats import FORMATS
from precision_lab.numerics.nonfinite import count_nonfinite, largest_magnitude

_FLOATS = (mx.float32, mx.bfloat16, mx.float16)


class WeightCheck:
    """What is to be said of the weights of a model.

    not_finite: a sentence for each component with weights that are NaN or infinite. beyond: a sentence for each
    component and dtype in which a variant computes, but which cannot hold all weights.
    """

    def __init__(self, components: Mapping[str, nn.Module], dtypes: Mapping[str, Collection[mx.Dtype]]):
        """components: as loaded for computation in fp32, where weights keep their stored dtype.

        dtypes: those in which variants compute, by component.
        """
        self.not_finite: list[str] = []
        self.beyond: list[str] = []
        for component, module in components.items():
            largest = _largest(module)
            bad = [name for name, amax in largest.items() if not np.isfinite(amax)]
            if bad:
                num_nan, num_inf = count_nonfinite(to_numpy(dict(tree_flatten(module.parameters()))[bad[0]]))
                counts = ", ".join(f"{n} {what}" for n, what in ((num_nan, "NaN"), (num_inf, "infinite")) if n)
                self.not_finite.append(
                    f"weights of {component}: {len(bad)} of {len(largest)} tensors are not finite; the first is "
                    f"{bad[0]} ({counts})"
                )
            for dtype in sorted({name_of(dtype) for dtype in dtypes[component]} - {"float32"}):
                over = [name for name, amax in largest.items() if FORMATS[dtype].max < amax < np.inf]
                if over:
                    self.beyond.append(
                        f"weights of {component}: {len(over)} of {len(largest)} tensors exceed the range of {dtype} "
                        f"and become infinite in it; the first is {over[0]} ({largest[over[0]]:.3g})"
                    )


def unread_weights(components: Mapping[str, nn.Module]) -> int:
    """The number of weights that modules read from disk when they are called, which are not checked."""
    modules = (module for root in components.values() for module in root.modules())
    kinds = (mx.array, nn.Module, dict, list, tuple)
    return sum(not isinstance(value, kinds) for module in modules for value in module.values())


def _largest(module: nn.Module) -> dict[str, float]:
    """The largest magnitude of each floating-point parameter; NaN or infinity if it holds one."""
    weights = {name: x for name, x in tree_flatten(module.parameters()) if x.dtype in _FLOATS and x.size}
    if mx.default_device().type == mx.DeviceType.cpu:
        mx.eval(list(weights.values()))
        return {name: largest_magnitude(to_numpy(x)) for name, x in weights.items()}
    return dict(zip(weights, _largest_on_device(list(weights.values())), strict=True))


def _largest_on_device(weights: Sequence[mx.array]) -> list[float]:
    """Without the sign, bit patterns are ordered like magnitudes. Reading weights on the host would move them there."""
    largest = []
    for x in weights:
        bits, mask = (mx.uint32, 0x7FFFFFFF) if x.dtype == mx.float32 else (mx.uint16, 0x7FFF)
        largest.append(mx.max(x.reshape(-1).view(bits) & mask, keepdims=True).view(x.dtype).astype(mx.float32))
        mx.async_eval(largest[-1])
    return np.array(mx.concatenate(largest)).tolist() if largest else []
