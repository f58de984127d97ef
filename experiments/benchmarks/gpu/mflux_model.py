"""mflux's Qwen-Image transformer on MLX, with our arrays under its names.

mflux's modules are unchanged. Only its configuration package is replaced, by the one constant that the transformer
reads from it (`ModelConfig.precision`). The original imports schedulers, a resolver of checkpoints and four third-party
packages (PIL, platformdirs, huggingface_hub, tqdm) that a forward pass does not need.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType, SimpleNamespace
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from experiments.benchmarks.gpu.mlx_model import Forward, Inputs, Opener
from precision_lab.model.qwen_image.transformer import Transformer

_RENAMED = (
    (r"\.(img|txt)_mod\.1\.", r".\1_mod_linear."),
    (r"\.(img|txt)_mlp\.net\.0\.proj\.", r".\1_ff.mlp_in."),
    (r"\.(img|txt)_mlp\.net\.2\.", r".\1_ff.mlp_out."),
    (r"\.attn\.to_out\.0\.", r".attn.attn_to_out.0."),
)
_CONFIG_PACKAGE = "mflux.models.common.config"


def mflux(model: Transformer, text_tokens: int) -> Opener:
    """Opens mflux's transformer over the arrays of `model`.

    It is called as in mflux's own generation, with a mask of ones that every block inspects.
    """

    @contextmanager
    def opened() -> Iterator[Forward]:
        twin = over_arrays_of(model)
        mask = mx.ones((1, text_tokens))

        def forward(inputs: Inputs, timestep: float) -> mx.array:
            config = SimpleNamespace(height=inputs.side, width=inputs.side)
            result: mx.array = twin(timestep, config, inputs.latents, inputs.text, mask)
            return result

        yield forward

    return opened


def over_arrays_of(model: Transformer) -> Any:
    """mflux's transformer over our arrays: each of its parameters is one of ours, and all of ours are used."""
    ours = {_name_in_mflux(name): array for name, array in tree_flatten(model.parameters())}
    qwen = _imported_with_precision(model.proj_out.weight.dtype)
    heads = model.transformer_blocks[0].attn.num_heads
    twin = qwen.QwenTransformer(
        in_channels=model.img_in.weight.shape[1],
        out_channels=model.proj_out.weight.shape[0] // 4,
        num_layers=len(model.transformer_blocks),
        attention_head_dim=model.img_in.weight.shape[0] // heads,
        num_attention_heads=heads,
        joint_attention_dim=model.txt_in.weight.shape[1],
    )
    twin.load_weights(list(ours.items()), strict=True)
    return twin


def version() -> str | None:
    try:
        return metadata.version("mflux")
    except metadata.PackageNotFoundError:
        return None


def _name_in_mflux(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _imported_with_precision(dtype: mx.Dtype) -> Any:
    """mflux's transformer module. `dtype` is that of the final modulation; mflux's own default is bfloat16."""
    if _CONFIG_PACKAGE not in sys.modules:
        package, module = ModuleType(_CONFIG_PACKAGE), ModuleType(f"{_CONFIG_PACKAGE}.config")
        package.ModelConfig = type("ModelConfig", (), {"precision": mx.bfloat16})  # type: ignore[attr-defined]
        package.Config = module.Config = SimpleNamespace  # type: ignore[attr-defined]
        sys.modules |= {package.__name__: package, module.__name__: module}
    from mflux.models.qwen.model.qwen_transformer import qwen_transformer

    sys.modules[_CONFIG_PACKAGE].ModelConfig.precision = dtype  # type: ignore[attr-defined]
    return qwen_transformer
