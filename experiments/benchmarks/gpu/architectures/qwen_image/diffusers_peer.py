"""diffusers' Qwen-Image transformer in the benchmark; see `diffusers_model.Peer`."""

from __future__ import annotations

import torch
from diffusers import QwenImageTransformer2DModel as Transformer

from experiments.benchmarks.gpu.diffusers_model import Forward, Inputs, times

__all__ = ["PASSES", "Transformer"]


def step(model: Transformer, _: Transformer) -> Forward:
    """One forward, the same in every step."""

    def forward(inputs: Inputs, timestep: float) -> torch.Tensor:
        result: torch.Tensor = model(
            hidden_states=inputs.latents,
            encoder_hidden_states=inputs.text,
            timestep=times(timestep),
            img_shapes=[[(1, inputs.cells, inputs.cells)]],
            return_dict=False,
        )[0]
        return result

    return forward


PASSES = {"": step}
