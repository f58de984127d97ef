"""Shift, scale and gate of every block in fp32, from the linear that makes them to where they are used.

Quantisers leave these layers wide (Nunchaku keeps img_mod and txt_mod at 16 bits, vLLM-Omni 2728 and mflux 517 img_mod
alone): one vector a step decides the size of every channel. Draw Things' fp16 build upcasts the vectors it computes.
Here the linear, too, runs in fp32. Cost: two casts of the tokens at each of eight places of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.nn as nn

from precision_lab.instrument.sites import Site
from precision_lab.techniques.float32 import InFloat32


@dataclass(frozen=True)
class Float32Modulation:
    """`{img,txt}_mod` keep their fp32 output; modulations and gated adds take it and round to their own dtype."""

    sites: Sequence[str] = (
        "transformer_blocks.*.{img,txt}_mod",
        "transformer_blocks.*.{img,txt}_{modulate1,modulate2,add1,add2}",
    )
    preserves_function: bool = True
    composes: bool = True

    def rewrite(self, site: Site) -> nn.Module:
        return InFloat32(site.module, rounds=not site.path.endswith("_mod"))
