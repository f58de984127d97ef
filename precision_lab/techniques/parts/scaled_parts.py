"""The parts of an exact activation scaling, shared by recipes that place them differently.

A branch ends in a linear whose result is multiplied by a gate and added to the residual stream. Dividing the linear's
input and bias by s divides its result by s, and the gate restores the factor in fp32. In exact arithmetic the function
is the same. All published scales are powers of two, with which floating-point results are the same too until a number
leaves the format. Other scales are rejected, because they would round the biases (1e-3 of the output with biases stored
in bfloat16).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.coded import LINEARS
from precision_lab.numerics.scales import PerBlock, scale_at
from precision_lab.techniques.base import Beside, without_adapters


def at_block(table: PerBlock, site: Site) -> float:
    """The scale for the block of a site. Raises InputError if there is none or it is not a power of two."""
    return scale_at(table, site.block, str(site))


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear with its own bias, or one of LINEARS without; adapters may be beside it."""
    module = without_adapters(module)
    return "bias" in module or isinstance(module, LINEARS)


def with_bias(linear: nn.Module, change: Callable[[mx.array], mx.array | None]) -> nn.Module:
    """A copy of a linear, with the adapters beside it, whose bias, if any, is changed; None removes it."""
    if isinstance(linear, Beside):
        return linear.around(with_bias(linear.inner, change))
    changed = copy(linear)
    if "bias" in linear:
        bias = change(linear.bias)
        if bias is None:
            changed.pop("bias")
        else:
            changed.bias = bias
    return changed


class ScaledLinear(Wrapper):
    """A linear that reads x / `input_scale` and has its bias, if any, divided by `bias_scale`; its weight is untouched.

    Raises InputError for a module that another technique has put there, whose bias may be out of reach.
    """

    def __init__(self, site: Site, input_scale: float, bias_scale: float):
        super().__init__(site.module)
        if not is_linear(site.module):
            raise InputError(
                f"{site} is {type(site.module).__name__}, expected a linear: "
                "list techniques that replace linears after those that scale them"
            )
        self.input_scale = input_scale
        self._linear = with_bias(site.module, lambda bias: (bias.astype(mx.float32) / bias_scale).astype(bias.dtype))

    def __call__(self, x: mx.array) -> Any:
        return self._linear(x if self.input_scale == 1 else x / self.input_scale)


class ScaledModulate(Wrapper):
    """A modulation in fp32 whose result is divided by `scale`, which folds the factor into 1 + scale and a shift."""

    def __init__(self, inner: nn.Module, scale: float):
        super().__init__(inner)
        self.scale = scale

    def __call__(self, x: mx.array, *rows: mx.array) -> mx.array:
        wide = self.inner(*(a.astype(mx.float32) for a in (x, *rows)))
        return (wide / self.scale).astype(x.dtype)


class ScaledGatedAdd(Wrapper):
    """`residual + (scale * gate) * update` in fp32, rounded to the dtype of the residual."""

    def __init__(self, inner: nn.Module, scale: float):
        super().__init__(inner)
        self.scale = scale

    def __call__(self, residual: mx.array, gate: mx.array, update: mx.array) -> mx.array:
        wide = (residual.astype(mx.float32), self.scale * gate.astype(mx.float32), update.astype(mx.float32))
        return self.inner(*wide).astype(residual.dtype)


class ScaledRMSNorm(Wrapper):
    """A norm that returns norm(x) when it reads x / `scale`: its eps is divided by scale^2."""

    def __init__(self, site: Site, scale: float):
        super().__init__(site.module)
        if not hasattr(site.module, "eps"):
            raise InputError(f"{site} is {type(site.module).__name__}, expected a norm with eps")
        self._norm = copy(site.module)
        self._norm.eps = site.module.eps / scale**2

    def __call__(self, x: mx.array) -> Any:
        return self._norm(x)
