"""Broken checkpoints of Qwen-Image 1.x and 2.1: each is refused in one or two lines that name file and reason."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from precision_lab.cli import main
from precision_lab.errors import InputError
from precision_lab.model.qwen_image import checkpoint as qwen_image
from precision_lab.model.qwen_image_21 import checkpoint as qwen_image_21
from tests.spread import slow

PARTS = ("transformer", "text_encoder", "vae")
CONFIGS = {
    "transformer": "transformer/config.json",
    "text_encoder": "text_encoder/config.json",
    "vae": "vae/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
V1, V21 = "qwen_image", "qwen_image_21"
BOTH = (V1, V21)


class Model(NamedTuple):
    """kind: the class of its checkpoints. fixture: a valid one. tokenizer: the folder of its tokenizer."""

    kind: type
    fixture: str
    tokenizer: str
    pipeline: str


MODELS = {
    V1: Model(qwen_image.Checkpoint, "small_checkpoint", "tokenizer", "QwenImagePipeline"),
    V21: Model(qwen_image_21.Checkpoint, "small_checkpoint_21", "processor", "QwenImage21Pipeline"),
}


@pytest.fixture(params=BOTH)
def model(request) -> Model:
    return MODELS[request.param]


@pytest.fixture
def folder(request, model, tmp_path) -> Path:
    """A copy that tests may damage."""
    return shutil.copytree(request.getfixturevalue(model.fixture), tmp_path / "checkpoint")


def of(name, *cases):
    """Cases of one model."""
    return [pytest.param(name, *case, id=f"{name}-{'-'.join(map(str, case))}"[:90]) for case in cases]


def of_both(*cases):
    return [case for name in BOTH for case in of(name, *cases)]


def component(checkpoint, part: str):
    return checkpoint.scheduler() if part == "scheduler" else getattr(checkpoint, part)(mx.float32)


def edit(file: Path, **values) -> None:
    """Changes keys of a JSON file; those of a text encoder are in its section if it has one."""
    config = json.loads(file.read_text())
    section = config.get("text_config")
    for key, value in values.items():
        (section if isinstance(section, dict) and key in section else config)[key] = value
    file.write_text(json.dumps(config))


def refusal(action) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


# --- weights


@pytest.mark.parametrize("part", PARTS)
def test_damaged_weights_name_the_file(model, folder, part):
    file = next((folder / part).glob("*.safetensors"))
    whole = file.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:50], b"", bytes(999)):
        file.write_bytes(content)
        assert str(file) in refusal(lambda: component(model.kind(folder), part))
    file.unlink()
    assert str(file.parent) in refusal(lambda: component(model.kind(folder), part))


@pytest.mark.parametrize(
    ("model", "part", "name"),
    [
        *of_both(("vae", "decoder.up_blocks.0.resnets.0.conv1.weight"), ("vae", "post_quant_conv.bias")),
        *of(
            V1,
            ("transformer", "transformer_blocks.2.img_mlp.net.2.bias"),
            ("transformer", "norm_out.linear.bias"),
            ("text_encoder", "model.layers.1.self_attn.q_proj.bias"),
        ),
        *of(
            V21,
            ("transformer", "transformer_blocks.2.img_mlp.gate_layer.weight"),
            ("transformer", "modulation.1.weight"),
            ("transformer", "txt_in.text_norm.weight"),
            ("text_encoder", "model.language_model.layers.1.self_attn.q_norm.weight"),
            ("vae", "decoder.up_blocks.0.upsampler.resample.1.weight"),
        ),
    ],
    indirect=["model"],
)
def test_tensors_that_do_not_fit_are_named(model, folder, part, name):
    file = next((folder / part).glob("*.safetensors"))
    tensors = load_file(file)
    shown = name.removeprefix("model.").removeprefix("language_model.")
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
        message = refusal(lambda: component(model.kind(folder), part))
        assert shown in message
        assert {"rank": "shape"}.get(change, change) in message


def test_a_truncated_or_absent_shard_names_the_file(model, folder):
    """Of several shards, one is broken."""
    whole = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    shards = [f"diffusion_pytorch_model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    for shard, part in zip(shards, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in part}, whole.with_name(shard))
    placed = {name: shards[i % 2] for i, name in enumerate(names)}
    whole.unlink()
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    component(model.kind(folder), "transformer")
    broken = whole.with_name(shards[1])
    content = broken.read_bytes()
    broken.write_bytes(content[:-1])
    assert str(broken) in refusal(lambda: component(model.kind(folder), "transformer"))
    broken.unlink()
    assert shards[1] in refusal(lambda: component(model.kind(folder), "transformer"))


# --- values


@pytest.mark.parametrize(
    ("model", "part", "key", "value"),
    [
        *of_both(
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
            ("text_encoder", "hidden_act", "gelu"),
            ("text_encoder", "rms_norm_eps", "1e-6"),
            ("text_encoder", "num_key_value_heads", 0),
            ("text_encoder", "text_config", [1]),
            ("text_encoder", "rope_parameters", "default"),
            ("vae", "dim_mult", [1, 2, "4"]),
            ("vae", "latents_mean", ["0"] * 16),
            ("vae", "latents_std", [1.0] * 15),
            ("scheduler", "shift_terminal", "none"),
            ("scheduler", "time_shift_type", "cubic"),
            ("scheduler", "use_dynamic_shifting", 1),
        ),
        *of(V1, ("transformer", "guidance_embeds", "false"), ("vae", "temperal_downsample", [0, 1, 1])),
        *of(
            V21,
            ("transformer", "causal_condition", "true"),
            ("transformer", "causal_condition", False),
            ("transformer", "mlp_ratio", 3.5),
            ("transformer", "patch_size", 2),
            ("transformer", "eps", 0),
            ("text_encoder", "attention_bias", True),
            ("text_encoder", "head_dim", 31),
            ("vae", "temperal_downsample", [0, 1, 1, 1]),
            ("vae", "is_residual", False),
            ("vae", "patch_size", 3),
            ("vae", "in_channels", "4"),
        ),
    ],
    indirect=["model"],
)
def test_values_of_another_kind_are_rejected(model, folder, part, key, value):
    edit(folder / CONFIGS[part], **{key: value})
    message = refusal(lambda: component(model.kind(folder), part))
    assert str(folder / CONFIGS[part]) in message
    assert key in message


@pytest.mark.parametrize("layers", [3, 5])
def test_configuration_of_another_size_is_rejected(model, folder, layers):
    edit(folder / CONFIGS["transformer"], num_layers=layers)
    assert f"transformer_blocks.{min(layers, 4)}." in refusal(lambda: component(model.kind(folder), "transformer"))


@pytest.mark.parametrize("part", CONFIGS)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"{'num_layers': 4}"])
def test_configuration_that_is_no_json_object_is_rejected(model, folder, part, content):
    (folder / CONFIGS[part]).write_bytes(content)
    message = refusal(lambda: component(model.kind(folder), part))
    assert str(folder / CONFIGS[part]) in message
    assert "JSON" in message


def test_json_that_is_too_deep_is_refused(model, folder):
    (folder / CONFIGS["vae"]).write_text('{"a": ' + "[" * 100_000)
    assert "vae/config.json: not JSON" in refusal(lambda: component(model.kind(folder), "vae"))


@pytest.mark.parametrize(
    ("model", "part", "values", "named"),
    [
        *of_both(
            ("transformer", {"num_layers": 10**12}, "num_layers is 1000000000000, expected at most 256"),
            ("transformer", {"attention_head_dim": 10**400}, "attention_head_dim"),
            ("transformer", {"num_attention_heads": 1 << 23}, "num_attention_heads"),
            ("text_encoder", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
            ("text_encoder", {"vocab_size": 1 << 62}, "vocab_size"),
            ("text_encoder", {"rope_theta": float("inf")}, "rope_theta"),
            ("text_encoder", {"rope_theta": 1e308}, "rope_theta"),
            ("text_encoder", {"rms_norm_eps": 0}, "rms_norm_eps"),
            ("text_encoder", {"rms_norm_eps": 1e308}, "rms_norm_eps"),
            ("vae", {"num_res_blocks": 1 << 40}, "num_res_blocks"),
            ("vae", {"dim_mult": [1] * 5000, "temperal_downsample": [True] * 4999}, "dim_mult"),
            ("vae", {"dim_mult": [1] * 9, "temperal_downsample": [True] * 8}, "9 stages"),
            ("scheduler", {"shift": 10**400}, "shift"),
            ("scheduler", {"shift": 0}, "shift"),
            ("scheduler", {"shift_terminal": 1}, "shift_terminal"),
        ),
        *of(
            V1,
            ("transformer", {"patch_size": 4}, "patch_size is 4"),
            ("vae", {"latents_std": [float("nan")] * 16}, "latents_std"),
            ("vae", {"base_dim": 1 << 24, "dim_mult": [1 << 24] * 4}, "dim_mult"),
            ("vae", {"latents_std": [1.0] * 15 + [0.0]}, "latents_std holds 0.0"),
        ),
        *of(
            V21,
            ("transformer", {"mlp_ratio": 1 << 22}, "mlp_ratio"),
            ("vae", {"latents_std": [float("nan")] * 64}, "latents_std"),
            ("vae", {"base_dim": 1 << 24, "dim_mult": [1 << 24] * 5}, "dim_mult"),
            ("vae", {"decoder_base_dim": 1 << 24}, "decoder_base_dim"),
            ("vae", {"latents_std": [1.0] * 63 + [0.0]}, "latents_std holds 0.0"),
            ("vae", {"dim_mult": [1, 3, 4, 8, 7]}, "dim_mult"),
        ),
    ],
    indirect=["model"],
)
def test_absurd_values_are_refused_by_name(model, folder, part, values, named):
    edit(folder / CONFIGS[part], **values)
    message = refusal(lambda: component(model.kind(folder), part))
    assert str(folder / CONFIGS[part]) in message
    assert named in message


@pytest.mark.parametrize(
    ("model", "changes", "named"),
    [
        *of(V1, ({"joint_attention_dim": 32}, "txt_"), ({"in_channels": 32}, "img_in")),
        *of(
            V21, ({"context_in_dim": 32}, "txt_in"), ({"in_channels": 32}, "img_in"), ({"out_channels": 32}, "proj_out")
        ),
    ],
    indirect=["model"],
)
def test_a_configuration_that_contradicts_the_weights_is_refused(model, folder, changes, named):
    edit(folder / CONFIGS["transformer"], **changes)
    assert named in refusal(lambda: model.kind(folder).pipeline(mx.float32))


@pytest.mark.parametrize("model", [V21], indirect=True)
def test_a_vae_of_other_pictures_is_refused(model, folder):
    """Its weights fit, but diffusers' pipeline would draw something else."""
    file = folder / "vae/config.json"
    before = file.read_text()
    edit(file, patch_size=2)
    message = refusal(lambda: model.kind(folder).pipeline(mx.float32))
    assert f"{file}: temperal_downsample and patch_size give 32 pixels" in message
    file.write_text(before)
    edit(file, out_channels=2)
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    last = {f"decoder.conv_out.{name}": tensors[f"decoder.conv_out.{name}"][:2].copy() for name in ("weight", "bias")}
    save_file(tensors | last, weights)
    message = refusal(lambda: model.kind(folder).pipeline(mx.float32))
    assert f"{file}: out_channels gives 2 channels" in message


@pytest.mark.parametrize("value", [3, "1.0", [], [0.5, 0.7], [1.0, "a"], [1.0, float("nan")], [1.5], [0.0], {}, True])
@pytest.mark.parametrize("model", [V21], indirect=True)
def test_noise_levels_of_another_kind_are_refused(model, folder, value):
    edit(folder / "model_index.json", sample_sigmas=value)
    message = refusal(lambda: model.kind(folder).pipeline(mx.float32))
    assert str(folder / "model_index.json") in message
    assert "sample_sigmas" in message


# --- what is absent


@pytest.mark.parametrize("part", CONFIGS)
def test_absent_component_is_rejected(model, folder, part):
    shutil.rmtree(folder / part)
    assert str(folder / part) in refusal(lambda: component(model.kind(folder), part))


def test_absent_tokenizer_is_rejected(model, folder):
    for name in ("vocab.json", "tokenizer_config.json"):
        (folder / model.tokenizer / name).unlink()
        assert str(folder / model.tokenizer) in refusal(model.kind(folder).tokenizer)
    shutil.rmtree(folder / model.tokenizer)
    assert str(folder / model.tokenizer) in refusal(model.kind(folder).tokenizer)


# --- files that are those of something else

PIPELINES = (
    *("QwenImageEditPipeline", "QwenImageEditPlusPipeline", "QwenImageLayeredPipeline", "QwenImageImg2ImgPipeline"),
    *("QwenImageControlNetPipeline", "FluxPipeline", "ZImagePipeline"),
)
SCHEDULERS = (
    *("UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "FlowMatchHeunDiscreteScheduler"),
    *("FlowMatchLCMScheduler", "FlowMapEulerDiscreteScheduler", "EulerDiscreteScheduler"),
)


@pytest.mark.parametrize("name", PIPELINES)
def test_another_pipeline_is_refused_by_name(model, folder, name):
    edit(folder / "model_index.json", _class_name=name)
    message = refusal(lambda: model.kind(folder))
    assert str(folder / "model_index.json") in message
    assert name in message
    assert f"expected {model.pipeline}" in message


@pytest.mark.parametrize("part", ["tokenizer", "scheduler", *PARTS])
def test_a_component_of_another_class_in_the_index_is_refused_by_name(model, folder, part):
    part = model.tokenizer if part == "tokenizer" else part
    index = folder / "model_index.json"
    before = index.read_text()
    for entry, named in ((["diffusers", "Other"], "Other"), ([None, "Own"], "Own"), ("Other", "Other"), (3, "3")):
        edit(index, **{part: entry})
        message = refusal(lambda: model.kind(folder))
        assert str(index) in message
        assert f"{part} is" in message
        assert named in message
        index.write_text(before)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_another_scheduler_is_refused_by_name(model, folder, name):
    index, file = folder / "model_index.json", folder / CONFIGS["scheduler"]
    before = index.read_text()
    edit(index, scheduler=["diffusers", name])  # which diffusers believes, whatever the scheduler's own file says
    assert name in refusal(lambda: model.kind(folder))
    index.write_text(before)
    edit(file, _class_name=name)
    message = refusal(lambda: model.kind(folder).scheduler())
    assert str(file) in message
    assert name in message
    assert "FlowMatchEulerDiscreteScheduler" in message


@pytest.mark.parametrize(
    ("model", "part", "values", "named"),
    [
        *of_both(
            ("transformer", {"_class_name": ["code", "Own"]}, "['code', 'Own']"),
            ("vae", {"_class_name": "AutoencoderKLWan"}, "AutoencoderKLWan"),
            ("text_encoder", {"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
            ("text_encoder", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ),
        *of(
            V1,
            ("transformer", {"_class_name": "QwenImage21Transformer2DModel"}, "QwenImage21Transformer2DModel"),
            ("vae", {"_class_name": "AutoencoderKLQwenImage21"}, "AutoencoderKLQwenImage21"),
            ("text_encoder", {"model_type": "qwen3_vl"}, "qwen3_vl"),
        ),
        *of(
            V21,
            ("transformer", {"_class_name": "QwenImageTransformer2DModel"}, "QwenImageTransformer2DModel"),
            ("vae", {"_class_name": "AutoencoderKLQwenImage"}, "AutoencoderKLQwenImage"),
            ("text_encoder", {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}, "Qwen2_5_VLForCond"),
        ),
    ],
    indirect=["model"],
)
def test_other_classes_are_refused_by_name(model, folder, part, values, named):
    edit(folder / CONFIGS[part], **values)
    message = refusal(lambda: component(model.kind(folder), part))
    assert str(folder / CONFIGS[part]) in message
    assert named in message


@pytest.mark.parametrize(("asked", "given"), [(V1, V21), (V21, V1)])
@pytest.mark.parametrize("command", ["run", slow("models")])
def test_the_other_model_says_which_option_reads_it(asked, given, command, request, tmp_path, capsys):
    folder = request.getfixturevalue(MODELS[given].fixture)
    arguments = {
        "run": ["run", f"model={asked}", f"model.path={folder}", f"out={tmp_path}/out"],
        "models": ["models", f"model={asked}", f"from={folder}", "technique=[affine4]", f"to={tmp_path}/out"],
    }[command]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"a checkpoint of {MODELS[given].pipeline}, expected {MODELS[asked].pipeline}" in line
    assert f"model={given} model.path=DIR reads it" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("{tokenizer}", None, "{tokenizer}"),
        ("transformer/diffusion_pytorch_model.safetensors", b"cut", "diffusion_pytorch_model.safetensors"),
        slow(("vae/config.json", b'{"_class_name": "AutoencoderKLWan"}', "AutoencoderKLWan")),
        slow(("text_encoder/config.json", b'{"model_type": "llama"}', "llama")),
        slow(("model_index.json", b'{"_class_name": "FluxPipeline"}', "FluxPipeline")),
    ],
)
def test_a_command_on_a_broken_folder_ends_with_code_2(model, folder, tmp_path, capsys, name, content, named):
    path = folder / name.format(tokenizer=model.tokenizer)
    shutil.rmtree(path) if content is None else path.write_bytes(content)
    reader = next(option for option, each in MODELS.items() if each is model)
    assert main([f"model={reader}", f"model.path={folder}", f"out={tmp_path}/out"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) <= 2
    assert named.format(tokenizer=model.tokenizer) in " ".join(lines)
    assert not (tmp_path / "out").exists()
