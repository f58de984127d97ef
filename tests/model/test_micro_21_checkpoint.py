"""The embedded checkpoint of Qwen-Image-2.1 draws what its prompts say, as in diffusers, with the reported ranges."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors import safe_open

from experiments.micro_21_checkpoint import evaluate, reference
from experiments.micro_checkpoint.tally import rounded
from precision_lab.cli.paths import checkpoints_dir
from precision_lab.model.qwen_image_21.checkpoint import Checkpoint
from precision_lab.shapes import correct, parse
from tests.model.oracle import relative_l2
from tests.model.qwen_image_21.pictures import our_images, our_noise, reference_images
from tests.spread import slow

FOLDER = checkpoints_dir() / "micro_21"
LATENTS = 2e-5
"""Bound on the relative L2 of fp32 latents against diffusers."""

PROMPTS = [
    "two large red triangles on a transparent background, bottom",
    "a red circle on a blue background",
    "three white squares on a cyan background, right",
    "a large yellow star on a transparent background",
]


def test_it_has_the_published_layout_and_says_that_it_is_trained():
    index = json.loads((FOLDER / "model_index.json").read_text())
    assert index["_class_name"] == "QwenImage21Pipeline"
    assert index["_weights"] == Checkpoint(FOLDER).origin == "trained"
    for part in ("transformer", "text_encoder", "processor", "vae", "scheduler"):
        assert index[part][1]
        assert list((FOLDER / part).glob("*.json"))
    card = (FOLDER / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "synthetic world" in card
    config = Checkpoint(FOLDER).transformer_config()
    assert (config.num_layers, config.patch_size, config.mlp_ratio, config.causal_condition) == (32, 1, 3, True)


def test_it_is_small():
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 13 << 20
    assert len(list((FOLDER / "transformer").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_weights_are_bfloat16_and_finite_in_float16(part):
    for path in sorted((FOLDER / part).glob("*.safetensors")):
        with safe_open(path, "np") as header:
            assert {header.get_slice(name).get_dtype() for name in header.keys()} == {"BF16"}  # noqa: SIM118
        for name, tensor in mx.load(str(path)).items():
            assert mx.isfinite(tensor.astype(mx.float16)).all(), name


@pytest.mark.parametrize("count", [2, slow(4)])
def test_it_draws_what_the_prompts_say(count):
    """In fp32 with 8 steps, with and without a background."""
    with evaluate.lab(FOLDER, "float32", "cpu") as draw:
        drawn = draw(PROMPTS[:count], range(count), 8, 128, 128)
    for caption, image in zip(PROMPTS[:count], rounded(drawn)[0], strict=True):
        assert correct(parse(caption), image), caption


@pytest.mark.slow  # test_pipeline_21.py compares 32 blocks
@pytest.mark.parametrize(("height", "width", "seed"), [(128, 128, 0), (96, 160, 3)])
def test_diffusers_draws_the_same_pictures(height, width, seed):
    """Unrounded pixels differ by at most 0.05 on the scale of 255; colours of transparent pixels are compared too."""
    pipeline = Checkpoint(FOLDER).pipeline(mx.float32)
    noise = our_noise(pipeline, [seed, seed + 1], height, width)
    args = noise, PROMPTS[:2], height, width, 3
    latents, pixels = our_images(pipeline, *args)
    expected, expected_pixels = reference_images(reference.load(FOLDER, torch.float32), *args)
    assert expected_pixels.std() > 20
    assert relative_l2(latents, expected) <= LATENTS
    assert np.abs(pixels - expected_pixels).max() <= 0.05


def test_the_streams_stay_small():
    """Growth is as training left it: far from float16's limit, unlike that of the micro checkpoint."""
    result = json.loads((evaluate.REPOSITORY / "results/reference/cpu/micro_21_checkpoint/growth.json").read_text())
    pipeline = reference.load(FOLDER, torch.float32)
    peaks: list[float] = []
    for block in pipeline.transformer.transformer_blocks:
        block.register_forward_hook(lambda module, args, output: peaks.append(output.abs().max().item()))
    reference.draw(pipeline, PROMPTS[:2], [0, 1], 2, 128, 128)
    reported = max(max(row[kind]["amax"]) for row in result["steps"] for kind in ("image", "text") if kind in row)
    assert 0.5 * reported <= max(peaks) <= 1.5 * reported
    assert max(peaks) < 300
