"""Training batches for the transformer: latents of rendered pictures in several grids, and caption embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

from experiments.micro_checkpoint import data, text_encoder, vae
from precision_lab.shapes import training_scenes

CAPTION_DROPOUT = 0.1
LEAST_WEIGHT = 0.1
"""Weight in the loss of a latent channel that pictures do not use; the decoder ignores its content."""

SEED = 3

Grid = tuple[int, int]


@dataclass(frozen=True)
class Phase:
    """tokens: image positions of a sample. samples: the number per batch by grid (rows, columns of tokens)."""

    tokens: int
    samples: dict[Grid, int]

    @property
    def main(self) -> Grid:
        """The grid with the most samples."""
        return max(self.samples, key=lambda grid: self.samples[grid])


PHASES = (
    Phase(96, {(8, 8): 160, (12, 8): 26, (8, 12): 26, (9, 7): 22, (7, 9): 22}),
    Phase(256, {(8, 8): 56, (16, 16): 24, (12, 8): 16, (8, 12): 16, (9, 7): 8, (7, 9): 8}),
)
POOL = {(8, 8): 100_000}
OTHER_POOL = 16_000
SMALL_POOL = 256
"""Pool size on a CPU, for trying the code."""


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, 16, H, W) to (B, H/2 * W/2, 64), in the order channel, row, column."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * (w // 2), c * 4)


def unpack(tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The inverse of `pack`, with a frame axis: (B, 16, 1, 2 * rows, 2 * columns)."""
    rows, columns = grid
    x = tokens.view(len(tokens), rows, columns, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(len(tokens), -1, 1, 2 * rows, 2 * columns)


def normalisation(autoencoder: AutoencoderKLQwenImage, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents, (16, 1, 1) each."""
    config = autoencoder.config
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (config.latents_mean, config.latents_std))
    return mean, std


def angles(model: QwenImageTransformer2DModel, grid: Grid, tokens: int, text: int) -> torch.Tensor:
    """(text + tokens, head_dim / 2) complex RoPE rotations of diffusers, padded to `tokens` image positions."""
    image, words = model.pos_embed([(1, *grid)], device=torch.device("cpu"), max_txt_seq_len=text)
    return torch.cat((words, image, torch.ones(tokens - len(image), image.shape[1], dtype=image.dtype)))


class Pools:
    """Latents of rendered pictures by grid, and embeddings of all captions; draws batches of a phase."""

    def __init__(self, checkpoint: Path, device: str):
        self.device = device
        captions = [scene.caption for scene in training_scenes()]
        self.text, self.text_mask = text_encoder.embeddings(checkpoint, [*captions, data.NO_CAPTION], device)
        autoencoder = vae.load(checkpoint, device)
        mean, std = normalisation(autoencoder, device)
        self.latents: dict[Grid, torch.Tensor] = {}
        self.scenes: dict[Grid, torch.Tensor] = {}
        for grid in {grid for phase in PHASES for grid in phase.samples}:
            count = SMALL_POOL if device == "cpu" else POOL.get(grid, OTHER_POOL)
            drawn = data.pictures(count, 16 * grid[0], 16 * grid[1], SEED)
            parts = []
            with torch.no_grad():
                for part in torch.from_numpy(drawn.images).split(256):
                    latents, _ = vae.encode(autoencoder, vae.to_pixels(part.to(device)))
                    parts.append(pack((latents[:, :, 0] - mean) / std).bfloat16())
            self.latents[grid] = torch.cat(parts)
            self.scenes[grid] = torch.from_numpy(drawn.scenes).to(device)
        # latents are normalised together with the encoder's noise: their variance is the share that pictures use
        used = self.latents[PHASES[0].main].float().flatten(0, 1).var(0).clamp(min=LEAST_WEIGHT)
        self.weight = used / used.mean()

    def draw(self, phase: Phase, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Clean latents (B, tokens, 64), text (B, T, 64) and its mask."""
        latents, rows = [], []
        for grid, count in phase.samples.items():
            pool = self.latents[grid]
            chosen = torch.randint(len(pool), (count,), device=self.device, generator=generator)
            latents.append(torch.nn.functional.pad(pool[chosen], (0, 0, 0, phase.tokens - pool.shape[1])))
            rows.append(self.scenes[grid][chosen])
        captions = torch.cat(rows)
        dropped = torch.rand(len(captions), device=self.device, generator=generator) < CAPTION_DROPOUT
        captions = captions.masked_fill(dropped, len(self.text) - 1)
        return torch.cat(latents).float(), self.text[captions], self.text_mask[captions]
