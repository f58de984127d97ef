"""Checkpoints in the published layout: valid folders load, invalid ones are rejected."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import QwenImagePipeline
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

from precision_lab.errors import InputError
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.text_to_image.scheduler import QWEN_IMAGE
from precision_lab.synthetic.source import QwenImage
from tests.model.oracle import ours, random_inputs, relative_l2
from tests.subjects import source

PARTS = ("transformer", "text_encoder", "vae")
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
CONFIGS = {
    "transformer": "transformer/config.json",
    "text_encoder": "text_encoder/config.json",
    "vae": "vae/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}


@pytest.fixture
def folder(small_checkpoint, tmp_path) -> Path:
    """A copy that tests may damage."""
    return shutil.copytree(small_checkpoint, tmp_path / "checkpoint")


def component(checkpoint: Checkpoint, part: str, dtype=mx.float32):
    return checkpoint.scheduler() if part == "scheduler" else getattr(checkpoint, part)(dtype)


def flat(model) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refusal(action) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def transformer_output(checkpoint: Checkpoint, dtype=mx.float32) -> np.ndarray:
    inputs = random_inputs(np.random.default_rng(0), (5, 3), batch=2, text_width=64, lengths=(11, 7))
    return ours(checkpoint.transformer(dtype), inputs, dtype)


def image(checkpoint: Checkpoint) -> np.ndarray:
    pipeline = checkpoint.pipeline(mx.float32)
    grid = pipeline.grid(48, 32)
    cond = pipeline.encode(["a star"])
    *_, last = pipeline.denoise(pipeline.noise(0, grid), grid, 2, cond)
    return np.array(pipeline.decode(last.latents, grid))


# --- valid folders


def test_weights_are_those_of_the_files(small_checkpoint):
    stored = load_file(small_checkpoint / TRANSFORMER)
    loaded = flat(Checkpoint(small_checkpoint).transformer(mx.float32))
    assert loaded.keys() == stored.keys()
    for name, parameter in loaded.items():
        assert parameter.dtype == mx.bfloat16
        np.testing.assert_array_equal(np.array(parameter.astype(mx.float32)), stored[name].astype(np.float32))


def test_checkpoints_saved_by_diffusers_and_transformers_load_unchanged(small_checkpoint, tmp_path):
    """Sharded files, the newer names of the text encoder, and a tokenizer.json."""
    saved = tmp_path / "saved"
    pipeline = QwenImagePipeline.from_pretrained(small_checkpoint, dtype=torch.bfloat16)
    pipeline.save_pretrained(saved)
    for part in PARTS:
        shutil.rmtree(saved / part)
        getattr(pipeline, part).save_pretrained(saved / part, max_shard_size="100KB")
        assert len(list((saved / part).glob("*.safetensors"))) > 1
        original, copied = (flat(component(Checkpoint(f), part)) for f in (small_checkpoint, saved))
        assert original.keys() == copied.keys()
        for name, parameter in copied.items():
            assert parameter.dtype == mx.bfloat16
            assert mx.array_equal(parameter, original[name]), name
    assert Checkpoint(saved).scheduler() == Checkpoint(small_checkpoint).scheduler()
    np.testing.assert_array_equal(image(Checkpoint(saved)), image(Checkpoint(small_checkpoint)))


@pytest.mark.parametrize("part", [*PARTS, "scheduler"])
def test_components_load_alone(folder, part):
    for other in folder.iterdir():
        if other.is_dir() and other.name != part:
            shutil.rmtree(other)
    component(Checkpoint(folder), part)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_every_component_computes_in_the_dtype_asked_for(small_checkpoint, dtype):
    pipeline = Checkpoint(small_checkpoint).pipeline(dtype)
    grid = pipeline.grid(32, 32)
    embeds, _ = pipeline.encode(["a", "two words"])
    latents = pipeline.noise(0, grid)
    assert embeds.dtype == latents.dtype == dtype
    *_, last = pipeline.denoise(latents, grid, 1, pipeline.encode(["a"]))
    assert last.velocity.dtype == last.latents.dtype == dtype
    assert pipeline.vae.decode(mx.zeros((1, 4, 4, 16), dtype)).dtype == dtype
    assert pipeline.vae.encode(mx.zeros((1, 16, 16, 3), dtype)).mean.dtype == dtype


def test_bfloat16_weights_stay_narrow_and_equal_an_fp32_copy(small_checkpoint, folder):
    for file in folder.glob("*/*.safetensors"):
        save_file({name: t.astype(np.float32) for name, t in load_file(file).items()}, file)
    narrow, wide = Checkpoint(small_checkpoint), Checkpoint(folder)
    for part in PARTS:
        assert {p.dtype for p in flat(component(narrow, part)).values()} == {mx.bfloat16}
        assert {p.dtype for p in flat(component(wide, part)).values()} == {mx.float32}
    np.testing.assert_array_equal(transformer_output(narrow), transformer_output(wide))
    np.testing.assert_array_equal(image(narrow), image(wide))
    # conversely, rounding the fp32 copy gives the stored weights
    rounded = Checkpoint(folder, weights_dtype=mx.bfloat16)
    np.testing.assert_array_equal(transformer_output(rounded), transformer_output(narrow))


def test_weights_rounded_to_float16(small_checkpoint):
    exact, rounded = Checkpoint(small_checkpoint), Checkpoint(small_checkpoint, weights_dtype=mx.float16)
    for part in PARTS:
        originals = flat(component(exact, part))
        for name, parameter in flat(component(rounded, part)).items():
            assert parameter.dtype == mx.float16
            assert mx.array_equal(parameter, originals[name].astype(mx.float16))
    # bfloat16 has 8 bits of significand, so float16 loses only values below its smallest numbers
    assert 0 < relative_l2(transformer_output(rounded), transformer_output(exact)) < 1e-4


def test_ignored_keys_and_tensors_are_reported(folder):
    edit(folder / CONFIGS["transformer"], pooled_projection_dim=768, novelty=[1, {"a": None}], _note="metadata")
    checkpoint = Checkpoint(folder)
    checkpoint.transformer(mx.float32)
    assert checkpoint.ignored == {"transformer": ["novelty", "pooled_projection_dim"]}
    checkpoint.text_encoder(mx.float32)
    assert "lm_head.weight" in checkpoint.ignored["text_encoder"]
    assert "vision_config" in checkpoint.ignored["text_encoder"]
    checkpoint.vae(mx.float32)
    assert any("time_conv" in name for name in checkpoint.ignored["vae"])
    before = {part: list(names) for part, names in checkpoint.ignored.items()}
    checkpoint.transformer(mx.float32)
    assert checkpoint.ignored == before


def test_lightning_schedule_is_read(folder):
    """The terminal level of its scheduler is null."""
    edit(folder / CONFIGS["scheduler"], shift_terminal=None, base_shift=1.0986, max_shift=1.0986)
    expected = replace(QWEN_IMAGE, shift_terminal=None, base_shift=1.0986, max_shift=1.0986)
    assert Checkpoint(folder).scheduler() == expected


def unlabelled(folder) -> Path:
    index = json.loads((folder / "model_index.json").read_text())
    del index["_weights"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_only_our_label_says_where_weights_come_from(small_checkpoint, folder, tmp_path, monkeypatch):
    assert Checkpoint(small_checkpoint).origin == "synthetic"
    assert Checkpoint(unlabelled(folder)).origin == "unknown"
    entry = source(folder).checkpoint
    assert (entry.weights, entry.name) == ("unknown", "small")
    assert QwenImage(path=str(folder)).checkpoint.name == "checkpoint", "the name comes from the path"
    for label in ("published", 3, None, ["trained"]):
        edit(folder / "model_index.json", _weights=label)
        assert "_weights" in refusal(lambda: Checkpoint(folder))


@pytest.mark.parametrize(
    ("repository", "weights"),
    [("Qwen/Qwen-Image", "published"), ("Qwen/Qwen-Image-2512", "published"), ("somebody/Qwen-Image", "unknown")],
)
def test_only_the_publishers_repository_is_published(folder, tmp_path, monkeypatch, repository, weights):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **options: str(unlabelled(folder)))
    entry = QwenImage(path=repository).checkpoint
    assert (entry.weights, entry.name) == (weights, repository)
    monkeypatch.chdir(tmp_path)
    shutil.move(folder, tmp_path / repository)
    assert QwenImage(path=repository).checkpoint.weights == "unknown", "a folder of that name"


def test_fingerprint_is_that_of_the_weights(small_checkpoint, folder):
    fingerprint = Checkpoint(small_checkpoint).fingerprint()
    edit(folder / CONFIGS["transformer"], novelty=1)
    assert Checkpoint(folder).fingerprint() == fingerprint
    content = bytearray((folder / TRANSFORMER).read_bytes())
    content[-1] ^= 1
    (folder / TRANSFORMER).write_bytes(content)
    assert Checkpoint(folder).fingerprint() != fingerprint


# --- folders of 1.x; test_broken_checkpoints.py has what both models refuse


def test_a_missing_key_of_the_text_encoder_takes_the_default_of_its_class(folder):
    file = folder / CONFIGS["text_encoder"]
    config = json.loads(file.read_text())
    del config["rms_norm_eps"]
    file.write_text(json.dumps(config))
    expected = Qwen2_5_VLTextConfig().rms_norm_eps
    assert Checkpoint(folder).text_encoder(mx.float32).norm.eps == expected == 1e-5


def test_components_that_do_not_fit_together_are_refused(folder):
    """Each loads alone; together they are no model."""
    vocab = json.loads((folder / "tokenizer/vocab.json").read_text())
    vocab["red"] = 10**6
    (folder / "tokenizer/vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(InputError, match="token id 1000000, but vocab_size of the text encoder is 1280"):
        Checkpoint(folder).pipeline(mx.float32).encode(["red"])
    edit(folder / CONFIGS["transformer"], out_channels=64, patch_size=2)
    file = folder / TRANSFORMER
    tensors = load_file(file)
    for name in ("proj_out.weight", "proj_out.bias"):
        tensors[name] = np.concatenate([tensors[name]] * 4)
    file.unlink()
    save_file(tensors, file)
    assert "out_channels is 64, expected z_dim of the VAE, 16" in refusal(
        lambda: Checkpoint(folder).pipeline(mx.float32)
    )
