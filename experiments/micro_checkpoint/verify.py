"""Compares the training's forward with diffusers' own, on folded weights, in fp32."""

from __future__ import annotations

import torch
from diffusers import QwenImageTransformer2DModel

from experiments.micro_checkpoint import growth
from experiments.micro_checkpoint.model import Batch, Parameters, forward, unstack
from experiments.micro_checkpoint.pools import Grid, angles


@torch.no_grad()
def difference(
    model: QwenImageTransformer2DModel, parameters: Parameters, factor: float, grid: Grid, seed: int
) -> float:
    """Relative L2 between the two velocities; diffusers uses the folded weights. `model` is overwritten.

    factor: r of growth.py. Two random samples; the second one's text is shorter.
    """
    generator = torch.Generator().manual_seed(seed)
    text, tokens, samples = 12, grid[0] * grid[1], 2
    turns = angles(model, grid, tokens, text)[None].expand(samples, -1, -1)
    mask = torch.ones(samples, text + tokens, dtype=torch.bool)
    mask[1, text - 3 : text] = False
    words = torch.randn(samples, text, model.config.joint_attention_dim, generator=generator)
    latents = torch.randn(samples, tokens, model.config.in_channels, generator=generator)
    time = torch.rand(samples, generator=generator)
    batch = Batch(latents, time, words, mask, turns.real.contiguous(), turns.imag.contiguous())
    factors = growth.factors(factor, model.config.num_layers, len(parameters["img_in.bias"]), "cpu")
    ours = forward(parameters, batch, factors, torch.float32).velocity
    model.load_state_dict(unstack(growth.fold(parameters, factor)))
    theirs = model(
        latents,
        timestep=time,
        encoder_hidden_states=words,
        encoder_hidden_states_mask=mask[:, :text],
        img_shapes=[[(1, *grid)]] * samples,
    ).sample
    return ((ours - theirs).norm() / theirs.norm()).item()
