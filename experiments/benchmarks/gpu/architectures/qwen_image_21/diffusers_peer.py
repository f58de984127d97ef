"""diffusers' Qwen-Image-2.1 transformer in the benchmark; see `diffusers_model.Peer`."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import QwenImage21Transformer2DModel as Transformer
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

from experiments.benchmarks.gpu.diffusers_model import DEVICE, Forward, Inputs, times

__all__ = ["PASSES", "Transformer"]

TOKENS_A_SLOT = 4
"""Tokens of the latents for which one slot of the vision-language sequence stands."""


def joint(model: Transformer, _: Transformer) -> Forward:
    """A pass over text and target, as in the first step."""
    return lambda inputs, timestep: _velocity(model, inputs, timestep)


def step(model: Transformer, filler: Transformer) -> Forward:
    """A pass over the target alone, as in the other steps of its pipeline. The first call with a text fills its cache.

    `filler` does that, so that a compiled model need not compile its blocks for it too.
    """
    caches: dict[int, QwenImage21KVCache] = {}

    def forward(inputs: Inputs, timestep: float) -> torch.Tensor:
        if inputs.side not in caches:
            caches[inputs.side] = cache = QwenImage21KVCache(len(filler.transformer_blocks))
            _velocity(filler, inputs, timestep, kv_cache=cache, kv_cache_mode="extract")
        return _velocity(model, inputs, timestep, kv_cache=caches[inputs.side], kv_cache_mode="cached")

    return forward


def _velocity(model: Transformer, inputs: Inputs, timestep: float, **cache: Any) -> torch.Tensor:
    num_text, num_target = inputs.text.shape[1], inputs.latents.shape[1]
    slots = torch.arange(num_text + num_target // TOKENS_A_SLOT, device=DEVICE) >= num_text
    result: torch.Tensor = model(
        hidden_states=inputs.latents,
        encoder_hidden_states=inputs.text,
        timestep=times(timestep),
        img_shapes=[[(1, inputs.cells, inputs.cells)]],
        img_mask=slots[None],
        return_dict=False,
        **cache,
    )[0]
    return result[:, -num_target:]


PASSES = {"": step, ", joint": joint}
