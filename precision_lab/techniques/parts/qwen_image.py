"""The sites of the transformers of Qwen-Image 1.x and 2.1 at which several techniques replace one class of module."""

from __future__ import annotations

ATTEND = ("transformer_blocks.*.attn.{attend,attend_prefix}",)
"""The attention of every block, an Attend; 2.1 has one for the target and one for the prefix."""

RESIDUAL_ADDS = ("transformer_blocks.*.{img,txt}_{add1,add2}",)
"""The additions to the residual streams, each a GatedAdd; those of the only stream of 2.1 are named img_*."""
