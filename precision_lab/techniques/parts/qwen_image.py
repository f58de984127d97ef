"""The sites of Qwen-Image's transformer at which several techniques replace one class of module."""

from __future__ import annotations

ATTEND = ("transformer_blocks.*.attn.attend",)
"""The joint attention of every block, an Attend."""

RESIDUAL_ADDS = ("transformer_blocks.*.{img,txt}_{add1,add2}",)
"""The additions to both residual streams, each a GatedAdd."""
