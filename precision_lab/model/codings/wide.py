"""The weight as it is stored, so that the rounding of inputs can be measured alone."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from precision_lab.model.codings.base import Arrays, Coding


@dataclass(frozen=True)
class Wide(Coding):
    """`weight` (outputs, channels) in the dtype of its checkpoint; fp32 inside another coding."""

    name = "wide"

    def encode(self, weight: mx.array) -> dict[str, mx.array]:
        return {"weight": weight}

    def encode_stored(self, weight: mx.array) -> dict[str, mx.array]:
        return self.encode(weight)

    def decode(self, arrays: Arrays) -> mx.array:
        return arrays["weight"].astype(mx.float32)
