"""Adapters against peft on the transformer of diffusers, live and fused, one and several."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from peft import LoKrConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from precision_lab.cli.paths import checkpoints_dir
from precision_lab.model.adapters.adapter import read_adapter
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.techniques.base import applied
from precision_lab.techniques.lora import LoRA
from precision_lab.techniques.lora_fused import FusedLoRA
from tests.model.adapters.peft_oracle import ATTENTION, FEED_FORWARD, WRITERS, Drawn, written
from tests.model.oracle import TORCH, copy_of, ours, random_inputs, random_transformer, reference, relative_l2, rounded

FP32 = 1e-5
"""The bound of the plain model; measured: 5e-7."""


def outputs(transformer, inputs, *techniques, dtype=mx.float32):
    with applied({"transformer": transformer}, {f"t{i}": technique for i, technique in enumerate(techniques)}):
        return ours(transformer, inputs, dtype)


@pytest.mark.parametrize("writer", WRITERS)
def test_an_adapter_equals_peft_under_every_naming(writer, tmp_path):
    seed = WRITERS.index(writer)
    rng = np.random.default_rng(seed)
    model = random_transformer(seed, layers=2)
    drawn = Drawn(
        seed,
        (*ATTENTION, *FEED_FORWARD),
        rslora=seed % 2 == 1,
        ranks={"img_in": 2},
        alphas={"to_q": 1.5, "img_mod.1": 9.0},
    )
    transformer, inputs = copy_of(model), random_inputs(rng, (4, 3), batch=2)
    plain = reference(model, inputs)
    drawn.add(model)
    expected = reference(model, inputs)
    path = str(written(drawn, drawn.tensors(model), writer, tmp_path))
    assert relative_l2(plain, expected) > 0.01
    for technique in (LoRA(path), FusedLoRA(path)):
        assert relative_l2(outputs(transformer, inputs, technique), expected) <= FP32


def test_a_file_of_diffusers_own_writer_is_read(tmp_path):
    model = random_transformer(20, layers=2)
    drawn = Drawn(20, rank=3, alpha=5, ranks={"to_q": 2}, alphas={"to_k": 7})
    transformer, inputs = copy_of(model), random_inputs(np.random.default_rng(20), (4, 3))
    drawn.add(model)
    QwenImagePipeline.save_lora_weights(
        tmp_path / "pipeline",
        transformer_lora_layers=drawn.tensors(model),
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )
    model.save_lora_adapter(tmp_path / "model")
    for folder in ("pipeline", "model"):
        result = outputs(transformer, inputs, LoRA(str(tmp_path / folder)))
        assert relative_l2(result, reference(model, inputs)) <= FP32


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize("seed", range(3))
def test_two_at_once_with_different_strengths_equal_peft(seed, tmp_path):
    rng = np.random.default_rng(30 + seed)
    model = random_transformer(30 + seed, layers=2)
    transformer, inputs = copy_of(model), random_inputs(rng, (3, 5), batch=2, lengths=(11, 6))
    adapters = {"one": Drawn(seed, ATTENTION, rank=2), "two": Drawn(50 + seed, ("to_q", *FEED_FORWARD), alpha=3)}
    strengths = [float(x) for x in rng.uniform(-1.5, 1.5, 2)]
    paths = []
    for name, drawn in adapters.items():
        drawn.add(model, name)
        paths.append(str(written(drawn, drawn.tensors(model, name), "kohya", tmp_path / name)))
    model.set_adapters(list(adapters), strengths)
    expected = reference(model, inputs)
    pairs = list(zip(paths, strengths, strict=True))
    for techniques in (
        [LoRA(paths, strengths)],
        [LoRA(*pair) for pair in pairs],
        [FusedLoRA(paths, strengths)],
        [FusedLoRA(*pairs[0]), LoRA(*pairs[1])],
    ):
        assert relative_l2(outputs(transformer, inputs, *techniques), expected) <= FP32
    model.fuse_lora()
    assert relative_l2(outputs(transformer, inputs, FusedLoRA(paths, strengths)), reference(model, inputs)) <= FP32


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("kind", [LoRA, FusedLoRA])
def test_in_16_bits_the_error_is_that_of_torch(dtype, kind, tmp_path):
    model = random_transformer(40, layers=3).to(TORCH[dtype])
    transformer, inputs = copy_of(model), rounded(random_inputs(np.random.default_rng(40), (5, 4), batch=2), dtype)
    drawn = Drawn(40, (*ATTENTION, *FEED_FORWARD), spread=1.0)
    drawn.add(model)
    assert next(p for name, p in model.named_parameters() if "lora_A" in name).dtype == TORCH[dtype]
    path = str(written(drawn, drawn.tensors(model), "comfyui", tmp_path))
    exact = reference(model.to(torch.float32), inputs)
    model = model.to(TORCH[dtype])
    if kind is FusedLoRA:
        model.fuse_lora()
    theirs = relative_l2(reference(model, inputs), exact)
    assert relative_l2(outputs(transformer, inputs, kind(path), dtype=dtype), exact) <= 1.25 * theirs


@pytest.mark.slow
def test_the_embedded_model_with_an_adapter_equals_diffusers(tmp_path):
    folder = checkpoints_dir() / "micro"
    model = QwenImageTransformer2DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=torch.float32)
    drawn = Drawn(60, ("to_q", "add_v_proj", "img_mlp.net.2", "txt_mod.1"), spread=0.5)
    transformer, inputs = (
        Checkpoint(folder).transformer(mx.float32),
        random_inputs(np.random.default_rng(60), (6, 5), text_width=64, timestep=0.5),
    )
    plain = reference(model, inputs)
    drawn.add(model)
    path = str(written(drawn, drawn.tensors(model), "peft", tmp_path))
    expected = reference(model, inputs)
    assert relative_l2(plain, expected) > 0.01
    assert relative_l2(outputs(transformer, inputs, LoRA(path)), expected) <= FP32
    transformer.set_dtype(mx.float32)  # the sum would round to the stored bfloat16
    assert relative_l2(outputs(transformer, inputs, FusedLoRA(path)), expected) <= FP32


@pytest.mark.parametrize("both", [False, True])
def test_lokr_equals_peft(both, tmp_path):
    model = random_transformer(70, layers=1)
    transformer, inputs = copy_of(model), random_inputs(np.random.default_rng(70), (4, 3))
    config = LoKrConfig(r=2, alpha=5, target_modules=["to_q", "img_mlp.net.2"], decompose_both=both, init_weights=False)
    torch.manual_seed(70)
    inject_adapter_in_model(config, model)
    expected = reference(model, inputs)
    tensors = get_peft_model_state_dict(model, adapter_name="default")
    tensors = {key.removeprefix("base_model.model."): value.contiguous() for key, value in tensors.items()}
    assert any(key.endswith("lokr_w1_a") for key in tensors) == both
    save_file(
        {f"base_model.model.{key}": value for key, value in tensors.items()}, tmp_path / "adapter_model.safetensors"
    )
    config.save_pretrained(tmp_path)
    assert read_adapter(str(tmp_path)).writer == "PEFT"
    for technique in (LoRA(str(tmp_path)), FusedLoRA(str(tmp_path))):
        assert relative_l2(outputs(transformer, inputs, technique), expected) <= FP32
