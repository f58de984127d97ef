"""Shift, scale and gate of every block in fp32, from the linear that computes them to the operations that use them.

Quantisers keep these layers wide (Nunchaku keeps img_mod and txt_mod at 16 bits, vLLM-Omni 2728 and mflux 517 only
img_mod), because one vector a step sets the size of every channel. Draw Things' fp16 build upcasts the vectors after
computing them. Here the linear runs in fp32 too. Cost: two casts of the tokens at each of eight places in a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from precision_lab.techniques.base import ByPlace, Places
from precision_lab.techniques.float32 import InFloat32


@dataclass(frozen=True)
class Float32Modulation(ByPlace):
    """`{img,txt}_mod` of 1.x and `modulation` of 2.1, which all blocks share, keep their fp32 output.

    Modulations and gated adds read it and round to the tokens' dtype.
    """

    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = True

    @property
    def places(self) -> Places:
        return {
            "{modulation,transformer_blocks.*.{img,txt}_mod}": lambda site: InFloat32(site.module, rounds=False),
            "transformer_blocks.*.{img,txt}_{modulate1,modulate2,add1,add2}": lambda site: InFloat32(site.module),
        }
