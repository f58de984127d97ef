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


# --- invalid folders


@pytest.mark.parametrize("part", PARTS)
def test_damaged_weights_name_the_file(folder, part):
    file = next((folder / part).glob("*.safetensors"))
    whole = file.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:50], b"", bytes(999)):
        file.write_bytes(content)
        assert str(file) in refusal(lambda: component(Checkpoint(folder), part))
    file.unlink()
    assert str(file.parent) in refusal(lambda: component(Checkpoint(folder), part))


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("transformer", "transformer_blocks.2.img_mlp.net.2.bias"),
        ("transformer", "norm_out.linear.bias"),
        ("text_encoder", "model.layers.1.self_attn.q_proj.bias"),
        ("vae", "decoder.up_blocks.0.resnets.0.conv1.weight"),
        ("vae", "post_quant_conv.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, part, name):
    file = next((folder / part).glob("*.safetensors"))
    tensors = load_file(file)
    shown = name.removeprefix("model.")
    changes = {
        "missing": {n: t for n, t in tensors.items() if n != name},
        "unknown": tensors | {f"{name}_g": tensors[name]},
        "shape": tensors | {name: tensors[name][:-1].copy()},
        "rank": tensors | {name: tensors[name].reshape(1, -1, 1)},
        "I32": tensors | {name: tensors[name].astype(np.int32)},
        "F64": tensors | {name: tensors[name].astype(np.float64)},
    }
    for change, changed in changes.items():
        save_file(changed, file)
        message = refusal(lambda: component(Checkpoint(folder), part))
        assert shown in message
        assert {"rank": "shape"}.get(change, change) in message


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("transformer", "num_layers", "4"),
        ("transformer", "num_layers", 4.0),
        ("transformer", "num_layers", True),
        ("transformer", "num_layers", None),
        ("transformer", "num_attention_heads", 0),
        ("transformer", "num_attention_heads", -2),
        ("transformer", "axes_dims_rope", 32),
        ("transformer", "axes_dims_rope", ["8", "12", "12"]),
        ("transformer", "axes_dims_rope", [16, 16]),
        ("transformer", "axes_dims_rope", [-8, 20, 20]),
        ("transformer", "guidance_embeds", "false"),
        ("text_encoder", "hidden_act", "gelu"),
        ("text_encoder", "rms_norm_eps", "1e-6"),
        ("text_encoder", "num_key_value_heads", 0),
        ("text_encoder", "text_config", [1]),
        ("text_encoder", "rope_parameters", "default"),
        ("vae", "dim_mult", [1, 2, "4"]),
        ("vae", "latents_mean", ["0"] * 16),
        ("vae", "latents_std", [1.0] * 15),
        ("vae", "temperal_downsample", [0, 1, 1]),
        ("scheduler", "shift_terminal", "none"),
        ("scheduler", "time_shift_type", "cubic"),
        ("scheduler", "use_dynamic_shifting", 1),
    ],
)
def test_values_of_another_kind_are_rejected(folder, part, key, value):
    edit(folder / CONFIGS[part], **{key: value})
    assert key in refusal(lambda: component(Checkpoint(folder), part))


@pytest.mark.parametrize("layers", [3, 5])
def test_configuration_of_another_size_is_rejected(folder, layers):
    edit(folder / CONFIGS["transformer"], num_layers=layers)
    assert f"transformer_blocks.{min(layers, 4)}." in refusal(lambda: Checkpoint(folder).transformer(mx.float32))


@pytest.mark.parametrize("part", CONFIGS)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"{'num_layers': 4}"])
def test_configuration_that_is_no_json_object_is_rejected(folder, part, content):
    (folder / CONFIGS[part]).write_bytes(content)
    message = refusal(lambda: component(Checkpoint(folder), part))
    assert str(folder / CONFIGS[part]) in message
    assert "JSON" in message


@pytest.mark.parametrize("part", CONFIGS)
def test_absent_component_is_rejected(folder, part):
    shutil.rmtree(folder / part)
    assert str(folder / part) in refusal(lambda: component(Checkpoint(folder), part))


def test_absent_tokenizer_is_rejected(folder):
    shutil.rmtree(folder / "tokenizer")
    assert str(folder / "tokenizer") in refusal(Checkpoint(folder).tokenizer)


# --- files that are those of something else

PIPELINES = (
    *("QwenImageEditPipeline", "QwenImageEditPlusPipeline", "QwenImageLayeredPipeline", "QwenImage21Pipeline"),
    *("QwenImageImg2ImgPipeline", "QwenImageControlNetPipeline", "FluxPipeline", "ZImagePipeline"),
)
SCHEDULERS = (
    *("UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "FlowMatchHeunDiscreteScheduler"),
    *("FlowMatchLCMScheduler", "FlowMapEulerDiscreteScheduler", "EulerDiscreteScheduler"),
)


@pytest.mark.parametrize("name", PIPELINES)
def test_another_pipeline_is_refused_by_name(folder, name):
    edit(folder / "model_index.json", _class_name=name)
    message = refusal(lambda: Checkpoint(folder))
    assert str(folder / "model_index.json") in message
    assert name in message
    assert "expected QwenImagePipeline" in message


@pytest.mark.parametrize("name", SCHEDULERS)
def test_another_scheduler_is_refused_by_name(folder, name):
    index, file = folder / "model_index.json", folder / CONFIGS["scheduler"]
    before = index.read_text()
    edit(index, scheduler=["diffusers", name])  # which diffusers believes, whatever the scheduler's own file says
    assert name in refusal(lambda: Checkpoint(folder))
    index.write_text(before)
    edit(file, _class_name=name)
    message = refusal(lambda: Checkpoint(folder).scheduler())
    assert str(file) in message
    assert name in message
    assert "FlowMatchEulerDiscreteScheduler" in message


@pytest.mark.parametrize(
    ("part", "values", "named"),
    [
        ("transformer", {"_class_name": "QwenImage21Transformer2DModel"}, "QwenImage21Transformer2DModel"),
        ("transformer", {"_class_name": ["code", "Own"]}, "['code', 'Own']"),
        ("vae", {"_class_name": "AutoencoderKLWan"}, "AutoencoderKLWan"),
        ("text_encoder", {"model_type": "qwen3_vl"}, "qwen3_vl"),
        ("text_encoder", {"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
        ("text_encoder", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ("text_encoder", {"rms_norm_eps": 0}, "rms_norm_eps"),
        ("transformer", {"num_layers": 10**12}, "num_layers is 1000000000000, expected at most 256"),
        ("transformer", {"attention_head_dim": 10**400}, "attention_head_dim"),
        ("transformer", {"num_attention_heads": 1 << 23}, "num_attention_heads"),
        ("text_encoder", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("text_encoder", {"vocab_size": 1 << 62}, "vocab_size"),
        ("text_encoder", {"rope_theta": float("inf")}, "rope_theta"),
        ("vae", {"num_res_blocks": 1 << 40}, "num_res_blocks"),
        ("vae", {"dim_mult": [1] * 5000, "temperal_downsample": [True] * 4999}, "dim_mult"),
        ("vae", {"latents_std": [float("nan")] * 16}, "latents_std"),
        ("scheduler", {"shift": 10**400}, "shift"),
        ("scheduler", {"shift": 0}, "shift"),
        ("scheduler", {"shift_terminal": 1}, "shift_terminal"),
    ],
    ids=str,
)
def test_other_classes_and_absurd_values_are_refused_by_name(folder, part, values, named):
    edit(folder / CONFIGS[part], **values)
    message = refusal(lambda: component(Checkpoint(folder), part))
    assert str(folder / CONFIGS[part]) in message
    assert named in message


def test_a_missing_key_of_the_text_encoder_takes_the_default_of_its_class(folder):
    file = folder / CONFIGS["text_encoder"]
    config = json.loads(file.read_text())
    del config["rms_norm_eps"]
    file.write_text(json.dumps(config))
    expected = Qwen2_5_VLTextConfig().rms_norm_eps
    assert Checkpoint(folder).text_encoder(mx.float32).norm.eps == expected == 1e-5


def test_json_that_is_too_deep_is_refused(folder):
    (folder / CONFIGS["vae"]).write_text('{"a": ' + "[" * 100_000)
    assert "vae/config.json: not JSON" in refusal(lambda: Checkpoint(folder).vae(mx.float32))


@pytest.mark.parametrize(
    ("part", "values", "named"),
    [
        ("vae", {"base_dim": 1 << 24, "dim_mult": [1 << 24] * 4}, "dim_mult"),
        ("vae", {"dim_mult": [1] * 9, "temperal_downsample": [True] * 8}, "9 stages"),
        ("vae", {"latents_std": [1.0] * 15 + [0.0]}, "latents_std holds 0.0"),
        ("text_encoder", {"rope_theta": 1e308}, "rope_theta"),
        ("text_encoder", {"rms_norm_eps": 1e308}, "rms_norm_eps"),
        ("transformer", {"patch_size": 4}, "patch_size is 4"),
    ],
    ids=str,
)
def test_numbers_without_meaning_are_refused_by_name(folder, part, values, named):
    edit(folder / CONFIGS[part], **values)
    assert named in refusal(lambda: component(Checkpoint(folder), part))


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
