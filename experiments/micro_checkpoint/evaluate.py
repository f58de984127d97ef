"""Draws held-out prompts with the exported files in this package's model, and counts the correct pictures.

    python -m experiments.micro_checkpoint.evaluate --count 200

Writes accuracy.json and one contact sheet per case under --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from precision_lab.device import blas

blas.preload()  # before MLX is imported

import mlx.core as mx  # noqa: E402

from experiments.micro_checkpoint.tally import contact_sheet, drawn, held_out, shares  # noqa: E402
from precision_lab.device.environment import set_numeric_switches  # noqa: E402
from precision_lab.model.qwen_image.checkpoint import Checkpoint  # noqa: E402
from precision_lab.model.qwen_image.pipeline import Pipeline  # noqa: E402

BATCH = 20
SHEET = 32
NEGATIVE_PROMPT = " "
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """Pictures to draw: dtype of the activations, denoising steps, pixels."""

    dtype: str
    steps: int
    height: int = 128
    width: int = 128
    share: float = 1.0
    """The share of the prompts to draw."""
    guidance: float = 4.0

    @property
    def name(self) -> str:
        return f"{self.dtype}_{self.steps}_steps_{self.width}x{self.height}_guidance_{self.guidance:g}"


CASES = (
    Case("float32", 20),
    Case("float32", 20, guidance=2.5),
    Case("bfloat16", 20),
    Case("float16", 20),
    Case("float32", 10),
    Case("bfloat16", 10),
    Case("bfloat16", 6),
    Case("bfloat16", 20, 128, 192, 0.125),
    Case("bfloat16", 20, 256, 256, 0.05),
    Case("bfloat16", 20, 144, 112, 0.125),
)


def draw(
    pipeline: Pipeline,
    captions: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    height: int,
    width: int,
    guidance: float = Case.guidance,
) -> np.ndarray:
    """Unrounded pixels (n, height, width, 3)."""
    grid = pipeline.grid(height, width)
    cond = pipeline.encode(captions)
    uncond = pipeline.encode([NEGATIVE_PROMPT] * len(captions))
    latents = mx.concatenate([pipeline.noise(seed, grid) for seed in seeds])
    for step in pipeline.denoise(latents, grid, steps, cond, uncond, guidance):
        mx.eval(step.latents)
        latents = step.latents
    return np.array(pipeline.decode(latents, grid))


def evaluate(case: Case, checkpoint: Path, count: int, out: Path) -> dict[str, object]:
    """The shares of correct pictures; the first pictures are written to a contact sheet."""
    pipeline = Checkpoint(checkpoint).pipeline(getattr(mx, case.dtype))
    scenes = held_out(round(count * case.share))
    size = {"steps": case.steps, "height": case.height, "width": case.width}
    images, broken = drawn(scenes, partial(draw, pipeline, **size, guidance=case.guidance), BATCH)
    contact_sheet(images[:SHEET]).save(out / f"{case.name}.png")
    return {
        "dtype": case.dtype,
        "steps": case.steps,
        "guidance_scale": case.guidance,
        "height": case.height,
        "width": case.width,
        "prompts": len(scenes),
        **shares(scenes, images),
        "nonfinite_pixel_values": broken,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=REPOSITORY / "precision_lab" / "checkpoints" / "micro")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "reference" / "cpu" / "micro_checkpoint")
    options = parser.parse_args()
    set_numeric_switches()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in CASES:
        rows.append(evaluate(case, options.checkpoint, options.count, options.out))
        print(json.dumps(rows[-1]), flush=True)
    fingerprint = Checkpoint(options.checkpoint).fingerprint()
    result = {"fingerprint": fingerprint, "cases": rows}
    (options.out / "accuracy.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
