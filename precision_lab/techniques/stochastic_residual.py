"""Residual adds rounded to bfloat16 up or down at random, with odds that make the result right on average.

Round-to-nearest loses every update below half an ulp of a stream that has grown large. Stochastic rounding keeps the
expectation at the price of variance (Gupta et al., arXiv:1502.02551; Croci et al., R. Soc. Open Sci. 9:211631, 2022).
The random bits depend only on seed, site, step and branch (counter-based Threefry, Salmon et al., SC 2011), so the same
run gives the same bits. This is a research arm. Cost: 16 random bits a value, and a pass over the sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.scope import current_scope
from precision_lab.instrument.sites import Site
from precision_lab.model.modulation import GatedAdd, over_tokens
from precision_lab.techniques.parts.kinds import expect_kind
from precision_lab.techniques.parts.qwen_image import RESIDUAL_ADDS


def stochastic_bfloat16(x: mx.array, key: mx.array) -> mx.array:
    """Rounds fp32 x to one of its two bfloat16 neighbours, the nearer one with the higher odds; exact values stay.

    Non-finite values stay too. A magnitude above the largest bfloat16 may round to infinity.
    """
    bits = x.view(mx.uint32)
    # a carry out of the 16 dropped bits rounds away from zero
    dither = mx.random.randint(0, 1 << 16, x.shape, dtype=mx.uint32, key=key)
    rounded = ((bits + dither) & mx.array(0xFFFF0000, mx.uint32)).view(mx.float32)
    return mx.where(mx.isfinite(x), rounded, x).astype(mx.bfloat16)


class _StochasticAdd(GatedAdd):
    def __init__(self, seed: int, address: str):
        super().__init__()
        self._seed, self._address = seed, address

    def __call__(self, residual: mx.array, gate: mx.array, update: mx.array) -> mx.array:
        change = over_tokens(gate) * update
        if residual.dtype == mx.float32:
            return residual + change
        if residual.dtype != mx.bfloat16:
            raise InputError(
                f"stochastic_residual: the stream at {self._address} is {str(residual.dtype).rpartition('.')[2]}, "
                "expected bfloat16"
            )
        return stochastic_bfloat16(residual.astype(mx.float32) + change.astype(mx.float32), self._key())

    def _key(self) -> mx.array:
        labels = current_scope()
        counter = f"{self._seed} {self._address} {labels.get('step')} {labels.get('branch')}"
        return mx.random.key(int.from_bytes(hashlib.blake2b(counter.encode(), digest_size=8).digest()))


@dataclass(frozen=True)
class StochasticResidual:
    """The gated update is rounded as in the plain model, and only the sum stochastically; in fp32 nothing changes.

    Raises InputError at the first call if the stream is float16.
    """

    sites: Sequence[str] = RESIDUAL_ADDS
    seed: int = 0
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    def rewrite(self, site: Site) -> nn.Module:
        expect_kind("stochastic_residual", site, GatedAdd)
        return _StochasticAdd(self.seed, str(site))
