"""How other programs name the modules of Qwen-Image-2.1's transformer, by the names of `recipes.dialects.DIALECTS`.

Sources: mflux 0.24.0, models/qwen21/weights/qwen21_weight_mapping.py; SGLang, runtime/models/dits/qwen_image21.py.
Files of ComfyUI and stable-diffusion.cpp may join two linears of the feed-forward in `gate_up`. There is no entry for
vLLM-Omni.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from precision_lab.recipes.naming import Naming

_OUTSIDE = ("img_in", "txt_in.*", "time_text_embed.**", "modulation.1", "norm_out.linear", "proj_out")
_FUSED = {"gate_up": ("gate_layer", "proj")}

NAMINGS: Mapping[str, Naming] = MappingProxyType(
    {
        "mlx_lm": Naming(),
        "mflux": Naming(renamed=((r"^modulation\.1$", "modulation.layers.1"),)),
        "comfyui": Naming(read=("model.diffusion_model.", "diffusion_model."), fused=_FUSED),
        "sdcpp": Naming(prefix="model.diffusion_model.", wide=("img_in", "txt_in.*"), fused=_FUSED),
        "sglang": Naming(wide=_OUTSIDE),
        "modelopt": Naming(),
    }
)
