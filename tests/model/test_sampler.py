"""The operations around the transformer against the formulas of QwenImagePipeline, executed by torch."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline
from diffusers.image_processor import VaeImageProcessor

from precision_lab.lab.folder import to_uint8
from precision_lab.model.qwen_image.config import VAEConfig
from precision_lab.model.qwen_image.sampler import Denormalize, Guidance, pack, unpack
from precision_lab.model.text_to_image.sampler import EulerStep, Timestep, ToPixels, noise
from tests.model.oracle import TORCH, relative_l2

DTYPES = pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)


def normal(rng, *shape, size=1.0) -> np.ndarray:
    return np.float32(size) * rng.standard_normal(shape, dtype=np.float32)


def torch_of(a: np.ndarray, dtype: mx.Dtype) -> torch.Tensor:
    return torch.from_numpy(a).to(TORCH[dtype])


def mlx_of(a: np.ndarray, dtype: mx.Dtype) -> mx.array:
    return mx.array(a).astype(dtype)


def assert_equal(result: mx.array, expected: torch.Tensor) -> None:
    """The dtypes and the bits are equal."""
    assert TORCH[result.dtype] == expected.dtype
    np.testing.assert_array_equal(np.array(result.astype(mx.float32)), expected.float().numpy())


def schedule(steps: int, mu: float) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    scheduler.set_begin_index(0)
    return scheduler


@DTYPES
def test_timestep(dtype):
    for steps, mu in ((4, 0.5), (20, 0.5387), (50, 0.6935), (100, 0.8343)):
        scheduler = schedule(steps, mu)
        for sigma, t in zip(scheduler.sigmas.numpy(), scheduler.timesteps, strict=False):
            assert_equal(Timestep()(mx.array(sigma), dtype), t.expand(1).to(TORCH[dtype]) / 1000)


@DTYPES
@pytest.mark.parametrize("scale", [1.0, 1.7, 4.0, 7.5])
def test_guidance(dtype, scale):
    rng = np.random.default_rng(0)
    for shape, size in (((1, 63, 64), 1), ((2, 13, 64), 4), ((1, 5, 12), 0.01), ((3, 1, 64), 100)):
        cond, uncond = normal(rng, *shape, size=size), normal(rng, *shape, size=size)
        c, u = torch_of(cond, dtype), torch_of(uncond, dtype)
        combined = u + scale * (c - u)
        expected = combined * (torch.norm(c, dim=-1, keepdim=True) / torch.norm(combined, dim=-1, keepdim=True))
        result = Guidance()(mlx_of(cond, dtype), mlx_of(uncond, dtype), scale)
        if dtype == mx.float32:  # the sums of squares have another order
            assert relative_l2(np.array(result), expected.double().numpy()) <= 5e-7
        else:
            assert_equal(result, expected)


def test_guidance_keeps_the_norm_of_the_conditional_velocity():
    rng = np.random.default_rng(1)
    cond, uncond = normal(rng, 2, 33, 64), normal(rng, 2, 33, 64)
    result = Guidance()(mx.array(cond), mx.array(uncond), 4.0)
    np.testing.assert_allclose(np.linalg.norm(result, axis=-1), np.linalg.norm(cond, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(Guidance()(mx.array(cond), mx.array(cond), 4.0), cond, rtol=1e-6)


@DTYPES
def test_euler_step(dtype):
    """The reference rounds dt to the dtype of the velocity as well."""
    rng = np.random.default_rng(2)
    for steps, mu in ((4, 0.5), (20, 0.6935)):
        scheduler = schedule(steps, mu)
        levels = scheduler.sigmas.numpy()
        for i, t in enumerate(scheduler.timesteps):
            latents, velocity = normal(rng, 2, 63, 64, size=3), normal(rng, 2, 63, 64, size=3)
            expected = scheduler.step(torch_of(velocity, dtype), t, torch_of(latents, dtype), return_dict=False)[0]
            dt = mx.array(levels[i + 1] - levels[i])
            assert_equal(EulerStep()(mlx_of(latents, dtype), mlx_of(velocity, dtype), dt), expected)


@DTYPES
def test_denormalize(dtype):
    rng = np.random.default_rng(3)
    random = VAEConfig(latents_mean=tuple(rng.normal(size=16)), latents_std=tuple(rng.uniform(0.5, 4, 16)))
    for config in (VAEConfig(), random):
        x = normal(rng, 2, 7, 5, 16, size=2)
        latents = torch_of(x, dtype)
        mean = torch.tensor(config.latents_mean).to(latents.dtype)
        inverse_std = 1.0 / torch.tensor(config.latents_std).to(latents.dtype)
        assert_equal(Denormalize(config)(mlx_of(x, dtype)), latents / inverse_std + mean)


@DTYPES
def test_pixels_equal_those_of_the_image_processor(dtype):
    rng = np.random.default_rng(4)
    ramp = np.linspace(-1.2, 1.2, 3 * 64 * 64, dtype=np.float32).reshape(1, 64, 64, 3)
    halves = ((2 * np.arange(256) + 1) / 255 - 1).astype(np.float32).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    for x in (ramp, halves, normal(rng, 2, 17, 31, 3, size=0.7)):
        images = torch_of(x, dtype).permute(0, 3, 1, 2)
        expected = VaeImageProcessor(vae_scale_factor=16).postprocess(images, output_type="pil")
        pixels, num_nonfinite = to_uint8(np.array(ToPixels()(mlx_of(x, dtype))))
        assert pixels.dtype == np.uint8
        assert num_nonfinite == 0
        np.testing.assert_array_equal(pixels, np.stack([np.asarray(image) for image in expected]))


def test_non_finite_pixels_are_counted_and_drawn_as_zero():
    x = normal(np.random.default_rng(5), 1, 4, 4, 3, size=0.3)
    x[0, 1, 2], x[0, 3, 3, 1] = np.nan, np.nan
    pixels, num_nonfinite = to_uint8(np.array(ToPixels()(mx.array(x))))
    assert num_nonfinite == 4
    np.testing.assert_array_equal(pixels[np.isnan(x)], 0)
    assert (pixels[~np.isnan(x)] > 0).all()


@pytest.mark.parametrize("shape", [(1, 16, 2, 2), (2, 16, 14, 18), (3, 4, 6, 166), (1, 16, 184, 138)], ids=str)
def test_packing(shape):
    batch, channels, height, width = shape
    x = normal(np.random.default_rng(6), *shape)
    expected = QwenImagePipeline._pack_latents(torch.from_numpy(x), batch, channels, height, width)
    packed = pack(mx.array(x))
    assert_equal(packed, expected)
    unpacked = QwenImagePipeline._unpack_latents(expected, 8 * height, 8 * width, 8)[:, :, 0].permute(0, 2, 3, 1)
    assert_equal(unpack(packed, height, width), unpacked)
    np.testing.assert_array_equal(np.array(unpack(packed, height, width)).transpose(0, 3, 1, 2), x)


def test_noise_is_that_of_numpy():
    for seed, height, width in ((0, 14, 18), (2**40 + 1, 2, 2), (12345, 166, 166)):
        expected = np.random.Generator(np.random.PCG64(seed)).standard_normal((1, 16, height, width), np.float32)
        np.testing.assert_array_equal(noise(seed, 16, height, width), expected)
        np.testing.assert_array_equal(noise(seed, 16, height, width), expected)
    # literal values, so that another version of NumPy cannot change all results unnoticed
    np.testing.assert_array_equal(noise(0, 1, 1, 3).ravel(), np.float32([1.1176220, -1.3871249, -0.4265716]))
    assert not (noise(1, 16, 4, 4) == noise(2, 16, 4, 4)).any()
