"""Recipes of quantisation, in the words of this lab and of other programs; plain data, without MLX."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from precision_lab.recipes.comfyui import ComfyUI
from precision_lab.recipes.dialect import Dialect
from precision_lab.recipes.mflux import Mflux
from precision_lab.recipes.mlx_lm import MlxLm
from precision_lab.recipes.modelopt import ModelOpt
from precision_lab.recipes.sdcpp import StableDiffusionCpp
from precision_lab.recipes.sglang import SGLang
from precision_lab.recipes.vllm_omni import VllmOmni

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        "mlx_lm": MlxLm(),
        "mflux": Mflux(),
        "comfyui": ComfyUI(),
        "sdcpp": StableDiffusionCpp(),
        "sglang": SGLang(),
        "vllm_omni": VllmOmni(),
        "modelopt": ModelOpt(),
    }
)
"""The dialects by the names that `to=` and `from=` take; a model's namings have the same names."""
