"""LoRA and LoKr adapters beside their linears: a product of their own, whatever stores the weight.

This is how PEFT, diffusers and Nunchaku apply an adapter that is not fused; the base weight is untouched, so that no
rounding of it can lose the adapter (`lora_fused` is the other way). Roundings are those of PEFT: after each factor,
after the scale and after the sum, in the dtype of the computation. Cost: two narrow products a linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site
from precision_lab.model.adapters.deltas import Delta
from precision_lab.techniques.base import Beside
from precision_lab.techniques.parts.adapters import Adapters, checked


class Adapted(Beside):
    """`inner(x) + delta.product(x)`; the arrays of the delta are its own."""

    def __init__(self, inner: nn.Module, delta: Delta):
        super().__init__(inner)
        for name, array in delta.factors.items():
            self[name] = array
        self._delta = delta

    def around(self, inner: nn.Module) -> Adapted:
        return Adapted(inner, self._delta)

    def __call__(self, x: mx.array) -> Any:
        return self.inner(x) + self._delta.product(x)


@dataclass(frozen=True)
class LoRA:
    """The adapters at `path`, a file or a folder or several, times `strength`, one number or one for each.

    sites: where they apply, by default every linear that the files name; each file must name a linear among them.
    Techniques of weights may come before or after; those that wrap linears come after.
    """

    path: str | Sequence[str] | None = None
    strength: float | Sequence[float] = 1.0
    sites: Sequence[str] = ("**",)
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.path is not None:
            checked("lora", self.path, self.strength)

    @cached_property
    def _adapters(self) -> Adapters:
        return Adapters("lora", self.path, self.strength)

    def check_model(self, sites: Sequence[Site]) -> None:
        """Raises InputError unless the adapters fit the model that has these sites."""
        self._adapters.check_model(sites, self.sites)

    def rewrite(self, site: Site) -> nn.Module:
        module = site.module
        for delta in self._adapters.at(site):
            module = Adapted(module, delta)
        return module
