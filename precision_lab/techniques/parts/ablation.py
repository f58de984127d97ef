"""Ablations of the measured model, which locate the cause of a technique's change of function.

Nobody proposes them as techniques. Each changes the model, and is applied to both sides of a comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site, Wrapper


class _WithoutBias(Wrapper):
    def __init__(self, inner: nn.Module):
        super().__init__(inner)
        self._linear = copy(inner)
        self._linear.pop("bias")

    def __call__(self, x: mx.array) -> Any:
        return self._linear(x)


@dataclass(frozen=True)
class WithoutBias:
    """Linears without their biases."""

    sites: Sequence[str] = ("transformer_blocks.*.{img,txt}_mlp.{net.0.proj,net.2}",)
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = False

    def rewrite(self, site: Site) -> nn.Module:
        if "bias" not in site.module:
            raise InputError(f"without_bias: {site} is {type(site.module).__name__}, expected a linear with a bias")
        return _WithoutBias(site.module)


@dataclass(frozen=True)
class HomogeneousActivation:
    """ReLU in place of GELU: relu(s x) = s relu(x) for every s > 0, which does not hold for GELU."""

    sites: Sequence[str] = ("transformer_blocks.*.{img,txt}_mlp.net.0.gelu",)
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = False

    def rewrite(self, site: Site) -> nn.Module:
        return nn.ReLU()
