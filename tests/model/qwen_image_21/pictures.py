"""Complete generations of Qwen-Image-2.1 in both libraries, from the same noise and prompts."""

from importlib.util import find_spec

import mlx.core as mx
import numpy as np
import pytest
import torch

from precision_lab.model.qwen_image_21.pipeline import Conditioning, Pipeline
from tests.model.oracle import TORCH
from tests.model.pictures import NEGATIVE

needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="Qwen3VLProcessor needs torchvision")


def load_reference(folder, dtype=mx.float32):
    from diffusers import QwenImage21Pipeline

    pipeline = QwenImage21Pipeline.from_pretrained(folder, dtype=TORCH[dtype])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference_images(reference, noise, prompts, height, width, steps, scale=1.0, cache=True):
    """Packed latents (B, L, C) and pixels (B, H, W, 4) in [0, 255], unrounded, both float64. noise: as `our_noise`."""
    options = {"negative_prompt": [NEGATIVE] * len(prompts)} if scale > 1 else {}
    results = [
        reference(
            prompts,
            height=height,
            width=width,
            num_inference_steps=steps,
            true_cfg_scale=scale,
            latents=torch.from_numpy(noise),
            output_type=output_type,
            use_kv_cache=cache,
            **options,
        ).images
        for output_type in ("latent", "np")
    ]
    return results[0].double().numpy(), 255 * results[1].astype(np.float64)


def our_noise(pipeline: Pipeline, seeds, height, width) -> np.ndarray:
    """Packed noise (B, L, C) of these seeds, fp32."""
    grid = pipeline.grid(height, width)
    return np.concatenate([np.array(pipeline.noise(seed, grid).astype(mx.float32)) for seed in seeds])


def conditioning(pipeline: Pipeline, prompts, cache: bool, padding: int = 0) -> Conditioning:
    text = pipeline.encode(prompts, padding)
    return text._replace(prefix=pipeline.transformer.prefill(text.embeds, text.mask)) if cache else text


def our_images(pipeline: Pipeline, noise, prompts, height, width, steps, scale=1.0, cache=True, padding=0):
    """The same of our pipeline."""
    grid = pipeline.grid(height, width)
    cond = conditioning(pipeline, prompts, cache, padding)
    uncond = conditioning(pipeline, [NEGATIVE] * len(prompts), cache) if scale > 1 else None
    latents = mx.array(noise).astype(pipeline.dtype)
    for step in pipeline.denoise(latents, grid, steps, cond, uncond, scale):
        mx.eval(step.latents)
        latents = step.latents
    assert latents.dtype == pipeline.dtype
    pixels = np.array(pipeline.decode(latents, grid))
    assert pixels.dtype == np.float32
    return np.array(latents.astype(mx.float32)).astype(np.float64), pixels
