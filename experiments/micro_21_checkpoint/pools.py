"""Training batches for the transformer: latents of rendered pictures in several grids, and caption embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel

from experiments.micro_21_checkpoint import prompt, vae
from experiments.micro_checkpoint import data, state
from precision_lab.shapes import training_scenes

CAPTION_DROPOUT = 0.05
LEAST_WEIGHT = 0.1
"""Weight in the loss of a latent channel that pictures do not use; the decoder ignores its content."""

SEED = 3
RENDERED = 10_000
"""Pictures rendered and encoded at a time."""

Grid = tuple[int, int]


class Layout(NamedTuple):
    """Samples of one training step by grid (rows, columns of tokens); all grids have the same number of tokens."""

    samples: dict[Grid, int]

    @property
    def tokens(self) -> int:
        (rows, columns), *_ = self.samples
        return rows * columns


MAIN = Layout({(8, 8): 384})
WIDE = Layout({(12, 8): 128, (8, 12): 128})
LARGE = Layout({(16, 16): 96})
POOL = {(8, 8): 80_000, (12, 8): 15_000, (8, 12): 15_000, (16, 16): 8_000}
SMALL = 64
"""Pool and batch sizes are at most this on a CPU, for trying the code."""


def normalisation(autoencoder: AutoencoderKLQwenImage21, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents, (z, 1, 1, 1) each."""
    config = autoencoder.config
    mean, std = (torch.tensor(v, device=device)[:, None, None, None] for v in (config.latents_mean, config.latents_std))
    return mean, std


def rotations(model: QwenImage21Transformer2DModel, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """RoPE's complex rotations: of text (TEXT_TOKENS, head_dim / 2), and of the image for each number of text tokens
    before it, (TEXT_TOKENS + 1, tokens, head_dim / 2)."""
    tokens = grid[0] * grid[1]
    images = []
    for length in range(prompt.TEXT_TOKENS + 1):
        is_image = torch.arange(length + tokens) >= length
        turns = model.pos_embed([(1, *grid)], is_image, torch.device("cpu"))
        images.append(turns[length:])
    return turns[: prompt.TEXT_TOKENS], torch.stack(images)


class Pools:
    """Latents of rendered pictures by grid, and embeddings of all captions; draws batches of a layout."""

    def __init__(self, checkpoint: Path, device: str):
        self.device, self._checkpoint = device, checkpoint
        scenes = training_scenes(transparent=True)
        captions = [*(scene.caption for scene in scenes), prompt.NO_CAPTION]
        self.text, self.text_mask = prompt.embeddings(checkpoint, captions, device)
        self.latents: dict[Grid, torch.Tensor] = {}
        self.scenes: dict[Grid, torch.Tensor] = {}
        self.add(MAIN)
        # latents are normalised together with the encoder's noise: their variance is the share that pictures use
        used = self.latents[8, 8].float().flatten(0, 1).var(0).clamp(min=LEAST_WEIGHT)
        self.weight = used / used.mean()

    @torch.no_grad()
    def add(self, layout: Layout) -> None:
        """Renders and encodes the pictures of a layout, or reads those of an earlier slice."""
        for grid in layout.samples:
            file = self._checkpoint.parent / "pools" / f"{grid[0]}x{grid[1]}.safetensors"
            saved = state.load(file)
            if saved is None:
                saved = self._encoded(grid), {}
                state.save(file, *saved)
            self.latents[grid], self.scenes[grid] = (saved[0][name].to(self.device) for name in ("latents", "scenes"))

    def _encoded(self, grid: Grid) -> dict[str, torch.Tensor]:
        autoencoder = vae.load(self._checkpoint, self.device)
        mean, std = normalisation(autoencoder, self.device)
        latents, scenes = [], []
        count = SMALL if self.device == "cpu" else POOL[grid]
        for part, start in enumerate(range(0, count, RENDERED)):
            size = min(RENDERED, count - start)
            drawn = data.pictures(
                size, 16 * grid[0], 16 * grid[1], 1000 * SEED + part, scenes=vae.training_world, channels=4
            )
            scenes.append(torch.from_numpy(drawn.scenes))
            for images in torch.from_numpy(drawn.images).split(250):
                encoded, _ = vae.encode(autoencoder, vae.to_pixels(images.to(self.device)))
                latents.append(((encoded - mean) / std).flatten(2).transpose(1, 2).bfloat16())
        return {"latents": torch.cat(latents), "scenes": torch.cat(scenes)}

    def draw(self, layout: Layout, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Clean latents (B, tokens, z), text (B, T, J) and its mask."""
        latents, rows = [], []
        for grid, count in layout.samples.items():
            chosen = torch.randint(len(self.latents[grid]), (count,), device=self.device, generator=generator)
            latents.append(self.latents[grid][chosen])
            rows.append(self.scenes[grid][chosen])
        captions = torch.cat(rows)
        dropped = torch.rand(len(captions), device=self.device, generator=generator) < CAPTION_DROPOUT
        captions = captions.masked_fill(dropped, len(self.text) - 1)
        return torch.cat(latents).float(), self.text[captions], self.text_mask[captions]
