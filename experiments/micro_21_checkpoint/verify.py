"""Compares the training's forward with diffusers' own, in fp32."""

from __future__ import annotations

import torch
from diffusers import QwenImage21Transformer2DModel

from experiments.micro_21_checkpoint import prompt
from experiments.micro_21_checkpoint.model import Batch, forward
from experiments.micro_21_checkpoint.pools import Grid, rotations
from experiments.micro_checkpoint.model import Parameters, unstack


def random_batch(model: QwenImage21Transformer2DModel, grid: Grid, lengths: list[int], seed: int) -> Batch:
    """Samples with `lengths` text tokens, padded as the pipeline pads them: to the longest."""
    generator = torch.Generator().manual_seed(seed)
    samples, longest = len(lengths), max(lengths)
    words, images = rotations(model, grid)
    turns = torch.cat((words[:longest], images[longest]))[None].expand(samples, -1, -1)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    text = torch.randn(samples, longest, model.config.context_in_dim, generator=generator)
    return Batch(
        torch.randn(samples, grid[0] * grid[1], model.config.in_channels, generator=generator),
        torch.rand(samples, generator=generator),
        text * mask[..., None],
        mask,
        turns.real.contiguous(),
        turns.imag.contiguous(),
    )


def published(model: QwenImage21Transformer2DModel, batch: Batch, grid: Grid) -> torch.Tensor:
    """diffusers' velocity (B, N, channels)."""
    slots = torch.arange(batch.mask.shape[1] + grid[0] * grid[1] // 4) >= batch.mask.shape[1]
    output = model(
        batch.latents,
        timestep=batch.timestep,
        encoder_hidden_states=batch.text,
        encoder_hidden_states_mask=batch.mask,
        img_shapes=[[(1, *grid)]] * len(batch.latents),
        img_mask=slots.expand(len(batch.latents), -1),
    ).sample
    return output[:, -batch.latents.shape[1] :]


@torch.no_grad()
def difference(model: QwenImage21Transformer2DModel, parameters: Parameters, grid: Grid, seed: int) -> float:
    """Relative L2 of the two velocities of three samples with texts of different lengths. `model` is overwritten."""
    batch = random_batch(model, grid, [prompt.TEXT_TOKENS, 9, 15], seed)
    model.load_state_dict(unstack(parameters))
    theirs = published(model, batch, grid)
    ours = forward(parameters, batch, torch.float32)
    return ((ours - theirs).norm() / theirs.norm()).item()
