"""Text to image against QwenImagePipeline of diffusers, with the same noise and prompts."""

import json
import os
import shutil
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import QwenImagePipeline

from precision_lab.errors import InputError
from precision_lab.instrument.scope import current_scope
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image.pipeline import Pipeline
from precision_lab.model.text_to_image.pipeline import Dtypes, denoise
from precision_lab.model.text_to_image.scheduler import sigmas
from tests.model.oracle import relative_l2
from tests.model.pictures import NEGATIVE, assert_equal_images, load_reference, our_images, reference_images
from tests.spread import thinned


@pytest.fixture(scope="module")
def reference(small_checkpoint) -> QwenImagePipeline:
    return load_reference(small_checkpoint)


@pytest.fixture(scope="module")
def pipeline(small_checkpoint) -> Pipeline:
    return Checkpoint(small_checkpoint).pipeline(mx.float32)


CASES = [
    pytest.param(["a red circle on a dark background"], [3], 112, 144, 4, 4.0, id="odd grid"),
    pytest.param(["two blue squares"], [4], 96, 64, 4, 1.0, id="no guidance"),
    pytest.param(["A cat", "several small stars above the sea, xyzzy"], [5, 6], 48, 80, 4, 2.5, id="two prompts"),
    pytest.param(["猫 {} 🙂"], [7], 16, 16, 2, 4.0, id="one token"),
    pytest.param([""], [8], 16, 400, 7, 1.5, id="one row"),
]


def test_embeddings_have_the_dtype_of_the_transformer(pipeline):
    mixed = replace(pipeline, dtypes=Dtypes(transformer=mx.bfloat16, text_encoder=mx.float32, vae=mx.float32))
    for padding in (0, 5):
        expected, embeds = (one.encode(["a horse"], padding=padding).embeds for one in (pipeline, mixed))
        assert embeds.dtype == mx.bfloat16
        assert mx.array_equal(embeds, expected.astype(mx.bfloat16))


@pytest.mark.parametrize(("prompts", "seeds", "height", "width", "steps", "scale"), CASES)
def test_equals_diffusers(reference, pipeline, prompts, seeds, height, width, steps, scale):
    args = prompts, seeds, height, width, steps, scale
    expected_latents, expected_pixels = reference_images(reference, *args)
    latents, pixels = our_images(pipeline, *args)
    assert relative_l2(latents, expected_latents) <= 1e-4
    assert_equal_images(pixels, expected_pixels)


@pytest.mark.slow
@pytest.mark.parametrize(("prompts", "seeds", "height", "width", "steps", "scale"), CASES)
def test_equals_diffusers_with_60_growing_blocks(micro_synthetic, prompts, seeds, height, width, steps, scale):
    args = prompts, seeds, height, width, steps, scale
    expected_latents, expected_pixels = reference_images(load_reference(micro_synthetic), *args)
    latents, pixels = our_images(Checkpoint(micro_synthetic).pipeline(mx.float32), *args)
    assert relative_l2(latents, expected_latents) <= 1e-4
    assert_equal_images(pixels, expected_pixels)


@pytest.mark.parametrize("dtype", thinned([mx.bfloat16, mx.float16], [mx.bfloat16]), ids=str)
def test_16_bit_error_is_that_of_diffusers(small_checkpoint, reference, dtype):
    """The error of a complete generation, relative to fp32."""
    narrow_reference = load_reference(small_checkpoint, dtype)
    narrow = Checkpoint(small_checkpoint).pipeline(dtype)
    ratios = []
    for seed in range(4):
        args = ["a green tree by a house"], [seed], 64, 80, 4, 4.0
        exact, _ = reference_images(reference, *args)
        expected, _ = reference_images(narrow_reference, *args)
        latents, _ = our_images(narrow, *args)
        ratios.append(relative_l2(latents, exact) / relative_l2(expected, exact))
    assert np.exp(np.mean(np.log(ratios))) <= 1.25, ratios


def test_embeddings_equal_those_of_diffusers(reference, pipeline):
    for prompts in (["a dog"], ["", "x"], ["one", "a much longer caption, with details", "日本語\n<|im_end|>"]):
        with torch.no_grad():
            expected, expected_mask = reference.encode_prompt(prompts)
        embeds, mask = pipeline.encode(prompts)
        assert embeds.dtype == mx.float32
        assert relative_l2(np.array(embeds), expected.numpy()) <= 1e-5
        if expected_mask is None:
            assert mask is None
        else:
            np.testing.assert_array_equal(mask, expected_mask)
            np.testing.assert_array_equal(np.array(embeds)[np.array(mask) == 0], 0)


def test_a_batch_equals_its_members(pipeline):
    prompts, seeds = ["a horse", "a bird above a bright yellow boat"], [11, 12]
    latents, pixels = our_images(pipeline, prompts, seeds, 48, 64, 3, 4.0)
    for i in range(2):
        alone, alone_pixels = our_images(pipeline, prompts[i : i + 1], seeds[i : i + 1], 48, 64, 3, 4.0)
        assert relative_l2(latents[i], alone[0]) <= 1e-5
        assert np.abs(pixels[i] - alone_pixels[0]).max() <= 0.02


def test_one_step_is_defined(pipeline):
    """In diffusers, stretching this schedule to its terminal level divides 0 by 0."""
    latents, pixels = our_images(pipeline, ["a ring"], [9], 32, 32, 1, 4.0)
    assert np.isfinite(latents).all()
    assert np.isfinite(pixels).all()


def test_generation_is_reproducible(pipeline):
    args = ["a lamp on a table"], [13], 48, 48, 2, 4.0
    first, second = our_images(pipeline, *args), our_images(pipeline, *args)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_steps_set_their_scope(pipeline, monkeypatch):
    seen = []
    forward = type(pipeline.transformer).__call__

    def watched(self, *args):
        seen.append(dict(current_scope()))
        return forward(self, *args)

    monkeypatch.setattr(type(pipeline.transformer), "__call__", watched)
    grid = pipeline.grid(32, 32)
    cond, uncond = pipeline.encode(["a"]), pipeline.encode([NEGATIVE])
    steps = list(pipeline.denoise(pipeline.noise(0, grid), grid, 3, cond, uncond, 4.0))
    assert [step.number for step in steps] == [0, 1, 2]
    assert steps[0].sigma == 1
    expected = [(step.number, step.sigma, branch) for step in steps for branch in ("cond", "uncond")]
    assert [(s["step"], s["sigma"], s["branch"]) for s in seen] == expected
    assert current_scope() == {}


def test_without_a_scale_the_negative_prompt_changes_nothing(pipeline):
    grid = pipeline.grid(32, 48)
    cond, uncond = pipeline.encode(["a river"]), pipeline.encode(["grain"])
    levels = sigmas(pipeline.scheduler, 2, grid.height * grid.width)
    noise = pipeline.noise(1, grid)
    runs = (
        pipeline.denoise(noise, grid, 2, cond),
        pipeline.denoise(noise, grid, 2, cond, uncond),
        denoise(pipeline.transformer, pipeline.sampler, noise, levels, grid, cond, uncond),
    )
    plain, *others = (np.array(list(run)[-1].latents) for run in runs)
    assert all(relative_l2(other, plain) <= 1e-6 for other in others)


def test_guidance_of_equal_branches_changes_nothing(pipeline):
    grid = pipeline.grid(32, 48)
    cond = pipeline.encode(["a river"])
    with_guidance, without = (
        list(pipeline.denoise(pipeline.noise(1, grid), grid, 2, cond, uncond, 4.0))[-1].latents
        for uncond in (cond, None)
    )
    assert relative_l2(np.array(with_guidance), np.array(without)) <= 1e-6


@pytest.mark.parametrize(
    ("height", "width", "named"),
    [(100, 64, "height is 100.*96 or 112"), (64, 8, "width is 8.*16 or 32"), (0, 64, "height"), (64, -16, "width")],
)
def test_sizes_that_are_not_whole_tokens_are_rejected(pipeline, height, width, named):
    with pytest.raises(InputError, match=named):
        pipeline.grid(height, width)


def test_prompts_longer_than_the_model_reads_are_rejected(pipeline):
    with pytest.raises(InputError, match="1105 tokens"):
        pipeline.encode(["red" + " red" * 1099])


@pytest.mark.parametrize("limit", [3, 8, 512, 1024])
def test_text_is_cut_as_in_diffusers(reference, pipeline, limit):
    """Prompts between 512 and 1024 tokens differ from the default of diffusers unless the limit is given."""
    for prompt in ("a red circle on a dark background", "red " * 700):
        with torch.no_grad():
            expected, _ = reference.encode_prompt([prompt], max_sequence_length=limit)
        embeds, mask = pipeline.encode([prompt], limit)
        assert mask is None
        assert embeds.shape == expected.shape
        assert embeds.shape[1] <= limit
        assert relative_l2(np.array(embeds), expected.numpy()) <= 1e-5


def test_a_schedule_of_another_file_equals_diffusers(small_checkpoint, tmp_path):
    """A file with few keys, whose missing ones have the defaults of the class in both."""
    folder = shutil.copytree(small_checkpoint, tmp_path / "static", copy_function=os.link)
    file = folder / "scheduler" / "scheduler_config.json"
    file.unlink()
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    file.write_text(json.dumps(config))
    args = ["a red circle on a dark background"], [3], 64, 48, 4, 4.0
    expected_latents, expected_pixels = reference_images(load_reference(folder), *args)
    latents, pixels = our_images(Checkpoint(folder).pipeline(mx.float32), *args)
    assert relative_l2(latents, expected_latents) <= 1e-4
    assert_equal_images(pixels, expected_pixels)
    published, _ = our_images(Checkpoint(small_checkpoint).pipeline(mx.float32), *args)
    assert relative_l2(published, expected_latents) > 1e-2
