"""Both streams clipped to the range of float16 at the end of each block, as diffusers does in float16.

(QwenImageTransformerBlock, diffusers 0.42.1; ComfyUI issue 10751 tries the same and calls it lossy.) Two ways to fail:
where a stream needs more than 65504 it is another function, and an infinity made inside the block, by the add after
attention, is NaN in the LayerNorm that follows, before the clip is reached. Cost: one element-wise pass a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.qwen_image.streams import Streams


class _Clipped(Wrapper):
    def __init__(self, inner: nn.Module, limit: float):
        super().__init__(inner)
        self.limit = limit

    def __call__(self, *args: Any) -> Streams:
        img, txt = self.inner(*args)
        return Streams(img=mx.clip(img, -self.limit, self.limit), txt=mx.clip(txt, -self.limit, self.limit))


@dataclass(frozen=True)
class BlockEndClip:
    """In every dtype, so that what clipping costs can be told from what float16 costs."""

    sites: Sequence[str] = ("transformer_blocks.*",)
    limit: float = 65504.0
    preserves_function: bool = False
    composes: bool = True

    def rewrite(self, site: Site) -> nn.Module:
        return _Clipped(site.module, self.limit)
