"""Our Qwen-Image transformer in the benchmark; see `mlx_model.Ours`."""

from __future__ import annotations

from experiments.benchmarks.gpu.mlx_model import Forward, joint
from precision_lab.model.qwen_image.transformer import Transformer

__all__ = ["LINEARS", "PASSES", "REORDERED", "SETUPS", "Transformer"]

PASSES: dict[str, Forward] = {"": joint}
SETUPS: dict[str, Forward] = {}
REORDERED = ("transformer_blocks.*.{attn.{to_q,to_k,to_v},img_mlp.net.2,txt_mlp.net.2}",)
LINEARS = (
    "transformer_blocks.*.{img,txt}_{mod.1,mlp.net.{0.proj,2}}",
    "transformer_blocks.*.attn.{to_q,to_k,to_v,add_q_proj,add_k_proj,add_v_proj,to_out.0,to_add_out}",
)
