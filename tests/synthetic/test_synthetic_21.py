"""Generated checkpoints of Qwen-Image-2.1: sizes, loading by diffusers and transformers, and what the weights do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import diffusers
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from precision_lab.errors import InputError
from precision_lab.model.text_to_image.scheduler import SchedulerConfig
from precision_lab.synthetic import PRESETS, make
from precision_lab.synthetic.checkpoint import weight_bytes
from precision_lab.synthetic.qwen_image_21.text_encoder import VisionConfig
from precision_lab.synthetic.tensors import Source
from tests.synthetic.test_synthetic_checkpoint import same_files, stored, warnings_of_loaders

MICRO, FULL = PRESETS["micro_21"], PRESETS["full_21"]
SMALL = replace(MICRO, transformer=replace(MICRO.transformer, num_layers=3))
TURBO = (1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568)
MODELS = {
    "transformer": diffusers.QwenImage21Transformer2DModel,
    "vae": diffusers.AutoencoderKLQwenImage21,
    "text_encoder": transformers.Qwen3VLForConditionalGeneration,
}
needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="Qwen3VLProcessor needs torchvision")


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "micro_21"
    make(MICRO, folder)
    return folder


def load(folder: Path, part: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return MODELS[part].from_pretrained(folder, subfolder=part, dtype=dtype).eval()


def test_the_folder_is_complete_and_small(micro: Path) -> None:
    files = {str(path.relative_to(micro)) for path in micro.rglob("*") if path.is_file()}
    assert files == {
        *("README.md", "model_index.json", "scheduler/scheduler_config.json"),
        *(f"processor/{name}" for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.jinja")),
        *("processor/preprocessor_config.json", "processor/video_preprocessor_config.json"),
        *("text_encoder/config.json", "text_encoder/model.safetensors"),
        *("transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"),
        *("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    }
    assert sum((micro / name).stat().st_size for name in files) <= 8 * 2**20


def test_full_has_the_published_names_shapes_and_sizes() -> None:
    shapes = {part: {t.name: t.shape for t in tensors} for part, tensors in FULL.tensors(Source(0)).items()}

    def count(part: str, of: str = "") -> int:
        return sum(math.prod(shape) for name, shape in shapes[part].items() if name.startswith(of))

    assert count("transformer") == 7_115_124_736
    assert count("text_encoder", "model.language_model.") == 7_568_405_504
    assert count("vae") == 337_740_404
    assert weight_bytes(FULL) == pytest.approx(32.44e9, rel=1e-3)
    with torch.device("meta"):
        for part in ("transformer", "vae"):
            reference = MODELS[part]().state_dict()
            assert shapes[part] == {name: tuple(value.shape) for name, value in reference.items()}
        config = transformers.Qwen3VLConfig(**FULL.configs()["text_encoder/config.json"])
        reference = MODELS["text_encoder"](config).state_dict()
        assert shapes["text_encoder"] == {name: tuple(value.shape) for name, value in reference.items()}


def test_transformer_is_the_published_one_with_a_small_text_encoder() -> None:
    shape = PRESETS["transformer_21"]
    assert (shape.transformer, shape.vae, shape.scheduler) == (FULL.transformer, FULL.vae, FULL.scheduler)
    assert shape.text_encoder.hidden_size == FULL.transformer.context_in_dim
    assert weight_bytes(shape) == pytest.approx(15.3e9, rel=1e-3)
    assert "**a small stand-in** for the published 36 layers" in shape.card(0, None)


OTHERS = {
    "micro": MICRO,
    "odd widths": replace(
        SMALL,
        transformer=replace(
            SMALL.transformer,
            num_attention_heads=3,
            attention_head_dim=20,
            axes_dims_rope=(4, 8, 8),
            context_in_dim=48,
            mlp_ratio=2,
        ),
        text_encoder=replace(SMALL.text_encoder, hidden_size=48, num_attention_heads=4, num_key_value_heads=1),
    ),
    "other vae and vision": replace(
        SMALL,
        vae=replace(SMALL.vae, base_dim=6, decoder_base_dim=None, num_res_blocks=2),
        vision=VisionConfig(
            depth=3, hidden_size=16, intermediate_size=24, num_heads=2, num_position_embeddings=16,
            deepstack_visual_indexes=(0, 2),
        ),
    ),
    "shards": replace(SMALL, max_shard_bytes=100_000),
}  # fmt: skip


@pytest.mark.parametrize("shape", OTHERS.values(), ids=OTHERS)
def test_each_component_loads_without_missing_or_unknown_tensors(tmp_path: Path, shape) -> None:
    make(shape, tmp_path / "generated")
    for part, kind in MODELS.items():
        with warnings_of_loaders() as messages:
            _, info = kind.from_pretrained(tmp_path / "generated", subfolder=part, output_loading_info=True)
        assert not any(info.values()), info
        assert messages == []


def test_weights_are_bf16_and_fit_fp16(micro: Path) -> None:
    for part in MODELS:
        for name, value in stored(micro / part).items():
            assert value.dtype == ml_dtypes.bfloat16, name
            assert np.abs(value.astype(np.float32)).max() <= 64, name


@needs_torchvision
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_pipeline_denoises_in_bounds(micro: Path, dtype: torch.dtype) -> None:
    rms = []

    def keep(pipeline: object, step: int, t: object, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rms.append(state["latents"].float().square().mean().sqrt().item())
        return state

    with warnings_of_loaders() as messages:
        pipeline = diffusers.QwenImage21Pipeline.from_pretrained(micro, dtype=dtype)
    assert messages == []
    assert pipeline.config.sample_sigmas is None
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "two red circles on a blue background",
        negative_prompt=" ",
        true_cfg_scale=3.0,
        num_inference_steps=4,
        height=96,
        width=160,
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=keep,
        output_type="np",
    ).images[0]
    assert len(rms) == 4
    assert all(0.3 < value < 5 for value in rms)
    assert image.shape == (96, 160, 4)
    assert (image.std((0, 1)) > 0.05).all()
    assert ((image > 0) & (image < 1)).mean() > 0.8


def used(model: torch.nn.Module, result: Callable[[torch.nn.Module], torch.Tensor], unused: tuple[str, ...]) -> None:
    """Fails unless every parameter but the `unused` ones changes the result."""
    result(model).square().sum().backward()
    for name, parameter in model.named_parameters():
        if not any(part in name for part in unused):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.norm() * parameter.norm() > 1e-4, name


def test_every_weight_of_the_transformer_matters(micro: Path) -> None:
    def velocity(model: torch.nn.Module) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        latents, text = (torch.randn(2, n, 64, generator=generator) for n in (24, 7))
        slots = torch.cat([torch.zeros(2, 7, dtype=torch.bool), torch.ones(2, 6, dtype=torch.bool)], dim=1)
        out = model(latents, text, torch.tensor([0.7, 0.2]), [[(1, 4, 6)]] * 2, slots, return_dict=False)[0]
        assert 0.5 < out[:, 7:].square().mean().sqrt() < 2
        return out[:, 7:]

    used(load(micro, "transformer"), velocity, ())


def test_every_weight_of_the_language_body_matters(micro: Path) -> None:
    def states(model: torch.nn.Module) -> torch.Tensor:
        body = model.model.language_model
        kept = []
        handle = body.norm.register_forward_hook(lambda module, args, output: kept.append(args[0]))
        body(input_ids=torch.arange(300, 330)[None])
        handle.remove()
        assert 1 < kept[0].square().mean().sqrt() < 2
        return kept[0]

    used(load(micro, "text_encoder"), states, ("visual.", "lm_head", "language_model.norm."))


def test_every_weight_of_the_vae_matters(micro: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 4, 1, 64, 96, generator=generator) * 2 - 1

    def moments(model: torch.nn.Module) -> torch.Tensor:
        return model.encode(pixels).latent_dist.parameters

    def decoded(model: torch.nn.Module) -> torch.Tensor:
        std, mean = (torch.tensor(model.config[f"latents_{key}"])[:, None, None, None] for key in ("std", "mean"))
        out = model.decode(torch.randn(1, 64, 1, 4, 6, generator=generator) * std + mean).sample
        assert 0.1 < out.std() < 0.6
        return out

    used(load(micro, "vae"), moments, ("decoder.", "post_quant_conv.", "time_conv."))
    used(load(micro, "vae"), decoded, ("encoder.", "quant_conv.", "time_conv."))


def test_seed_and_shape_determine_every_byte_for_any_number_of_workers(tmp_path: Path) -> None:
    for name, seed, workers in (("a", 5, 1), ("b", 5, 7), ("c", 6, 2)):
        make(replace(SMALL, max_shard_bytes=300_000), tmp_path / name, seed, workers=workers)
    assert same_files(tmp_path / "a", tmp_path / "b")
    a, c = (stored(tmp_path / name / "transformer") for name in "ac")
    assert a.keys() == c.keys()
    assert not any(np.array_equal(a[name], c[name]) for name in a)


def test_a_block_does_not_depend_on_depth(micro: Path, tmp_path: Path) -> None:
    make(SMALL, tmp_path / "small")
    deep, shallow = (stored(folder / "transformer") for folder in (micro, tmp_path / "small"))
    for name, value in shallow.items():
        np.testing.assert_array_equal(value, deep[name])


def test_the_chunks_of_the_modulation_differ(micro: Path) -> None:
    weight = stored(micro / "transformer")["modulation.1.weight"].astype(np.float32)
    chunks = np.split(weight, 4)
    assert not any(np.array_equal(a, b) for i, a in enumerate(chunks) for b in chunks[:i])


def test_the_card_says_that_growth_is_not_forced(micro: Path) -> None:
    card = (micro / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    for text in ("Qwen/Qwen-Image-2.1", "do not force\nactivations to grow", "seed: 0", "QwenImage21Pipeline"):
        assert text in card
    assert "stand-in" not in card
    assert json.loads((micro / "model_index.json").read_text())["_weights"] == "synthetic"


def test_a_shape_may_state_noise_levels(tmp_path: Path) -> None:
    make(replace(SMALL, sample_sigmas=TURBO, scheduler=SchedulerConfig()), tmp_path / "turbo")
    assert json.loads((tmp_path / "turbo/model_index.json").read_text())["sample_sigmas"] == list(TURBO)
    assert not json.loads((tmp_path / "turbo/scheduler/scheduler_config.json").read_text())["use_dynamic_shifting"]


def test_errors_name_the_impossible_setting(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="vocab_size 300, but the tokenizer has"):
        make(replace(SMALL, text_encoder=replace(SMALL.text_encoder, vocab_size=300)), tmp_path / "out")
    with pytest.raises(InputError, match="context_in_dim 32, but text_encoder hidden_size 64"):
        replace(MICRO, transformer=replace(MICRO.transformer, context_in_dim=32))
    for key in ("in_channels", "out_channels"):
        with pytest.raises(InputError, match=f"{key} 32"):
            replace(MICRO, transformer=replace(MICRO.transformer, **{key: 32}))
    with pytest.raises(InputError, match="expected blocks below depth 2"):
        VisionConfig(depth=2)
