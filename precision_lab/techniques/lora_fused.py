"""LoRA and LoKr adapters added to the weights, which then round as their storage does.

Most users run an adapter like this: fused into 16-bit weights before these are quantised, or added to a quantised
weight that is decoded and encoded again, as ComfyUI does at loading. A change below a step of the storage is lost then,
or kept on average by stochastic rounding, which ComfyUI uses for float8 (comfy/float.py). Cost: none while the model
runs; the changed weights are resident.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError, expected, shown
from precision_lab.instrument.sites import Site
from precision_lab.model.coded import linear_weight, with_weight
from precision_lab.techniques.parts.adapters import Adapters, checked

ROUNDINGS = ("nearest", "stochastic")


@dataclass(frozen=True)
class FusedLoRA:
    """The adapters at `path` times `strength` (see `LoRA`), added to the weights in fp32 and rounded once.

    A plain weight keeps its dtype, and rounds to nearest. A coded or packed weight is decoded, changed and encoded
    again with new scales in the same format. rounding: `nearest`, or `stochastic` with a `seed` for the formats that
    have it.
    Techniques of weights that are listed before decide what the adapter meets; those after quantise the sum.
    """

    path: str | Sequence[str] | None = None
    strength: float | Sequence[float] = 1.0
    sites: Sequence[str] = ("**",)
    rounding: str = "nearest"
    seed: int = 0
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = True
    of_linears: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.path is not None:
            checked("lora_fused", self.path, self.strength)
        if self.rounding not in ROUNDINGS:
            choices = expected(ROUNDINGS, str(self.rounding))
            raise InputError(f"lora_fused.rounding is {shown(self.rounding)}, {choices}")

    @cached_property
    def _adapters(self) -> Adapters:
        return Adapters("lora_fused", self.path, self.strength)

    def check_model(self, sites: Sequence[Site]) -> None:
        """Raises InputError unless the adapters fit the model that has these sites."""
        self._adapters.check_model(sites, self.sites)

    def rewrite(self, site: Site) -> nn.Module:
        deltas = self._adapters.at(site)
        if not deltas:
            return site.module
        weight = linear_weight(site.module)
        for delta in deltas:
            weight = weight + delta.matrix()
        try:
            return with_weight(site.module, weight, self._key(site))
        except InputError as error:
            raise InputError(f"lora_fused: {site}: {error}") from error

    def _key(self, site: Site) -> mx.array | None:
        """The key of the random numbers of a site, or None to round to nearest."""
        if self.rounding == "nearest":
            return None
        counter = f"{self.seed} {site}"
        return mx.random.key(int.from_bytes(hashlib.blake2b(counter.encode(), digest_size=8).digest()))
