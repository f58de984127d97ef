"""The streams clipped to the range of float16 at the end of each block, as diffusers does in float16.

(QwenImageTransformerBlock, diffusers 0.42.1; ComfyUI issue 10751 tries the same and calls it lossy.) It fails in two
ways. Where a stream needs more than 65504, the clipped model is a different function. Where the add after attention
overflows inside the block, the LayerNorm after it turns the infinity into NaN before the clip is reached. Cost: one
element-wise pass a stream.

The plain model of 2.1 has the clip of diffusers, in float16 alone. Of 1.x it has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.techniques.parts.streams import over_streams


class _Clipped(Wrapper):
    def __init__(self, inner: nn.Module, limit: float):
        super().__init__(inner)
        self.limit = limit

    def __call__(self, *args: Any) -> Any:
        return over_streams(lambda x: mx.clip(x, -self.limit, self.limit), self.inner(*args))


@dataclass(frozen=True)
class BlockEndClip:
    """Clips to +-`limit` in every dtype, which separates the cost of clipping from the cost of float16."""

    sites: Sequence[str] = ("transformer_blocks.*",)
    limit: float = 65504.0
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = True

    def rewrite(self, site: Site) -> nn.Module:
        return _Clipped(site.module, self.limit)
