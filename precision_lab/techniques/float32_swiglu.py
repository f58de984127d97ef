"""The activation of SwiGLU and its product with the other factor in fp32, rounded once.

The plain model rounds the activation before it multiplies, as diffusers does, so the hidden layer carries two
roundings. A kernel that fuses both can round once. In float16 the product overflows whether or not it is computed in
fp32, because the last linear reads it in float16; see scaled_feed_forward. Cost: one fp32 array of the size of the
hidden layer, unless both operations are fused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from precision_lab.instrument.sites import Wrapper
from precision_lab.techniques.base import ByPlace, Places
from precision_lab.techniques.float32 import InFloat32


class _Product(Wrapper):
    """The product in fp32, rounded to the dtype of the factor without an activation."""

    def __call__(self, activated: mx.array, factor: mx.array) -> mx.array:
        product: mx.array = self.inner(activated.astype(mx.float32), factor.astype(mx.float32))
        return product.astype(factor.dtype)


@dataclass(frozen=True)
class Float32SwiGLU(ByPlace):
    """`silu(gate_layer(x)) * proj(x)` with one rounding, in every feed-forward of the blocks."""

    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = True

    @property
    def places(self) -> Places:
        return {
            "transformer_blocks.*.img_mlp.activation_fn": lambda site: InFloat32(site.module, rounds=False),
            "transformer_blocks.*.img_mlp.multiply": lambda site: _Product(site.module),
        }
