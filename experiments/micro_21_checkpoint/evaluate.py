"""Draws held-out prompts with the exported files and counts the correct pictures.

    python -m experiments.micro_21_checkpoint.evaluate --count 500

Writes accuracy.json and one contact sheet per case under --out. `--engine` is this package's model, or diffusers'
pipeline, which also runs where MLX does not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest

from experiments.micro_checkpoint.tally import contact_sheet, drawn, held_out, shares
from precision_lab.shapes import Scene
from precision_lab.shapes.scenes import TRANSPARENT

SHEET = 32
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """Pictures to draw: dtype of weights and activations, denoising steps, pixels."""

    dtype: str
    steps: int
    height: int = 128
    width: int = 128
    share: float = 1.0
    """The share of the prompts to draw."""

    @property
    def name(self) -> str:
        return f"{self.dtype}_{self.steps}_steps_{self.width}x{self.height}"


CASES = (
    Case("float32", 20),
    Case("float32", 20, share=0.3),
    Case("bfloat16", 20, share=0.3),
    Case("float16", 20, share=0.3),
    Case("float32", 10, share=0.2),
    Case("float32", 20, 128, 192, 0.06),
    Case("float32", 20, 192, 128, 0.06),
    Case("float32", 20, 96, 160, 0.06),
    Case("float32", 20, 256, 256, 0.06),
)

DrawSized = Callable[[Sequence[str], Sequence[int], int, int, int], np.ndarray]
"""As `tally.Draw`, with steps, height and width; the pixels have alpha."""


@contextmanager
def diffusers(folder: Path, dtype: str, device: str) -> Iterator[DrawSized]:
    """Draws with diffusers' pipeline."""
    from experiments.micro_21_checkpoint import reference

    pipeline = reference.load(folder, getattr(torch, dtype), device)
    yield lambda captions, seeds, *size: (reference.draw(pipeline, captions, seeds, *size) + 1) * 127.5


@contextmanager
def lab(folder: Path, dtype: str, device: str) -> Iterator[DrawSized]:
    """Draws with this package's model, on MLX's default device."""
    from precision_lab.device import blas

    blas.preload()  # before MLX is imported
    import mlx.core as mx

    from precision_lab.device.environment import set_numeric_switches
    from precision_lab.model.qwen_image_21.checkpoint import Checkpoint

    set_numeric_switches()
    pipeline = Checkpoint(folder).pipeline(getattr(mx, dtype))

    def draw(captions: Sequence[str], seeds: Sequence[int], steps: int, height: int, width: int) -> np.ndarray:
        grid = pipeline.grid(height, width)
        text = pipeline.encode(captions)
        text = text._replace(prefix=pipeline.transformer.prefill(text.embeds, text.mask))
        latents = mx.concatenate([pipeline.noise(seed, grid) for seed in seeds])
        for step in pipeline.denoise(latents, grid, steps, text, None, 1.0):
            mx.eval(step.latents)
            latents = step.latents
        return np.array(pipeline.decode(latents, grid))

    yield draw


ENGINES = {"lab": lab, "diffusers": diffusers}


def evaluate(case: Case, draw: DrawSized, count: int, batch: int, out: Path) -> dict[str, object]:
    """The shares of correct pictures; the first pictures are written to a contact sheet."""
    scenes = held_out(round(count * case.share), transparent=True)
    size = case.steps, case.height, case.width
    images, broken = drawn(scenes, lambda captions, seeds: draw(captions, seeds, *size), batch)
    contact_sheet(images[:SHEET]).save(out / f"{case.name}.png")
    kinds: dict[str, list[tuple[Scene, np.ndarray]]] = {"transparent": [], "opaque": []}
    for scene, image in zip(scenes, images, strict=True):
        kinds["transparent" if scene.background == TRANSPARENT else "opaque"].append((scene, image))
    result = {
        "dtype": case.dtype,
        "steps": case.steps,
        "height": case.height,
        "width": case.width,
        "prompts": len(scenes),
        **counted(scenes, images),
        "nonfinite_pixel_values": broken,
    }
    return result | {
        kind: {"prompts": len(pairs), **counted(*zip(*pairs, strict=True))} for kind, pairs in kinds.items() if pairs
    }


def counted(scenes: Sequence[Scene], images: Sequence[np.ndarray]) -> dict[str, object]:
    """The shares with Wilson's 95 % interval of the first."""
    result = shares(scenes, images)
    right = round(result["correct"] * len(scenes))
    interval = binomtest(right, len(scenes)).proportion_ci(method="wilson")
    return {"correct": result["correct"], "interval": [interval.low, interval.high], "attributes": result["attributes"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=REPOSITORY / "precision_lab" / "checkpoints" / "micro_21")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], help="only these")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results/reference/cpu/micro_21_checkpoint")
    parser.add_argument("--engine", choices=ENGINES, default="lab")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of diffusers")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in CASES:
        if options.cases and case.name not in options.cases:
            continue
        with ENGINES[options.engine](options.checkpoint, case.dtype, options.device) as draw:
            rows.append(evaluate(case, draw, options.count, options.batch, options.out))
        print(json.dumps(rows[-1]), flush=True)
        result = {"engine": options.engine, "cases": rows}
        (options.out / "accuracy.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
