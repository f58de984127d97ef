"""Draws held-out prompts with the training's own forward and checks the pictures, to show the progress of a slice.

    python -m experiments.micro_checkpoint.preview WORK --out FOLDER

The numbers in the model card come from evaluate.py, which uses the exported files in this package's model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel

from experiments.micro_checkpoint import data, growth, pools, state, text_encoder, vae
from experiments.micro_checkpoint.model import Batch, Parameters, forward, stack
from experiments.micro_checkpoint.tally import contact_sheet, held_out
from precision_lab.shapes import Scene, correct, verdict

GUIDANCE = 4.0


class Case(NamedTuple):
    """grid: rows and columns of tokens. dtype: of the matrix products."""

    grid: pools.Grid
    steps: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        rows, columns = self.grid
        return f"{16 * rows}x{16 * columns}_{self.steps}_{str(self.dtype).removeprefix('torch.')}"


CASES = (
    Case((8, 8), 20, torch.float32),
    Case((8, 8), 10, torch.float32),
    Case((8, 8), 20, torch.bfloat16),
    Case((12, 8), 20, torch.bfloat16),
    Case((16, 16), 20, torch.bfloat16),
    Case((7, 9), 20, torch.bfloat16),
)


def sigmas(checkpoint: Path, steps: int, tokens: int) -> list[float]:
    """The published schedule, `steps` + 1 values."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(checkpoint / "scheduler")
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    shift = config.base_shift + slope * (tokens - config.base_image_seq_len)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), mu=shift)
    return scheduler.sigmas.tolist()


@torch.no_grad()
def draw(
    work: Path,
    parameters: Parameters,
    factor: float,
    scenes: Sequence[Scene],
    case: Case,
    device: str,
) -> np.ndarray:
    """(n, H, W, 3) uint8 pictures of the scenes. factor: r of growth.py."""
    grid, steps, dtype = case
    checkpoint = work / "checkpoint"
    model = QwenImageTransformer2DModel.from_pretrained(checkpoint / "transformer", torch_dtype=torch.float32)
    text, mask = text_encoder.embeddings(checkpoint, [*(s.caption for s in scenes), data.NO_CAPTION], device)
    count, tokens = len(scenes), grid[0] * grid[1]
    latents = torch.randn(count, tokens, 64, generator=torch.Generator().manual_seed(0)).to(device)
    both = torch.cat((torch.arange(count), torch.full((count,), count))).to(device)
    turns = pools.angles(model, grid, tokens, data.TEXT_TOKENS).to(device)[None].expand(2 * count, -1, -1)
    cos, sin = turns.real.contiguous(), turns.imag.contiguous()
    valid = torch.cat((mask[both], torch.ones(2 * count, tokens, dtype=torch.bool, device=device)), 1)
    factors = growth.factors(factor, model.config.num_layers, len(parameters["img_in.bias"]), device)
    schedule = sigmas(checkpoint, steps, tokens)
    for sigma, following in pairwise(schedule):
        time = torch.full((2 * count,), sigma, device=device)
        batch = Batch(latents.repeat(2, 1, 1), time, text[both], valid, cos, sin)
        positive, negative = forward(parameters, batch, factors, dtype).velocity.chunk(2)
        guided = negative + GUIDANCE * (positive - negative)
        guided *= positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        latents = latents + (following - sigma) * guided
    autoencoder = vae.load(checkpoint, device)
    mean, std = pools.normalisation(autoencoder, device)
    clean = pools.unpack(latents, grid) * std[:, None] + mean[:, None]
    pixels = autoencoder.decoder(autoencoder.post_quant_conv(clean)).clamp(-1, 1)[:, :, 0]
    return ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    saved = state.load(options.work / "transformer.safetensors")
    if saved is None:
        raise SystemExit("nothing trained yet")
    skeleton = QwenImageTransformer2DModel.from_pretrained(options.work / "checkpoint" / "transformer")
    parameters = {name: saved[0][name].to(options.device) for name in stack(skeleton.state_dict())}
    options.out.mkdir(parents=True, exist_ok=True)
    scenes = held_out(options.count)
    for case in CASES:
        images = draw(options.work, parameters, saved[1]["growth"], scenes, case, options.device)
        right = np.mean([correct(s, i) for s, i in zip(scenes, images, strict=True)])
        parts = [verdict(s, i) for s, i in zip(scenes, images, strict=True)]
        each = " ".join(f"{name} {np.mean([part[name] for part in parts]):.3f}" for name in parts[0])
        print(f"{case.name}: correct {right:.3f}; {each}", flush=True)
        contact_sheet(images[:32]).save(options.out / f"{case.name}.png")


if __name__ == "__main__":
    main()
