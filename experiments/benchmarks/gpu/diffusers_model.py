"""diffusers' Qwen-Image transformer on torch, eager and with its repeated block compiled, over one set of tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from diffusers import QwenImageTransformer2DModel

from experiments.benchmarks.gpu.shapes import PIXELS_A_TOKEN, Shape
from precision_lab.model.qwen_image.config import TransformerConfig

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WEIGHT_SCALE = 0.02
"""The scale of our weights. torch draws its own, because 41 GB are not copied between the libraries."""


class Inputs(NamedTuple):
    """Latents (1, L, in_channels), text (1, T, J), and the side in pixels."""

    latents: torch.Tensor
    text: torch.Tensor
    side: int


Forward = Callable[[Inputs, float], torch.Tensor]


def built(config: TransformerConfig, dtype: torch.dtype) -> QwenImageTransformer2DModel:
    """The model, created directly in `dtype`: it would not fit in fp32."""
    known = asdict(config)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(DEVICE):
            model = QwenImageTransformer2DModel(**known)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def made(config: TransformerConfig, dtype: torch.dtype, seed: int = 0) -> QwenImageTransformer2DModel:
    """A model with random weights: linears and biases are normal * 0.02, norm scales are 1."""
    model = built(config, dtype)
    generator = torch.Generator(DEVICE).manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.normal_(0, WEIGHT_SCALE, generator=generator)
            module.bias.normal_(0, WEIGHT_SCALE, generator=generator)
    return model


def compiled_copy(model: QwenImageTransformer2DModel) -> QwenImageTransformer2DModel:
    """Another model that shares the tensors, with its block compiled separately for each size.

    By default torch would compile the second size for all sizes, which is slower.
    """
    with torch.device("meta"):
        duplicate = QwenImageTransformer2DModel(**{k: v for k, v in model.config.items() if not k.startswith("_")})
    duplicate.load_state_dict(model.state_dict(), strict=True, assign=True)
    duplicate.pos_embed = model.pos_embed  # its tables are not parameters
    duplicate = duplicate.eval().requires_grad_(False)
    duplicate.compile_repeated_blocks(dynamic=False)
    return duplicate


def made_inputs(shape: Shape, side: int, dtype: torch.dtype, seed: int = 1) -> Inputs:
    """Unit normal latents and text."""
    generator = torch.Generator(DEVICE).manual_seed(seed + side)
    sizes = (shape.tokens(side), shape.config.in_channels), (shape.text_tokens, shape.config.joint_attention_dim)
    latents, text = (torch.randn(1, *s, generator=generator, device=DEVICE).to(dtype) for s in sizes)
    return Inputs(latents, text, side)


def forward_of(model: QwenImageTransformer2DModel) -> Forward:
    def forward(inputs: Inputs, timestep: float) -> torch.Tensor:
        cells = inputs.side // PIXELS_A_TOKEN
        with torch.no_grad():
            result: torch.Tensor = model(
                hidden_states=inputs.latents,
                encoder_hidden_states=inputs.text,
                timestep=torch.full((1,), timestep, device=DEVICE),
                img_shapes=[[(1, cells, cells)]],
                return_dict=False,
            )[0]
        return result

    return forward


def seconds_of(forward: Forward, inputs: Inputs, timestep: float) -> float:
    """Wall-clock seconds from the call until the device is done."""
    synchronize()
    start = time.perf_counter()
    forward(inputs, timestep)
    synchronize()
    return time.perf_counter() - start


def peak_gigabytes(forward: Forward, inputs: Inputs, timestep: float) -> float | None:
    """Peak memory of a forward after two others, including weights, in GB (1e9 bytes). None on a CPU."""
    for _ in range(2):
        seconds_of(forward, inputs, timestep)
    if DEVICE == "cpu":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds_of(forward, inputs, timestep)
    return torch.cuda.max_memory_allocated() / 1e9


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def environment() -> Mapping[str, Any]:
    import diffusers

    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": diffusers.__version__,
        "cudnn": torch.backends.cudnn.version(),
    }
