"""Records what the base draws in 20 steps with guidance 4: the teacher's latents at the student's noise levels.

    python -m experiments.micro_lightning.teacher WORK --chunks 32              all chunks of 32 trajectories
    python -m experiments.micro_lightning.teacher WORK --chunks 32 --part 1/2   every second one, beside another process

Each chunk is one file, seeded by its number; existing files are kept. Euler's path is linear between two noise levels,
so its state at another level is exact. The prompts are those of the training data, and each picture is read by the
checker of `precision_lab.shapes`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage

from experiments.micro_checkpoint import data, pools, state, text_encoder, vae
from experiments.micro_lightning.student import GRID, Base
from precision_lab.model.text_to_image.scheduler import QWEN_IMAGE, changed, sigmas
from precision_lab.shapes import correct, training_scenes

CHECKPOINT = Path(__file__).parents[2] / "precision_lab" / "checkpoints" / "micro"
CHUNK = 32
GUIDANCE = 4.0
STEPS = 20
SEED = 5

SCHEDULE = {"base_shift": float(np.log(3)), "max_shift": float(np.log(3)), "shift_terminal": None}
"""The scheduler of Qwen-Image-Lightning (ModelTC/Qwen-Image-Lightning, generate_with_diffusers.py)."""

LEVELS: list[float] = sigmas(changed(QWEN_IMAGE, SCHEDULE), 4, GRID[0] * GRID[1]).tolist()
"""The student's noise levels and 0."""


def guided(base: Base, latents: torch.Tensor, sigma: float, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The velocity with guidance, scaled to the norm of the conditional one, as in QwenImagePipeline.

    text, mask: of the captions, followed by one of the negative prompt.
    """
    count = len(latents)
    positive = base.velocity(latents, sigma, text[:count], mask[:count])
    negative = base.velocity(latents, sigma, text[count:].expand(count, -1, -1), mask[count:].expand(count, -1))
    mixed = negative + GUIDANCE * (positive - negative)
    return mixed * (positive.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))


@torch.no_grad()
def trajectory(
    base: Base, latents: torch.Tensor, text: torch.Tensor, mask: torch.Tensor, levels: Sequence[float] = LEVELS
) -> torch.Tensor:
    """(levels, B, N, 64) the teacher's states at `levels`, from 1 to 0. text, mask: see `guided`."""
    schedule = sigmas(QWEN_IMAGE, STEPS, latents.shape[1]).tolist()
    states = [latents]
    for now, following in pairwise(schedule):
        ahead = latents + (following - now) * guided(base, latents, now, text, mask)
        passed = [(now - level) / (now - following) for level in levels if following <= level < now]
        states.extend(torch.lerp(latents, ahead, part) for part in passed)
        latents = ahead
    return torch.stack(states)


class Painter:
    """Decodes latents to pictures."""

    def __init__(self, checkpoint: Path):
        self.autoencoder: AutoencoderKLQwenImage = vae.load(checkpoint, "cpu")
        self.mean, self.std = pools.normalisation(self.autoencoder, "cpu")

    @torch.no_grad()
    def __call__(self, latents: torch.Tensor) -> np.ndarray:
        """(B, H, W, 3) uint8 pictures of packed latents (B, N, 64)."""
        clean = pools.unpack(latents, GRID) * self.std[:, None] + self.mean[:, None]
        pixels = self.autoencoder.decoder(self.autoencoder.post_quant_conv(clean)).clamp(-1, 1)[:, :, 0]
        return ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def record(work: Path, chunks: Sequence[int], checkpoint: Path) -> None:
    """Writes the missing ones of the given chunks."""
    base, painter, scenes = Base.load(checkpoint), Painter(checkpoint), training_scenes()
    for chunk in chunks:
        path = work / "trajectories" / f"{chunk:04d}.safetensors"
        if path.exists():
            continue
        began = time.monotonic()
        drawn = np.random.default_rng([SEED, chunk]).integers(len(scenes), size=CHUNK)
        chosen = [scenes[i] for i in drawn]
        text, mask = text_encoder.embeddings(checkpoint, [*(s.caption for s in chosen), data.NO_CAPTION], "cpu")
        noise = torch.randn(
            CHUNK, GRID[0] * GRID[1], 64, generator=torch.Generator().manual_seed(SEED * 100_003 + chunk)
        )
        states = trajectory(base, noise, text, mask)
        right = [correct(scene, image) for scene, image in zip(chosen, painter(states[-1]), strict=True)]
        tensors = {"states": states, "text": text[:-1], "mask": mask[:-1], "right": torch.tensor(right)}
        state.save(path, tensors, {"chunk": chunk})
        print(f"chunk {chunk}: {np.mean(right):.3f} right, {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--part", default="0/1", help="I/N: chunks I, I + N, ... only")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the products are small: two processes are much faster than two threads
    first, every = map(int, options.part.split("/"))
    record(options.work, range(first, options.chunks, every), options.checkpoint)


if __name__ == "__main__":
    main()
