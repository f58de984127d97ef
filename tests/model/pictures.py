"""Complete generations in both libraries, from the same noise and prompts."""

import mlx.core as mx
import numpy as np
import torch
from diffusers import QwenImagePipeline

from precision_lab.lab.folder import to_uint8
from precision_lab.model.text_to_image.sampler import noise
from tests.model.oracle import TORCH

NEGATIVE = " "


def load_reference(folder, dtype=mx.float32) -> QwenImagePipeline:
    pipeline = QwenImagePipeline.from_pretrained(folder, dtype=TORCH[dtype])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference_images(reference, prompts, seeds, height, width, steps, scale) -> tuple[np.ndarray, np.ndarray]:
    """Packed latents (B, L, C) and pixels (B, H, W, 3) in [0, 255], unrounded, both float64."""
    latents = torch.from_numpy(np.concatenate([noise(seed, 16, height // 8, width // 8) for seed in seeds]))
    packed = reference._pack_latents(latents, len(seeds), 16, height // 8, width // 8).to(reference.transformer.dtype)
    options = {"negative_prompt": [NEGATIVE] * len(prompts)} if scale > 1 else {}
    results = [
        reference(
            prompts,
            height=height,
            width=width,
            num_inference_steps=steps,
            true_cfg_scale=scale,
            latents=packed,
            output_type=output_type,
            **options,
        ).images
        for output_type in ("latent", "np")
    ]
    return results[0].double().numpy(), 255 * results[1].astype(np.float64)


def our_images(pipeline, prompts, seeds, height, width, steps, scale) -> tuple[np.ndarray, np.ndarray]:
    grid = pipeline.grid(height, width)
    latents = mx.concatenate([pipeline.noise(seed, grid) for seed in seeds])
    cond = pipeline.encode(prompts)
    uncond = pipeline.encode([NEGATIVE] * len(prompts)) if scale > 1 else None
    for step in pipeline.denoise(latents, grid, steps, cond, uncond, scale):
        mx.eval(step.latents)
        latents = step.latents
    assert latents.dtype == pipeline.dtype
    pixels = np.array(pipeline.decode(latents, grid))
    assert pixels.dtype == np.float32
    return np.array(latents.astype(mx.float32)).astype(np.float64), pixels


def assert_equal_images(pixels, expected) -> None:
    rounded, num_nonfinite = to_uint8(pixels)
    assert num_nonfinite == 0
    assert expected.std() > 20
    assert np.abs(rounded - expected.round()).max() <= 1
    assert np.abs(pixels - expected).max() <= 0.02
