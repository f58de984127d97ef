"""Draws held-out prompts with the adapter in this package's model: correct pictures, and how far from the teacher's.

    python -m experiments.micro_lightning.evaluate --count 200

Every case draws the same prompts from the same noise. The teacher is the base in fp32 with 20 steps and guidance 4;
the first --compared pictures are compared with its pictures. Writes accuracy.json and a contact sheet per case under
--out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from precision_lab.device import blas

blas.preload()  # before MLX is imported

import mlx.core as mx  # noqa: E402

from experiments.micro_checkpoint.tally import contact_sheet, held_out, rounded, shares  # noqa: E402
from precision_lab.device.environment import set_numeric_switches  # noqa: E402
from precision_lab.model.qwen_image.checkpoint import Checkpoint  # noqa: E402
from precision_lab.model.qwen_image.pipeline import Pipeline  # noqa: E402
from precision_lab.model.qwen_image.settings import Settings  # noqa: E402
from precision_lab.model.text_to_image.pipeline import denoise  # noqa: E402
from precision_lab.settings import checked  # noqa: E402
from precision_lab.techniques.base import applied  # noqa: E402
from precision_lab.techniques.lora import LoRA  # noqa: E402

BATCH = 20
SHEET = 32
REPOSITORY = Path(__file__).parents[2]
CHECKPOINTS = REPOSITORY / "precision_lab" / "checkpoints"


@dataclass(frozen=True)
class Case:
    """dtype of the activations. sampler: an option of conf/sampler, or None for 20 steps with guidance 4."""

    name: str
    dtype: str
    sampler: str | None = "lightning4"
    adapter: bool = True

    @property
    def settings(self) -> Settings:
        if self.sampler is None:
            return Settings(steps=20, guidance_scale=4.0)
        stated = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "conf" / "sampler" / f"{self.sampler}.yaml"))
        settings: Settings = checked(Settings, stated)
        return settings


TEACHER = Case("teacher", "float32", None, adapter=False)
CASES = (
    Case("adapter", "float32"),
    Case("adapter_bfloat16", "bfloat16"),
    Case("base", "float32", adapter=False),
)


def draw(pipeline: Pipeline, captions: Sequence[str], seeds: Sequence[int], settings: Settings) -> np.ndarray:
    """Unrounded pixels (n, height, width, 3)."""
    grid = pipeline.grid(settings.height, settings.width)
    cond = pipeline.encode(captions)
    uncond = pipeline.encode([settings.negative_prompt] * len(captions)) if settings.guided else None
    latents = mx.concatenate([pipeline.noise(seed, grid) for seed in seeds])
    levels = pipeline.levels(settings, grid)
    steps = denoise(
        pipeline.transformer, pipeline.sampler, latents, levels, grid, cond, uncond, settings.guidance_scale
    )
    for step in steps:
        mx.eval(step.latents)
        latents = step.latents
    return np.array(pipeline.decode(latents, grid))


def pictures(case: Case, captions: Sequence[str], adapter: Path) -> tuple[np.ndarray, int]:
    """(n, height, width, 3) uint8, seeded by their place in the list, and the number of non-finite values in all."""
    pipeline = Checkpoint(CHECKPOINTS / "micro").pipeline(getattr(mx, case.dtype))
    found, broken = [], 0
    with ExitStack() as stack:
        if case.adapter:
            stack.enter_context(applied(pipeline.components, {"lora": LoRA(str(adapter))}))
        for start in range(0, len(captions), BATCH):
            part = captions[start : start + BATCH]
            images, nonfinite = rounded(draw(pipeline, part, range(start, start + len(part)), case.settings))
            found.append(images)
            broken += nonfinite
    return np.concatenate(found), broken


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Median over pictures of the peak signal-to-noise ratio in dB of uint8 pictures (n, height, width, 3)."""
    error = np.square(one.astype(np.float64) - other).mean((1, 2, 3))
    return float(np.median(10 * np.log10(255**2 / np.maximum(error, 1e-10))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, default=CHECKPOINTS / "micro_lightning")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--compared", type=int, default=40)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "reference" / "cpu" / "micro_lightning")
    options = parser.parse_args()
    set_numeric_switches()
    options.out.mkdir(parents=True, exist_ok=True)
    scenes = held_out(options.count)
    captions = [scene.caption for scene in scenes]
    taught, _ = pictures(TEACHER, captions[: options.compared], options.adapter)
    contact_sheet(taught[:SHEET]).save(options.out / f"{TEACHER.name}.png")
    rows = []
    for case in CASES:
        images, broken = pictures(case, captions, options.adapter)
        contact_sheet(images[:SHEET]).save(options.out / f"{case.name}.png")
        settings = case.settings
        row = {
            "case": case.name,
            "dtype": case.dtype,
            "adapter": case.adapter,
            "steps": settings.steps,
            "guidance_scale": settings.guidance_scale,
            "prompts": len(scenes),
            **shares(scenes, images),
            "compared": len(taught),
            "psnr_to_teacher_db": psnr(images[: len(taught)], taught),
            "nonfinite_pixel_values": broken,
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    teacher = {"steps": TEACHER.settings.steps, "guidance_scale": TEACHER.settings.guidance_scale}
    teacher |= {"prompts": len(taught), **shares(scenes[: len(taught)], taught)}
    result = {"fingerprint": Checkpoint(CHECKPOINTS / "micro").fingerprint(), "teacher": teacher, "cases": rows}
    (options.out / "accuracy.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
