"""The recipe of the micro_21 checkpoint, on models of a few blocks and a few steps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel

from experiments.micro_21_checkpoint import evaluate, pools, prompt, reference, skeleton, transformer, vae, verify
from experiments.micro_21_checkpoint.model import attention_bias, forward
from experiments.micro_checkpoint import data, state, tally
from experiments.micro_checkpoint.model import Parameters, stack, unstack
from experiments.micro_checkpoint.tally import contact_sheet, opaque
from precision_lab.cli.paths import checkpoints_dir
from precision_lab.shapes import Scene, held_out_scenes, training_scenes

FOLDER = checkpoints_dir() / "micro_21"
FP32 = 2e-6


def small_model(blocks: int) -> QwenImage21Transformer2DModel:
    return QwenImage21Transformer2DModel(**(skeleton.TRANSFORMER | {"num_layers": blocks})).eval()


def random_parameters(model: QwenImage21Transformer2DModel, seed: int) -> Parameters:
    """Every parameter matters: matrices of unit gain, norms that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, old in stack(model.state_dict()).items():
        value = torch.randn(old.shape, generator=generator)
        drawn[name] = 1 + 0.3 * value if ".norm_" in name else value * old.shape[-1] ** -0.5
    return drawn


# --- the transformer


@pytest.mark.parametrize(("seed", "blocks"), [(0, 1), (1, 3)])
@pytest.mark.parametrize("grid", [(8, 8), (6, 10), (2, 2)])
def test_the_forward_equals_diffusers(seed, blocks, grid):
    model = small_model(blocks)
    assert verify.difference(model, random_parameters(model, seed), grid, seed) <= FP32


@torch.no_grad()
def test_each_sample_of_a_padded_batch_equals_diffusers_alone():
    """With the image at the position that the sample has without padding, as half of the training has it."""
    model, grid, lengths = small_model(2), (4, 6), [18, 9, 15]
    parameters = random_parameters(model, 5)
    model.load_state_dict(unstack(parameters))
    batch = verify.random_batch(model, grid, lengths, 5)
    words, images = pools.rotations(model, grid)
    turns = torch.stack([torch.cat((words, images[length])) for length in lengths])
    together = forward(parameters, batch._replace(cos=turns.real, sin=turns.imag), torch.float32)
    for i, length in enumerate(lengths):
        alone = batch._replace(
            latents=batch.latents[i : i + 1],
            timestep=batch.timestep[i : i + 1],
            text=batch.text[i : i + 1, :length],
            mask=batch.mask[i : i + 1, :length],
        )
        expected = verify.published(model, alone, grid)[0]
        assert (together[i] - expected).norm() <= FP32 * expected.norm()


@torch.no_grad()
def test_the_recorded_streams_are_those_of_diffusers():
    model, grid = small_model(2), (4, 4)
    parameters = random_parameters(model, 6)
    model.load_state_dict(unstack(parameters))
    batch = verify.random_batch(model, grid, [7, 7], 6)
    recorded: list[torch.Tensor] = []
    forward(parameters, batch, torch.float32, streams=recorded)
    expected: list[torch.Tensor] = []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda module, args, output: expected.append(output))
    verify.published(model, batch, grid)
    torch.testing.assert_close(recorded[1:], expected, rtol=1e-4, atol=1e-4)


def test_text_is_causal_images_see_all_and_padding_is_not_seen():
    mask = torch.tensor([[True, True, True], [True, True, False]])
    seen = attention_bias(mask, 5, torch.float32)[:, 0] == 0
    full = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    padded = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 1], [1, 1, 0, 1, 1]]
    assert seen.int().tolist() == [full, padded]


def test_the_position_of_an_image_follows_the_text_before_it():
    model, grid = small_model(1), (4, 2)
    words, images = pools.rotations(model, grid)
    frame = skeleton.TRANSFORMER["axes_dims_rope"][0] // 2
    for length in (0, 5, prompt.TEXT_TOKENS - 1):
        torch.testing.assert_close(images[length, :, :frame], words[length, :frame].expand(8, -1))
        torch.testing.assert_close(images[length, :, frame:], images[0, :, frame:])


class FewPools:
    """Random latents and texts in place of pictures."""

    device = "cpu"

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        channels, width = skeleton.TRANSFORMER["in_channels"], skeleton.TRANSFORMER["context_in_dim"]
        self.latents = torch.randn(256, 64, channels, generator=generator)
        self.text_mask = torch.arange(prompt.TEXT_TOKENS) < torch.randint(9, 19, (256, 1), generator=generator)
        self.text = torch.randn(256, prompt.TEXT_TOKENS, width, generator=generator) * self.text_mask[..., None]
        self.weight = torch.ones(channels)

    def draw(self, layout, generator):
        rows = torch.randint(256, (sum(layout.samples.values()),), generator=generator)
        return self.latents[rows], self.text[rows], self.text_mask[rows]


def test_training_starts_with_equal_gates_and_learns():
    """The gates start at the chosen value at all times; a few steps lower the loss; the average follows."""
    few, model = FewPools(), small_model(2)
    start = transformer.initial(model, few)
    model.load_state_dict(unstack(start))
    with torch.no_grad():
        times = torch.linspace(0, 1, 11)
        gates = model.modulation(model.time_text_embed(times, times)).view(11, 4, -1)[:, (1, 3)].tanh()
    assert (gates.mean((1, 2)) - transformer.GATE).abs().max() < 0.05
    parameters = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    average = {name: tensor.clone() for name, tensor in start.items()}
    optimizer = transformer.optimizer_of(parameters, torch.tensor(2e-3), None, "cpu")
    step = transformer.Step(parameters, average, optimizer, model, pools.MAIN, few.weight, "cpu")
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(12):
        step.fill(few, generator)
        losses.append(step()[0].item())
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    for name, tensor in average.items():
        moved, whole = (tensor - start[name]).norm(), (parameters[name] - start[name]).norm()
        assert 0 < moved < 0.02 * whole, name


def test_a_state_gives_back_the_average(tmp_path):
    tensors = {"a": torch.zeros(2), "average.a": torch.tensor([1.0, 2.0])}
    state.save(tmp_path / "transformer.safetensors", tensors, {"step": 1, "seconds": 2.0})
    assert transformer.trained(tmp_path)["a"].tolist() == [1, 2]
    with pytest.raises(SystemExit, match="train it first"):
        transformer.trained(tmp_path / "nothing")


# --- prompts


@torch.no_grad()
def test_prompts_are_those_of_the_pipeline():
    captions = ["a red star on a transparent background", "three small red crosses on a blue background, left", " "]
    states, mask = prompt.embeddings(FOLDER, captions, "cpu")
    expected, expected_mask, _ = reference.load(FOLDER, torch.float32).encode_prompt(captions)
    longest = expected.shape[1]
    assert torch.equal(mask[:, :longest], expected_mask.bool())
    assert not mask[:, longest:].any()
    valid = mask[:, :longest, None]
    assert ((states[:, :longest] - expected) * valid).norm() <= FP32 * (expected * valid).norm()


def test_no_caption_of_the_world_is_longer_than_the_padding():
    captions = [scene.caption for scene in held_out_scenes(transparent=True)]
    _, mask, system = prompt.tokens(FOLDER, captions)
    assert mask.sum(1).max() - system <= prompt.TEXT_TOKENS


def test_new_words_are_single_tokens_and_captions_are_tokenised_as_before():
    from transformers import AutoTokenizer

    new = AutoTokenizer.from_pretrained(FOLDER / "processor")
    old = AutoTokenizer.from_pretrained(checkpoints_dir() / "micro" / "tokenizer")
    assert all(len(new(f"{space}{word}")["input_ids"]) == 1 for word in skeleton.WORDS for space in ("", " "))
    for scene in training_scenes()[::97]:
        text = scene.caption
        assert new.convert_ids_to_tokens(new(text)["input_ids"]) == old.convert_ids_to_tokens(old(text)["input_ids"])


def test_the_recipe_writes_the_embedded_processor(tmp_path):
    skeleton.write_processor(tmp_path / "processor")
    for file in (tmp_path / "processor").iterdir():
        ours, embedded = ((folder / file.name).read_text() for folder in (file.parent, FOLDER / "processor"))
        if file.suffix == ".json":
            assert json.loads(ours) == json.loads(embedded), file.name
        else:
            assert ours == embedded, file.name


# --- the VAE


@torch.no_grad()
def test_the_vae_runs_as_in_diffusers():
    torch.manual_seed(0)
    model = AutoencoderKLQwenImage21(**skeleton.VAE).eval()
    pixels = torch.rand(2, 4, 1, 64, 96) * 2 - 1
    mean, logvar = vae.encode(model, pixels)
    published = model.encode(pixels).latent_dist
    torch.testing.assert_close(mean, published.mean)
    torch.testing.assert_close(logvar, published.logvar)
    torch.testing.assert_close(vae.decode(model, mean).clamp(-1, 1), model.decode(mean).sample)


def test_the_loss_ignores_the_colour_of_transparent_pixels_and_nothing_else():
    pixels = torch.rand(1, 4, 1, 4, 4) * 2 - 1
    pixels[:, 3, :, :2] = -1
    other = pixels.clone()
    other[:, :3, :, :2] = torch.rand(1, 3, 1, 2, 4)
    torch.testing.assert_close(vae.composites(pixels), vae.composites(other))
    for channel in range(4):
        other = pixels.clone()
        other[:, channel, :, 3] += 0.1
        assert (vae.composites(pixels) - vae.composites(other)).abs().max() > 0.001


def test_windows_contain_objects():
    drawn = data.pictures(24, 128, 128, 3, processes=1, scenes=vae.training_world, channels=4)
    images = torch.from_numpy(drawn.images)
    windows = vae.cropped(images, torch.arange(24), 64, torch.Generator().manual_seed(0))
    assert windows.shape == (24, 64, 64, 4)
    for window, image in zip(windows, images, strict=True):
        assert (window != image[0, 0]).any()


def test_pictures_of_the_larger_world_have_four_channels():
    drawn = data.pictures(64, 64, 64, 1, processes=1, scenes=vae.training_world, channels=4)
    for image, row in zip(drawn.images, drawn.scenes, strict=True):
        scene = vae.training_world()[row]
        assert (image[..., 3].min() == 0) == (scene.background == "transparent")


# --- evaluation


def test_shares_are_counted_with_their_interval():
    scene = Scene(1, "large", "red", "circle", "blue", None)
    right = data.render(scene, 128, 128, np.random.default_rng(0))
    result = evaluate.counted([scene] * 10, [right] * 8 + [np.zeros_like(right)] * 2)
    assert result["correct"] == 0.8
    np.testing.assert_allclose(result["interval"], (0.4902, 0.9433), atol=1e-4)  # Wilson's, from tables


def test_held_out_prompts_are_not_trained_on():
    scenes = tally.held_out(500, transparent=True)
    assert len(set(scenes)) == 500
    assert not set(scenes) & set(training_scenes(transparent=True))
    assert 30 < sum(scene.background == "transparent" for scene in scenes) < 100


def test_contact_sheets_show_squares_through_transparent_pixels():
    image = np.zeros((16, 16, 4), np.uint8)
    image[:, :8] = (200, 10, 10, 255)
    assert (opaque(image)[:, :8] == (200, 10, 10)).all()
    assert set(opaque(image)[:, 8:].flatten()) == {110, 150}
    assert contact_sheet([image] * 16).size == (128, 32)


def test_pixels_become_pictures():
    pixels = np.array([[[[np.nan, -20, 300, 127.6]]]])
    images, broken = tally.rounded(pixels)
    assert (images.tolist(), broken) == ([[[[0, 0, 255, 128]]]], 1)
    assert tally.rounded(np.array([np.inf, -np.inf]))[0].tolist() == [0, 0]


def test_every_scene_is_drawn_once_with_its_place_as_the_seed_and_non_finite_values_are_counted():
    scenes = tally.held_out(7)
    calls = []

    def draw(captions, seeds):
        calls.append((captions, list(seeds)))
        pixels = np.full((len(captions), 2, 2, 3), np.array(seeds)[:, None, None, None], float)
        pixels[0, 0, 0, 0] = np.nan
        return pixels

    images, broken = tally.drawn(scenes, draw, batch=3)
    assert [image[1, 1, 0] for image in images] == list(range(7))
    assert broken == len(calls) == 3
    assert [caption for captions, _ in calls for caption in captions] == [scene.caption for scene in scenes]
    assert [seed for _, seeds in calls for seed in seeds] == list(range(7))
