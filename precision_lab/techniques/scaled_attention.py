"""Attention computed on smaller numbers without changing the function: the gate takes the scales back.

Draw Things' fp16 build does this (draw-things-community, QwenImage.swift; conf/technique/draw_things_* hold the scales
of each model). The input of q, k and v is divided by `qkv`, which is folded into adaLN. QK-RMSNorm removes the factor
from q and k, for which its eps becomes eps / qkv^2; v keeps it. The input of to_out is also divided by `out`. The gate
restores both in fp32. Biases are scaled with their inputs. Cost: one element-wise pass before to_out; the other scales
are part of passes that exist anyway.

It keeps v, the attention output and its projection in range. The stream itself needs fp32_residual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from precision_lab.numerics.scales import Division, PerBlock
from precision_lab.techniques.base import ByPlace, Places
from precision_lab.techniques.parts.scaled_parts import (
    ScaledGatedAdd,
    ScaledLinear,
    ScaledModulate,
    ScaledRMSNorm,
    at_block,
)


@dataclass(frozen=True)
class ScaledAttention(ByPlace):
    """`qkv` divides the input of q, k and v; `out` divides that of to_out and to_add_out. One scale, or one a block."""

    qkv: PerBlock = 8.0
    out: PerBlock = 2.0
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    @property
    def divisions(self) -> Mapping[str, Division]:
        projections = "transformer_blocks.*.attn.{to_q,to_k,to_v,add_q_proj,add_k_proj,add_v_proj}"
        ends = "transformer_blocks.*.attn.{to_out,to_out.0,to_add_out}"
        attend = "transformer_blocks.*.attn.{attend,attend_prefix}"
        return {
            "qkv": Division(self.qkv, ("transformer_blocks.*.{img,txt}_modulate1", projections, attend, ends)),
            "out": Division(self.out, (ends,)),
        }

    @property
    def places(self) -> Places:
        qkv, out = partial(at_block, self.qkv), partial(at_block, self.out)
        return {
            "transformer_blocks.*.{img,txt}_modulate1": lambda site: ScaledModulate(site.module, qkv(site)),
            "transformer_blocks.*.attn.{to_q,to_k,to_v,add_q_proj,add_k_proj,add_v_proj}": (
                lambda site: ScaledLinear(site, input_scale=1.0, bias_scale=qkv(site))
            ),
            "transformer_blocks.*.attn.{norm_q,norm_k,norm_added_q,norm_added_k}": (
                lambda site: ScaledRMSNorm(site, qkv(site))
            ),
            "transformer_blocks.*.attn.{to_out.0,to_add_out}": (
                lambda site: ScaledLinear(site, input_scale=out(site), bias_scale=qkv(site) * out(site))
            ),
            "transformer_blocks.*.{img,txt}_add1": lambda site: ScaledGatedAdd(site.module, qkv(site) * out(site)),
        }
