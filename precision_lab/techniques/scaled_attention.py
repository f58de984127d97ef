"""Attention computed on smaller numbers, exactly: scales in, gate out.

Draw Things' fp16 build (draw-things-community, QwenImage.swift; figures of each model in conf/technique/draw_things_*):
the input of q, k and v is divided by `qkv`, folded into adaLN; QK-RMSNorm takes the factor off q and k, for which its
eps becomes eps / qkv^2, while v carries it on; what to_out reads is divided by `out` more; the gate gives both back in
fp32. Biases are scaled with their inputs. Cost: one element-wise pass before to_out; the rest is in passes that are
made anyway.

It keeps v, the attention output and its projection in range. The stream itself needs fp32_residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.nn as nn

from precision_lab.instrument.sites import Site
from precision_lab.techniques.parts.scaled_parts import (
    PerBlock,
    ScaledGatedAdd,
    ScaledLinear,
    ScaledModulate,
    ScaledRMSNorm,
    at_block,
)


@dataclass(frozen=True)
class ScaledAttention:
    """`qkv` divides the input of q, k and v, `out` that of to_out and to_add_out: figures, or one for each block."""

    qkv: PerBlock = 8.0
    out: PerBlock = 2.0
    sites: Sequence[str] = (
        "transformer_blocks.*.{img,txt}_{modulate1,add1}",
        "transformer_blocks.*.attn.{to_q,to_k,to_v,add_q_proj,add_k_proj,add_v_proj,to_out.0,to_add_out}",
        "transformer_blocks.*.attn.{norm_q,norm_k,norm_added_q,norm_added_k}",
    )
    preserves_function: bool = True
    composes: bool = False

    def rewrite(self, site: Site) -> nn.Module:
        qkv, out = at_block(self.qkv, site), at_block(self.out, site)
        if site.path.endswith("_modulate1"):
            return ScaledModulate(site.module, qkv)
        if site.path.endswith("_add1"):
            return ScaledGatedAdd(site.module, qkv * out)
        if ".norm_" in site.path:
            return ScaledRMSNorm(site, qkv)
        if site.path.endswith(("to_out.0", "to_add_out")):
            return ScaledLinear(site, out, qkv * out)
        return ScaledLinear(site, 1.0, qkv)
