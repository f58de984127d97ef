"""mflux's Qwen-Image transformer in the benchmark; see `mflux_model.Peer`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

from precision_lab.model.qwen_image.config import TransformerConfig

MODULE = "mflux.models.qwen.model.qwen_transformer.qwen_transformer"
RENAMED = (
    (r"\.(img|txt)_mod\.1\.", r".\1_mod_linear."),
    (r"\.(img|txt)_mlp\.net\.0\.proj\.", r".\1_ff.mlp_in."),
    (r"\.(img|txt)_mlp\.net\.2\.", r".\1_ff.mlp_out."),
    (r"\.attn\.to_out\.0\.", r".attn.attn_to_out.0."),
)


def built(module: ModuleType, config: TransformerConfig) -> Any:
    return module.QwenTransformer(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.num_layers,
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
        joint_attention_dim=config.joint_attention_dim,
    )


def generating(_: Any) -> AbstractContextManager[None]:
    return nullcontext()
