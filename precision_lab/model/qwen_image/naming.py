"""How other programs name the modules of Qwen-Image 1.x's transformer, by the names of `recipes.dialects.DIALECTS`.

Sources: mflux 0.24.0, models/qwen/weights/qwen_weight_mapping.py; stable-diffusion.cpp, model/diffusion/qwen_image.hpp,
and model_loader.cpp for the names that it never converts; SGLang, runtime/models/dits/qwen_image.py; vLLM-Omni,
diffusion/models/qwen_image/qwen_image_transformer.py, where the modulation is wide in the methods that quantise at
loading (quantization/component_config.py, safe_quant_config).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from precision_lab.recipes.naming import Naming

_OUTSIDE = ("img_in", "txt_in", "time_text_embed.**", "norm_out.linear", "proj_out")

NAMINGS: Mapping[str, Naming] = MappingProxyType(
    {
        "mlx_lm": Naming(),
        "mflux": Naming(
            renamed=(
                (r"\.attn\.to_out\.", ".attn.attn_to_out."),
                (r"\.(img|txt)_mod\.1$", r".\1_mod_linear"),
                (r"\.(img|txt)_mlp\.net\.0\.proj$", r".\1_ff.mlp_in"),
                (r"\.(img|txt)_mlp\.net\.2$", r".\1_ff.mlp_out"),
            )
        ),
        "comfyui": Naming(read=("model.diffusion_model.", "diffusion_model.")),
        "sdcpp": Naming(prefix="model.diffusion_model.", wide=("img_in", "txt_in")),
        "sglang": Naming(renamed=((r"\.(img|txt)_mod\.1$", r".\1_mod"),), wide=_OUTSIDE),
        "vllm_omni": Naming(
            wide=(*_OUTSIDE, "transformer_blocks.*.{img,txt}_mod.1"),
            fused={
                "to_qkv": ("to_q", "to_k", "to_v"),
                "add_kv_proj": ("add_q_proj", "add_k_proj", "add_v_proj"),
            },
        ),
        "modelopt": Naming(),
    }
)
