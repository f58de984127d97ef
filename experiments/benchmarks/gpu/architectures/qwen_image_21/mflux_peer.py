"""mflux's Qwen-Image-2.1 transformer in the benchmark; see `mflux_model.Peer`.

Without padding it caches the keys and values of a text, which its first call with the text computes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

from precision_lab.model.qwen_image_21.config import TransformerConfig

MODULE = "mflux.models.qwen21.model.qwen21_transformer.qwen21_transformer"
RENAMED = ((r"^modulation\.1\.", "modulation.layers.1."),)


def built(module: ModuleType, config: TransformerConfig) -> Any:
    return module.Qwen21Transformer(
        in_channels=config.in_channels,
        out_channels=config.velocity_channels,
        num_layers=config.num_layers,
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
        context_in_dim=config.context_in_dim,
        mlp_ratio=config.mlp_ratio,
        axes_dims_rope=config.axes_dims_rope,
        eps=config.eps,
    )


def generating(model: Any) -> AbstractContextManager[None]:
    """Its packed projections, which a generation enters."""
    packed: AbstractContextManager[None] = model.inference_projections()
    return packed
