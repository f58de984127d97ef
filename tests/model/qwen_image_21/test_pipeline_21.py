"""Text to image against QwenImage21Pipeline of diffusers, with the same noise and prompts."""

import os
import shutil
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import torch

from precision_lab.errors import InputError
from precision_lab.model.qwen_image_21.checkpoint import Checkpoint
from precision_lab.model.qwen_image_21.pipeline import Pipeline
from precision_lab.model.text_to_image.pipeline import Dtypes
from precision_lab.model.text_to_image.scheduler import SchedulerConfig
from precision_lab.synthetic import PRESETS, make
from tests.model.oracle import relative_l2
from tests.model.pictures import assert_equal_images
from tests.model.qwen_image_21.pictures import (
    load_reference,
    needs_torchvision,
    our_images,
    our_noise,
    reference_images,
)
from tests.spread import slow, thinned

TURBO = (1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568)


@pytest.fixture(scope="module")
def reference(small_checkpoint_21):
    return load_reference(small_checkpoint_21)


@pytest.fixture(scope="module")
def pipeline(small_checkpoint_21) -> Pipeline:
    return Checkpoint(small_checkpoint_21).pipeline(mx.float32)


def assert_equal(reference, pipeline, seeds, prompts, height, width, *args, **settings):
    noise = our_noise(pipeline, seeds, height, width)
    expected_latents, expected_pixels = reference_images(reference, noise, prompts, height, width, *args, **settings)
    latents, pixels = our_images(pipeline, noise, prompts, height, width, *args, **settings)
    assert pixels.shape == (len(prompts), height, width, 4)
    assert relative_l2(latents, expected_latents) <= 1e-4
    assert_equal_images(pixels, expected_pixels)


CASES = [
    pytest.param(["two blue squares"], [3], 96, 160, id="odd grid"),
    pytest.param(["A cat", "several small stars above the sea, xyzzy"], [5, 6], 64, 96, id="two prompts"),
    pytest.param(["猫 {} 🙂"], [7], 32, 32, id="four tokens"),
    pytest.param([""], [8], 32, 416, id="two rows"),
]


@needs_torchvision
@pytest.mark.parametrize(
    ("scale", "cache"),
    [(3.0, True), (1.0, False), slow((1.0, True)), slow((3.0, False))],
    ids=lambda value: {True: "cached", False: "one pass"}[value] if isinstance(value, bool) else str(value),
)
@pytest.mark.parametrize(("prompts", "seeds", "height", "width"), CASES)
def test_equals_diffusers(reference, pipeline, prompts, seeds, height, width, scale, cache):
    assert_equal(reference, pipeline, seeds, prompts, height, width, 4, scale, cache=cache)


@needs_torchvision
@pytest.mark.parametrize("cache", [True, slow(False)], ids=["cached", "one pass"])
def test_equals_diffusers_with_32_blocks(tmp_path, cache):
    make(PRESETS["micro_21"], tmp_path / "micro", seed=3)
    ours = Checkpoint(tmp_path / "micro").pipeline(mx.float32)
    prompts = ["a red circle", "a yellow star on a transparent background"]
    assert_equal(load_reference(tmp_path / "micro"), ours, [1, 2], prompts, 64, 96, 4, 3.0, cache=cache)


@needs_torchvision
def test_equals_diffusers_with_the_noise_levels_of_turbo(tmp_path):
    micro = PRESETS["micro_21"]
    small = replace(micro, transformer=replace(micro.transformer, num_layers=2))
    make(replace(small, sample_sigmas=TURBO, scheduler=SchedulerConfig()), tmp_path / "turbo")
    turbo, reference = Checkpoint(tmp_path / "turbo").pipeline(mx.float32), load_reference(tmp_path / "turbo")
    assert turbo.sample_sigmas == TURBO
    assert_equal(reference, turbo, [2], ["a blue star"], 64, 96, 8)
    with pytest.raises(InputError, match=r"sampler\.steps is 4, but the checkpoint states 8 noise levels"):
        our_images(turbo, our_noise(turbo, [2], 64, 96), ["a blue star"], 64, 96, 4)


@needs_torchvision
@pytest.mark.parametrize(
    "scheduler",
    [
        SchedulerConfig(shift=3.0),
        SchedulerConfig(use_dynamic_shifting=True, base_shift=0.3, max_shift=1.3, max_image_seq_len=64),
        SchedulerConfig(use_dynamic_shifting=True, shift_terminal=0.1, time_shift_type="linear"),
    ],
    ids=["static", "dynamic", "linear, terminal"],
)
def test_equals_diffusers_with_other_schedules(tmp_path, scheduler):
    micro = PRESETS["micro_21"]
    small = replace(micro, transformer=replace(micro.transformer, num_layers=2), scheduler=scheduler)
    make(small, tmp_path / "other")
    ours = Checkpoint(tmp_path / "other").pipeline(mx.float32)
    assert_equal(load_reference(tmp_path / "other"), ours, [2], ["a blue star"], 64, 160, 4)


@needs_torchvision
@pytest.mark.parametrize("dtype", thinned([mx.bfloat16, mx.float16], [mx.float16]), ids=str)
def test_16_bit_error_is_that_of_diffusers(small_checkpoint_21, reference, pipeline, dtype):
    """The error of a complete generation, relative to fp32."""
    narrow_reference = load_reference(small_checkpoint_21, dtype)
    narrow = Checkpoint(small_checkpoint_21).pipeline(dtype)
    ratios = []
    for seed in range(4):
        noise = our_noise(narrow, [seed], 64, 96)
        args = noise, ["a green tree by a house"], 64, 96, 4
        exact, _ = reference_images(reference, *args)
        expected, _ = reference_images(narrow_reference, *args)
        latents, _ = our_images(narrow, *args)
        ratios.append(relative_l2(latents, exact) / relative_l2(expected, exact))
    assert np.exp(np.mean(np.log(ratios))) <= 1.25, ratios


@needs_torchvision
def test_embeddings_equal_those_of_diffusers(reference, pipeline):
    for prompts in (["a dog"], ["", "x"], ["one", "a much longer caption, with details", "日本語\n<|im_end|>"]):
        with torch.no_grad():
            expected, expected_mask, _ = reference.encode_prompt(prompts)
        embeds, mask, prefix = pipeline.encode(prompts)
        assert prefix is None
        assert embeds.dtype == mx.float32
        assert relative_l2(np.array(embeds), expected.numpy()) <= 1e-5
        if expected_mask is None:
            assert mask is None
        else:
            np.testing.assert_array_equal(mask, expected_mask)
            np.testing.assert_array_equal(np.array(embeds)[np.array(mask) == 0], 0)


@needs_torchvision
def test_the_dropped_tokens_are_those_of_diffusers(reference, pipeline):
    assert pipeline.tokenizer.dropped == reference._drop_idx


def test_a_batch_equals_its_members_with_their_padding(pipeline):
    """Padding counts as positions: it moves the image along the axis of frames, in diffusers too."""
    prompts, noise = ["a horse", "a bird above a bright yellow boat"], our_noise(pipeline, [11, 12], 64, 96)
    latents, pixels = our_images(pipeline, noise, prompts, 64, 96, 3)
    short, long = (pipeline.tokenizer.counts([prompt])[0] for prompt in prompts)
    for i, padding in enumerate((long - short, 0)):
        args = noise[i : i + 1], prompts[i : i + 1], 64, 96, 3
        alone, alone_pixels = our_images(pipeline, *args, padding=padding)
        assert relative_l2(latents[i], alone[0]) <= 1e-5
        assert np.abs(pixels[i] - alone_pixels[0]).max() <= 0.02
    unpadded, _ = our_images(pipeline, noise[:1], prompts[:1], 64, 96, 3)
    assert relative_l2(latents[0], unpadded[0]) > 1e-2


def test_padding_changes_no_embedding(pipeline):
    plain, padded = pipeline.encode(["a horse"]), pipeline.encode(["a horse"], padding=5)
    assert plain.mask is None
    count = plain.embeds.shape[1]
    np.testing.assert_array_equal(padded.mask, [[1] * count + [0] * 5])
    assert relative_l2(np.array(padded.embeds)[:, :count], np.array(plain.embeds)) <= 1e-5


def test_embeddings_have_the_dtype_of_the_transformer(pipeline):
    mixed = replace(pipeline, dtypes=Dtypes(transformer=mx.bfloat16, text_encoder=mx.float32, vae=mx.float32))
    for padding in (0, 5):
        expected, embeds = (one.encode(["a horse"], padding).embeds for one in (pipeline, mixed))
        assert embeds.dtype == mx.bfloat16
        assert mx.array_equal(embeds, expected.astype(mx.bfloat16))


def test_generation_is_reproducible(pipeline):
    args = our_noise(pipeline, [13], 64, 64), ["a lamp on a table"], 64, 64, 2
    for a, b in zip(our_images(pipeline, *args), our_images(pipeline, *args), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_step_is_defined(pipeline):
    latents, pixels = our_images(pipeline, our_noise(pipeline, [9], 32, 32), ["a ring"], 32, 32, 1)
    assert np.isfinite(latents).all()
    assert np.isfinite(pixels).all()


@pytest.mark.parametrize(
    ("height", "width", "named"),
    [(100, 64, "height is 100.*96 or 128"), (64, 48, "width is 48.*32 or 64"), (0, 64, "height"), (64, -32, "width")],
)
def test_sizes_that_diffusers_would_round_are_rejected(pipeline, height, width, named):
    with pytest.raises(InputError, match=named):
        pipeline.grid(height, width)


def test_prompts_longer_than_the_model_reads_are_rejected(pipeline):
    with pytest.raises(InputError, match="tokens, expected at most 1024"):
        pipeline.encode(["red" + " red" * 1099])


@needs_torchvision
def test_checkpoints_saved_by_diffusers_load_unchanged(small_checkpoint_21, reference, tmp_path):
    """Sharded files, the names of transformers, a tokenizer.json, and a processor_config.json."""
    saved = tmp_path / "saved"
    narrow = load_reference(small_checkpoint_21, mx.bfloat16)
    narrow.save_pretrained(saved)
    for part in ("transformer", "text_encoder", "vae"):
        shutil.rmtree(saved / part)
        getattr(narrow, part).save_pretrained(saved / part, max_shard_size="100KB")
        assert len(list((saved / part).glob("*.safetensors"))) > 1
    pictures = []
    for folder in (small_checkpoint_21, saved):
        pipeline = Checkpoint(folder).pipeline(mx.float32)
        pictures.append(our_images(pipeline, our_noise(pipeline, [3], 64, 96), ["a star"], 64, 96, 2)[1])
    np.testing.assert_array_equal(*pictures)


@needs_torchvision
def test_weights_in_fp32_give_the_same_picture(small_checkpoint_21, tmp_path):
    """The published VAE is stored in fp32."""
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(small_checkpoint_21, tmp_path / "wide", copy_function=os.link)
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    wide = {name: value.astype(np.float32) for name, value in load_file(file).items()}
    file.unlink()
    save_file(wide, file)
    pictures = []
    for each in (small_checkpoint_21, folder):
        pipeline = Checkpoint(each).pipeline(mx.float32)
        pictures.append(our_images(pipeline, our_noise(pipeline, [3], 64, 96), ["a star"], 64, 96, 2)[1])
    np.testing.assert_array_equal(*pictures)
